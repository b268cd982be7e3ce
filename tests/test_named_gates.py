"""Gates that are planned where a claim names what they need, and gates that are only reported: each passes a planted truth
and stops a planted falsehood."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.calibrate import CALIBRATIONS
from assay.calibrate.reconstructs import SPLITS
from assay.data.prepare import prepare
from assay.errors import EvidenceError, TaskError, UsageError
from assay.evidence.card import check_card, make_card
from assay.evidence.connects import Link
from assay.evidence.edges_instrument import is_circuit
from assay.evidence.features import direction
from assay.evidence.gates import GATES, gates_for, get_gate
from assay.evidence.gates.base import evaluate
from assay.evidence.memory import MemoryStore
from assay.evidence.options import OPTIONS
from assay.evidence.output_side import word_tokens
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.evidence.source import ConceptSource, MemorySource, marks
from assay.evidence.steers import Steering, continued, fluency
from assay.probe.readout import read_part, read_space
from assay.records import Example, digest, plain
from assay.sites import parse_site
from assay.testing import planted_induction, planted_world
from assay.testing.checks import Planted, check_gate, check_pure, tried
from assay.testing.dictionaries import AtomDictionary
from assay.testing.effect_models import (
    D_MLP,
    FILLERS,
    MOODS,
    Neuron,
    effects_model,
    filler_source,
    mood_source,
    neutral_texts,
    part_direction,
    planted_effects,
    write_neuron,
    written_effects,
)  # fmt: skip
from assay.testing.score_worlds import OWN, decodable_world, explained_world, monitored_world
from circuit_tasks import source

pytestmark = pytest.mark.whole
MOOD = Settings(tune=16, confirm=40, ood=36, draws=9, options={"neutral": neutral_texts(20)})
CIRCUIT = Settings(tune=18, confirm=48, ood=40, draws=6, control_pairs=2, options={"scrub": True})


@pytest.fixture(scope="module")
def effects():
    return planted_effects()


def with_options(settings, **options):
    return replace(settings, options={**settings.options, **options})


def along(part, site="resid_post.0"):
    return direction(site, part_direction(*part.split()).tolist())


# a second corpus ---------------------------------------------------------------------------------


def corpus_file(folder, own, other, templates=6):
    """A concept file of texts in which members have a word of `own`, non-members one of `other`."""
    rng, rows = random.Random(0), []
    for number in range(2 * templates):
        for place in range(8):
            word = rng.choice(own if place % 2 else other)
            words = [*rng.sample(["amber", "basil", "cedar", "delta", "ember", "fjord"], 3), word, f"y{number}.{place}"]
            rows.append({"text": " ".join(words), "label": place % 2, "group": f"other {number}"})
    (folder / "second.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def explaining(**made):
    planted = explained_world(3, **made)
    subject = {"feature": "mlp_act.0.0", "rule": {"type": "lexicon", "words": list(OWN)}}
    return Planted("explains", planted.world, planted.source, subject,
                   Settings(tune=256, confirm=320, ood=224, draws=9, options={"second_corpus": "second.jsonl"}))  # fmt: skip


def test_a_second_corpus_decides_where_one_is_named(tmp_path, monkeypatch):
    """The same feature and rule on texts of another source; and on texts in which the feature cannot fire as it should."""
    corpus_file(tmp_path, OWN, ("copper", "silver"))
    monkeypatch.chdir(tmp_path)
    true = explaining()
    deaf = replace(true.host, vector_of=lambda text: np.zeros(48) if "y" in text.split()[-1] else true.host.vector_of(text),
                   marks=(*true.host.marks, "deaf"))  # fmt: skip
    found, _ = check_gate("second_corpus", true, replace(true, host=deaf))
    assert "second_corpus" not in {gate.name for gate in gates_for("explains", options={})}
    locked, store = found.plan.settings["controls"]["second_corpus"], MemoryStore()
    claim, _ = state_claim(store, true.host, true.source, true.subject, statement=Statement("explains"), settings=true.settings)
    test_claim(store, claim.id, true.host, source=true.source)
    card = plain(make_card(store, claim.id))
    check_card(card)  # its table has rows that are no items
    card["evidence"]["tables"]["confirm"]["columns"]["second.score"].pop()
    with pytest.raises(EvidenceError, match=r"second.score.*one per second.template"):
        check_card({**card, "digest": digest({key: value for key, value in card.items() if key != "digest"})})
    looked = next(entry["body"]["clusters"] for entry in store.entries() if entry["kind"] == "look")
    assert set(marks(ConceptSource("second.jsonl").explore(None, 400, 0))) <= set(looked)
    assert locked["templates"] >= 8 and len(locked["digest"]) == 16


def filler_file(folder, causes):
    """Texts of another source in the words of the model with planted effects, with or without those that drive anything."""
    rng, words = random.Random(1), (*FILLERS[:8], *FILLERS[12:]) if causes else FILLERS[12:]
    texts = [" ".join(["ask", *rng.choices(words, k=11)]) for _ in range(96)]
    rows = [{"text": text, "label": n % 2, "group": f"other {n // 8}"} for n, text in enumerate(texts)]
    (folder / "second.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_link_that_the_second_corpus_does_not_show_is_not_supported(effects, tmp_path, monkeypatch):
    """The same cause and effect; and in texts that have none of the words that switch the cause on."""
    monkeypatch.chdir(tmp_path)
    settings = Settings(tune=64, confirm=56, ood=48, draws=9, options={"second_corpus": "second.jsonl"})
    true = Planted("connects", effects, filler_source(), Link(along("cause"), along("effect", "resid_post.1")), settings)
    found = {}
    for causes in (True, False):
        filler_file(tmp_path, causes)
        found[causes] = tried(true)
    names = {gate.name for gate in found[True].plan.gates if gate.name.startswith("second_corpus")}
    assert names == {"second_corpus.link", "second_corpus.together"} and found[True].verdict.verdict == "supported"
    check_pure(found[True], names)
    assert found[False].verdict.verdict != "supported" and all(found[False].gate(name).p_above > 0.05 for name in names)
    assert all(gate.p_above <= 0.05 for gate in found[False].evidence.gates if gate.required and gate.name not in names)


def test_a_second_corpus_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus_file(tmp_path, OWN, ("copper",), templates=3)
    true, store = explaining(), MemoryStore()

    def state(name):
        settings = with_options(true.settings, second_corpus=name)
        state_claim(store, true.host, true.source, true.subject, statement=Statement("explains"), settings=settings)

    with pytest.raises(TaskError, match="8 templates or more"):
        state("second.jsonl")
    with pytest.raises(UsageError, match="is a task"):
        state("ioi")
    with pytest.raises(UsageError, match="working folder"):
        state(str(tmp_path / "second.jsonl"))
    assert store.claims() == []


# the output side ---------------------------------------------------------------------------------


def mood_texts():
    """Texts that end in "ask": members have a p-word, others an n-word."""
    splits = {}
    for split, n in {"tune": 10, "confirm": 14, "ood": 12}.items():
        rng = random.Random(split)
        splits[split] = [Example(" ".join([*rng.sample(FILLERS, 4), rng.choice(MOODS[1 if label else -1]), "ask"]), label,
                                 f"{split} {number}") for number in range(n) for label in (0, 1, 0, 1)]  # fmt: skip
    return MemorySource("moods", splits)


def representing(model, part, *words):
    settings = Settings(tune=40, confirm=56, ood=48, draws=9, options={"output": list(words)})
    return Planted("represents", model, mood_texts(), along(part), settings)


def test_a_feature_that_is_read_and_not_written_fails_on_the_output_side(effects):
    """`copy` carries the same property, and nothing reads it: adding it says nothing. The numbers are those of raw hooks."""
    gates = ["output.shift", "output.random"]
    found, _ = check_gate(gates, representing(effects, "mood", "yes"), representing(effects, "copy", "yes"))
    columns, items = found.evidence.tables["confirm"]["columns"], mood_texts().splits["confirm"]
    yes, *_ = word_tokens(effects, ["yes"])
    size = found.plan.settings["controls"]["output"]["norm"]
    for row in (0, 1, 7):
        ids = torch.tensor([effects.tokens(items[row].text)[0]])
        push = size * part_direction("mood")

        def added(module, args, output, push=push):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[:, -1] += push
            return output

        with torch.no_grad():
            before = effects.hf(ids).logits[0, -1]
            hook = effects.hf.transformer.h[0].register_forward_hook(added)
            after = effects.hf(ids).logits[0, -1]
            hook.remove()
        apart = (before - before[yes]).abs()
        apart[yes] = torch.inf
        near = apart.topk(4, largest=False).indices
        for logits, name in ((before, "output.before"), (after, "output.after")):
            assert columns[name][row] == pytest.approx(float(logits[yes] - logits[near].logsumexp(0)), abs=2e-2)


def test_words_that_the_model_has_not_are_refused(effects):
    true = representing(effects, "mood", "   ")
    with pytest.raises(UsageError, match="output"):
        state_claim(MemoryStore(), effects, true.source, true.subject, statement=Statement("represents"),
                    settings=true.settings)  # fmt: skip
    world = explaining()
    with pytest.raises(UsageError, match="it says no words"):
        state_claim(MemoryStore(), world.host, world.source, world.subject, statement=Statement("explains"),
                    settings=replace(world.settings, options={"output": ["yes"]}))  # fmt: skip


# interchange -------------------------------------------------------------------------------------


def test_a_direction_that_carries_a_part_of_it_changes_no_answer(effects):
    """Half of mood's direction moves the log-odds by a third; the answer stays."""
    settings = with_options(MOOD, interchange=True)
    weak = direction("resid_post.0", part_direction("mood", "idle", weights=(0.6, 0.8)).tolist())
    true = Planted("uses", effects, mood_source(), along("mood"), settings)
    gates = ["interchange.accuracy", "interchange.random", "interchange.untrained"]
    check_gate(gates, true, replace(true, subject=weak))


