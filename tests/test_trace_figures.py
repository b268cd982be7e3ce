"""Pictures of attribution graphs: everything in place, the numbers are the graph's, nothing from outside is needed or run."""

import dataclasses
import json
import re

import pytest

from assay.errors import UsageError
from assay.report.figures import save_figure
from assay.report.trace_figures import about, drawing, label_of, trace_figure, trace_page
from test_trace_formats import colliding

NASTY = '</script><img src=x onerror="alert(1)">'


def graph(**changes):
    found = {"what": {"pearson": 0.5, "pearson_low": 0.4, "pearson_high": 0.6, "spearman": None, "slope": 1.0,
                      "n_pairs": 9, "n_interventions": 3}}  # fmt: skip
    made = dataclasses.replace(colliding(), scores={"replacement": 0.25, "completeness": 0.5}, texts=("x", NASTY),
                               validation={"factor": 0.0, "agreement": found})  # fmt: skip
    return dataclasses.replace(made.grouped({NASTY: ["latent.0.2@1", "latent.1.7@1"]}), **changes)


def test_marks_stand_in_their_cells_and_never_on_one_another():
    plan = drawing(graph())
    bands = {words: (top, bottom) for words, top, bottom in plan.bands}
    assert set(bands) == {"tokens", "layer 0", "layer 1", "layer 2", "logits"}
    where = set()
    for dot, node in zip(plan.dots, graph().nodes, strict=True):
        top, bottom = bands[{"embed": "tokens", "logit": "logits"}.get(node.kind, f"layer {node.layer}")]
        _, left, right = plan.columns[node.position]
        assert top < dot.y < bottom and left < dot.x < right and dot.name == node.name
        where.add((round(dot.x), round(dot.y)))
    assert len(where) == len(plan.dots)
    assert plan.bands[0][0] == "tokens" and plan.bands[0][1] > plan.bands[-1][1]  # upwards


def test_lines_are_the_strongest_effects():
    plan = drawing(graph(), 3)
    effects = [(plan.dots[k.source].name, plan.dots[k.target].name, k.effect) for k in plan.lines]
    assert effects == [("error.2@1", "logit.3@1", 5.0), ("latent.1.7@1", "logit.3@1", -4.0), ("latent.0.2@1", "logit.3@1", 3.0)]
    assert plan.lines[0].width > plan.lines[1].width > plan.lines[2].width and "3 strongest of 5" in plan.words(3)
    assert [line.sign for line in plan.lines] == [1, -1, 1]


def test_the_page_holds_the_graphs_numbers_and_escapes_what_it_was_given():
    page = trace_page(graph())
    data = json.loads(re.search(r'id="data-trace">(.*?)</script>', page, re.S)[1])
    assert [node["name"] for node in data["nodes"]] == [node.name for node in graph().nodes]
    assert sorted(link[2] for link in data["links"]) == [-4.0, 1.0, 2.0, 3.0, 5.0]
    assert NASTY not in page and "<img" not in page and 'onerror="' not in page
    assert "25% of the influence" in page and "0.50 (0.40 to 0.60)" in page and "Content-Security-Policy" in page
    outside = [url for url in re.findall(r"https?://[^\"' <)]+", page) if "w3.org" not in url and "purl.org" not in url
               and "creativecommons.org" not in url and "matplotlib.org" not in url]  # fmt: skip
    assert outside == []


def test_a_still_picture_can_be_saved(tmp_path):
    for name in ("a.svg", "a.png"):
        assert save_figure(trace_figure(graph()), tmp_path / name).stat().st_size > 1000


def test_nodes_are_told_in_words():
    made = graph(texts=("x", " y"))
    words = [f"{label_of(made, node)}: {about(made, node)}" for node in made.nodes]
    assert words[0] == "“x”: token 0" and words[2] == "latent 0.2: latent at token 1 “␣y”, activation 1.5"
    assert words[4].startswith("MLP of layer 2") and words[5] == "“␣a”: logit 2, probability 0.7"


def test_graphs_that_cannot_be_drawn_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="most"):
        drawing(graph(), 0)
    monkeypatch.setattr("assay.report.trace_figures.PAGE_MOST", 3)
    with pytest.raises(UsageError, match="Prune"):
        drawing(graph())
