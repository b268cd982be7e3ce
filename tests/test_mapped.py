"""Mapped features in an atlas: what goes in comes out, searches against brute force, killed writers, two maps compared."""

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial

import click
import duckdb
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from assay.atlas import mapped_writer, search
from assay.atlas.contexts_store import Shard, pack, write_shard
from assay.atlas.database import FILE
from assay.atlas.mapped import (
    Effect,
    FeatureRecord,
    Histogram,
    Mapped,
    MappedWriter,
    SetRecord,
    histogram_of,
    participation,
    quantiles_of,
)  # fmt: skip
from assay.atlas.mapped_records import record_of, record_text
from assay.atlas.migrations import migrate
from assay.atlas.store import Atlas
from assay.cli.main import cli
from assay.errors import StoreError, UsageError
from assay.explain.records import WHY, Cost, Explanation, Score, Window
from test_atlas import HOLD, stored
from test_verdicts import CLAIM

ABOUT = SetRecord("tiny", "d" * 64, "latent", "resid_post.1", "made up", "topk", "e" * 64, units=40, tokens=9_000)
TOKENS = [" the", "The", " cat", " mat", "(", " é", "\n", " 'x'", '"', " THE"]


def name(row):
    return f"latent.topk.{row}"


def window(draw, why="top", n=7):
    tokens = tuple(int(each) for each in draw.integers(0, 90_000, n))
    pieces = tuple(str(draw.choice(TOKENS)) for _ in tokens)
    values = tuple(float(np.float32(each)) if draw.random() < 0.4 else 0.0 for each in draw.lognormal(0, 1, n))
    return Window(tokens, pieces, values, int(draw.integers(n)), f"doc {draw.integers(5)}", int(draw.integers(120)), why)


def record(row, seed=0, **more):
    """A feature with every field filled, of numbers that follow from `row` and `seed`."""
    draw = np.random.default_rng([row, seed])
    words = ["cat", "mat", "bracket", "month"]
    text = f"fires on {words[row % 4]} and {words[(row // 4) % 4]}, number n{row}"
    explanation = Explanation(name(row), text, "lexical/1", {"type": "prefix", "any": [[{"is": "x"}]]}, {"rule": 3.5})
    score = Score(name(row), "lexical/1", "detection", row / 50, 0.5, 40, 1, 0.1, 0.9, 0.52, None, Cost(), {"auc": 0.5})
    top = [(TOKENS[(row + step) % len(TOKENS)], 0.5 / (step + 1)) for step in range(3)]
    given = dict(
        density=float(draw.random()) / 10, largest=float(draw.random()) * 9, fired=int(draw.integers(1, 500)),
        histogram=histogram_of(draw.lognormal(0, 1, 60)), quantiles=quantiles_of(draw.lognormal(0, 1, 60)),
        promoted=((" the", 2.0), (" dog", 1.0)), suppressed=((" cat", -1.5),), spread={"residual": 12.5 + row},
        top_tokens=tuple(top), neighbours=((name((row + 1) % 40), 0.75),), coactive=((name((row + 2) % 40), 0.25),),
        explanations=(explanation,), scores=(score,), contexts=tuple(window(draw, why) for why in WHY),
    )  # fmt: skip
    return FeatureRecord(name(row), row, **{**given, **more})


def write(atlas, records, about=ABOUT, shard=16, summary=None):
    with MappedWriter(atlas, about, shard) as writer:
        writer.add(records)
        return writer.finish(summary)


@pytest.fixture
def atlas(tmp_path):
    return Atlas(tmp_path / "atlas", patience=0.3)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """40 features: claims, circuits and effects for some; two are silent and unexplained."""
    atlas = Atlas(tmp_path_factory.mktemp("filled"))
    stored(atlas)
    more = {3: {"claims": ("c1",), "circuits": ("g1",)}, 5: {"claims": ("c1", "gone")},
            7: {"effects": (Effect("capitals", -0.5, "logit difference", -0.6, -0.4),), "circuits": ("g1",)},
            8: {"effects": (Effect("capitals", 0.25),)},
            **{row: {"explanations": (), "scores": (), "fired": 0, "why_not": "never on", "top_tokens": ()}
               for row in (38, 39)}}  # fmt: skip
    write(atlas, [record(row, **more.get(row, {})) for row in range(40)], summary={"shares": {"tokens": 0.5}})
    return Mapped(atlas)


# what goes in comes out --------------------------------------------------------------------------


def test_every_record_comes_back_as_it_went_in(filled):
    for row in (0, 15, 16, 37):
        page = filled.page("", name(row))
        assert page.row == row and page.record == record(row)
        assert filled.page("", row) == page
    assert [each.name for each in filled.records()] == [name(row) for row in range(40)]
    assert next(filled.records(contexts=False)).contexts == ()


