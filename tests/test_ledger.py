"""The chain shows every edit, deletion, reordering and truncation."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.atlas.store import Atlas
from assay.errors import EvidenceError
from assay.evidence.ledger import KINDS, MemoryLedger, head_of, next_entry, tally, verify_chain


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


# questions, answered by dictionaries and by tables ---------------------------------------------


@pytest.fixture(params=["memory", "atlas"])
def ledger(request, tmp_path):
    return MemoryLedger() if request.param == "memory" else Atlas(tmp_path / "atlas")


def test_reads_are_counted_by_data_and_by_clusters(ledger):
    ledger.append("ticket", {"claim": "c1", "ticket": "c1-1", "split": "confirm", "subject": "s", "data": "d1"})
    ledger.append("data", {"claim": "c1", "ticket": "c1-1", "split": "confirm", "subject": "s", "clusters": ["a", "b"]})
    assert ledger.reads("s", "d1", []) == 1
    assert ledger.reads("s", "other", ["b", "z"]) == 1  # other data, a cluster in common
    assert ledger.reads("s", "other", ["z"]) == 0
    assert ledger.reads("another subject", "d1", ["a"]) == 0
    ledger.append("data", {"claim": "c1", "ticket": "c1-2", "split": "ood", "subject": "s", "clusters": ["a"]})
    assert ledger.reads("s", "d1", ["a"]) == 1  # ood is no confirm read


def test_looks_are_remembered_by_model_and_cluster(ledger):
    for number in range(25):
        ledger.append("look", {"what": f"look {number}", "model": "m", "clusters": [f"c{number}", "all"]})
    assert len(ledger.looks("m", ["c2", "c99"])) == 1 and ledger.looks("m", ["c2"])[0].startswith("look 2 (")
    assert ledger.looks("another model", ["c2"]) == []
    everything = ledger.looks("m", ["all"])
    assert everything[0].startswith("look 24 (") and everything[-1] == "and 5 more" and len(everything) == 21


def test_tally_counts_the_latest_verdict_of_a_claim_once():
    ledger = MemoryLedger()
    for verdict in ("inconclusive", "supported"):
        ledger.append("verdict", {"claim": "c1", "digest": "", "verdict": verdict})
    ledger.append("verdict", {"claim": "c2", "digest": "", "verdict": "refuted"})
    ledger.append("replication", {"claim": "c1", "same": False})
    ledger.append("import", {"claim": "c3", "verdict": "supported"})
    counts = tally(ledger.entries())
    assert (counts["tried"], counts["supported"], counts["refuted"], counts["inconclusive"]) == (2, 1, 1, 0)
    assert (counts["replications"], counts["failed replications"], counts["imported"]) == (1, 1, 1)
    assert counts == ledger.tally()


# against a loop over all entries ----------------------------------------------------------------

NAMES = st.sampled_from("abcd")
BODIES = st.fixed_dictionaries({
    "claim": st.sampled_from(["c1", "c2", "c3"]), "subject": NAMES, "model": NAMES, "data": NAMES, "what": NAMES,
    "ticket": st.sampled_from(["t1", "t2", "t3"]), "split": st.sampled_from(["confirm", "ood"]),
    "clusters": st.lists(NAMES, max_size=3)})  # fmt: skip
ENTRIES = st.lists(st.tuples(st.sampled_from(["ticket", "data", "look", "lock"]), BODIES), max_size=12)


def slow_reads(entries, subject, data, wanted):
    met = set()
    for entry in entries:
        body = entry["body"]
        if body["subject"] == subject and body["split"] == "confirm":
            if entry["kind"] == "ticket" and body["data"] == data:
                met.add(body["ticket"])
            if entry["kind"] == "data" and set(wanted) & set(body["clusters"]):
                met.add(body["ticket"])
    return len(met)


@settings(max_examples=12, deadline=None)
@given(ENTRIES, NAMES, NAMES, st.lists(NAMES, max_size=3))
def test_tables_and_dictionaries_answer_like_a_loop_over_all_entries(tmp_path_factory, written, subject, data, wanted):
    memory, atlas = MemoryLedger(), Atlas(tmp_path_factory.mktemp("atlas"))
    with atlas:
        for kind, body in written:
            body = {key: value for key, value in body.items() if key != ("subject" if kind == "look" else "model")}
            memory.append(kind, body)
            atlas.append(kind, body)
        atlas.append("lock", {"claim": "c1"})
        memory.append("lock", {"claim": "c1"})
        entries = [{**entry, "body": {"subject": None, "split": None, **entry["body"]}} for entry in memory.entries()]
        sharing = [e["body"]["claim"] for e in entries if e["kind"] == "data" and e["body"]["split"] == "confirm"
                   and e["body"]["subject"] != subject and set(wanted) & set(e["body"]["clusters"])]  # fmt: skip
        looks = [e["body"]["what"] for e in entries if e["kind"] == "look" and e["body"]["model"] == subject
                 and set(wanted) & set(e["body"]["clusters"])]  # fmt: skip
        for store in (memory, atlas):
            assert store.reads(subject, data, wanted) == slow_reads(entries, subject, data, wanted)
            assert store.sharing(subject, wanted) == list(dict.fromkeys(sharing))
            assert [words[0] for words in store.looks(subject, wanted)] == looks[::-1]
            own = [e["index"] for e in entries if e["body"].get("claim") == "c1"]
            assert [e["index"] for e in store.entries_of("c1")] == own
            assert store.entry_count() == len(entries)
        assert atlas.tally() == memory.tally() and atlas.verify() == []


def test_every_kind_of_entry_can_be_written(ledger):
    for kind in KINDS:
        ledger.append(kind, {"claim": "c", "verdict": "refuted", "split": "tune", "clusters": [], "subject": "s"})
    assert [entry["kind"] for entry in ledger.entries()] == list(KINDS)
