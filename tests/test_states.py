"""Every verdict state, reason code and qualifier, reached on worlds and models whose truth is planted.

`tests/test_verdicts.py` checks the rule clause by clause on evidence made by hand; here it comes from measurement.
"""

import ast
import hashlib
import importlib
import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assay.data.prepare import prepare
from assay.errors import EvidenceError, ReproduceError, TamperedError
from assay.evidence import claims, run, verdicts
from assay.evidence.card import make_card
from assay.evidence.claims import audit, record_look, rederive
from assay.evidence.features import direction
from assay.evidence.gates import GATES, get_gate
from assay.evidence.memory import MemoryStore
from assay.evidence.replay import replay_claim
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.evidence.search import SEARCHES
from assay.evidence.source import MemorySource, Source
from assay.evidence.stale import stale_reasons, with_stale
from assay.testing import planted_induction, planted_world
from planted_task import write_task

SETTINGS = Settings(tune=96, confirm=240, ood=168, draws=5)
SMALL = Settings(tune=16, confirm=48, ood=36, draws=8, control_pairs=2)


@pytest.fixture(scope="module")
def planted():
    return planted_world(0)


@pytest.fixture(scope="module")
def model():
    return planted_induction()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return Source(str(write_task(tmp_path_factory.mktemp("task") / "induction.jsonl")))


def judged(planted, vector=None, store=None, statement=None, source=None, **settings):
    """The verdict on "this direction stands for the concept" in a planted world."""
    store = MemoryStore() if store is None else store
    source = planted.source if source is None else source
    feature = direction(planted.world.site, planted.concept if vector is None else vector)
    claim, _ = state_claim(store, planted.world, source, feature, statement=statement or Statement("represents"),
                           settings=replace(SETTINGS, **settings))  # fmt: skip
    return test_claim(store, claim.id, planted.world, source=source)


def changed(planted, change):
    """The same items with something changed about each, split by split."""
    return MemorySource("changed", {split: change(split, list(items)) for split, items in planted.source.splits.items()})


# states ------------------------------------------------------------------------------------------


def test_supported(planted):
    verdict = judged(planted)
    assert (verdict.verdict, verdict.reasons, verdict.qualifiers) == ("supported", (), ())


def test_refuted_below_its_bar(planted):
    verdict = judged(planted, np.random.default_rng(3).standard_normal(len(planted.concept)))
    assert (verdict.verdict, verdict.reasons) == ("refuted", ("below SESOI",))


def test_refuted_by_a_counterexample_to_always():
    """A weaker feature: supported as a tendency, and false as a law."""
    weak = planted_world(1, strength=1.2)
    assert judged(weak).verdict == "supported"
    verdict = judged(weak, statement=Statement("represents", "always"))
    assert verdict.verdict == "refuted" and "counterexample" in verdict.reasons
    assert any(hit["status"] == "verified" for hit in verdict.counterexamples["worst"])


def test_not_tested_before_confirm_is_read(planted):
    store = MemoryStore()
    claim, _ = state_claim(store, planted.world, planted.source, direction(planted.world.site, planted.concept),
                           statement=Statement("represents"), settings=SETTINGS)  # fmt: skip
    verdict = rederive(store, claim.id)
    assert (verdict.verdict, verdict.reasons) == ("not tested", ("confirm unread",))


def test_not_tested_where_the_behaviour_is_absent(model, task, tmp_path):
    """The same prompts with answer and foil swapped: the model does the opposite, there is nothing to carry."""
    swapped = write_task(tmp_path / "swapped.jsonl")
    swapped.write_text(swapped.read_text().replace('"answer"', '"x"').replace('"foil"', '"answer"').replace('"x"', '"foil"'))
    store = MemoryStore()
    claim, _ = state_claim(store, model, Source(str(swapped)), "z.1.0,z.1.1", settings=SMALL)
    verdict = test_claim(store, claim.id, model)
    assert (verdict.verdict, verdict.reasons) == ("not tested", ("behaviour absent",))


# reason codes of "inconclusive" ------------------------------------------------------------------


def test_underpowered_says_how_many_clusters_are_needed(planted):
    few = changed(planted, lambda split, items: [item for item in items if int(item.template.split()[1]) < 6])
    verdict = judged(planted, source=few)
    assert verdict.verdict == "inconclusive" and "underpowered" in verdict.reasons
    assert any("8 needed" in note for note in verdict.decision["notes"])