def test_a_page_has_what_is_linked(filled):
    page = filled.page("", name(3))
    assert [(claim.id, claim.verdict, claim.statement) for claim in page.claims] == [("c1", "not tested", CLAIM.statement)]
    assert page.circuits == ("g1",) and page.record.claims == ("c1",)
    assert {claim.id: claim.verdict for claim in filled.page("", name(5)).claims} == {"c1": "not tested", "gone": "not here"}
    assert filled.page("", name(7)).effects == (Effect("capitals", -0.5, "logit difference", -0.6, -0.4),)
    assert [(near.feature, near.value, near.text) for near in page.neighbours] == [
        (name(4), 0.75, record(4).explanations[0].text)]  # fmt: skip
    assert filled.neighbours("", name(3)) == page.neighbours and filled.coactive("", name(3)) == page.coactive
    assert filled.circuits_of("", name(3)) == ("g1",) and filled.claims_of("", name(3)) == page.claims
    assert filled.features_of_claim("c1") == [(ABOUT.id, name(3)), (ABOUT.id, name(5))]
    assert json.loads(json.dumps(page.to_json()))["claims"][0]["verdict"] == "not tested"


def test_a_verdict_that_changes_is_seen(atlas):
    write(atlas, [record(0, claims=("c1",))])
    mapped = Mapped(atlas)
    assert mapped.claims_of("", name(0))[0].verdict == "not here"
    stored(atlas)
    assert mapped.claims_of("", name(0))[0].verdict == "not tested"
    with atlas.writing() as db:
        db.execute("UPDATE standing SET verdict = 'refuted'")
    assert mapped.claims_of("", name(0))[0].verdict == "refuted"
    assert mapped.rows(filters={"verdict": "refuted"})[1] == 1 and mapped.rows(filters={"verdict": "supported"})[1] == 0


def test_claims_that_name_a_feature_are_linked_whoever_stated_them(atlas):
    write(atlas, [record(0), record(1)])
    about = {"model": "tiny", "digest": ABOUT.model_digest, "sites": [name(0), "z.0.1"]}
    stored(atlas, replace(CLAIM, subject=about))
    stored(atlas, replace(CLAIM, id="c2", subject={**about, "digest": "another model"}))
    stored(atlas, replace(CLAIM, id="c3", subject={**about, "sites": [name(0), name(1)]}))
    mapped = Mapped(atlas)
    assert mapped.link_claims(["c1", "c2"]) == 1
    assert [claim.id for claim in mapped.page("", name(0)).claims] == ["c1"] and mapped.page("", name(1)).claims == ()
    assert mapped.link_claims() == 3 and {claim.id for claim in mapped.page("", name(0)).claims} == {"c1", "c3"}


@pytest.mark.whole
def test_a_claim_stated_by_hand_is_on_the_page_of_its_feature(glass, tmp_path):
    atlas = Atlas(tmp_path)
    about = replace(ABOUT, model="glass-en", model_digest=glass.digest, unit="neuron", site="mlp_act.1", dictionary="",
                    dictionary_digest="")  # fmt: skip
    write(atlas, [replace(record(0), name="mlp_act.1.4")], about)
    words = ["claim", "state", "glass-en", "animals", "mlp_act.1.4", "--kind", "represents", "--atlas", str(tmp_path)]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, (done.output, done.exception)
    (linked,) = Mapped(atlas).claims_of("", "mlp_act.1.4")
    assert linked.id in done.output and linked.verdict == "not tested"


pieces = st.text(st.characters(codec="utf-8"), max_size=4)
token = st.tuples(st.integers(0, 300_000), pieces, st.one_of(st.just(0.0), st.floats(-9, 9, width=32)))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.tuples(st.lists(token, min_size=1, max_size=6), pieces, st.sampled_from(WHY)), max_size=4),
                min_size=1, max_size=4))  # fmt: skip
def test_windows_of_any_shape_come_back(tmp_path_factory, features):
    made = [[Window(tuple(t for t, _, _ in row), tuple(p for _, p, _ in row), tuple(v for _, _, v in row), len(row) - 1,
                    document, 3, why) for row, document, why in windows] for windows in features]  # fmt: skip
    path = tmp_path_factory.mktemp("shard") / "0.safetensors"
    write_shard(path, pack(("{}", windows) for windows in made))
    shard = Shard(path)
    assert [shard.windows(place) for place in range(len(made))] == [tuple(windows) for windows in made]
    assert shard.n_windows() == [len(windows) for windows in made]


def test_more_pieces_than_two_bytes_hold(tmp_path):
    texts = tuple(f"w{each}" for each in range(1000))
    many = [
        Window(tuple(range(start, start + 1000)), texts, (0.0,) * 1000, 0, "d", 0, "top") for start in range(0, 66_000, 1000)
    ]
    write_shard(tmp_path / "0.safetensors", pack([("{}", many)]))
    assert load_file(tmp_path / "0.safetensors")["tokens"].dtype == np.uint32
    assert Shard(tmp_path / "0.safetensors").windows(0) == tuple(many)


def test_what_is_no_number_becomes_null_and_what_does_not_fit_is_refused(tmp_path):
    bad = record(0, largest=np.float32(2.5), scores=(replace(record(0).scores[0], value=float("nan"), n=np.int64(3)),))
    back = record_of(json.loads(record_text(bad)))
    assert back.largest == 2.5 and back.scores[0].value is None and back.scores[0].n == 3
    for wrong in ({"at": 9}, {"pieces": ("a",)}, {"why": "guess"}):
        with pytest.raises(UsageError, match="window"):
            pack([("{}", [replace(window(np.random.default_rng(0)), **wrong)])])
    with pytest.raises(UsageError, match="unit"):
        replace(ABOUT, unit="layer")


