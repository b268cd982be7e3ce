"""Ways around the rules that were found by looking for them, each closed."""

from dataclasses import replace
from types import SimpleNamespace

import duckdb
import pytest

from assay.atlas.store import FILE, Atlas
from assay.errors import UsageError
from assay.evidence import claims
from assay.evidence.card import plan_problems
from assay.evidence.cautions import lenient
from assay.evidence.connects import Link
from assay.evidence.empirical import EmpiricalNull, instrument_flags, record_null
from assay.evidence.features import Feature, feature_of
from assay.evidence.gates.base import GATES, evaluate, get_gate
from assay.evidence.kinds import KINDS, made_of
from assay.evidence.memory import MemoryStore
from assay.evidence.options import check_options
from assay.evidence.run import Settings, Statement, state_claim
from assay.evidence.steers import Steering, grid_of
from assay.passport import _placeless
from test_records import stated
from test_verdicts import CLAIM, PLAN


def reads(store, claim, subject):
    """What a test leaves in the ledger when it has opened confirm data."""
    ticket = {"claim": claim, "ticket": f"{claim}-1", "split": "confirm", "subject": subject}
    store.append("ticket", {**ticket, "family": "f", "data": "d"})
    store.append("data", {**ticket, "digest": "d", "clusters": ["t1"]})


