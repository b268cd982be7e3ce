"""The kinds *uses*, *steers* and *connects* on models whose truth is written in, and against raw hooks."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from assay.errors import SiteError, TaskError, UsageError
from assay.evidence import claims, connects, effects
from assay.evidence.connects import Link
from assay.evidence.features import direction
from assay.evidence.gates import get_gate
from assay.evidence.kinds import KINDS
from assay.evidence.memory import MemoryStore
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.evidence.source import MemorySource, Source
from assay.evidence.steers import Steering, matched_tokens
from assay.probe import variants
from assay.records import Plan
from assay.testing import WORDS, planted_induction
from assay.testing.effect_models import filler_source, mood_source, neutral_texts, part_direction, planted_effects
from assay.testing.induction import PARTS
from planted_task import write_task

pytestmark = pytest.mark.whole

GRID = (-4, -2, -1, 1, 2, 4)
LINKED = Settings(tune=32, confirm=56, ood=48, draws=27, control_pairs=2)
SETTINGS = Settings(tune=16, confirm=40, ood=36, draws=27, control_pairs=1, options={"neutral": neutral_texts(20)})


@pytest.fixture(scope="module")
def model():
    return planted_effects()


@pytest.fixture(scope="module")
def moods():
    return mood_source()


@pytest.fixture(scope="module")
def fillers():
    return filler_source()


@pytest.fixture
def few(monkeypatch):
    """Fewer random directions, where they are not what a test is about."""
    monkeypatch.setattr("assay.evidence.steers.LEAST_PER_POOL", 6)


def at(layer, *parts, weights=None):
    return direction(f"resid_post.{layer}", part_direction(*parts, weights=weights))


def verdict_on(kind, model, source, subject, settings=None, **options):
    store = MemoryStore()
    settings = settings or (LINKED if kind == "connects" else SETTINGS)
    claim, _ = state_claim(store, model, source, subject, statement=Statement(kind), settings=settings, **options)
    verdict = test_claim(store, claim.id, model, source=source)
    if verdict.verdict == "supported":
        assert claims.same_verdict(claims.rederive(store, claim.id), verdict)  # from stored columns, without a model
    return verdict


def gates_of(verdict):
    return {gate["name"]: gate for gate in verdict.gates}


def failing(verdict):
    """Required gates that did not pass, on either split."""
    return {gate["name"].split("@")[0] for gate in verdict.gates if gate["required"] and not gate["passed"]}


def setup_of(name, model, source, subject, settings=LINKED):
    kind: Any = KINDS.get(name)
    plan = Plan("", kind.name, (), {}, "logit_diff", {}, "", dict(vars(settings)), {}, {}, "")
    tune: Any = kind.load(model, source.items("tune", settings.tune, 0))
    return kind.prepare(model, plan, kind.subject(model, subject), tune)[0], tune


def columns_of(kind, model, data, setup, *gates) -> dict[str, Any]:
    return KINDS.get(kind).measure(model, data, setup, [get_gate(gate).plan() for gate in gates])


def values_of(gate, table) -> list[Any]:
    return get_gate(gate).contrast(table, get_gate(gate).plan()).values


# uses --------------------------------------------------------------------------------------------


def test_a_used_direction_is_supported(model, moods):
    verdict = verdict_on("uses", model, moods, at(0, "mood"))
    gates = gates_of(verdict)
    assert (verdict.verdict, failing(verdict)) == ("supported", set())
    assert gates["erasure.mean"]["estimate"] == pytest.approx(0.5, abs=0.02)  # half way between yes and no
    assert gates["erasure.resample"]["estimate"] == pytest.approx(1.0, abs=0.02)
    assert all(gates[f"erasure.{name}"]["passed"] for name in ("nothing", "everything"))
    assert "erasing it removes 50% of the effect" in verdict.sentence and "stands for" in verdict.does_not_show[0]
    last = verdict_on("uses", model, moods, at(0, "mood"), replace(SETTINGS, positions="last"))
    assert last.verdict == "supported" and "erasure.everything" not in gates_of(last)


def test_what_can_be_decoded_but_is_not_used_is_refuted(model, moods):
    acts = model.capture([pair.clean for pair in moods.items("tune", 32, 0)], "resid_post.0", positions="last")
    other = model.capture([pair.corrupted for pair in moods.items("tune", 32, 0)], "resid_post.0", positions="last")
    copies = [run["resid_post.0"][:, 0] @ part_direction("copy") for run in (acts, other)]
    assert copies[0].min() > 0.5 and copies[1].max() < -0.5  # which answer is right can be read from it without error
    verdict = verdict_on("uses", model, moods, at(0, "copy"))
    assert verdict.verdict == "refuted" and {"erasure.mean", "erasure.resample"} <= failing(verdict)


def test_a_direction_no_better_than_a_random_change_of_its_size_is_not_supported():
    """Where mood is most of what varies, directions drawn from the covariance take as much of it out."""
    model = planted_effects(content=0.0, copy=0.0)
    verdict = verdict_on("uses", model, mood_source(), at(0, "mood", "idle", weights=(0.7, 0.714)))
    assert (verdict.verdict, verdict.reasons, failing(verdict)) == ("inconclusive", ("non-unique",), {"erasure.random"})


def test_a_subspace_that_ordinary_text_needs_is_not_what_this_behaviour_uses(model, moods):
    verdict = verdict_on("uses", model, moods, [at(0, "mood"), at(0, "side")])
    gates = gates_of(verdict)
    assert gates["erasure.mean"]["passed"] and gates["erasure.resample"]["passed"]
    assert verdict.verdict == "refuted" and "erasure.damage" in failing(verdict)  # a random control alone never refutes


def test_the_decoy_head_of_the_induction_model_is_refuted(tmp_path):
    """What the decoy writes is read by nothing. What the previous-token head writes is needed, but alike in the
    two runs of a pair: erasing it lowers the behaviour and exchanging it does not, and the verdict says so."""
    model, source = planted_induction(), Source(str(write_task(tmp_path / "induction.jsonl")))
    rng = random.Random(0)
    neutral = [" ".join(rng.sample([f"w{word}" for word in range(WORDS)], 8)) for _ in range(16)]
    settings = replace(SETTINGS, draws=1, tune=8, confirm=20, ood=16, options={"neutral": neutral})

    def written(part, n):
        start = PARTS.index(part) * WORDS
        return [direction("resid_post.0", torch.eye(model.dims.d_model)[start + word]) for word in range(n)]

    verdict = verdict_on("uses", model, source, written("unread", 4), settings)
    assert verdict.verdict == "refuted" and {"erasure.mean", "erasure.resample"} <= failing(verdict)
    used = verdict_on("uses", model, source, written("previous", WORDS), settings, sesoi={"erasure.damage": 0.5})
    assert gates_of(used)["erasure.mean"]["passed"] and "and 20 more" in used.sentence
    assert used.verdict == "inconclusive" and "ablation-dependent" in used.reasons


@pytest.mark.parametrize("kind, gates", [("uses", "erasure"), ("steers", "steering")])
def test_a_broken_instrument_gives_no_verdict(model, moods, monkeypatch, kind, gates, few):
    """A change of nothing that changes something; a change of everything that changes nothing."""
    kick = part_direction("mood", weights=(-2.0,))
    monkeypatch.setattr(f"assay.evidence.{kind}.unchanged", lambda acts, other: acts + kick)
    monkeypatch.setattr(f"assay.evidence.{kind}.swapped", lambda acts, other: acts)
    verdict = verdict_on(kind, model, moods, at(0, "mood") if kind == "uses" else Steering(at(0, "mood"), GRID))
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("instrument",))
    assert all(any(f"{gates}.{name}" in note for note in verdict.decision["notes"]) for name in ("nothing", "everything"))


@pytest.mark.parametrize("kind", ["uses", "steers"])
def test_without_a_behaviour_nothing_is_tested(model, moods, kind, few):
    turned = {split: [replace(pair, answers=pair.foils, foils=pair.answers) for pair in pairs]
              for split, pairs in moods.splits.items()}  # fmt: skip
    subject = at(0, "mood") if kind == "uses" else Steering(at(0, "mood"), GRID)
    verdict = verdict_on(kind, model, MemorySource("turned moods", turned), subject)
    assert (verdict.verdict, verdict.reasons) == ("not tested", ("behaviour absent",))


def test_erasure_equals_raw_hooks(model, moods):
    setup, tune = setup_of("uses", model, moods, at(0, "mood"))
    u = part_direction("mood")
    runs = [raw_stream(model, ids) for ids in (*tune.clean, *tune.corrupted)]
    first, later = torch.stack([x[0] for x in runs]).mean(0), torch.cat([x[1:] for x in runs]).mean(0)
    columns = columns_of("uses", model, tune, setup, "erasure.mean", "erasure.random")
    for row in (0, 5):
        means = torch.stack([first, *[later] * (len(tune.clean[row]) - 1)])
        logits = raw_logits(model, tune.clean[row], lambda x, m=means: x - ((x - m) @ u)[:, None] * u)[-1]
        wanted = (logits[tune.answers[row]] - logits[tune.foils[row]]).item()
        assert columns["erased.mean"][row] == pytest.approx(wanted, abs=1e-4)
    name, (basis, gain) = list(setup.controls.items())[1]
    means = torch.stack([first, *[later] * (len(tune.clean[0]) - 1)])
    logits = raw_logits(model, tune.clean[0], lambda x: x - gain * ((x - means) @ basis.T) @ basis)[-1]
    wanted = (logits[tune.answers[0]] - logits[tune.foils[0]]).item()
    assert columns[f"random.erased.{name}"][0] == pytest.approx(wanted, abs=1e-3)
    deltas = torch.cat([x - torch.stack([first, *[later] * (len(x) - 1)]) for x in runs])
    size = (deltas @ u).square().mean()  # every control changes the stream by as much as the claim
    for control, factor in setup.controls.values():
        assert (factor * (deltas @ control.T)).square().sum(1).mean() == pytest.approx(size.item(), rel=1e-3)
    assert len(setup.controls) == 27 and {each.split(".")[0] for each in setup.controls} == {"isotropic", "covariance", "unit"}


def test_damage_equals_a_raw_divergence(model):
    place = variants.place_of(model, "resid_post.0", "all")
    u, text = part_direction("side"), neutral_texts()[0]
    found = effects.neutral_kl(model, [text], place, [variants.pushed(2 * u), variants.unchanged, variants.pushed(-u)])
    (ids,) = model.tokens([text])
    before, *after = (raw_logits(model, ids, lambda x, s=s: x + s * u).log_softmax(-1) for s in (0.0, 2.0, 0.0, -1.0))
    wanted = [(before.exp() * (before - each)).sum(-1).mean().item() for each in after]
    assert [kl for (kl,) in found] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    damage = effects.Damage([text], place, [variants.pushed(2 * u), variants.pushed(-u)])
    assert damage.of(model) == pytest.approx([max(wanted)], rel=1e-4)
    passes = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(effects, "neutral_kl", lambda *given: passes.append(given))
        damage.of(model)  # what a second split asks for is there already
    assert passes == []


def test_texts_are_dealt_to_clusters_once():
    column = effects.deal([1.0, 2.0, 3.0, 4.0, 5.0], ["b", "a", "a", "b", "c"])
    assert column == [2.0, 1.0, 4.0, 5.0, 3.0]
    assert effects.deal([1.0, 2.0, 3.0], ["a", "b"]) == [1.0, 2.0]  # no text is counted twice


def test_a_unit_inside_the_claim_is_no_control():
    centred = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    drawn = variants.random_subspaces(centred, torch.eye(6)[2:3], 6, 0)
    units = [int(basis.abs().argmax()) for name, basis in drawn.items() if name.startswith("unit")]
    assert sorted(units) == [0, 1, 3, 4, 5]
    assert all(torch.allclose(basis @ basis.T, torch.eye(1), atol=1e-5) for basis in drawn.values())


def test_chunks_do_not_change_anything(model, moods, monkeypatch):
    setup, tune = setup_of("uses", model, moods, at(0, "mood"))
    whole = columns_of("uses", model, tune, setup, "erasure.resample", "erasure.random")
    monkeypatch.setattr(variants, "CHUNK_FLOATS", 4000)
    pieces = columns_of("uses", model, tune, setup, "erasure.resample", "erasure.random")
    for name, values in whole.items():
        rows = [row for row, value in enumerate(values) if value is not None]
        assert [pieces[name][row] for row in rows] == pytest.approx([values[row] for row in rows], abs=1e-3)


# steers ------------------------------------------------------------------------------------------


def test_a_steering_direction_is_supported(model, moods):
    options = {**SETTINGS.options, "instruction": "p0 p1 p2"}
    verdict = verdict_on("steers", model, moods, Steering(at(0, "mood"), GRID), replace(SETTINGS, options=options))
    gates = gates_of(verdict)
    assert (verdict.verdict, failing(verdict)) == ("supported", set())
    assert gates["steering.random"]["tables"]["draws"] == 99 and gates["steering.random"]["tables"]["p_empirical"] == 0.01
    assert gates["steering.everything"]["estimate"] == pytest.approx(1, abs=0.01)
    assert gates["steering.prompt"]["estimate"] > 0 and not gates["steering.prompt"]["required"]
    assert gates["steering.prompt"]["tables"]["by_instruction"] > 0.05
    assert "moves the log-odds" in verdict.sentence


def test_a_direction_the_model_does_not_use_can_still_steer(model, moods, few):
    """ramp reaches mood by a neuron; it is silent by itself. Only its negative side gives it away here."""
    verdict = verdict_on("steers", model, moods, Steering(at(0, "ramp"), GRID))
    assert (verdict.verdict, failing(verdict)) == ("refuted", {"steering.sign"})


def test_a_handle_that_turns_back_is_refuted(model, moods, few):
    verdict = verdict_on("steers", model, moods, Steering(at(0, "zigzag"), (-6, -4, -3, -2, -1, 1, 2, 3, 4, 6)))
    assert (verdict.verdict, failing(verdict)) == ("refuted", {"steering.monotone"})
    assert gates_of(verdict)["steering.dose"]["estimate"] > 1  # a straight line through it looks fine


def test_a_good_mean_that_hides_reversals_is_refuted(model, moods, few):
    verdict = verdict_on("steers", model, moods, Steering(at(0, "gate"), GRID), sesoi={"steering.monotone": 0.3})
    assert (verdict.verdict, failing(verdict)) == ("refuted", {"steering.reversal"})
    assert gates_of(verdict)["steering.reversal"]["estimate"] == pytest.approx(0.75)
    assert verdict.counterexamples["share"] == pytest.approx(0.25) and verdict.counterexamples["verified"] == 10


def test_a_change_of_temperature_is_not_steering(model, moods, few):
    """Taking off the constant part makes every difference larger, this behaviour's too."""
    verdict = verdict_on("steers", model, moods, Steering(at(0, "constant", weights=(-1,)), (-12, -6, 6, 12)))
    gates = gates_of(verdict)
    assert all(gates[f"steering.{name}"]["passed"] for name in ("dose", "monotone", "sign", "reversal"))
    assert verdict.verdict == "refuted" and "steering.relative" in failing(verdict)


