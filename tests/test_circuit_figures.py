"""Pictures of circuits: what is drawn is what the record holds, still, as curves and in a real browser."""

import itertools
import json
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch

import test_browser
from assay.app.verbs.circuit import circuit_blocks
from assay.circuits.faithfulness import faithfulness_of
from assay.circuits.formats import Circuit
from assay.circuits.graph import make_graph
from assay.errors import UsageError
from assay.report.circuit_figures import (
    BOX,
    DOWN,
    TALL,
    THICK,
    UP,
    WIDTH,
    RandomCircuits,
    circuit_figure,
    circuit_page,
    drawing,
    edge_rows,
    faithfulness_figure,
    node_rows,
    page_data,
)
from assay.report.figures import save_figure
from report_records import HOSTILE

pytestmark = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # files that other tests left open are not its own


def made(layers=5, heads=6, kv=2, n=40, seed=0, **more) -> Circuit:
    """The n strongest of random scores, heavy tails, both signs."""
    graph = make_graph(heads, kv, [False] * layers)
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(graph.exists.shape, generator=rng) ** 3 * graph.exists
    bar = scores.abs().flatten().topk(n).values[-1]
    return Circuit(graph, graph.exists & (scores.abs() >= bar), scores, **more)


def planted(**more) -> Circuit:
    """Two paths: embed -> 0.3 -> (shared key) 1.0 -> logits, and embed -> mlp 0 -> logits with a negative end."""
    graph = make_graph(4, 2, [False, False])
    edges = {"embed->v.0.1": 0.5, "z.0.3->k.1.0": 2.0, "z.1.0->logits": 4.0, "embed->mlp_in.0": 0.25, "mlp_out.0->logits": -1.0}
    scores = torch.zeros(graph.exists.shape)
    for edge, score in edges.items():
        scores[graph.edge(edge)] = score
    return Circuit(graph, graph.mask(edges), scores, **more)


def curves(templates=12):
    rng = np.random.default_rng(0)
    clean, empty = rng.normal(4, 1, 24), rng.normal(-3, 1, 24)
    f = np.array([0.1, 0.5, 1.1])
    scores = empty + f[:, None] * (clean - empty)
    names = [f"t{i % templates}" for i in range(24)]
    beside = ({"kl": np.outer([2.5, 1, 0.25], np.ones(24)), "agree": np.outer([0, 0.5, 1], np.ones(24))}, {})
    return [faithfulness_of(scores, clean, empty, names, n_edges=[1, 10, 100], n_all=1000, selection="by |score|",
                            ablation=ablation, **more) for ablation, more in zip(("resample", "zero"), beside, strict=True)]


# the graph ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("circuit", "most"), [
    (planted(), 60), (made(), 60), (made(30, 9, 3, 300), 200), (made(2, 32, 32, 200), 200), (made(2, 8, 8, 5), 60)],
    ids=["planted", "small", "smollm", "one wide row", "five"])  # fmt: skip
def test_boxes_do_not_touch_and_lines_join_their_ends(circuit, most):
    plan = drawing(circuit, most)
    boxes = {node.name: node for node in plan.nodes}
    for a in plan.nodes:
        assert BOX / 2 <= a.x <= WIDTH - BOX / 2 and TALL / 2 <= a.y <= plan.height
        for b in plan.nodes:
            if a != b and abs(a.y - b.y) < TALL:
                assert abs(a.x - b.x) >= BOX
    for link in (*plan.links, *plan.inside):
        (x0, y0), (x1, y1) = link.points[0], link.points[-1]
        source, target = boxes[link.source], boxes[link.target]
        assert y1 < y0 and (x0, y0) == (source.x, source.y - TALL / 2)
        assert abs(x1 - target.x) < BOX / 2 and y1 == target.y + TALL / 2


def test_a_key_that_heads_share_is_one_box_joined_to_the_head_it_feeds():
    plan = drawing(planted())
    joins = {link.edge: (link.source, link.target) for link in plan.links}
    assert joins["z.0.3->k.1.0"] == ("z.0.3", "kv.1.0") and joins["embed->v.0.1"] == ("embed", "kv.0.1")
    assert {(link.source, link.target) for link in plan.inside} == {("kv.1.0", "z.1.0"), ("kv.0.1", "z.0.3")}
    alone = made(kv=6)
    assert not any(node.kind == "kv" for node in drawing(alone).nodes)