def test_numbers_of_a_record_against_their_definitions():
    values = np.array([0.0, 0.5, 1.0, 2.0, 4.0, -1.0])
    found = histogram_of(values, 3)
    assert np.allclose(found.edges, [0.5, 1, 2, 4]) and found.counts == (1, 1, 2)
    assert histogram_of(np.zeros(3)) == Histogram() and quantiles_of(np.zeros(3)) == ()
    assert histogram_of(np.array([2.0, 2.0])).counts == (2,)
    assert dict(quantiles_of(values, (0.0, 0.5, 1.0))) == {0.0: 0.5, 0.5: 1.5, 1.0: 4.0}
    rows = np.array([[0, 3.0, 0, 0], [1, -1, 1, -1], [0, 0, 0, 0], [2, 1, 0, 0]])
    assert participation(rows).tolist() == [1.0, 4.0, 0.0, 25 / 17]


# searches against brute force --------------------------------------------------------------------


def test_words_find_what_holds_them_all(filled):
    def holds(*words):
        return {name(row) for row in range(38)
                if all(word in record(row).explanations[0].text.replace(",", "").split() for word in words)}  # fmt: skip

    assert {hit.feature for hit in filled.find_text("bracket month", limit=99)} == holds("bracket", "month")
    assert {hit.feature for hit in filled.find_text("CAT", limit=99)} == holds("cat")
    assert {hit.feature for hit in filled.find_text('"cat and mat"', limit=99)} == {
        name(row) for row in range(38) if "cat and mat" in record(row).explanations[0].text}  # fmt: skip
    assert {hit.feature for hit in filled.find_text("brack* n1*", limit=99)} == {
        name(row) for row in range(10, 20) if "bracket" in record(row).explanations[0].text}  # fmt: skip
    assert len(filled.find_text("fires", limit=7)) == 7 and filled.find_text("zebra") == []
    assert filled.find_text('n3 OR "') == [] and filled.find_text("n3 NOT cat") == []  # words, no operators
    with pytest.raises(UsageError, match="--token"):
        filled.find_text("( ")


@pytest.mark.parametrize("query", ['a"b', "NEAR(cat)", "text:cat", "-cat", "cat^", "*", "' OR 1", "\x00cat", "“cat”", "((("])
def test_no_query_is_an_error_of_the_database(filled, query):
    try:
        filled.find_text(query)
    except UsageError:
        assert not any(each.isalnum() for each in query)


@pytest.mark.parametrize("role, field", [("fires", "top_tokens"), ("promotes", "promoted"), ("suppresses", "suppressed")])
@pytest.mark.parametrize(
    "wanted, exact", [("the", False), (" the", True), ("The", True), ("\n", True), ('"', False), (" cat", False)]
)
def test_tokens_find_what_has_them(filled, role, field, wanted, exact):
    def same(one):
        return one == wanted if exact else one.strip(" ").lower() == wanted.strip(" ").lower()

    pairs = {name(row): getattr(filled.page("", row).record, field) for row in range(40)}
    best = {key: max((value for one, value in held if same(one)), key=abs, default=None) for key, held in pairs.items()}
    hits = filled.by_token(wanted, role=role, exact=exact, limit=99)
    assert {hit.feature: hit.value for hit in hits} == {key: value for key, value in best.items() if value is not None}
    assert [abs(hit.value) for hit in hits] == sorted((abs(hit.value) for hit in hits), reverse=True)


@pytest.mark.parametrize("sort", ["row", "-row", "-density", "largest", "-score_detection", "name", "-spread_residual"])
def test_the_table_is_sorted_as_python_sorts(filled, sort):
    records = {each.name: each for each in filled.records(contexts=False)}

    def key(each):
        column = sort.removeprefix("-")
        values = {"row": each.index, "name": each.name, "spread_residual": each.spread["residual"],
                  "score_detection": each.scores[0].value if each.scores else None}  # fmt: skip
        return values[column] if column in values else getattr(each, column)

    known = [each for each in records.values() if key(each) is not None]
    expected = sorted(known, key=key, reverse=sort.startswith("-"))
    rows, total = filled.rows(sort=sort, limit=99)
    assert total == 40 and [row["name"] for row in rows][: len(known)] == [each.name for each in expected]
    assert [row["name"] for row in filled.rows(sort=sort, offset=10, limit=5)[0]] == [row["name"] for row in rows[10:15]]