def test_a_push_no_better_than_random_ones_is_not_supported(model, moods):
    verdict = verdict_on("steers", model, moods, Steering(at(0, "mood", "idle", weights=(0.3, 0.95)), GRID))
    assert (verdict.verdict, verdict.reasons, failing(verdict)) == ("inconclusive", ("non-unique",), {"steering.random"})


def test_a_push_that_breaks_ordinary_text_is_refuted(model, moods, few):
    verdict = verdict_on("steers", model, moods, Steering(at(0, "mood", "side", weights=(1, 0.7)), GRID))
    assert (verdict.verdict, failing(verdict)) == ("refuted", {"steering.damage"})


def test_a_direction_that_moves_nothing_is_refuted(model, moods, few):
    verdict = verdict_on("steers", model, moods, Steering(at(0, "idle"), GRID))
    assert verdict.verdict == "refuted" and "steering.dose" in failing(verdict)


def test_steering_equals_raw_hooks(model, moods):
    setup, tune = setup_of("steers", model, moods, Steering(at(0, "mood", "gate"), GRID))
    columns = columns_of("steers", model, tune, setup, "steering.relative", "steering.random")
    ids, answer, foil = tune.clean[3], tune.answers[3], tune.foils[3]
    for strength in (-4, 1):
        logits = raw_logits(model, ids, lambda x, s=strength: x + s * part_direction("mood", "gate"))[-1]
        assert columns[f"steered.{strength:+d}"][3] == pytest.approx((logits[answer] - logits[foil]).item(), abs=1e-4)
    name = "covariance.07"
    row = next(row for row, value in enumerate(columns[f"random.steered.{name}"]) if value is not None)
    logits = raw_logits(model, tune.clean[row], lambda x: x + 4 * setup.random[name])[-1]
    wanted = (logits[tune.answers[row]] - logits[tune.foils[row]]).item()
    assert columns[f"random.steered.{name}"][row] == pytest.approx(wanted, abs=1e-3)
    assert all(vector.norm() == pytest.approx(1, abs=1e-5) for vector in setup.random.values())
    plain = raw_logits(model, ids, lambda x: x)[-1]  # control tokens: the four nearest to the answer, and to the foil
    keep = [token for token in range(len(plain)) if token not in (*answer, *foil)]
    near = [sorted(abs(plain[t] - plain[own[0]]).item() for t in keep)[:4] for own in (answer, foil)]
    chosen = [side[3] for side in matched_tokens(model, tune)]
    for own, tokens, distances in zip((answer, foil), chosen, near):
        assert sorted(abs(plain[t] - plain[own[0]]).item() for t in tokens) == pytest.approx(distances, abs=1e-4)