def test_conflicting_gates(planted):
    """As much of a second meaning: it ranks members well, and fires on about as many members as claimed."""
    verdict = judged(planted, planted.concept + 1.1 * planted.world.directions[2])
    assert verdict.verdict == "inconclusive" and "conflicting gates" in verdict.reasons


def test_non_unique_when_a_random_direction_does_as_well():
    """One feature that is nearly all there is: directions drawn from the data see it too."""
    loud = planted_world(2, strength=6.0, n_features=8, width=16)
    verdict = judged(loud, draws=19)
    assert (verdict.verdict, verdict.reasons[0]) == ("inconclusive", "non-unique") and "non-unique" in verdict.qualifiers


def test_lexical_when_the_words_say_it():
    verdict = judged(planted_world(3, lexical=1.0))
    assert (verdict.verdict, verdict.reasons[0], verdict.qualifiers) == ("inconclusive", "lexical", ("lexical",))


def test_search_incomplete_when_a_search_was_not_run(planted):
    verdict = judged(planted, search={"misfits": 0})
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("search incomplete",))


def test_counterexamples_when_too_many_go_the_wrong_way():
    weak = planted_world(1, strength=0.7)
    verdict = judged(weak, statement=Statement("represents", "usually"))
    assert verdict.verdict == "inconclusive" and "counterexamples" in verdict.reasons


def test_instrument_when_the_scores_are_constant(planted):
    frozen = replace(planted, world=replace(planted.world, vectors={text: np.ones_like(v) for text, v in
                                                                     planted.world.vectors.items()}))  # fmt: skip
    verdict = judged(frozen)
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("instrument",))


def test_instrument_when_tune_and_confirm_share_a_template(planted):
    def leak(split, items):
        return [*items, *planted.source.splits["tune"][:4]] if split == "confirm" else items

    verdict = judged(planted, source=changed(planted, leak), confirm=244)
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("instrument",))
    assert any("leak" in note for note in verdict.decision["notes"])


# qualifiers --------------------------------------------------------------------------------------


def test_exploratory_after_a_look_at_sealed_items(planted):
    store = MemoryStore()
    record_look(store, planted.world.digest, "a plot", planted.source.items("confirm", 10, 0))
    verdict = judged(planted, store=store)
    assert (verdict.verdict, verdict.qualifiers) == ("supported", ("exploratory",))


def test_reused_split_is_said_and_charged(planted):
    store = MemoryStore()
    feature = direction(planted.world.site, planted.concept)
    verdicts = []
    for _ in range(2):
        claim, _ = state_claim(store, planted.world, planted.source, feature, statement=Statement("represents"),
                               settings=SETTINGS)  # fmt: skip
        verdicts.append(test_claim(store, claim.id, planted.world, source=planted.source))
    assert [verdict.decision["alpha"] for verdict in verdicts] == [0.05, 0.0125]
    assert "reused split" in verdicts[1].qualifiers


# killed and concurrent tests ---------------------------------------------------------------------


def stated(planted, store):
    feature, statement = direction(planted.world.site, planted.concept), Statement("represents")
    return state_claim(store, planted.world, planted.source, feature, statement=statement, settings=SETTINGS)[0].id