def test_an_untrained_twin_that_answers_as_well_is_no_support():
    """Where the fitted subspace of the twin changes as many answers, nothing is left of the claim's."""
    rows = {"clean": [1.0] * 10, "erased.resample": [-1.0] * 10, "twin.clean": [1.0] * 10,
            "twin.exchanged": [-1.0] * 5 + [1.0] * 5}  # fmt: skip
    gate = get_gate("interchange.untrained")
    values = gate.contrast({"templates": [str(n) for n in range(10)], "columns": rows}, gate.plan()).values
    assert values == [0.0] * 5 + [1.0] * 5
    backwards = {**rows, "twin.clean": [-1.0] * 10}  # it preferred the foil all along: nothing was changed
    assert gate.contrast({"templates": ["a"] * 10, "columns": backwards}, gate.plan()).values == [1.0] * 10


# what later weights read -------------------------------------------------------------------------


def illusion():
    """Neuron 20 reads mood and is read by nothing; neuron 21 reads what never varies and writes mood."""
    hf = written_effects()
    with torch.no_grad():
        write_neuron(hf, 20, Neuron({"mood": 1}, {}))
        write_neuron(hf, 21, Neuron({"idle": 1, "constant": 0.02}, {"mood": 3.0, "content5": 3.0}))
        write_neuron(hf, 22, Neuron({"mood": 1}, {"mood": 3.0}))
        hf.transformer.h[1].mlp.c_proj.weight[20] = 0.0
    return effects_model(hf)