def test_dose_monotone_and_sign_are_what_they_say():
    """Closed forms: a straight line, and one that only rises."""
    table = {"templates": ["a", "b"], "columns": {"clean": [0.0, 0.0], "corrupted": [-10.0, -10.0], "steered.-2": [-4.0, 0.0],
             "steered.-1": [-2.0, 0.0], "steered.+1": [2.0, 1.0], "steered.+2": [4.0, 2.0]}}  # fmt: skip
    values = {name: values_of(f"steering.{name}", table) for name in ("dose", "monotone", "sign", "reversal")}
    assert values["dose"] == pytest.approx([0.4, 0.1])  # slope x 2 / 10; the second slope is 5 / 10
    assert values["monotone"] == pytest.approx([1.0, 0.8366600])  # tau-b: 7 of 10 pairs concordant, 3 tied
    assert values["sign"] == pytest.approx([0.3, 0.0]) and values["reversal"] == [1.0, 1.0]


def test_strengths_are_declared_in_both_senses(model):
    for wrong in ((1, 2), (-1, 1, 2), (), (-1, -2, float("inf"), 3)):
        with pytest.raises(UsageError, match="strengths"):
            KINDS.get("steers").subject(model, Steering(at(0, "mood"), wrong))
    with pytest.raises(UsageError, match="declare"):
        KINDS.get("steers").subject(model, at(0, "mood"))