@pytest.mark.parametrize("filters, keeps", [
    ({"density": (0.02, 0.06)}, lambda each: 0.02 <= each.density <= 0.06),
    ({"density": (None, 0.06), "fired": (100, None)}, lambda each: each.density <= 0.06 and each.fired >= 100),
    ({"explained": False}, lambda each: not each.explanations),
    ({"why_not": "never on"}, lambda each: each.why_not == "never on"),
    ({"query": "month"}, lambda each: each.explanations and "month" in each.explanations[0].text),
    ({"query": "month", "largest": (4, None)}, lambda each: each.explanations and "month" in each.explanations[0].text
     and each.largest >= 4),
    ({"claimed": True}, lambda each: each.index in (3, 5)),
    ({"claimed": False}, lambda each: each.index not in (3, 5)),
    ({"verdict": "not tested", "circuit": "g1"}, lambda each: each.index == 3),
    ({"effect": "capitals"}, lambda each: each.index in (7, 8)),
    ({"verdict": "supported"}, lambda each: False),
])  # fmt: skip
def test_filters_keep_what_they_say(filled, filters, keeps):
    expected = [each.name for each in filled.records(contexts=False) if keeps(each)]
    rows, total = filled.rows(filters=filters, limit=99)
    assert [row["name"] for row in rows] == expected and total == len(expected)


def test_tasks_and_circuits_find_their_features_largest_effect_first(filled):
    assert [(hit.feature, hit.value) for hit in filled.by_task("capitals")] == [(name(7), -0.5), (name(8), 0.25)]
    assert {hit.feature for hit in filled.by_circuit("g1")} == {name(3), name(7)}
    with pytest.raises(UsageError, match="allowed: capitals"):
        filled.by_task("capital")


@pytest.mark.parametrize("verdict", ["not tested", "refuted"])
def test_every_search_keeps_features_with_a_claim_of_a_verdict(atlas, verdict):
    """Whatever the way to search: what is found without the verdict, less what has no such claim, however few are asked for."""
    write(atlas, [record(row, **({"claims": ("c1",)} if row in (3, 5, 9) else {}), circuits=("g1",),
                         effects=(Effect("capitals", row / 10, "x"),)) for row in range(20)])  # fmt: skip
    stored(atlas)
    mapped = Mapped(atlas)
    mapped.index_meaning("", turned, "turned")
    ways = {"words": partial(mapped.find_text, "fires"), "token": partial(mapped.by_token, "the"),
            "task": partial(mapped.by_task, "capitals"), "circuit": partial(mapped.by_circuit, "g1"),
            "meaning": partial(mapped.find_similar, "cats", encode=turned)}  # fmt: skip
    claimed = {name(row) for row in (3, 5, 9)} if verdict == "not tested" else set()
    for way, find in ways.items():
        whole = [hit.feature for hit in find(limit=99)]
        assert [hit.feature for hit in find(limit=99, verdict=verdict)] == [each for each in whole if each in claimed], way
        assert [hit.feature for hit in find(limit=1, verdict=verdict)] == [each for each in whole if each in claimed][:1], way


def test_meanings_lie_on_their_principal_plane(atlas):
    write(atlas, [record(row, **({"explanations": (), "scores": ()} if row % 7 == 0 else {})) for row in range(60)])
    stored(atlas)
    mapped = Mapped(atlas)
    with pytest.raises(UsageError, match="assay atlas index"):
        mapped.plane()
    mapped.index_meaning("", turned, "turned")
    texts = {each.name: each.explanations[0].text for each in mapped.records(contexts=False) if each.explanations}
    vectors = turned(list(texts.values()))
    _, _, axes = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    wanted, found = (vectors - vectors.mean(0)) @ axes[:2].T, mapped.plane()
    assert [hit.feature for hit, _, _ in found] == list(texts)
    assert np.allclose(np.abs([[x, y] for _, x, y in found]), np.abs(wanted), atol=2e-2)
    assert len(mapped.plane(most=12)) <= 12


def test_the_summary_counts_features_not_claims(filled):
    found = filled.summary()
    assert found["features"] == {"all": 40, "mapped": 40, "active": 38, "explained": 38, "claimed": 2, "supported": 0,
                                 "refuted": 0, "inconclusive": 0}  # fmt: skip
    assert found["why_not"] == {"never on": 2} and found["shares"] == {"tokens": 0.5}
    assert found["circuit"] == {"g1": 2} and found["effect"] == {"capitals": 2}