def test_width_colour_and_dashes_follow_the_score():
    circuit = planted()
    axes = circuit_figure(circuit).axes[0]
    lines = [p for p in axes.patches if isinstance(p, PathPatch) and to_hex(p.get_edgecolor()) in (UP, DOWN)]
    widths = sorted(line.get_linewidth() for line in lines)
    assert widths[-1] == THICK and len(lines) == 5
    down = [line for line in lines if to_hex(line.get_edgecolor()) == DOWN]
    assert len(down) == 1 and down[0].get_linestyle() != "-" and down[0].get_linewidth() == widths[2]
    words = [text.get_text() for text in axes.texts]
    assert "positive: carries the behaviour" in words and "negative: works against it" in words
    assert "|score| 4" in words and "All 5 edges of the circuit." in words


def test_classes_of_positions_are_columns_with_headings_in_every_picture(tmp_path):
    graph = make_graph(9, 3, [False] * 4, ["subject", "rest", "end"])
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(graph.exists.shape, generator=rng) ** 3 * graph.exists
    inside = torch.tensor(["@rest" not in str(site) for site in graph.writers])
    kept = scores.abs() * inside[:, None] * torch.tensor(["@rest" not in str(site) for site in graph.readers])
    held = Circuit(graph, kept >= kept.flatten().topk(120).values[-1], scores)
    plan = drawing(held, 120)
    (subject, _, a), (rest, _, b), (end, _, c) = plan.columns
    assert (subject, end, c) == ("@subject", "@end", pytest.approx(WIDTH, abs=2.1)) and rest.startswith("@")
    assert 60 < b - a < (c - b) / 2  # nothing stands there, so it takes little
    edges = {"subject": (0, a), "end": (b, c)}
    for node in plan.nodes:
        low, high = edges[node.name.partition("@")[2] or "end"]
        assert low < node.x - BOX / 2 and node.x + BOX / 2 < high
    for first, second in itertools.combinations(plan.nodes, 2):
        assert abs(first.x - second.x) >= BOX or abs(first.y - second.y) >= TALL
    assert all(0 <= x <= WIDTH for link in plan.links for x, _ in link.points[::3])
    assert page_data(plan)["columns"] == [[name, round(middle, 1), round(right, 1)] for name, middle, right in plan.columns]
    written = save_figure(circuit_figure(held), tmp_path / "at.svg").read_text()
    assert written.count("@subject") >= 2 and written.count("@end") >= 2  # above and below
    picture = next(block for block in circuit_blocks(held) if block["type"] == "graph")
    assert picture["positions"] == ["subject", "rest", "end"]
    placed = {(node["id"].partition("@")[2] or "end", node["position"]) for node in picture["nodes"]}
    assert placed == {("subject", 0), ("end", 2)}


def test_the_strongest_are_drawn_and_the_rest_is_counted():
    circuit = made(n=40)
    plan = drawing(circuit, 10)
    sizes = circuit.scores[circuit.mask].abs().sort(descending=True).values
    assert [abs(link.score) for link in plan.links] == pytest.approx(sizes[:10].tolist())
    assert plan.words == f"The 10 strongest of 40 edges; 30 with |score| up to {sizes[10]:.3g} are not shown."


def test_edges_without_a_score_are_grey_and_last():
    circuit = planted()
    circuit.scores[circuit.graph.edge("embed->mlp_in.0")] = math.nan
    last = drawing(circuit).links[-1]
    assert last.edge == "embed->mlp_in.0" and last.score is None and last.sign == 0
    assert edge_rows(drawing(circuit))[-1]["score"] == "–" and "without a score" in drawing(circuit, 4).words
    assert "no score" in [text.get_text() for text in circuit_figure(circuit).axes[0].texts]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_pictures_are_saved(suffix, tmp_path):
    path = save_figure(circuit_figure(made(task=HOSTILE, model="a $x$"), 40), tmp_path / f"c{suffix}")
    assert path.stat().st_size > 5000
    if suffix == ".svg":
        ET.parse(path)