# connects ----------------------------------------------------------------------------------------


def test_a_cause_is_supported(model, fillers):
    verdict = verdict_on("connects", model, fillers, Link(at(0, "cause"), at(1, "effect")))
    assert (verdict.verdict, failing(verdict)) == ("supported", set())
    gates = gates_of(verdict)
    assert gates["link.reverse"]["estimate"] == pytest.approx(1, abs=1e-4) and gates["link.itself"]["passed"]
    assert gates["link.direct"]["estimate"] == pytest.approx(0, abs=0.02)  # by way of MLP 1
    assert "switching A off lowers B" in verdict.sentence


def test_a_common_cause_is_refuted(model, fillers):
    verdict = verdict_on("connects", model, fillers, Link(at(0, "witness"), at(1, "echo")))
    assert gates_of(verdict)["link.together"]["estimate"] > 0.8  # they fire together
    assert verdict.verdict == "refuted" and "link.effect" in failing(verdict)
    true = verdict_on("connects", model, fillers, Link(at(0, "origin"), at(1, "echo")))
    assert true.verdict == "supported"


def test_what_moves_everything_is_no_connection(model, fillers):
    verdict = verdict_on("connects", model, fillers, Link(at(0, "flood"), at(1, "drop")))
    assert (verdict.verdict, failing(verdict)) == ("refuted", {"link.specific"})


