"""The calibration itself: it counts what happened, goes on where it was, and sees a battery that is broken."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from assay.calibrate import CALIBRATIONS, NAMED, calibrate
from assay.calibrate.base import LADDER, Outcome, alone, try_case
from assay.calibrate.named import judged_named, named_rates
from assay.calibrate.on_model import calibrate_model, dealt, explored, meaningless
from assay.calibrate.rates import rates, uniform_or_larger, upper95
from assay.calibrate.run import statements
from assay.calibrate.tables import markdown, plain_text
from assay.errors import EvidenceError, UsageError
from assay.evidence import gates
from assay.evidence.empirical import (
    MISBEHAVES,
    EmpiricalNull,
    calibrated_p,
    fit_null,
    instrument_flags,
    null_of,
    record_null,
)
from assay.evidence.features import direction
from assay.evidence.kinds import KINDS
from assay.evidence.memory import MemoryStore
from assay.evidence.options import OPTIONS
from assay.evidence.replay import replay_claim
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.evidence.screening import LABEL, PROCEDURES, Screen, replayed
from assay.evidence.source import MemorySource
from assay.records import Example
from assay.testing import planted_induction, planted_world
from assay.testing.dictionaries import explained_by_atoms
from assay.testing.effect_ladders import expected_largest, lever, lever_strength, linked, mood_pairs, two_roads
from assay.testing.effect_models import filler_source, part_direction
from assay.testing.score_worlds import graded_monitor, graded_words, recall_at

pytestmark = pytest.mark.whole

SETTINGS = Settings(tune=96, confirm=240, ood=168, draws=9)


@pytest.fixture(scope="module")
def represents():
    return CALIBRATIONS.get("represents")


def family(calibration, name):
    return next(each for each in calibration.families if each.name == name)


# rates -------------------------------------------------------------------------------------------


def test_bounds_are_the_exact_ones():
    assert upper95(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59)) and upper95(0, 59) <= 0.05 < upper95(0, 58)
    assert upper95(10, 336) <= 0.05 < upper95(11, 336)


def outcome(family, verdict, only=(), p=0.5, low=0.0, high=1.0, truth=None):
    numbers = {"sensitivity": (0.5, low, high, p, verdict == "supported", True)}
    return Outcome("represents", family, 0, verdict, (), numbers, tuple(only), truth or {})


def test_rates_count_by_truth_and_by_gate(represents):
    at_bar = {"sensitivity": 0.5}
    found = rates(represents, [
        outcome("shuffled", "refuted"), outcome("random unit", "supported"), outcome("twin", "inconclusive", ["near_miss"]),
        outcome("planted", "refuted"), outcome("1 x SESOI", "inconclusive", p=0.2, low=0.4, high=0.6, truth=at_bar),
        outcome("1 x SESOI", "supported", p=0.01, low=0.6, high=0.9, truth=at_bar),
    ])  # fmt: skip
    assert (found["null"]["n"], found["null"]["supported"], found["false"]["n"]) == (2, 1, 1)
    assert found["true"]["refuted"] == 1
    assert [(rung["effect_in_sesoi"], rung["truth"], rung["n"], rung["supported"])
            for rung in found["power"]] == [(1.0, 0.5, 2, 1)]  # fmt: skip
    assert found["coverage"]["sensitivity, 1 x SESOI"]["covered"] == 0.5
    assert found["p_values"]["sensitivity at its bar"]["share_below_05"] == 0.5
    assert found["gates"]["sensitivity"]["stopped"] == 2 and "1 of 2" in markdown({"kinds": {"represents": found}})


def test_too_many_small_p_values_are_seen_and_too_many_large_ones_are_not():
    rng = np.random.default_rng(0)
    assert uniform_or_larger(rng.random(200)) > 0.05
    assert uniform_or_larger(rng.random(200) ** 0.3) > 0.05
    assert uniform_or_larger(rng.random(200) ** 3) < 0.001
    assert uniform_or_larger([0.5]) is None


# claims ------------------------------------------------------------------------------------------


def test_every_kind_has_null_false_and_true_claims():
    for calibration in CALIBRATIONS:
        truths = {each.truth for each in calibration.families}
        assert {"null", "false", "true"} <= truths
        assert sum(calibration.full["null"] for each in calibration.families if each.truth == "null") >= 59
        rungs = [each.effect for each in calibration.families if each.truth == "ladder"]
        assert rungs == list(LADDER), calibration.kind
        assert calibration.binding in {gate.name for gate in gates.gates_for(calibration.kind)}
    assert {calibration.kind for calibration in CALIBRATIONS} == set(KINDS.names())
    assert all(CALIBRATIONS.get(calibration.label) is calibration for calibration in CALIBRATIONS)


@pytest.mark.parametrize("kind", ["uses", "steers", "connects", "decodes", "explains", "detects", "reconstructs"])
def test_every_ladder_is_climbed(kind):
    """One claim at the lowest rung and one at twice the bar; the binding gate sees what was planted."""
    calibration = CALIBRATIONS.get(kind)
    low, high = (try_case(calibration, family(calibration, f"{effect:g} x SESOI"), 1) for effect in (0.5, 2.0))
    assert (low.verdict == "supported", high.verdict) == (False, "supported")
    for outcome, room in ((low, 0.06), (high, 0.06)):
        assert outcome.gates[calibration.binding][0] == pytest.approx(outcome.truth[calibration.binding], abs=room)
    bar = next(gate for gate in gates.gates_for(kind) if gate.name == calibration.binding)
    assert low.truth[calibration.binding] < bar.bars.get(kind, bar.sesoi) < high.truth[calibration.binding]


@pytest.mark.parametrize("kind", ["uses", "steers", "connects", "decodes", "explains", "detects", "reconstructs", "mediates"])
def test_at_one_sesoi_the_truth_is_the_bar(kind):
    calibration = CALIBRATIONS.get(kind)
    case = family(calibration, "1 x SESOI").make(0)
    (bar,) = [gate.bars.get(kind, gate.sesoi) for gate in gates.gates_for(kind) if gate.name == calibration.binding]
    assert case.truth[calibration.binding] == pytest.approx(bar, abs=1e-6)


def test_dictionaries_that_know_nothing_and_one_that_does():
    calibration = CALIBRATIONS.get("reconstructs")
    names = ("random mixtures", "fitted to another model", "too few latents", "in the loss")
    found = {name: try_case(calibration, family(calibration, name), 1) for name in names}
    assert [found[name].verdict for name in names] == ["inconclusive", "inconclusive", "refuted", "supported"]
    for name in names[:2]:  # they explain enough; only the comparison stops them
        assert found[name].gates["variance"][4] and not found[name].gates["random.dictionary"][4]


# gates that a claim names -------------------------------------------------------------------------


def test_every_named_gate_has_claims_of_each_truth():
    for option, named in zip(NAMED.names(), NAMED, strict=True):
        calibration = named.calibration
        assert {each.truth for each in calibration.families} == {"null", "false", "true"} and calibration.full["null"] >= 59
        assert option in calibration.settings.options and calibration.kind in OPTIONS.get(option).kinds
        asked = {gate.name for gate in gates.gates_for(calibration.kind) if gate.asked == option}
        assert asked == set(named.gates)
    uncounted = {gate.asked for gate in gates.GATES if gate.asked and gate.required} - set(NAMED.names())
    assert uncounted == {"off_target", "reader_url", "whole_corpus"}  # as the documentation says


@pytest.mark.parametrize("option", ["interchange", "output", "second_corpus"])
def test_a_named_gate_decides(option):
    """Of a true and a false claim that ask for it, gates pass on one and stop the other; where no other gate stops it either,
    it would be supported without."""
    named = NAMED.get(option)
    made = [try_case(named.calibration, family, 4000) for family in named.calibration.families if family.truth != "null"]
    families = {each["truth"]: each for each in named_rates(named, made)["families"].values() if each["n"]}
    assert families["true"]["pass"] == 1 and families["false"]["pass"] == families["false"]["supported"] == 0
    if option == "second_corpus":
        assert families["true"]["supported"] == families["false"]["only"] == 1


def test_rates_of_named_gates_are_counts():
    named = NAMED.get("generation")
    null, false, true = (family.name for family in named.calibration.families)

    def made(family, verdict, generation, dose):
        numbers = {"generation@ood": (0.0, 0.0, 1.0, 0.5, generation, True), "steering.dose": (0.0, 0.0, 1.0, 0.5, dose, True)}
        return Outcome("steers", family, 0, verdict, (), numbers, (), {})

    found = named_rates(named, [*[made(null, "refuted", False, False)] * 59, made(false, "refuted", False, True),
                                *[made(true, "supported", True, True)] * 2])  # fmt: skip
    rows = found["families"]
    assert rows[null]["upper95"] <= 0.05 and (rows[null]["pass"], rows[null]["only"]) == (0, 0)
    assert (rows[false]["only"], rows[true]["pass"], rows[true]["supported"]) == (1, 2, 2)
    assert judged_named(found)
    said = []
    worse = named_rates(named, [made(null, "supported", True, True), made(true, "inconclusive", False, True)])
    assert not judged_named(worse, said.append) and len(said) == 2
    assert "2 of 2 (0.16 to 1.00)" in markdown({"kinds": {}, "named": {"generation": found}})


def test_one_option_can_be_tried_by_name(tmp_path):
    found = calibrate(["interchange"], n=1, keep=tmp_path)
    assert found["kinds"] == {} and {row["n"] for row in found["named"]["interchange"]["families"].values()} == {1}
    assert "interchange: interchange.accuracy" in plain_text(found)
    with pytest.raises(UsageError, match="interchnge"):
        calibrate(["interchnge"])


def test_what_is_hashed_is_what_the_code_does():
    code = 'def f(x):\n    """One."""\n    return x + 1\n'
    assert statements(code) == statements('def f(x):\n    """Other."""\n\n    return (x + 1)  # a comment\n')
    assert statements(code) != statements(code.replace("1", "2"))


# what the dials of ladders do, by other means ----------------------------------------------------


def residual(model, text, change=None):
    """(residual stream after layer 0, logits of the last token) by plain hooks."""
    kept = {}

    def hook(module, given, output):
        stream = output[0] if isinstance(output, tuple) else output
        kept["stream"] = stream
        if change is None:
            return None
        return (change(stream), *output[1:]) if isinstance(output, tuple) else change(stream)

    handle = model.hf.transformer.h[0].register_forward_hook(hook)
    try:
        with torch.no_grad():
            out = model.hf(torch.tensor([model.tokenizer(text)["input_ids"]]))
    finally:
        handle.remove()
    return kept["stream"][0], out


def answer(model, out):
    yes, no = (model.tokenizer(word)["input_ids"][0] for word in ("yes", "no"))
    return float(out.logits[0, -1, yes] - out.logits[0, -1, no])


def test_exchanging_the_used_part_moves_its_share():
    model, mood, share = two_roads(0.6), part_direction("mood"), 0.6
    moved, span = [], []
    for pair in mood_pairs(3).splits["confirm"]:
        there, corrupted = residual(model, pair.corrupted)
        _, clean = residual(model, pair.clean)
        swap = lambda stream, there=there: stream - ((stream - there) @ mood)[..., None] * mood  # noqa: E731
        _, exchanged = residual(model, pair.clean, swap)
        moved.append(answer(model, clean) - answer(model, exchanged))
        span.append(answer(model, clean) - answer(model, corrupted))
    assert np.mean(moved) / np.mean(span) == pytest.approx(share, abs=0.06)
    assert 0.1 < np.std(np.array(moved) / span) < 0.4  # words differ


def test_a_push_of_the_lever_has_its_dose():
    model, strength = lever(), lever_strength(0.3)
    rises, spans = [], []
    for pair in [pair for seed in range(4) for pair in mood_pairs(seed).splits["confirm"]]:
        _, clean = residual(model, pair.clean)
        _, corrupted = residual(model, pair.corrupted)
        _, pushed = residual(model, pair.clean, lambda stream: stream + strength * part_direction("lever"))
        rises.append(answer(model, pushed) - answer(model, clean))
        spans.append(answer(model, clean) - answer(model, corrupted))
    assert np.mean(rises) / np.mean(spans) == pytest.approx(0.3, abs=0.02)


def test_a_cause_that_is_switched_off_lowers_its_effect_by_the_planted_fall():
    found, (cause, effect) = linked(0.3), (part_direction("cause"), part_direction("effect"))
    levels, falls = [], []
    for item in filler_source(5, per_template=16).splits["confirm"]:
        stream, _ = residual(found.model, item.text)
        on = stream @ cause > 0.05
        before = second_layer(found.model, item.text)[0] @ effect
        after = second_layer(found.model, item.text, lambda s: s - (s @ cause)[..., None] * cause)[0] @ effect
        levels.extend(before.tolist())
        if on.any():
            peak = int(before.masked_fill(torch.cumsum(on.int(), 0) == 0, -torch.inf).argmax())
            falls.append(float(before[peak] - after[peak]))
    assert np.std(levels) == pytest.approx(1.0, abs=0.05)
    assert np.mean(falls) == pytest.approx(0.3, abs=0.015)


def second_layer(model, text, change=None):
    """Residual stream after layer 1 (before the last norm), with the stream after layer 0 changed."""
    kept = []
    handle = model.hf.transformer.h[1].register_forward_hook(
        lambda module, given, output: kept.append(output[0] if isinstance(output, tuple) else output))  # fmt: skip
    try:
        residual(model, text, change)
    finally:
        handle.remove()
    return kept[0] if kept[0].dim() == 3 else kept[0][None]


def test_the_largest_of_some_sizes_by_simulation():
    sizes, rng = np.array([0.7, 0.9, 1.1, 1.3]), np.random.default_rng(0)
    drawn = np.concatenate([sizes, np.zeros(20)])[rng.integers(0, 24, (200_000, 10))].max(1)
    assert expected_largest(sizes) == pytest.approx(drawn[drawn > 0].mean(), abs=2e-3)


@pytest.mark.parametrize("distance", [0.371, 1.112])
def test_graded_words_are_read_as_well_as_their_distance_says(distance):
    from scipy.stats import norm
    from sklearn.metrics import roc_auc_score

    along, elsewhere = [], []
    for seed in range(4):
        planted = graded_words(seed, distance)
        items = planted.source.splits["confirm"]
        assert len({item.entities for item in items}) == len(items) == 600  # a word is seen once
        acts = np.stack([planted.world.vector_of(item.text) for item in items])
        labels = [item.label for item in items]
        along.append(roc_auc_score(labels, acts @ planted.axis))
        off = np.linalg.svd(planted.axis[None])[2][1:]  # what is orthogonal to the axis
        elsewhere.extend(roc_auc_score(labels, acts @ direction) for direction in off)
    assert np.mean(along) == pytest.approx(norm.cdf(distance / 2**0.5), abs=0.025)
    assert np.mean(elsewhere) == pytest.approx(0.5, abs=0.025)


def test_a_graded_monitor_finds_what_its_distance_says():
    for distance in (1.3, 2.6, 3.9):
        shares = []
        for seed in range(3):
            planted = graded_monitor(seed, distance)
            scores = {split: np.array([planted.world.vector_of(item.text) @ planted.axis for item in items])
                      for split, items in planted.source.splits.items()}  # fmt: skip
            member = {split: np.array([item.label == 1 for item in items]) for split, items in planted.source.splits.items()}
            most = scores["tune"][~member["tune"]].max()
            tenth = np.quantile(scores["tune"][member["tune"]], 0.1)
            bar = max(most, (most + tenth) / 2 if tenth > most else most)
            shares.append((scores["confirm"][member["confirm"]] > bar).mean())
            assert not (scores["confirm"][~member["confirm"]] > bar).any()
        assert np.mean(shares) == pytest.approx(recall_at(distance), abs=0.03)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_dictionary_of_atoms_explains_its_share(share):
    world, source, dictionary = explained_by_atoms(2, share, per_template=40)
    acts = np.stack([world.vectors[item.text] for items in source.splits.values() for item in items])
    atoms = dictionary.atoms.double().numpy()
    rebuilt = np.maximum(acts @ atoms.T, 0) @ atoms
    lost, total = ((acts - rebuilt) ** 2).sum(), ((acts - acts.mean(0)) ** 2).sum()
    assert 1 - lost / total == pytest.approx(share, abs=0.02)


def test_a_quick_run_tells_null_from_planted():
    record = calibrate(["represents"], n=2)
    found = record["kinds"]["represents"]
    assert (found["null"]["n"], found["null"]["supported"]) == (12, 0)
    assert found["true"]["supported"] == 2
    assert [rung["supported"] for rung in found["power"]][0] == 0 and found["power"][3]["supported"] == 2
    assert found["gates"]["lexical"]["families"] == {"said in words": 2}  # nothing but the words' own gate stops these
    assert json.loads(json.dumps(record)) == record
    with pytest.raises(UsageError, match="kind: got 'nothing'; allowed: "):
        calibrate(["nothing"])


def test_circuits_and_their_decoys():
    calibration = CALIBRATIONS.get("mediates")
    found = {name: try_case(calibration, family(calibration, name), 1).verdict
             for name in ("decoy", "whole circuit")}  # fmt: skip
    assert found == {"decoy": "refuted", "whole circuit": "supported"}


@pytest.mark.parametrize("name, verdict", [("cancelling", "inconclusive"), ("circuit elsewhere", "supported")])
def test_what_is_claimed_usually_and_the_same_circuit_in_another_order(name, verdict):
    calibration = CALIBRATIONS.get("mediates")
    assert try_case(calibration, family(calibration, name), 0).verdict == verdict


def test_quick_runs_leave_out_what_is_trained_first(represents):
    trained = [each for each in represents.families if each.slow]
    assert {each.name for each in trained} == {"toy feature", "toy unit"}
    assert [represents.count(each, False, 5) for each in trained] == [0, 0]
    assert [represents.count(each, True) for each in trained] == [represents.full["false"], represents.full["true"]]
    feature, unit = (try_case(represents, family(represents, name), 0).verdict for name in ("toy feature", "toy unit"))
    assert (feature, unit != "supported") == ("supported", True)


@pytest.mark.slow
@pytest.mark.parametrize("name, verdicts", [
    ("learned mood", ("supported",)), ("backdoor", ("supported",)), ("clean twin", ("not tested",)),
    ("random in backdoored", ("refuted", "inconclusive")),
])  # fmt: skip
def test_what_training_put_into_a_model_is_found_and_in_its_twin_there_is_nothing(name, verdicts):
    uses = CALIBRATIONS.get("uses")
    assert try_case(uses, family(uses, name), 0).verdict in verdicts


def test_a_battery_without_its_gate_is_seen(represents, monkeypatch):
    """Calibration is worth something only if it notices: here everything that has to be silent counts as silent."""
    twin = family(represents, "said in words")
    assert try_case(represents, twin, 0).verdict != "supported"
    lexical = gates.get_gate("lexical")
    always = replace(lexical, contrast=lambda table, gate: gates.Contrast([0.99] * len(table["templates"])))
    monkeypatch.setitem(gates.GATES._items, "lexical", always)
    assert try_case(represents, twin, 0).verdict == "supported"


def test_the_only_gate_in_the_way_is_named():
    world = planted_world(0, lexical=1.0)
    store = MemoryStore()
    claim, plan = state_claim(store, world.world, world.source, direction(world.world.site, world.concept),
                              statement=Statement("represents"), settings=SETTINGS)  # fmt: skip
    test_claim(store, claim.id, world.world, source=world.source)
    evidence = store.evidence(claim.id)
    assert evidence is not None and alone(store, claim, plan, evidence) == ("lexical",)


@pytest.fixture
def few(represents, monkeypatch):
    """Null families and the two ends of the ladder only."""
    chosen = tuple(f for f in represents.families if f.truth == "null" or f.effect in (0.5, 2.0))
    monkeypatch.setitem(CALIBRATIONS._items, "represents", replace(represents, families=chosen))


def test_an_interrupted_run_goes_on(tmp_path, few, monkeypatch):
    seen = []

    def stop(label, done, total):
        seen.append(label)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(["represents"], n=1, keep=tmp_path, report=stop)
    (path,) = tmp_path.glob("represents-*.jsonl")
    kept = path.read_text().splitlines()
    assert len(kept) == 5
    path.write_text("\n".join([*kept, '{"kind": "repre']))  # killed while writing
    from assay.calibrate import run

    made = []
    original = run.try_case

    def counting(*arguments):
        made.append(1)
        return original(*arguments)

    monkeypatch.setattr(run, "try_case", counting)
    calibrate(["represents"], n=1, keep=tmp_path)
    assert len(made) == 6 + 2 - 5  # those that were kept are not made again
    made.clear()
    monkeypatch.setattr(run, "try_case", counting)
    assert calibrate(["represents"], n=1, keep=tmp_path)["kinds"]["represents"]["null"]["n"] == 6 and not made


# the empirical null ------------------------------------------------------------------------------


def test_the_null_is_fitted_by_maximum_likelihood():
    rng = np.random.default_rng(1)
    errors = rng.uniform(0.02, 0.1, 3000)
    gaps = rng.normal(0.05, np.hypot(0.08, errors))
    mean, sd = fit_null(gaps.tolist(), errors.tolist())
    assert (mean, sd) == (pytest.approx(0.05, abs=0.01), pytest.approx(0.08, abs=0.01))
    mean, sd = fit_null(rng.normal(0, errors).tolist(), errors.tolist())
    assert sd < 0.02
    null = EmpiricalNull("detection", ("represents",), 100, 3, 0, 0.05, 0.05, 0.08)
    assert calibrated_p(0.9, 0.06, 0.7, null) == pytest.approx(stats.norm.sf(0.15 / 0.1))


def test_twice_alpha_and_no_accident():
    def null(hits, n):
        return EmpiricalNull("detection", ("represents",), n, hits, 0, 0.05, 0.0, 0.0)

    assert not null(6, 60).misbehaves and null(7, 60).misbehaves and not null(5, 10).misbehaves
    assert replace(null(0, 60), supported=9).misbehaves


def words_source(n_templates=24):
    rng = np.random.default_rng(0)
    def texts(split):
        return [Example(f"w{a} w{b} w{c}", int(rng.integers(2)), f"{split} {a}.{b}", (f"w{c}",))
                for a, b in rng.permutation([(a, b) for a in range(6) for b in range(6)])[: n_templates // 2].tolist()
                for c in rng.choice(np.arange(12, 24), 8, replace=False).tolist()]  # fmt: skip

    return MemorySource("words", {"discover": texts("d"), "tune": texts("t")})


def test_negative_controls_on_a_model_stay_away_from_sealed_data():
    model, store, source = planted_induction(), MemoryStore(), words_source()
    found = calibrate_model(model, source, site="resid_post.1", n=20, store=store)
    assert found.null.n == 20 and found.null.supported == 0 and not found.null.misbehaves
    assert len({control.name for control in found.controls}) == 6
    (entry,) = store.entries()
    assert entry["kind"] == "look" and null_of(store, model.digest, "represents") == found.null
    assert store.tally()["looks"] == 1 and store.tally()["stated"] == 0
    with pytest.raises(UsageError, match="20 or more"):
        calibrate_model(model, source, n=5)


def test_controls_mean_nothing():
    items = explored(words_source(), 0)
    rng = np.random.default_rng(2)
    by_word, how = meaningless(items, rng, by_word=True)
    assert how == "by word" and len({(item.entities, item.label) for item in by_word}) == 12
    shuffled, how = meaningless(items, rng, by_word=False)
    assert how == "shuffled"
    for template in {item.template for item in shuffled}:
        labels = [item.label for item in shuffled if item.template == template]
        assert abs(sum(labels) - len(labels) / 2) <= 0.5
    splits = dealt(shuffled, rng).splits
    names = [{item.template for item in found} for found in splits.values()]
    assert not (names[0] & names[1] | names[0] & names[2] | names[1] & names[2]) and len(names[1]) >= 8


def test_verdicts_are_withheld_where_the_instrument_misbehaves():
    world, store = planted_world(0), MemoryStore()
    bad = EmpiricalNull("detection", ("represents",), 60, 20, 0, 0.05, 0.1, 0.1)
    record_null(store, world.world.digest, bad, world.source.splits["discover"], "a concept")
    assert instrument_flags(store, world.world.digest, "mediates") == ()
    subject = direction(world.world.site, world.concept)
    claim, _ = state_claim(store, world.world, world.source, subject, statement=Statement("represents"), settings=SETTINGS)
    verdict = test_claim(store, claim.id, world.world, source=world.source)
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("instrument",))
    assert MISBEHAVES in verdict.decision["notes"][0] and "exploratory" not in verdict.qualifiers
    assert replay_claim(store, claim.id, world.world, source=world.source).same
    record_null(store, world.world.digest, replace(bad, false_positives=2), world.source.splits["discover"], "again")
    assert instrument_flags(store, world.world.digest, "represents") == ()  # the latest counts


# screening ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("procedure", list(PROCEDURES))
def test_a_screen_keeps_false_discoveries_at_their_share(procedure):
    shares, power = [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        null = rng.random(200) < 0.8
        p = stats.norm.sf(rng.normal(size=200) + np.where(null, 0, 3.5))
        screen = Screen(0.1, procedure)
        screen.extend((f"feature {place}", float(value)) for place, value in enumerate(p))
        listed = [test.index for test in screen.listed]
        shares.append(np.mean(null[listed]) if listed else 0.0)
        power.append(np.mean([place in listed for place in np.flatnonzero(~null)]))
    assert np.mean(shares) <= 0.1 + 2 * np.std(shares) / 5 and np.mean(power) > 0.15


def test_a_screen_is_append_only_and_labelled():
    screen = Screen(0.1)
    screen.extend([("a", 1e-6), ("b", 0.9)])
    with pytest.raises(EvidenceError, match="tested before"):
        screen.add("b", 1e-9)
    record = screen.record()
    assert record["label"] == LABEL and record["listed"] == ["a"] and record["tested"] == 2
    assert replayed(record).listed == screen.listed
    with pytest.raises(EvidenceError, match="does not follow"):
        replayed({**record, "listed": ["a", "b"]})
    with pytest.raises(UsageError):
        Screen(0.1, "luck")


# command line ------------------------------------------------------------------------------------


def test_the_command_writes_its_json_twin(tmp_path, monkeypatch, few):
    from assay.cli.calibrate import calibrate as command

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = CliRunner().invoke(command, ["--kind", "represents", "--n", "1", "--quiet", "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out.json").read_text())["kinds"]["represents"]
    assert {"n", "supported", "upper95"} <= found["null"].keys()
    assert [rung["effect_in_sesoi"] for rung in found["power"]] == [0.5, 2.0]
    assert "null claims supported:  0 of 6" in done.output
