"""The chain shows every edit, deletion, reordering and truncation."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import EvidenceError
from assay.evidence.ledger import MemoryLedger, count_reads, head_of, looked_at, next_entry, tally, verify_chain


def chain(n: int = 6) -> list[dict]:
    ledger = MemoryLedger()
    for number in range(n):
        ledger.append("look", {"what": f"look {number}", "model": "m", "clusters": [f"c{number}"]})
    return ledger.entries()


def test_an_untouched_chain_is_whole():
    entries = chain()
    assert verify_chain(entries, head_of(entries), head_of(entries[:3])) == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.sampled_from(["index", "time", "kind", "body", "previous", "hash"]))
def test_any_edit_shows(place, key):
    entries = copy.deepcopy(chain())
    entries[place][key] = {"what": "other"} if key == "body" else 99 if key == "index" else "x"
    assert verify_chain(entries, head_of(chain()))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5))
def test_any_deletion_shows(place):
    entries = chain()
    head = head_of(entries)
    del entries[place]
    assert verify_chain(entries, head)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)).filter(lambda order: list(order) != sorted(order)))
def test_any_reordering_shows(order):
    entries = chain()
    assert verify_chain([entries[place] for place in order], head_of(entries))


def test_a_rewritten_chain_does_not_match_its_old_head():
    old = chain()
    new = MemoryLedger()
    for entry in old[:-1]:
        new.append(entry["kind"], entry["body"])
    new.append("look", {"what": "nicer"})
    assert verify_chain(new.entries()) == []  # a whole chain of its own ...
    assert verify_chain(new.entries(), head_of(old))  # ... that is not the one the head knows


def test_unknown_entry_kinds_are_refused():
    with pytest.raises(EvidenceError, match="allowed: state, lock"):
        next_entry(None, "guess", {})


def test_reads_are_counted_by_data_and_by_clusters():
    ledger = MemoryLedger()
    ledger.append("ticket", {"claim": "c1", "ticket": "c1-1", "split": "confirm", "subject": "s", "data": "d1"})
    ledger.append("data", {"claim": "c1", "ticket": "c1-1", "split": "confirm", "subject": "s", "clusters": ["a", "b"]})
    assert count_reads(ledger.entries(), "s", "d1", []) == 1
    assert count_reads(ledger.entries(), "s", "other", ["b", "z"]) == 1  # other data, a cluster in common
    assert count_reads(ledger.entries(), "s", "other", ["z"]) == 0
    assert count_reads(ledger.entries(), "another subject", "d1", ["a"]) == 0


def test_looks_are_remembered_by_model_and_cluster():
    entries = chain()
    assert len(looked_at(entries, "m", ["c2", "c9"])) == 1
    assert looked_at(entries, "another model", ["c2"]) == []


def test_tally_counts_the_latest_verdict_of_a_claim_once():
    ledger = MemoryLedger()
    for verdict in ("inconclusive", "supported"):
        ledger.append("verdict", {"claim": "c1", "digest": "", "verdict": verdict})
    ledger.append("verdict", {"claim": "c2", "digest": "", "verdict": "refuted"})
    counts = tally(ledger.entries())
    assert (counts["tried"], counts["supported"], counts["refuted"], counts["inconclusive"]) == (2, 1, 1, 0)