def test_a_change_no_better_than_random_ones_of_its_size_is_not_supported(model, fillers):
    """shadow is large, on with the cause, and read by nothing: most of what is switched off does nothing."""
    weak = at(0, "cause", "shadow", weights=(0.3, 0.954))
    verdict = verdict_on("connects", model, fillers, Link(weak, at(1, "effect")))
    assert (verdict.verdict, verdict.reasons, failing(verdict)) == ("inconclusive", ("non-unique",), {"link.random"})


def test_what_reaches_the_target_by_the_stream_alone_is_direct(model, fillers):
    """The neuron that reads the cause; nothing but the stream is in between."""
    verdict = verdict_on("connects", model, fillers, Link(at(0, "cause"), "mlp_act.1.9"))
    assert gates_of(verdict)["link.direct"]["estimate"] == pytest.approx(1, abs=0.1)


def test_features_that_do_not_fire_together_are_refuted(model, fillers, monkeypatch):
    """Firing shifted by half a text: the cause stays, co-activation goes."""
    honest = connects.Clean.firing
    monkeypatch.setattr(connects.Clean, "firing", lambda self: [(a, np.roll(b, 5)) for a, b in honest(self)])
    verdict = verdict_on("connects", model, fillers, Link(at(0, "cause"), at(1, "effect")))
    assert (verdict.verdict, failing(verdict)) == ("refuted", {"link.together"})