def test_a_run_that_is_killed_before_its_verdict_is_judged_and_not_charged(planted, monkeypatch):
    store = MemoryStore()
    name = stated(planted, store)
    for reads in (1, 2):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(claims, "judge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            test_claim(store, name, planted.world, source=planted.source)
        assert audit(store, name) == []
        with pytest.raises(EvidenceError, match="measured and not judged"):
            make_card(store, name)
        with pytest.raises(EvidenceError, match="not tested yet"):
            replay_claim(store, name, planted.world, source=planted.source)
        verdict = test_claim(store, name, planted.world, source=planted.source)
        assert (verdict.decision["reads"], store.tally()["tickets"]) == (reads, reads) and audit(store, name) == []


def test_of_two_tests_with_one_ticket_one_is_kept(planted, monkeypatch):
    store, record, first = MemoryStore(), run.record_outcome, []
    name = stated(planted, store)

    def meanwhile(*found):
        monkeypatch.undo()
        first.append(test_claim(store, name, planted.world, source=planted.source))
        return record(*found)

    monkeypatch.setattr(run, "record_outcome", meanwhile)
    with pytest.raises(EvidenceError, match="tested meanwhile with the same ticket, by another process"):
        test_claim(store, name, planted.world, source=planted.source)
    assert store.verdict(name) == first[0] and store.tally()["tickets"] == 1 and audit(store, name) == []


def test_a_replay_needs_the_ordinary_texts_that_searches_read(planted):
    store = MemoryStore()
    name = stated(planted, store)
    test_claim(store, name, planted.world, source=planted.source, corpus=["Some text.", "Another."])
    for corpus in ((), ("Some text.",)):
        with pytest.raises(ReproduceError, match="read (other )?ordinary texts.*--corpus FILE") as told:
            replay_claim(store, name, planted.world, source=planted.source, corpus=corpus)
        assert told.value.exit_code == 4
    assert replay_claim(store, name, planted.world, source=planted.source, corpus=("Some text.", "Another.")).same


# what must be caught -----------------------------------------------------------------------------


def test_another_model_is_refused(planted):
    store, other = MemoryStore(), planted_world(9)
    claim, _ = state_claim(store, planted.world, planted.source, direction(planted.world.site, planted.concept),
                           statement=Statement("represents"), settings=SETTINGS)  # fmt: skip
    with pytest.raises(ReproduceError, match="State a claim about this model instead"):
        test_claim(store, claim.id, other.world, source=planted.source)


def test_data_given_in_memory_must_be_given_again(planted):
    store = MemoryStore()
    claim, _ = state_claim(store, planted.world, planted.source, direction(planted.world.site, planted.concept),
                           statement=Statement("represents"), settings=SETTINGS)  # fmt: skip
    with pytest.raises(EvidenceError, match="give them again"):
        test_claim(store, claim.id, planted.world)
    with pytest.raises(ReproduceError, match="not those the plan was locked on"):
        test_claim(store, claim.id, planted.world, source=changed(planted, lambda split, items: items[:-3]))


def test_a_late_change_of_the_bar_is_caught(planted):
    store = MemoryStore()
    claim, plan = state_claim(store, planted.world, planted.source, direction(planted.world.site, planted.concept),
                              statement=Statement("represents"), settings=SETTINGS)  # fmt: skip
    softer = replace(plan, gates=tuple(replace(gate, sesoi=0.0) for gate in plan.gates))
    store._claims[claim.id] = (claim, softer)
    with pytest.raises(TamperedError, match="differ from what was locked"):
        test_claim(store, claim.id, planted.world, source=planted.source)


def test_every_search_method_is_named_on_the_verdict(planted):
    found = judged(planted).counterexamples["methods"]
    assert set(found) == {method.name for method in SEARCHES if "represents" in method.kinds}


def test_nothing_here_depends_on_alignment(model, task):
    """The planted task fits the planted model: no pair is dropped."""
    assert prepare(task.items("confirm", 48, 0), model).dropped == {}


# nothing is left out -----------------------------------------------------------------------------

# where each is reached from measurement on a planted model; "file: test" for those outside of this file
REACHED = {
    "supported": "test_supported",
    "refuted": "test_refuted_below_its_bar",
    "inconclusive": "test_conflicting_gates",
    "not tested": "test_not_tested_before_confirm_is_read",
    "confirm unread": "test_not_tested_before_confirm_is_read",
    "behaviour absent": "test_not_tested_where_the_behaviour_is_absent",
    "below SESOI": "test_refuted_below_its_bar",
    "counterexample": "test_refuted_by_a_counterexample_to_always",
    "instrument": "test_instrument_when_the_scores_are_constant",
    "underpowered": "test_underpowered_says_how_many_clusters_are_needed",
    "conflicting gates": "test_conflicting_gates",
    "ablation-dependent": "test_mediates_gates: test_zeros_that_point_the_other_way_make_it_ablation_dependent",
    "redundant": "test_mediates_gates: test_redundant_where_all_others_do_the_whole_job_as_well",
    "non-unique": "test_non_unique_when_a_random_direction_does_as_well",
    "lexical": "test_lexical_when_the_words_say_it",
    "search incomplete": "test_search_incomplete_when_a_search_was_not_run",
    "counterexamples": "test_counterexamples_when_too_many_go_the_wrong_way",
    "exploratory": "test_exploratory_after_a_look_at_sealed_items",
    "reused split": "test_reused_split_is_said_and_charged",
    "stale": "test_stale_when_a_gate_has_changed_since",
    "imported": "test_cards: test_the_commands_hand_a_claim_over",
}


NO_CODES = {"confirm", "always", "usually", "behaviour", "complement", "sufficiency", "necessity", "rival", "K", "sd", "needed",
            "complete", "hits", "candidates", "looked", "verified"}  # fmt: skip


def words_of_the_rule():
    """Every text in the functions that decide which is no message: codes, and names of splits, groups and keys."""
    rule = ast.parse(inspect.getsource(verdicts))
    deciding = ("rule", "excuse", "doubts", "_why", "qualifiers_of")
    functions = [node for node in rule.body if isinstance(node, ast.FunctionDef) and node.name in deciding]
    assert len(functions) == len(deciding)
    parts = [part for function in functions for node in function.body[1:] for part in ast.walk(node)]
    joined = {id(text) for part in parts if isinstance(part, ast.JoinedStr) for text in ast.walk(part)}
    texts = {part.value for part in parts
             if isinstance(part, ast.Constant) and isinstance(part.value, str) and id(part) not in joined}  # fmt: skip
    return {text for text in texts | set(verdicts.STATES) | set(verdicts.CONTROLS.values()) if len(text.split()) <= 2}


def test_no_state_reason_or_qualifier_is_left_out():
    """A code that is new in the rule needs a planted world here, and a line in the documentation."""
    outside = {"stale", "imported"}  # put beside stored verdicts by stale.py and the cards, not by the rule
    assert words_of_the_rule() - NO_CODES == set(REACHED) - outside
    page = (Path(__file__).parent.parent / "docs" / "evidence.md").read_text()
    for code, where in REACHED.items():
        file, _, name = f"test_states: {where}".rpartition(": ")
        test = getattr(importlib.import_module(file.rpartition(": ")[2]), name)
        assert f'"{code}"' in inspect.getsource(test), f"{code}: {name} says nothing of it"
        assert f"| {code} |" in page or f"**{code}**" in page, f"{code} is not in docs/evidence.md"


def test_stale_when_a_gate_has_changed_since(planted, monkeypatch):
    store = MemoryStore()
    verdict = judged(planted, store=store)
    claim = store.claim(verdict.claim)
    assert stale_reasons(store, claim, planted.world, source=planted.source) == []
    monkeypatch.setitem(GATES._items, "firing", replace(get_gate("firing"), version=99))
    reasons = stale_reasons(store, claim, planted.world, source=planted.source)
    assert with_stale(verdict.to_json(), reasons)["qualifiers"] == ["stale"] and "firing" in reasons[0]


def test_every_summary_falls_when_labels_are_missing_or_doubled(planted):
    """A summary that does not fall when half of the concept's labels are dropped, or as many wrong ones are put in, is blind to
    half of what is claimed (Oikarinen et al. 2025); of the gates of *represents* one at least must see each."""
    def estimates(change):
        sealed, store = ("confirm", "ood"), MemoryStore()
        source = changed(planted, lambda split, items: [change(item) for item in items] if split in sealed else items)
        verdict = judged(planted, source=source, store=store)
        evidence = store.evidence(verdict.claim)
        assert evidence is not None
        return {gate.name: gate.estimate for gate in evidence.gates if gate.split == "confirm"}

    def number(item):
        return int(hashlib.sha256(item.text.encode()).hexdigest(), 16) % 2

    whole = estimates(lambda item: item)
    fewer = estimates(lambda item: replace(item, label=item.label * number(item)))
    more = estimates(lambda item: replace(item, label=max(item.label, number(item))))
    for name in ("detection", "lexical", "random.direction", "shuffled", "untrained"):  # summaries of ranking see both
        assert max(fewer[name], more[name]) < whole[name] - 0.08, name
    assert fewer["firing"] < whole["firing"] - 0.15 and fewer["precision"] < whole["precision"] - 0.3
    assert more["sensitivity"] < whole["sensitivity"] - 0.2  # and of counting, each sees what it is for