def turned(texts):
    """A made-up encoder: each text a unit vector that follows from its letters."""
    rows = np.stack([np.random.default_rng(list(text.encode())).standard_normal(24) for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_meaning_finds_what_brute_force_finds(atlas, monkeypatch):
    monkeypatch.setattr(search, "STRETCH", 64)
    write(atlas, [record(row, **({"explanations": (), "scores": ()} if row % 7 == 0 else {})) for row in range(60)])
    mapped = Mapped(atlas)
    with pytest.raises(UsageError, match="assay atlas index"):
        mapped.find_similar("x", encode=turned)
    mapped.index_meaning("", turned, "turned")
    texts = {each.name: each.explanations[0].text for each in mapped.records(contexts=False) if each.explanations}
    near = dict(zip(texts, turned(list(texts.values())) @ turned(["cats"])[0], strict=True))
    hits = mapped.find_similar("cats", encode=turned, limit=9)
    assert [hit.feature for hit in hits] == sorted(near, key=lambda each: -near[each])[:9]
    assert [hit.value for hit in hits] == pytest.approx([near[hit.feature] for hit in hits], abs=2e-3)
    assert len(mapped.find_similar("cats", encode=turned, limit=999)) == len(texts)
    with pytest.raises(UsageError, match="24"):
        mapped.find_similar("x", encode=lambda texts: np.ones((1, 5)))


@pytest.mark.parametrize("left", ["whole", "of another size", "cut"])
def test_an_interrupted_index_of_meanings_goes_on(atlas, monkeypatch, left):
    monkeypatch.setattr(search, "STRETCH", 64)  # eight texts at a time
    write(atlas, [record(row) for row in range(40)])
    mapped, asked = Mapped(atlas), []

    def dies(texts):
        if len(asked) >= 20:
            raise KeyboardInterrupt
        asked.extend(texts)
        return turned(texts)

    with pytest.raises(KeyboardInterrupt):
        mapped.index_meaning("", dies, "turned")
    first = list(asked)
    part = mapped_writer.folder_of(atlas.path, ABOUT.id) / "meaning.part.npy"
    if left == "of another size":  # what it holds is not of this set: begun anew, with no stretch left as zeros
        np.save(part, np.zeros((39, 24), np.float16))
    elif left == "cut":
        part.write_bytes(part.read_bytes()[:100])
    if left != "whole":
        asked.clear()
    mapped.index_meaning("", lambda texts: asked.extend(texts) or turned(texts), "turned")
    assert len(first) == 24 and sorted(asked) == sorted(record(row).explanations[0].text for row in range(40))
    expected = turned([record(row).explanations[0].text for row in range(40)]).astype(np.float16)
    assert np.array_equal(np.load(mapped_writer.folder_of(atlas.path, ABOUT.id) / search.MEANING), expected)


# later notes -------------------------------------------------------------------------------------


def test_later_notes_are_shown_found_and_stay_when_mapped_again(atlas):
    write(atlas, [record(row) for row in range(20)])
    mapped = Mapped(atlas)
    told = Explanation(name(4), "an octopus in the sea", "openai:x/top/1")
    better = replace(record(4).explanations[0], text="fires on squid")
    scored = replace(record(4).scores[0], explainer="openai:x/top/1", value=0.9)
    mapped.note("", [told, better], [scored], {name(4): ["c9"]}, {name(4): ["g7"]}, {name(4): [Effect("ioi", 0.1)]})
    for _ in range(2):
        page = mapped.page("", name(4))
        assert [each.text for each in page.record.explanations] == ["fires on squid", "an octopus in the sea"]
        assert [each.value for each in page.record.scores] == [0.08, 0.9]
        assert (page.record.claims, page.circuits, [each.task for each in page.effects]) == (("c9",), ("g7",), ["ioi"])
        assert [(hit.feature, hit.text) for hit in mapped.find_text("octopus sea")] == [(name(4), "an octopus in the sea")]
        assert [row["name"] for row in mapped.rows(filters={"query": "octopus"})[0]] == [name(4)]
        write(atlas, [record(row) for row in range(20)])
    mapped.note("", effects={name(4): [Effect("ioi", 0.3)]})
    assert [each.value for each in mapped.page("", name(4)).effects] == [0.3]
    with pytest.raises(UsageError, match="latent.topk.99"):
        mapped.note("", claims={name(99): ["c1"], name(1): ["c1"]})
    assert mapped.claims_of("", name(1)) == ()


# writers that are killed, and several of them ----------------------------------------------------

KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from assay.atlas import mapped_writer
from assay.atlas.store import Atlas
from test_mapped import ABOUT, record
writer = mapped_writer.MappedWriter(Atlas(sys.argv[1]), ABOUT, 8)
where = sys.argv[3]
if where == "adding":
    writer.add(record(row, 1) for row in range(20))
else:
    writer.add(record(row, 1) for row in range(40))
    if where == "building":
        mapped_writer.build = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    elif where == "switching":
        put = mapped_writer.write_file
        mapped_writer.write_file = lambda path, content: (
            os.kill(os.getpid(), signal.SIGKILL) if path.name == "current" else put(path, content))
    writer.finish()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.whole
@pytest.mark.parametrize("where, done", [("adding", 16), ("building", 40), ("switching", 0)])
def test_a_killed_writer_leaves_the_old_state_and_the_next_goes_on(atlas, where, done):
    old = [record(row) for row in range(12)]
    write(atlas, old)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(atlas.path), os.path.dirname(__file__), where])
    assert killed.returncode == -signal.SIGKILL
    mapped = Mapped(atlas)
    assert mapped.set().features == 12 and mapped.page("", name(3)).record == record(3)
    assert [each.name for each in mapped.records(contexts=False)] == [each.name for each in old]
    with MappedWriter(atlas, ABOUT, 8) as writer:
        assert writer.done == done
        writer.add(record(row, 1) for row in range(writer.done, 40))
        writer.finish()
    assert [each for each in mapped.records()] == [record(row, 1) for row in range(40)]
    assert len([each for each in (atlas.path / "features" / ABOUT.id).iterdir() if each.is_dir()]) == 1


def test_a_short_last_shard_is_given_again(atlas):
    with MappedWriter(atlas, ABOUT, 8) as writer:
        writer.add(record(row) for row in range(20))
        writer._flush()
        assert writer.done == 20
    with MappedWriter(atlas, ABOUT, 8) as writer:
        assert writer.done == 16
    with MappedWriter(atlas, replace(ABOUT, about={"seed": 1}), 8) as writer:  # another mapping: nothing of the old one
        assert writer.done == 0