@pytest.fixture(params=["memory", "atlas"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else Atlas(tmp_path / "atlas")


# what holds is not called tampered, what does not is ----------------------------------------------


def test_a_test_of_another_claim_under_way_or_killed_is_no_tampering(store):
    reads(store, "c1", "one")
    assert stated(store, sesoi=0.2).verdict == "supported"
    reads(store, "c2", "another")
    assert claims.family_of(store, "c1") == {"c2": 1.0}  # it counts
    assert claims.audit(store, "c1") == []
    claims.judge(store, "c1")
    assert store.verdict("c1").decision["family"] == {"c2": 1.0} and claims.audit(store, "c1") == []


def test_a_family_left_out_of_a_verdict_shows(store):
    reads(store, "c2", "another")
    reads(store, "c1", "one")
    verdict = stated(store, sesoi=0.2)
    assert verdict.decision["family"] == {"c2": 1.0}
    alone = {**verdict.decision, "family": {}, "p_adjusted": verdict.decision["p"]}
    store.record_verdict(replace(verdict, decision=alone))
    assert any("does not follow" in problem for problem in claims.audit(store, "c1"))


def test_other_words_for_the_same_verdict_are_no_tampering(store, monkeypatch):
    stated(store, sesoi=0.2)
    gate = GATES.get("sufficiency")
    monkeypatch.setitem(GATES._items, "sufficiency", replace(gate, says="in the words of a later release: {estimate}"))
    monkeypatch.setattr("assay.evidence.verdicts.does_not_show", lambda claim, verdict, gates: ("something else",))
    assert claims.audit(store, "c1") == []


@pytest.mark.parametrize("table, sql", [
    ("verdicts", "UPDATE verdicts SET verdict = 'supported'; UPDATE standing SET verdict = 'supported'"),
    ("claims", "UPDATE claims SET statement = 'everything is one neuron'"),
    ("plans", "UPDATE plans SET lock = 'x'"),
    ("evidence", "UPDATE evidence SET reads = 7"),
    ("gates", "UPDATE gates SET estimate = 0.99"),
])  # fmt: skip
def test_columns_that_are_listed_say_what_the_records_say(tmp_path, table, sql):
    atlas = Atlas(tmp_path / "atlas")
    assert stated(atlas).verdict == "refuted" and atlas.verify() == []
    with duckdb.connect(str(atlas.path / FILE)) as db:
        db.execute(sql)
    assert any(f"table {table} show" in problem for problem in atlas.verify())


def test_an_earlier_verdict_cannot_be_rewritten(tmp_path):
    atlas = Atlas(tmp_path / "atlas")
    stated(atlas)
    claims.deviate(atlas, "c1", "the bar", "another model", {"sufficiency": 0.1})
    assert atlas.verify() == []
    with duckdb.connect(str(atlas.path / FILE)) as db:
        db.execute("UPDATE verdicts SET verdict = 'supported', body = replace(body, '\"refuted\"', '\"supported\"')"
                   " WHERE number = (SELECT min(number) FROM verdicts)")  # fmt: skip
    assert any("verdict records" in problem for problem in atlas.verify())


@pytest.mark.parametrize("table", ["claims", "plans", "evidence", "verdicts"])
@pytest.mark.parametrize("body", ["{}", "[]", '{"x": 1}'])
def test_a_record_that_is_none_any_more_is_said_in_words(tmp_path, table, body):
    atlas = Atlas(tmp_path / "atlas")
    stated(atlas)
    with duckdb.connect(str(atlas.path / FILE)) as db:
        db.execute(f"UPDATE {table} SET body = ?", [body])
    assert atlas.verify() and atlas.claim_ids() == ["c1"]
    assert any("is none any more" in problem for problem in claims.audit(atlas, "c1"))


# plans that ask for less ---------------------------------------------------------------------------


def test_bars_are_shares_in_deviations_too(store):
    stated(store)
    for bar in (-0.1, 1.5):
        with pytest.raises(UsageError, match="0 to 1"):
            claims.deviate(store, "c1", "the bar", "another model", {"sufficiency": bar})


def test_a_lenient_plan_is_warned_of():
    gate = get_gate("sufficiency").plan
    usual = replace(PLAN, kind="mediates", gates=(gate(),), settings={"seed": 0, "draws": 99},
                    search={"methods": {"wrong sign": 1000}}, levels={"confirm": 0.05, "ood": 0.1})  # fmt: skip
    assert lenient(usual) == []
    eased = (("SESOI 0 is below", {"gates": (gate(0.0),)}), ("alpha 0.2", {"levels": {"confirm": 0.2, "ood": 0.4}}),
             ("draws 1", {"settings": {"draws": 1}}), ("wrong sign", {"search": {"methods": {"wrong sign": 1}}}))
    for said, change in eased:
        assert [warning for warning in lenient(replace(usual, **change)) if said in warning], said


def test_a_card_cannot_bring_easier_bars_or_other_ways_to_measure():
    gates = tuple(gate.plan(kind="mediates", claim=CLAIM) for gate in GATES if "mediates" in gate.kinds)
    plan = replace(PLAN, kind="mediates", gates=gates, levels={"confirm": 0.05, "ood": 0.1})
    assert plan_problems(CLAIM, plan) == []
    place = next(n for n, gate in enumerate(gates) if gate.name == "necessity.resample")
    for change, said in (({"sesoi": -5.0}, "outside 0 to 1"), ({"options": {"ablation": "mean"}}, "in another way")):
        eased = replace(gates[place], **change)
        found = plan_problems(CLAIM, replace(plan, gates=(*gates[:place], eased, *gates[place + 1 :])))
        assert len(found) == 1 and said in found[0]


def test_few_controls_do_not_overrule_many(store):
    many = EmpiricalNull("detection", ("represents",), 60, 30, 0, 0.05, 0.0, 0.1)
    record_null(store, "m", many, [], "texts")
    assert instrument_flags(store, "m", "represents")
    record_null(store, "m", replace(many, n=5, false_positives=0), [], "texts")
    assert instrument_flags(store, "m", "represents")
    record_null(store, "m", replace(many, false_positives=2), [], "texts")
    assert not instrument_flags(store, "m", "represents")


def test_every_family_must_pass_over_words_too():
    """Two families; the second is found in every template, but one of its eight words never is."""
    words = [f"w{number % 8}" for number in range(64)]
    templates = [f"a/t{number // 8}" for number in range(64)] + [f"b/t{number // 8}" for number in range(64)]
    first = [0.0 if number < 2 else 1.0 for number in range(64)]
    second = [1.0 if number % 8 < 7 else 0.0 for number in range(64)]
    table = {"templates": templates, "words": [*words, *(f"b{word}" for word in words)],
             "columns": {"label": [1.0] * 128, "fires": [*first, *second]}}  # fmt: skip
    gate = get_gate("families").plan(0.8)
    label = {name: [float(template[0] == name) for template in templates] for name in "ab"}
    alone = {name: {**table, "columns": {**table["columns"], "label": label[name]}} for name in "ab"}
    by_family = {name: evaluate(gate, "confirm", alone[name], 0.05, 0).p_above for name in "ab"}  # type: ignore[union-attr]
    assert by_family["b"] > 0.1 > by_family["a"], by_family
    assert evaluate(gate, "confirm", table, 0.05, 0).p_above == max(by_family.values())  # type: ignore[union-attr]


# wrong arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, options, said", [
    ("represents", {"neutral": ["a text"]}, "concept_rule, proposer_url, proposer_model for kind represents"),
    ("uses", {"neutrals": ["a text"]}, "Did you mean 'neutral'"),
    ("mediates", {"lag": 1}, "rival for kind mediates"),
    ("uses", {"neutral": "a text"}, "all different"),
    ("steers", {"neutral": ["a text", "a text"]}, "all different"),
    ("connects", {"lag": -1}, "0 or more"),
    ("connects", {"screened": True}, "1 or more"),
    ("detects", {"concept_rule": "("}, "regular expression"),
    ("detects", {"proposer_url": "https://me:secret@host/v1"}, "without user"),
])  # fmt: skip
def test_options_that_nothing_reads_are_refused(kind, options, said):
    with pytest.raises(UsageError, match=said):
        check_options(kind, options)