@pytest.mark.parametrize("gate, change", [("link.reverse", lambda moved, fallen: (moved + 5, fallen)),
                                          ("link.itself", lambda moved, fallen: (moved, 0 * fallen))])  # fmt: skip
def test_an_edit_that_works_backwards_or_not_at_all_is_seen(model, fillers, monkeypatch, gate, change):
    honest = connects.Clean.without_b
    monkeypatch.setattr(connects.Clean, "without_b", lambda self: change(*honest(self)))
    verdict = verdict_on("connects", model, fillers, Link(at(0, "cause"), at(1, "effect")))
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("instrument",))
    assert any(gate in note for note in verdict.decision["notes"])


def test_a_link_equals_raw_hooks(model, fillers):
    setup, tune = setup_of("connects", model, fillers, Link(at(0, "cause"), at(1, "effect")))
    columns = columns_of("connects", model, tune, setup, "link.random", "link.effect")
    u, w = part_direction("cause"), part_direction("effect")
    a_all = torch.cat([raw_stream(model, ids) @ u for ids in tune.tokens])
    b_all = torch.cat([raw_stream(model, ids, 1) @ w for ids in tune.tokens])
    threshold, off, spread = a_all.mean() + a_all.std(correction=0) / 2, a_all.median(), b_all.std(correction=0)

    def fall(ids, towards):
        a = raw_stream(model, ids) @ u
        on = a > threshold
        after = raw_stream(model, ids, 1, lambda x: x - ((a - off) * on)[:, None] * towards) @ w
        before = raw_stream(model, ids, 1) @ w
        start = int(on.int().argmax())
        peak = start + int(before[start:].argmax())
        return ((before - after)[peak] / spread).item()

    rows = [row for row, value in enumerate(columns["link"]) if value is not None]
    silent = [row for row, ids in enumerate(tune.tokens) if not (raw_stream(model, ids) @ u > threshold).any()]
    assert rows and sorted([*rows, *silent]) == list(range(len(tune)))
    for row in rows[:4]:
        assert columns["link"][row] == pytest.approx(fall(tune.tokens[row], u), abs=1e-3)
    name = "isotropic.03"
    row = next(row for row, value in enumerate(columns[f"random.source.{name}"]) if value is not None)
    assert columns[f"random.source.{name}"][row] == pytest.approx(fall(tune.tokens[row], setup.random[name]), abs=1e-3)