def test_one_writer_at_a_time_and_readers_meanwhile(atlas):
    write(atlas, [record(0)])
    with MappedWriter(atlas, ABOUT) as writer:
        with pytest.raises(StoreError, match="being written by another process"):
            MappedWriter(atlas, ABOUT)
        writer.add([record(0, 1)])
        assert Mapped(atlas).page("", 0).record == record(0)
        writer.finish()
    assert Mapped(atlas).page("", 0).record == record(0, 1)


def test_a_set_that_is_replaced_while_it_is_read_is_read_again(atlas, monkeypatch):
    write(atlas, [record(row) for row in range(4)])
    mapped, opened = Mapped(atlas), []
    index = search.Index

    def replaced(folder):
        opened.append(folder)
        if len(opened) == 1:
            write(atlas, [record(row, 1) for row in range(4)])
        return index(folder)

    monkeypatch.setattr(search, "Index", replaced)
    assert mapped.page("", name(2)).record == record(2, 1) and len(opened) == 2


def test_a_page_while_another_process_holds_the_database(atlas):
    write(atlas, [record(0), record(1, claims=("c1",))])
    stored(atlas)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(atlas.path / FILE)],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert holder.stdout and holder.stdout.readline().strip() == "held"
        mapped = Mapped(atlas)
        assert mapped.page("", name(0)).record == record(0) and len(mapped.rows()[0]) == 2
        with pytest.raises(StoreError, match="being written by another process"):
            mapped.page("", name(1))
    finally:
        holder.communicate("")
    assert mapped.page("", name(1)).claims[0].verdict == "not tested"


def test_many_threads_read_while_the_database_is_written(atlas):
    stored(atlas)
    write(atlas, [record(row, claims=("c1",)) for row in range(20)])
    mapped = Mapped(atlas)

    def ask(row):
        if row % 4 == 0:
            atlas.append("look", {"what": str(row)})
        page, (rows, total) = mapped.page("", name(row % 20)), mapped.rows(filters={"verdict": "not tested"}, limit=3)
        return page.record.explanations, page.claims[0].verdict, len(rows), total, len(mapped.by_token("the"))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(48)))
    assert [each[0] for each in found] == [record(row % 20).explanations for row in range(48)]
    assert {each[1:4] for each in found} == {("not tested", 3, 20)} and len({each[4] for each in found}) == 1
    assert atlas.verify() == []


def test_two_features_of_one_name_are_refused(atlas):
    write(atlas, [record(0)])
    with pytest.raises(UsageError, match="latent.topk.1"):
        write(atlas, [record(1), record(1)])
    assert Mapped(atlas).set().features == 1


def test_an_empty_set_and_an_empty_atlas(atlas):
    assert Mapped(atlas).sets() == [] and not atlas.path.exists()
    with pytest.raises(UsageError, match="assay map MODEL"):
        Mapped(atlas).page("", name(0))
    write(atlas, [])
    mapped = Mapped(atlas)
    assert mapped.rows() == ([], 0) and mapped.find_text("cat") == [] and mapped.by_token("cat") == []
    assert mapped.summary()["features"]["mapped"] == 0
    mapped.index_meaning("", turned, "turned")
    with pytest.raises(UsageError, match="none"):
        mapped.page("", name(0))


# reading the database ----------------------------------------------------------------------------


def test_reading_sees_every_write_and_writes_nothing(atlas, tmp_path):
    with pytest.raises(StoreError, match="there is none here"), atlas.reading():
        pass
    stored(atlas)
    query = "SELECT id, statement FROM claims"
    with atlas.reading() as db:
        assert db.execute(query).fetchall() == [("c1", CLAIM.statement)]
        with pytest.raises(duckdb.Error, match="read-only"):
            db.execute("DELETE FROM claims")
    with atlas:
        atlas.append("look", {"what": "x"})
        with atlas.reading() as db:
            assert db.execute("SELECT count(*) FROM ledger").fetchone() == (5,)
    atlas.append("look", {"what": "y"})
    with atlas.reading() as db:
        assert db.execute("SELECT count(*) FROM ledger").fetchone() == (6,)
    (tmp_path / "it's").mkdir()
    with duckdb.connect(str(tmp_path / "it's" / FILE)) as db:
        migrate(db, up_to=1)
    with Atlas(tmp_path / "it's").reading() as db:  # an older one is brought up to date first
        assert db.execute("SELECT count(*) FROM feature_sets").fetchone() == (0,)


def test_sets_from_the_oldest_schema_on(atlas):
    atlas.path.mkdir()
    with duckdb.connect(str(atlas.path / FILE)) as db:
        migrate(db, up_to=1)
        db.execute("INSERT INTO claims VALUES ('c1', 1, NULL, 'explains', 'now', 'said', '{}')")
    write(atlas, [record(0, claims=("c1",))])
    page = Mapped(atlas).page("", 0)
    assert (page.claims[0].kind, page.claims[0].verdict) == ("explains", "not tested")
    with atlas.reading() as db:
        assert db.execute("SELECT id, model, site, corpus FROM feature_sets").fetchall() == [
            (ABOUT.id, ABOUT.model_digest, ABOUT.site, ABOUT.corpus)]  # fmt: skip