def test_what_cannot_be_drawn_says_why():
    circuit = planted()
    with pytest.raises(UsageError, match="circuit: got 'no edges'"):
        circuit_figure(Circuit(circuit.graph, torch.zeros_like(circuit.mask), circuit.scores))
    with pytest.raises(UsageError, match="most: got 0"):
        circuit_figure(circuit, 0)
    with pytest.raises(UsageError, match="curves: got 'none'"):
        faithfulness_figure([])
    with pytest.raises(UsageError, match="one list for each of 2 shares"):
        faithfulness_figure(curves(), RandomCircuits("matched", [0.1, 0.2], [[0.0]]))


# curves ------------------------------------------------------------------------------------------


def test_curves_show_points_intervals_references_and_the_band():
    found = curves()
    random = RandomCircuits("matched", [0.001, 0.01, 0.1], [[0.0, 0.2], [0.1, 0.1], [-0.2, 0.0]])
    axes = faithfulness_figure(found, random).axes[0]
    assert axes.get_xscale() == "log"
    lines = {line.get_label(): line for line in axes.lines}
    for curve in found:
        line = lines[f"{curve.ablation} ablation, by |score|"]
        assert list(line.get_xdata()) == [0.001, 0.01, 0.1]
        assert list(line.get_ydata()) == pytest.approx([p.f.value for p in curve.points])
    assert len({(lines[f"{c.ablation} ablation, by |score|"].get_linestyle()) for c in found}) == 2
    upright = sorted(tuple(line.get_ydata()) for line in axes.lines if len(set(line.get_xdata())) == 1)
    assert upright == sorted((p.f.low, p.f.high) for c in found for p in c.points)
    assert {0.0, 1.0} <= {line.get_ydata()[0] for line in axes.lines if list(line.get_xdata()) == [0, 1]}
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(np.quantile([-0.2, 0.0], 0.05)) and band[:, 1].max() == pytest.approx(0.19)


