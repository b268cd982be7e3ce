"""Deviations, replications, data and runs are kept and shown; what changed since makes a verdict stale."""

from dataclasses import replace
from itertools import product

import pytest

from assay.atlas.store import Atlas
from assay.errors import EvidenceError, ReproduceError, StoreError, TamperedError, UsageError
from assay.evidence import claims, stale
from assay.evidence.gates.base import GATES, get_gate
from assay.evidence.memory import MemoryStore
from assay.evidence.run import Trial
from assay.evidence.source import MemorySource
from assay.evidence.stale import stale_reasons, with_stale
from assay.evidence.verdicts import decide
from assay.records import (
    Dataset,
    Deviation,
    Evidence,
    GatePlan,
    Pair,
    Replication,
    Run,
    canonical,
    digest,
    plain,
)  # fmt: skip
from test_verdicts import CLAIM, PLAN

TEMPLATES = [f"t{number // 3}" for number in range(36)]


def table(restored: float) -> dict:
    """36 items on 12 templates: sufficiency is about `restored`, and differs a little by template."""
    values = [restored + 0.01 * (number // 3 - 6) for number in range(36)]
    return {"templates": TEMPLATES, "words": None,
            "columns": {"clean": [1.0] * 36, "corrupted": [0.0] * 36, "restored": values}}  # fmt: skip


def stated(store, sesoi=0.4, restored=0.3, digest_of="d", claim=CLAIM, source=None):
    """A claim with one deciding gate, measured and judged."""
    gate = get_gate("sufficiency").plan(sesoi)
    splits = {split: {"n": 1, "seed": 0, "digest": source.digest(split, 1, 0) if source else "d", "templates": 12}
              for split in PLAN.levels}  # fmt: skip
    plan = replace(PLAN, claim=claim.id, gates=(gate,), splits=splits)
    plan = replace(plan, lock=claims.lock_of(claim, plan))
    tables = {split: table(restored) for split in plan.levels}
    found = Evidence(claim.id, plan.lock, {"digest": digest_of}, tables, claims.derive_gates(plan, tables),
                     {"complete": True, "hits": 0, "candidates": 36, "methods": {}}, {})  # fmt: skip
    store.record_claim(claim, plan)
    store.record_evidence(found, [])
    return claims.judge(store, claim.id)


@pytest.fixture(params=["memory", "atlas"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else Atlas(tmp_path / "atlas")


# the lock and deviations ------------------------------------------------------------------------


def test_a_late_change_of_a_bar_is_caught_and_said(store):
    stated(store)
    plan = store.plan("c1")
    eased = replace(plan, gates=(replace(plan.gates[0], sesoi=0.1),))
    with pytest.raises(TamperedError, match="SESOI.*deviate.*--parent"):
        claims.check_lock(CLAIM, eased)


def test_a_bar_changed_openly_is_applied_and_makes_the_result_exploratory(store):
    before = stated(store)
    assert (before.verdict, before.qualifiers) == ("refuted", ())
    claims.deviate(store, "c1", "the bar of sufficiency", "it was set for another model", {"sufficiency": 0.1})
    after = store.verdict("c1")
    assert (after.verdict, after.qualifiers) == ("supported", ("exploratory",))
    assert after.gates[0]["sesoi"] == 0.1 and store.plan("c1").gates[0].sesoi == 0.4
    assert store.evidence("c1").gates[0].sesoi == 0.4  # what was measured under the lock stays
    assert store.deviations("c1")[0].why == "it was set for another model"
    assert claims.audit(store, "c1") == [] and store.tally()["deviations"] == 1
    assert store.p_of(["c1"]) == {"c1": 1.0}  # in the families of others it does not count as a success


def test_any_deviation_makes_even_an_unchanged_number_exploratory(store):
    assert stated(store, sesoi=0.2).qualifiers == ()
    claims.deviate(store, "c1", "three texts were skipped", "they had no tokens")
    verdict = store.verdict("c1")
    assert (verdict.verdict, verdict.qualifiers) == ("supported", ("exploratory",))


def test_deviations_need_words_and_gates_of_the_plan(store):
    stated(store)
    for what, why, bars in (("", "why", {}), ("what", " ", {}), ("what", "why", {"detection": 0.1}),
                            ("what", "why", {"sufficiency": float("nan")})):  # fmt: skip
        with pytest.raises(UsageError):
            claims.deviate(store, "c1", what, why, bars)
    with pytest.raises(StoreError):
        store.record_deviation(Deviation("c9", "a", "b", "now"))
    assert store.deviations("c1") == [] and store.verdict("c1").qualifiers == ()


# replications, data, runs -----------------------------------------------------------------------


def test_replications_are_kept_failures_included(store):
    stated(store)
    for same in (True, False):
        store.record_replication(Replication("c1", "Ada", "Linux", same, "refuted", "refuted", ("a: 1 before, 2 now",), "now"))
    assert [found.same for found in store.replications("c1")] == [True, False]
    assert store.replications("c1")[1].moved == ("a: 1 before, 2 now",)
    assert (store.tally()["replications"], store.tally()["failed replications"]) == (2, 1)
    assert store.verdict("c1").verdict == "refuted" and claims.audit(store, "c1") == []


def test_data_and_runs_come_back_as_they_went_in(store):
    stated(store)
    data = Dataset("abc", "animals", "confirm", 3, 0, ("x", "y"), {"type": "concept"}, "CC0")
    run = Run("r1", "c1", "lock", "c1-1", "start", "end", 1.5, 20, {"device": "cpu"})
    for _ in range(2):
        store.record_dataset(data)
    store.record_run(run)
    assert store.datasets(["abc", "none"]) == [data] and store.runs("c1") == [run]


def test_tampering_with_small_records_shows(tmp_path):
    atlas = Atlas(tmp_path)
    stated(atlas)
    claims.deviate(atlas, "c1", "what", "why")
    with atlas.writing() as db:
        db.execute("DELETE FROM deviations")
    assert any("deviation records" in problem for problem in atlas.verify())
    assert any("does not follow" in problem for problem in claims.audit(atlas, "c1"))


def test_the_list_shows_refuted_and_imported_claims_page_by_page(store):
    for number in range(5):
        claim = replace(CLAIM, id=f"c{number}", created=f"2026-01-0{number + 1}")
        stated(store, sesoi=0.2 if number % 2 else 0.4, claim=claim)
    store.record_claim(replace(CLAIM, id="open", created="2026-02-01"), replace(PLAN, claim="open"))
    store.record_import({"claim": plain(replace(CLAIM, id="theirs")), "verdict": {"verdict": "supported"}}, "2026-03-01")
    page, total = store.listing(limit=3, offset=2)
    assert [item.claim for item in page] == ["c2", "c3", "c4"] and total == 7
    assert [item.claim for item in store.listing(verdict="refuted")[0]] == ["c0", "c2", "c4"]
    assert [item.claim for item in store.listing(verdict="not tested")[0]] == ["open"]
    assert store.listing(kind="represents") == ([], 0)
    for verdict, kind in product(("supported", "refuted", "inconclusive", "not tested", ""), ("mediates", "represents", "")):
        found, total = store.listing(50, 0, verdict, kind)
        assert len(found) == total and all(verdict in ("", item.verdict) and kind in ("", item.kind) for item in found)
    assert [store.listing(1, 9, verdict)[1] for verdict in ("supported", "refuted", "not tested")] == [3, 3, 1]
    (theirs,) = [item for item in store.listing()[0] if item.imported]
    assert theirs.claim == "theirs" and store.tally()["supported"] == 2 and store.tally()["imported"] == 1
    with pytest.raises(EvidenceError, match="already"):
        store.record_import({"claim": plain(replace(CLAIM, id="c1")), "verdict": None}, "now")


# another model, stale ---------------------------------------------------------------------------


def test_evidence_of_another_model_never_counts(store):
    with pytest.raises(EvidenceError, match="another model"):
        stated(store, digest_of="another")
    assert store.verdict("c1") is None
    assert any("another model" in problem for problem in claims.audit(store, "c1"))
    with pytest.raises(EvidenceError, match="never counts"):
        decide(store.claim("c1"), store.plan("c1"), store.evidence("c1"))


class Now:
    """A model as it is now, as far as staleness goes."""

    name = "m"

    def __init__(self, digest="d", tokenizer="tok"):
        self.digest, self.tokenizer_digest = digest, tokenizer

    def fresh_digest(self):
        return self.digest


MEMORY = MemorySource("t", {split: [Pair("a", "b", ("x",), ("y",), "t1")] for split in PLAN.levels})


def test_nothing_changed_is_not_stale(store):
    claim = replace(CLAIM, subject={**CLAIM.subject, "tokenizer": "tok"}, task=MEMORY.record())
    stated(store, claim=claim, source=MEMORY)
    assert stale_reasons(store, claim, Now(), source=MEMORY) == []
    assert with_stale(store.verdict("c1").to_json(), [])["qualifiers"] == []


@pytest.mark.parametrize("what", ["model", "tokenizer", "gate", "rule", "data", "gone"])
def test_what_changed_makes_a_verdict_stale_and_leaves_it_as_it_is(store, monkeypatch, what):
    claim = replace(CLAIM, subject={**CLAIM.subject, "tokenizer": "tok"}, task=MEMORY.record())
    before = stated(store, claim=claim, source=MEMORY)
    model, source = Now(), MEMORY
    if what == "model":
        model = Now(digest="other")
    if what == "tokenizer":
        model = Now(tokenizer="other")
    if what == "gate":
        monkeypatch.setitem(GATES._items, "sufficiency", replace(get_gate("sufficiency"), version=2))
    if what == "gone":
        monkeypatch.delitem(GATES._items, "sufficiency")
    if what == "rule":
        monkeypatch.setattr(stale, "RULE_VERSION", "99")
    if what == "data":
        source = MemorySource("t", {split: [Pair("a", "c", ("x",), ("y",), "t1")] for split in PLAN.levels})
    reasons = stale_reasons(store, claim, model, source=source)
    assert reasons and "stale" in with_stale(before.to_json(), reasons)["qualifiers"]
    assert store.verdict("c1") == before
    assert claims.audit(store, "c1") == []  # stale is not tampered with


def test_a_claim_locked_with_another_gate_version_or_tokenizer_is_not_measured(store, monkeypatch):
    claim = replace(CLAIM, subject={**CLAIM.subject, "tokenizer": "tok"}, task=MEMORY.record())
    stated(store, claim=claim, source=MEMORY)
    plan = store.plan("c1")
    with pytest.raises(ReproduceError, match="tokenizer"):
        Trial(claim, plan, Now(tokenizer="other"), source=MEMORY).run()
    monkeypatch.setitem(GATES._items, "sufficiency", replace(get_gate("sufficiency"), version=2))
    with pytest.raises(ReproduceError, match="was version 1, it is 2 now"):
        Trial(claim, plan, Now(), source=MEMORY).run()


def test_evidence_says_with_which_version_of_a_gate_it_was_measured(monkeypatch):
    monkeypatch.setitem(GATES._items, "sufficiency", replace(get_gate("sufficiency"), version=3))
    store = MemoryStore()
    stated(store)
    assert store.evidence("c1").gates[0].version == 3 == store.plan("c1").gates[0].version
    assert plain(store.plan("c1"))["gates"][0]["version"] == 3


def test_a_field_added_later_does_not_change_older_hashes():
    gate = GatePlan("a", "b", 0.1, True)
    assert "version" not in canonical(gate) and digest(gate) != digest(replace(gate, version=2))


def test_the_tokenizer_is_more_than_its_vocabulary():
    from assay.model.fingerprint import tokenizer_digest
    from assay.testing import word_tokenizer

    tokenizer = word_tokenizer()
    base = tokenizer_digest(tokenizer, False, 0)
    tokenizer("w1 w2 w3", truncation=True, max_length=2)  # how one call cuts is no part of it
    assert tokenizer_digest(word_tokenizer(), False, 0) == base == tokenizer_digest(tokenizer, False, 0)
    assert base not in (tokenizer_digest(tokenizer, True, 0), tokenizer_digest(tokenizer, False, 1))
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert tokenizer_digest(tokenizer, False, 0) != base
    assert tokenizer_digest(None, False, None) is None