def test_phi_and_its_shifts_are_what_brute_force_gives(model, fillers):
    rng = np.random.default_rng(0)
    pairs = [((rng.random(12) < 0.4).astype(float), (rng.random(12) < 0.3).astype(float)) for _ in range(9)]
    table = {"templates": list("abcabcabc"), "columns": connects._named("together", [connects._counts(a, b) for a, b in pairs])}
    values = values_of("link.together", table)
    a, b = (np.concatenate(side) for side in zip(*pairs))
    shifts = [np.mean([np.corrcoef(a, np.concatenate([np.roll(y, s) for _, y in pairs]))[0, 1] for s in range(1, 12)])]
    assert np.mean(values) == pytest.approx(np.corrcoef(a, b)[0, 1] - shifts[0])
    assert connects._soon(np.array([0.0, 0, 1, 0]), 1).tolist() == [0, 1, 1, 0]
    left = connects._without_identity([np.array([1.0, 0, 1]), np.array([0.0, 1])], [[7, 8, 7], [8, 9]])
    assert [x.tolist() for x in left] == [[0, 0, 0], [0, 0]]  # token identity says it all
    partial = gates_of(verdict_on("connects", model, fillers, Link(at(0, "origin"), at(1, "echo"))))["link.partial"]
    assert partial["estimate"] == 0 and not partial["required"]  # both are on in the same words: reported


def test_matched_features_fire_about_as_often(model, fillers):
    setup, _ = setup_of("connects", model, fillers, Link(at(0, "cause"), at(1, "effect")))
    assert len(setup.matched) == connects.N_MATCHED
    assert all(abs(other.rate - setup.b.rate) < 0.1 for other in setup.matched.values())


def test_what_comes_later_drives_nothing(model):
    for link in (Link(at(1, "effect"), at(0, "cause")), Link(at(0, "cause"), at(0, "effect"))):
        with pytest.raises(SiteError, match="not computed before"):
            KINDS.get("connects").subject(model, link)
    with pytest.raises(UsageError, match="one vector per position"):
        KINDS.get("uses").subject(model, "z.0.1")
    with pytest.raises(UsageError, match="one site"):
        KINDS.get("uses").subject(model, [at(0, "mood"), at(1, "mood")])
    with pytest.raises(UsageError, match="independent"):
        variants.orthonormal([part_direction("mood"), part_direction("mood")])


def test_screening_is_kept_with_the_plan(model, fillers):
    settings = replace(LINKED, options={"screened": 400})
    _, plan = state_claim(MemoryStore(), model, fillers, Link(at(0, "cause"), at(1, "effect")), statement=Statement("connects"),
                          settings=settings)  # fmt: skip
    assert plan.settings["controls"]["screened"] == 400


def test_pairs_serve_as_texts_and_short_ones_are_dropped(model, moods, fillers):
    items = [*moods.items("tune", 3, 0), *fillers.items("tune", 2, 0), replace(fillers.items("tune", 1, 0)[0], text="f1")]
    texts: Any = KINDS.get("connects").load(model, items)
    assert len(texts) == 5 and texts.dropped == {"one token only": 1} and texts.tokens[0] == model.tokens(items[0].clean)[0]


def test_a_claim_needs_its_data(model):
    empty = MemorySource("nothing", {})
    with pytest.raises(TaskError, match="no items"):
        verdict_on("uses", model, empty, at(0, "mood"))


# raw PyTorch -------------------------------------------------------------------------------------


def raw_stream(model, ids, layer=0, change=None):
    """The residual stream (pos, d) after a layer, with the stream after layer 0 changed."""
    found = {}
    blocks = model.hf.transformer.h
    handles = [blocks[layer].register_forward_hook(lambda m, a, out: found.update(x=_hidden(out)[0].clone()))]
    if change is not None:
        handles.append(blocks[0].register_forward_hook(lambda m, a, out: _with(out, change(_hidden(out)[0])[None])))
    with torch.no_grad():
        model.hf(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return found["x"]


def raw_logits(model, ids, change):
    """Logits (pos, vocab) with the stream after layer 0 changed."""
    handle = model.hf.transformer.h[0].register_forward_hook(lambda m, a, out: _with(out, change(_hidden(out)[0])[None]))
    with torch.no_grad():
        logits = model.hf(torch.tensor([ids])).logits[0]
    handle.remove()
    return logits


def _hidden(out):
    return out[0] if isinstance(out, tuple) else out


def _with(out, hidden):
    return (hidden, *out[1:]) if isinstance(out, tuple) else hidden
