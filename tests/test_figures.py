"""Figures: what is drawn agrees with the record, and any text can be drawn."""

import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from assay.errors import StoreError, UsageError
from assay.records import TaskSummary
from assay.report.cells import RAMP, colour, grid, scale_of, top_cells, visible
from assay.report.figures import (
    accuracy_interval,
    bar_table,
    curve,
    figure_svg,
    forest_plot,
    heat_map,
    save_figure,
)
from report_records import HOSTILE, TOKENS, refuted, supported, sweep, tasks, undecided

SHAPES = {"positions": (30, 16), "heads": (30, 9), "neurons": (1, 1536), "wide": (12, 512), "one": (1, 14)}
pytestmark = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # files that other tests left open are not its own


@pytest.mark.parametrize("name", SHAPES)
def test_heat_maps_of_every_shape_are_drawn_and_saved(name, tmp_path):
    figure = heat_map(sweep(*SHAPES[name], axis=name if name in ("heads", "neurons") else "positions"))
    png, svg = save_figure(figure, tmp_path / "a" / "map.png"), save_figure(figure, tmp_path / "map.svg")
    assert imread(png).std() > 0.01 and ET.parse(svg).getroot().tag.endswith("svg")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    (tmp_path / "plain").touch()
    assert png.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_picture_shows_the_record():
    result = sweep(holes=True)
    axes = heat_map(result, TOKENS).axes[0]
    shown = np.ma.filled(axes.images[0].get_array(), math.nan)
    np.testing.assert_array_equal(shown, grid(result))
    assert [label.get_text() for label in axes.get_xticklabels()][2] == "2 ␣Mary"
    assert "0 = no effect (corrupted), 1 = fully restored (clean)" in axes.get_title(loc="left")


@pytest.mark.parametrize("direction, centre", [("denoise", 0.0), ("noise", 1.0)])
def test_colours_are_symmetric_about_the_run_that_was_patched(direction, centre):
    result = sweep(direction=direction)
    low, high = heat_map(result).axes[0].images[0].get_clim()
    assert (low + high) / 2 == pytest.approx(centre) and high - centre >= 1
    assert scale_of(result).share(centre) == 0.5


def test_a_weak_sweep_gets_a_smaller_scale_and_says_so():
    figure = heat_map(sweep(30, 9, "heads", peak=0.1))
    assert figure.axes[0].images[0].get_clim() == (-0.05, 0.05)
    assert "colours end at -0.05 and 0.05" in figure.axes[0].get_title(loc="left")


def test_many_columns_keep_readable_labels():
    labels = heat_map(sweep(12, 512)).axes[0].get_xticklabels()
    assert 20 <= len(labels) <= 48


def test_top_cells_match_a_plain_sort_and_skip_holes():
    result = sweep(holes=True)
    every = [(abs(v), layer, c) for layer, row in zip(result.layers, result.effect)
             for c, v in zip(result.columns, row) if not math.isnan(v)]  # fmt: skip
    expected = [(layer, column) for _, layer, column in sorted(every, key=lambda cell: -cell[0])[:7]]
    assert [(cell.layer, cell.column) for cell in top_cells(result, 7)] == expected


def test_a_sweep_read_back_from_json_has_none_for_nan():
    result = sweep(holes=True)
    rows = json.loads(json.dumps(result.effect).replace("NaN", "null"))
    again = type(result)(**{**result.__dict__, "effect": rows})
    np.testing.assert_array_equal(grid(again), grid(result))
    heat_map(again)


def test_nothing_measured_is_still_a_picture():
    result = sweep(3, 4)
    empty = [[math.nan] * 4 for _ in range(3)]
    assert heat_map(type(result)(**{**result.__dict__, "effect": empty})).axes
    assert forest_plot(undecided()).axes and bar_table([]).axes


def test_wrong_number_of_tokens_is_refused():
    with pytest.raises(UsageError, match="tokens: got 3; allowed: 16 tokens"):
        heat_map(sweep(), ["a", "b", "c"])


@pytest.mark.parametrize("text", [HOSTILE, "$x$", "日本語🙂", "\u202eabc", "a\nb", "$\\"])
def test_any_text_can_be_drawn(text):
    figure_svg(heat_map(sweep(3, 4, task=text), [text] * 4))
    figure_svg(forest_plot({**refuted(), "gates": [{**refuted()["gates"][0], "name": text}]}))
    figure_svg(curve([0, 1], {text: [0, 1]}, title=text, xlabel=text))
    figure_svg(bar_table([TaskSummary(text, 0, {}, 0.0, 0.0, 0.0, 0.0, 0)]))


def test_visible_marks_what_cannot_be_seen():
    assert visible(" a\n\x1b[0m") == "␣a⏎�[0m" and visible("x" * 99) == "x" * 23 + "…"


def test_forest_plot_shows_estimates_intervals_and_bars():
    axes = forest_plot(refuted()).axes[0]
    drawn = {tuple(np.round(line.get_xdata(), 6)) for line in axes.lines}
    for gate in refuted()["gates"]:
        assert (round(gate["low"], 6), round(gate["high"], 6)) in drawn
        assert (gate["estimate"],) in drawn and (gate["sesoi"], gate["sesoi"]) in drawn
    assert "behaviour" not in [t.get_text() for t in forest_plot(supported()).axes[0].get_yticklabels()]


def test_accuracy_interval_is_wilsons():
    from scipy.stats import binomtest

    for task in tasks():
        exact = binomtest(round(task.accuracy * task.n_pairs), task.n_pairs).proportion_ci(method="wilson")
        got = accuracy_interval(TaskSummary(**{**task.__dict__,
                                "accuracy": round(task.accuracy * task.n_pairs) / task.n_pairs}))  # fmt: skip
        assert got == pytest.approx((exact.low, exact.high), abs=1e-6)


def test_saving_is_atomic_and_only_png_and_svg(tmp_path, monkeypatch):
    target = tmp_path / "map.png"
    target.write_bytes(b"old")
    monkeypatch.setattr("os.replace", _fail)
    with pytest.raises(StoreError, match="disk"):
        save_figure(bar_table(tasks()), target)
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        save_figure(Figure(), tmp_path / "map.exe")


def _fail(*_):
    raise OSError("disk")


def test_themed_svg_takes_colours_from_the_page_and_keeps_ids_apart():
    one, two = (figure_svg(forest_plot(refuted()), themed=True, name=name) for name in ("a b", "c"))
    assert one.startswith("<svg ") and "var(--bad)" in one and "#b23a1e" not in one
    ids = [set(_ids(ET.fromstring(text))) for text in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    for text, found in zip((one, two), ids):
        root = ET.fromstring(text)
        links = {e.get("{http://www.w3.org/1999/xlink}href") for e in root.iter()} - {None}
        assert {link[1:] for link in links if link.startswith("#")} <= found


def _ids(root):
    return [element.get("id") for element in root.iter() if element.get("id")]


def test_same_record_gives_the_same_picture():
    assert figure_svg(heat_map(sweep())) == figure_svg(heat_map(sweep()))


def test_ramp_runs_from_blue_over_pale_to_orange():
    assert (colour(0), colour(1), colour(0.5)) == (RAMP[0], RAMP[-1], RAMP[4]) and colour(math.nan) == "#d9d9d6"