def neurons(*numbers):
    vector = torch.zeros(D_MLP)
    vector[list(numbers)] = 1.0
    return direction("mlp_act.1", vector.tolist())


def test_a_dormant_pathway_is_told_from_one_that_is_used():
    """(20 + 21) / sqrt 2 moves the answer when it is exchanged (Makelov et al. 2023); what is read of it does not."""
    model = illusion()
    true = Planted("uses", model, mood_source(), neurons(20, 22), MOOD)
    false = replace(true, subject=neurons(20, 21))
    _, found = check_gate("read_part", true, false)
    assert found.gate("erasure.resample").p_above <= 0.05


def test_what_is_read_is_the_row_space(effects):
    site = parse_site("mlp_act.1")
    space = read_space(effects, site)
    weight = effects.hf.transformer.h[1].mlp.c_proj.weight.detach()
    assert space is not None and len(space) == int(torch.linalg.matrix_rank(weight))
    nothing = torch.eye(D_MLP)[[23]]
    assert torch.allclose(space @ space.T, torch.eye(len(space)), atol=1e-5)
    assert float((weight.T @ (torch.eye(D_MLP) - space.T @ space)).abs().max()) < 1e-4 and len(read_part(nothing, space)) == 0
    last = read_space(effects, parse_site("resid_post.1"))
    unread = part_direction("copy")
    assert last is not None and float((unread @ last.T).norm()) < 1e-3 < float((part_direction("mood") @ last.T).norm())
    assert read_space(effects, parse_site("resid_post.0")) is None


# generation --------------------------------------------------------------------------------------


def steering(model, part, strength, said="^ ?yes"):
    grid = (-strength, -strength / 2, strength / 2, strength)
    return Planted("steers", model, mood_source(), Steering(along(part), grid), with_options(MOOD, generation=said))


def test_steered_texts_say_it_and_stay_texts(effects):
    """Three times the direction says "yes" and goes on as the model does; eight times says nothing else any more."""
    _, found = check_gate("generation", steering(effects, "mood", 3.0), steering(effects, "mood", 8.0))
    assert found.gate("steering.dose").p_above <= 0.05