def test_other_tools_can_read_it(filled):
    folder = mapped_writer.folder_of(filled.atlas.path, ABOUT.id)
    with duckdb.connect() as db:
        found = db.execute(f"SELECT name, density, score_detection FROM '{folder}/features.parquet' ORDER BY row").fetchall()
        tokens = db.execute(f"SELECT count(*) FROM '{folder}/tokens.parquet' WHERE role = 'fires'").fetchone()
    assert found[7] == (name(7), record(7).density, 0.14) and tokens == (38 * 3,)
    arrays = load_file(folder / "000000.safetensors")
    start, end = arrays["record_start"][2:4]
    assert json.loads(arrays["record_text"][start:end].tobytes())["name"] == name(2)
    assert not [path for path in folder.iterdir() if path.suffix in (".pkl", ".pt", ".ndjson")]


@pytest.mark.parametrize(("file", "said", "use"), [
    ("set.json", "set.json", lambda mapped: mapped.page("", 0)),
    ("000000.safetensors", "000000.safetensors", lambda mapped: mapped.page("", 0)),
    ("index.sqlite", "not a database", lambda mapped: mapped.page("", 0)),
    ("features.parquet", "features.parquet", lambda mapped: mapped.rows(sort="-density")),
    ("tokens.parquet", "tokens.parquet", lambda mapped: mapped.by_token("the")),
])  # fmt: skip
def test_damaged_files_are_said(atlas, file, said, use):
    write(atlas, [record(0)])
    (mapped_writer.folder_of(atlas.path, ABOUT.id) / file).write_bytes(b"{}" * 60)
    with pytest.raises(StoreError, match=f"{said}.*assay map"):
        use(Mapped(atlas))


def test_a_set_of_an_earlier_version_says_the_same_of_neighbours(atlas):
    write(atlas, [record(row) for row in range(20)])
    before = Mapped(atlas).page("", 3)
    assert any(near.text for near in before.neighbours)
    file = mapped_writer.folder_of(atlas.path, ABOUT.id) / "index.sqlite"
    with closing(sqlite3.connect(file)) as db, db:
        assert "COVERING" in db.execute("EXPLAIN QUERY PLAN SELECT name, said FROM features WHERE name = 'x'").fetchone()[3]
        db.execute("DROP INDEX features_name")
        db.execute("ALTER TABLE features DROP COLUMN said")
        db.execute("CREATE UNIQUE INDEX features_name ON features (name)")
    assert Mapped(atlas).page("", 3) == before


# two maps ----------------------------------------------------------------------------------------


def test_the_same_map_twice_has_no_change(filled):
    found = filled.diff("", "")
    assert found.how == "name" and found.counts["pairs"] == found.counts["same"] == 40
    assert found.changed == () and found.only_a == () and found.only_b == ()


def test_a_fine_tuned_copy_shows_what_changed(atlas, tmp_path):
    other = Atlas(tmp_path / "other")
    stored(atlas)
    write(atlas, [record(row, **({"claims": ("c1",)} if row == 6 else {})) for row in range(20)])
    changed = {2: {"density": record(2).density * 2}, 3: {"top_tokens": ((" zebra", 0.9),)},
               4: {"explanations": (replace(record(4).explanations[0], text="else"),)},
               5: {"density": 0.0, "top_tokens": ((" zebra", 0.9),)}}  # fmt: skip
    write(other, [record(row, **changed.get(row, {})) for row in range(1, 23)], replace(ABOUT, model_digest="f" * 64))
    found = Mapped(atlas).diff("", "", Mapped(other))
    assert dict(found.counts) == {"pairs": 19, "same": 14, "changed": 5, "only_a": 1, "only_b": 3, "density": 2, "tokens": 2,
                                  "explanation": 1, "verdict": 1}  # fmt: skip
    told = {each.a: each for each in found.changed}
    assert {key: each.changes for key, each in told.items()} == {
        name(2): ("density",), name(3): ("tokens",), name(4): ("explanation",), name(5): ("density", "tokens"),
        name(6): ("verdict",)}  # fmt: skip
    assert found.changed[0].a == name(5) and told[name(3)].overlap == 0.0 and told[name(2)].overlap == 1.0
    assert told[name(6)].verdicts == (("not tested",), ())
    assert [each[0] for each in found.only_a] == [name(0)]
    assert {each[0] for each in found.only_b} == {name(20), name(21), name(22)}
    assert json.loads(json.dumps(found.to_json()))["counts"]["pairs"] == 19