def test_one_template_has_no_intervals_and_says_so():
    axes = faithfulness_figure(curves(templates=1)).axes[0]
    assert not [line for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert "no interval could be made" in axes.get_title(loc="left")


# the page ----------------------------------------------------------------------------------------


def cells(page: str, table: str) -> list[list[str]]:
    body = re.search(rf'<table id="{table}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert body
    rows = re.findall(r"<tr>(.*?)</tr>", body.group(1), re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_the_tables_are_the_numbers_of_the_picture():
    circuit, found = made(n=30), curves()
    page, plan = circuit_page(circuit, found), drawing(circuit)
    data = json.loads(re.search(r'id="data-circuit">(.*?)</script>', page, re.DOTALL).group(1))
    assert data == json.loads(json.dumps(page_data(plan)))
    rows = cells(page, "edges")

    def value(shown: str) -> float:
        return float(shown.replace("−", "-"))

    assert len(rows) == len(data["links"]) == 30
    for row, link in zip(rows, data["links"], strict=True):
        assert f"{row[1]}->{row[2]}" == link["edge"] and value(row[3]) == pytest.approx(link["score"], rel=1e-3)
        assert float(circuit.scores[circuit.graph.edge(link["edge"])]) == link["score"]
        assert row[4] == ("positive" if link["score"] > 0 else "negative")
    by_node = {row["name"]: row for row in node_rows(plan)}
    out = [link.score for link in plan.links if link.source == "embed"]
    assert by_node["embed"]["n_out"] == len(out) and value(by_node["embed"]["sum_out"]) == pytest.approx(sum(out), rel=1e-3)
    assert [row[3] for row in cells(page, "faithfulness")] == ["0.100", "0.500", "1.100"] * 2
    beside = [tuple(row[5:]) for row in cells(page, "faithfulness")]
    assert beside == [("2.500", "0%"), ("1.000", "50%"), ("0.250", "100%"), *[("–", "–")] * 3]


def test_a_hostile_name_stays_text():
    page = circuit_page(planted(task=HOSTILE, model=HOSTILE, plan={HOSTILE: HOSTILE}, notes=(HOSTILE,)))
    assert "<img" not in page and "onerror" in page
    assert not re.search(r'(?:src|href)="(?!#)', page) and "connect-src" not in page and "default-src 'none'" in page


PROBE = """<script>
window.faults = [];
addEventListener("error", (e) => faults.push("error: " + e.message), true);
addEventListener("securitypolicyviolation", (e) => faults.push("blocked: " + e.blockedURI));
console.error = (...words) => faults.push("console: " + words.join(" "));
addEventListener("load", () => setTimeout(() => {
  const all = (query) => document.querySelectorAll(query).length, root = document.documentElement;
  const says = () => document.getElementById("says").textContent;
  const node = (name) => document.querySelector(`[data-name="${name}"]`);
  const faint = () => [...document.querySelectorAll(".node.faint:not(.gone)")].map((n) => n.dataset.name);
  const state = () => ({ links: all(".link:not(.gone)"), bright: all(".link:not(.gone):not(.faint)"),
    nodes: all(".node:not(.gone)"), rows: all("#edges tbody tr:not([hidden])"), faint: faint(),
    words: document.getElementById("many-words").textContent, says: says() });
  const many = document.getElementById("many");
  const slide = (to) => { many.value = to; many.dispatchEvent(new Event("input")); };
  const steps = { start: state() };
  document.querySelectorAll(".hit")[0].dispatchEvent(new PointerEvent("pointerenter")); steps.over = says();
  node("NODE").dispatchEvent(new PointerEvent("pointerenter")); steps.node = says();
  node("NODE").dispatchEvent(new MouseEvent("click", { bubbles: true })); steps.pinned = state();
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" })); steps.free = state();
  node("NODE").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" })); steps.entered = state();
  slide(FEW); steps.few = state();
  const out = document.createElement("output"); out.id = "probe";
  out.textContent = JSON.stringify({ ...steps, faults, drawn: root.dataset.drawn, overflow: root.scrollWidth - root.clientWidth,
    still: getComputedStyle(document.querySelector(".still")).display,
    requests: performance.getEntriesByType("resource").map((r) => r.name) });
  document.body.append(out);
}, 500));
</script>"""


@pytest.mark.whole
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_in_a_browser(width, tmp_path, monkeypatch):
    monkeypatch.setattr(test_browser, "PROBE", PROBE.replace("NODE", "z.0.3").replace("FEW", "2"))
    seen = test_browser.browse(circuit_page(planted(), curves()), tmp_path, width)
    assert seen["faults"] == [] and seen["requests"] == [] and seen["drawn"] == "1"
    assert seen["overflow"] <= 0 and seen["still"] == "none"
    assert (seen["start"]["links"], seen["start"]["nodes"], seen["start"]["rows"]) == (5, 7, 5)
    assert seen["over"] == "z.1.0->logits: score 4, rank 1"
    assert seen["node"] == "z.0.3: 0 edges in (sum 0), 1 out (sum 2)"
    assert seen["pinned"]["bright"] == 3 and seen["pinned"]["faint"] == ["mlp_out.0"]  # its path, through the shared key
    assert seen["free"]["bright"] == 5 and seen["entered"]["bright"] == 3
    assert (seen["few"]["links"], seen["few"]["rows"], seen["few"]["nodes"]) == (2, 2, 4)
    assert seen["few"]["words"] == "2 of 5, |score| from 2"


@pytest.mark.whole
def test_a_large_circuit_in_a_browser_with_fewer_edges(tmp_path, monkeypatch):
    circuit = made(30, 9, 3, 300)
    first = drawing(circuit, 200).links[0].source
    monkeypatch.setattr(test_browser, "PROBE", PROBE.replace("NODE", first).replace("FEW", "7"))
    seen = test_browser.browse(circuit_page(circuit), tmp_path)
    assert seen["faults"] == [] and seen["requests"] == []
    assert seen["start"]["links"] == 60 and seen["few"]["links"] == 7 == seen["few"]["rows"]
    assert seen["start"]["words"].startswith("60 of 200, |score| from ")