def test_options_are_looked_at_before_the_model():
    with pytest.raises(UsageError, match="option: got 'size'"):
        state_claim(MemoryStore(), SimpleNamespace(), None, "z.0.0",  # type: ignore[arg-type]
                    statement=Statement("mediates"),
                    settings=Settings(options={"size": 3}))  # fmt: skip


def test_unknown_and_missing_parts_are_named():
    for record, given, said in ((Steering, {"feature": "a", "strength": 1}, "got 'strength'; allowed: feature, strengths"),
                                (Steering, {"strengths": [1]}, "also feature"),
                                (Link, {"source": "a"}, "also target")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            made_of(record, given)
    for kind in ("steers", "connects"):
        with pytest.raises(UsageError, match="got 'x'"):
            KINDS.get(kind).subject(None, {"x": 1})
    for strengths in (5, ["a"], [1, 2]):
        with pytest.raises(UsageError, match="two positive and two negative"):
            grid_of(strengths)  # type: ignore[arg-type]


def test_a_direction_is_as_long_as_its_controls_however_it_is_given():
    record = {"site": "resid_post.0", "index": None, "vector": [0.0, 30.0, 40.0]}
    for given in (record, Feature("resid_post.0", vector=(0.0, 30.0, 40.0))):
        assert feature_of(given).vector == pytest.approx((0.0, 0.6, 0.8))
    once = feature_of(record)
    assert feature_of(once.record()) == once  # what is stored is read as it is
    for wrong in ({"site": "resid_post.0"}, {"index": 1}, {"site": "a", "index": 1, "vector": [1.0]}, {**record, "norm": 1}):
        with pytest.raises(UsageError):
            feature_of(wrong)


def test_a_command_line_is_kept_without_places():
    assert _placeless("/home/me/bin/assay") == "assay" and _placeless("--json=/home/me/x.json") == "--json=x.json"
    secret = _placeless("--explainer=openai:m@https://user:SECRET@host:8/v1?api-key=SECRET#SECRET")
    assert secret == "--explainer=openai:m@https://host:8/v1"
    assert [_placeless(word) for word in ("--set", "draws=9", "tasks/mine.jsonl")] == ["--set", "draws=9", "tasks/mine.jsonl"]