def test_another_seed_is_matched_by_what_it_fires_on(atlas):
    draw = np.random.default_rng(3)
    order = draw.permutation(30)
    tops = [tuple((f" w{each}", float(share)) for each, share in zip(draw.choice(200, 5, False), draw.dirichlet(np.ones(5)),
                  strict=True)) for _ in range(30)]  # fmt: skip
    write(atlas, [record(row, top_tokens=tops[row]) for row in range(30)])
    second = replace(ABOUT, dictionary="other", dictionary_digest="0" * 64)
    noisy = [tuple((one, share * (0.9 + 0.2 * draw.random())) for one, share in tops[place]) for place in order]
    write(atlas, [replace(record(row), name=f"latent.other.{row}", top_tokens=noisy[row]) for row in range(30)], second)
    mapped = Mapped(atlas)
    found = mapped.diff(ABOUT.id, second.id, limit=99)
    assert found.how == "tokens" and found.counts["pairs"] == 30
    assert all(order[int(each.b.rpartition(".")[2])] == int(each.a.rpartition(".")[2]) for each in found.changed)
    assert all(math.isclose(each.similarity, 1, abs_tol=0.02) for each in found.changed)
    told = mapped.diff(ABOUT.id, second.id, pairs=[(name(3), "latent.other.9", 0.8)])
    assert (told.how, told.counts["pairs"], told.counts["only_a"], told.changed[0].similarity) == ("given", 1, 29, 0.8)
    for wrong in ({"how": "name"}, {"how": "guess"}, {"pairs": [(name(99), "latent.other.9", 0.8)]}):
        with pytest.raises(UsageError):
            mapped.diff(ABOUT.id, second.id, **wrong)


# the command -------------------------------------------------------------------------------------


def run(mapped, *words, code=0):
    from assay.cli.atlas import atlas as command

    done = CliRunner().invoke(command, [*words, "--atlas", str(mapped.atlas.path)])
    assert done.exit_code == code, done.output
    return done.output if not code else str(done.exception)


def test_the_command_finds_shows_and_compares(filled):
    assert f"{ABOUT.id}  latents of topk" in run(filled, "list") and "38 active" in run(filled, "list")
    assert run(filled, "find", "n17").startswith(name(17))
    assert json.loads(run(filled, "find", "--token", "the", "--limit", "2", "--json", "-"))["hits"][0]["value"] == 0.5
    assert "1 to 20 of 40" in run(filled, "find", "--sort", "-density")
    assert "1 to 1 of 1" in run(filled, "find", "month", "--verdict", "not tested", "--sort", "-density")
    assert run(filled, "find", "--task", "capitals").splitlines()[0].startswith(f"{name(7)}  -0.5")
    shown = run(filled, "show", "7")
    assert record(7).explanations[0].text in shown and "effect on capitals: -0.5 logit difference [-0.60, -0.40]" in shown
    assert "no claim is about it" in shown and "detection 0.14 [0.10, 0.90] (chance 0.50, other explanations 0.52;" in shown
    assert json.loads(run(filled, "show", name(3), "--json", "-"))["circuits"] == ["g1"]
    assert "40 pairs by name: 40 same" in run(filled, "diff", "tiny", "tiny")


@pytest.mark.parametrize("words, said", [
    (["show", "latent.topk.400"], "latent.topk.5"), (["show", "400"], "numbers of units"),
    (["find", "--sort", "size"], "density"),
    (["find", "cat", "--token", "x"], "one way"), (["find", "--token", "x", "--unclaimed"], "WORDS"),
    (["find", "--similar", "x"], "assay atlas index"), (["show", "1", "--set", "none"], ABOUT.id),
    (["diff", "tiny", "tiny", "--how", "given"], "name, tokens"),
])  # fmt: skip
def test_mistakes_name_what_is_allowed(filled, words, said):
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        from assay.cli.atlas import atlas as command

        command.main([*words, "--atlas", str(filled.atlas.path)], standalone_mode=False)


def test_there_is_no_atlas_and_a_terminal_is_not_obeyed(tmp_path):
    from assay.cli.atlas import atlas as command

    with pytest.raises(UsageError, match="there is none here"):
        command.main(["list", "--atlas", str(tmp_path / "none")], standalone_mode=False)
    evil = Explanation(name(0), "red \x1b[31m alert", "x/1")
    drawn = replace(window(np.random.default_rng(0)), pieces=("\x1b]0;title\x07",) * 7, values=(1.0,) * 7)
    atlas = Atlas(tmp_path / "evil")
    write(atlas, [record(0, explanations=(evil,), contexts=(drawn,), top_tokens=(("\x1b[2J", 0.5),))])
    assert "\x1b" not in run(Mapped(atlas), "show", "0") and isinstance(command, click.Group)


def test_a_page_costs_the_same_in_a_large_set(tmp_path):
    """CPU time of a page at 40 and at 4,000 features: it must not follow the number of features."""
    spent = []
    for n in (40, 4000):
        atlas = Atlas(tmp_path / str(n))
        plain = FeatureRecord("x", 0, 0.1, 1.0, 3, contexts=record(0).contexts, explanations=record(0).explanations)
        write(atlas, [replace(plain, name=name(row), index=row) for row in range(n)], shard=512)
        mapped = Mapped(atlas)
        pages = [name(row) for row in np.random.default_rng(0).integers(0, n, 30)]
        mapped.page("", pages[0])
        start = time.process_time()
        for each in pages:
            mapped.page("", each)
        spent.append((time.process_time() - start) / len(pages))
    assert spent[1] < 4 * spent[0] + 0.004