def test_fluency_is_the_mean_log_probability(effects):
    prompts = prepare(mood_source().splits["confirm"][:3], effects).corrupted
    written = continued(effects, prompts)
    for ids, new, got in zip(prompts, written, fluency(effects, prompts, written), strict=True):
        odds = effects.hf(torch.tensor([ids + new])).logits[0].log_softmax(-1)
        want = [float(odds[len(ids) - 1 + place, token]) for place, token in enumerate(new)]
        assert got == pytest.approx(np.mean(want), abs=1e-4)
    assert fluency(effects, prompts[:1], [[]]) == [float("-inf")]


# scrubbing ---------------------------------------------------------------------------------------


def test_scrubbing_finds_the_head_that_was_left_out():
    """The induction heads restore all of the effect; the previous-token head that they need was not named. One corrupted run
    keeps what it does, as the two runs differ in one word."""
    model = planted_induction()
    true = Planted("mediates", model, source(), "z.0.0,z.1.0,z.1.1", CIRCUIT)
    false = replace(true, subject="z.1.0,z.1.1")
    _, found = check_gate(["scrubbing", "scrubbing.random"], true, false)
    assert found.gate("sufficiency").p_above <= 0.05


def test_effects_that_differ_between_templates_are_no_noise_in_what_scrubbing_keeps():
    """A circuit that keeps all of every effect passes; one that keeps .9, the bar, does so one time in twenty."""
    draw, plan = np.random.default_rng(0), get_gate("scrubbing").plan()
    templates = [f"t{number}" for number in range(20) for _ in range(4)]
    effect = np.repeat(np.where(np.arange(20) < 3, 0.5, 1.1), 4) * 6

    def p_of(kept: float) -> float:
        scrubbed = 2 + kept * effect + np.repeat(draw.normal(0, 0.2, 20), 4)
        columns = {"clean": (2 + effect).tolist(), "corrupted": [2.0] * 80, "scrubbed": scrubbed.tolist()}
        found = evaluate(plan, "confirm", {"columns": columns, "templates": templates}, 0.05, 0)
        assert found.estimate == pytest.approx((scrubbed - 2).mean() / effect.mean(), abs=1e-6)
        return found.p_above

    assert max(p_of(1.0) for _ in range(10)) < 0.01
    assert sum(p_of(0.9) <= 0.05 for _ in range(100)) <= 10


def test_scrubbing_is_not_planned_for_edges():
    about = get_gate("scrubbing").about
    claim = type("Claim", (), {"subject": {"sites": ["z.0.0->v.1.1"]}})()
    assert is_circuit(claim.subject["sites"]) and about is not None and not about(claim)


# reported beside others --------------------------------------------------------------------------


def test_half_of_the_words_read_as_much_where_the_class_is_a_direction():
    settings = Settings(tune=144, confirm=172, ood=144, draws=9)
    true, false = decodable_world(3), decodable_world(3, coding="identity")
    check_gate("capacity.half", Planted("decodes", true.world, true.source, "resid_post.0", settings),
               Planted("decodes", false.world, false.source, "resid_post.0", settings))  # fmt: skip


def test_a_monitor_that_fades_with_length_is_seen_in_long_texts():
    planted = monitored_world(3)
    assert planted.axis is not None
    settings = Settings(tune=460, confirm=480, ood=400, draws=3)
    subject = {"feature": direction("resid_post.0", planted.axis.tolist())}
    true = Planted("detects", planted.world, planted.source, subject, settings)
    middle = float(np.quantile([len(item.text) for item in planted.source.splits["confirm"]], 0.6))
    own = planted.world.vector_of
    fades = replace(planted.world, vector_of=lambda text: own(text) * (len(text) < middle), marks=("fades",))
    check_gate("long_texts", true, replace(true, host=fades))


def test_few_latents_of_the_planted_directions_beat_units_and_components():
    """Sixty-four features in 96 units, the concept no stronger than others; and random directions for latents."""
    settings = CALIBRATIONS.get("reconstructs").settings
    planted = planted_world(3, n_features=64, noise=0.02, template_spread=0.1, strength=0.5, splits=SPLITS)
    atoms = torch.tensor(planted.world.directions, dtype=torch.float32)

    def listing(name, rows):
        given = {"site": planted.world.site, "dictionary": AtomDictionary(name, rows, torch.zeros(96), 9)}
        return Planted("reconstructs", planted.world, planted.source, {**given, "use": "listing features"}, settings)

    other = torch.randn(atoms.shape, generator=torch.Generator().manual_seed(0))
    found, _ = check_gate("sparse_probe", listing("the planted", atoms), listing("random", other))
    assert found.gate("sparse_probe").tables["latents"] > 0.9


def test_every_option_that_a_gate_asks_for_is_an_option():
    for gate in GATES:
        if gate.asked is not None:
            assert set(gate.kinds) <= set(OPTIONS.get(gate.asked).kinds), gate.name
