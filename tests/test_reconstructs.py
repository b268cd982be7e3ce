"""The kind *reconstructs* on worlds whose dictionary is known: each gate lets the true one through, and stops
a false one that, where it can be, only this gate stops."""

import functools

import numpy as np
import pytest
import torch

from assay.errors import UsageError
from assay.evidence.dictionaries import _OPEN, behaviour_of, directions_of
from assay.evidence.hosts import ModelHost
from assay.evidence.memory import MemoryStore
from assay.evidence.random_dictionaries import baselines, greedy_codes, soft_frozen, unit
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.records import Example
from assay.testing import planted_world
from assay.testing.dictionaries import AtomDictionary, Reader, components

pytestmark = pytest.mark.whole

SETTINGS = Settings(tune=96, confirm=144, ood=120, draws=3)
SPLITS = {"tune": 8, "confirm": 12, "ood": 10}


@functools.cache
def planted():
    """Forty features in 96 dimensions: sparse codes can be read exactly."""
    return planted_world(1, n_features=40, noise=0.05, template_spread=0.1, strength=1.2, splits=SPLITS)


def tune_acts():
    world, source = planted().world, planted().source
    data = world.load(source.items("tune", 96, 0))
    return world.read(world.site, data), torch.tensor(data.labels)


def true_dictionary(name: str = "the planted directions", active: int = 9):
    return AtomDictionary(name, torch.tensor(planted().world.directions, dtype=torch.float32), torch.zeros(96), active)


def host():
    acts, labels = tune_acts()
    reads = torch.tensor(planted().concept, dtype=torch.float32)
    along = acts @ reads
    return Reader(planted().world, reads, float((along[labels == 1].mean() + along[labels == 0].mean()) / 2))


def random_atoms(n: int, active: int):
    atoms = torch.tensor(np.random.default_rng(3).standard_normal((n, 96)), dtype=torch.float32)
    return AtomDictionary("random directions", atoms, tune_acts()[0].mean(0), active)


def verdict_on(dictionary, use="listing features", second=None):
    store, model = MemoryStore(), host()
    given = {"site": model.site, "dictionary": dictionary, "use": use, "second": second}
    claim, _ = state_claim(store, model, planted().source, given, statement=Statement("reconstructs"), settings=SETTINGS)
    return test_claim(store, claim.id, model, source=planted().source)


def failing(verdict):
    return {gate["name"].split("@")[0] for gate in verdict.gates if gate["required"] and not gate["passed"]}


def gates_of(verdict):
    return {gate["name"]: gate for gate in verdict.gates if gate["split"] == "confirm"}


# claims ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["steering", "standing in the loss"])
def test_the_planted_dictionary_is_supported_for_uses_that_need_behaviour(use):
    verdict = verdict_on(true_dictionary(), use)
    gates = gates_of(verdict)
    assert (verdict.verdict, verdict.reasons) == ("supported", ())
    assert gates["error_node"]["required"] and gates["behaviour.kept"]["required"] == (use == "standing in the loss")


def test_a_dictionary_without_the_concept_is_stopped_by_the_error_node_and_the_behaviour():
    whole = true_dictionary()
    blind = AtomDictionary("all but the concept", whole.atoms[1:], whole.mean)
    assert failing(verdict_on(blind, "steering")) == {"error_node"}
    assert failing(verdict_on(blind, "standing in the loss")) == {"error_node", "behaviour.kept"}
    assert verdict_on(blind).verdict == "supported"  # for listing features it is only one short


def test_the_planted_dictionary_lists_features_and_a_second_one_agrees():
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    twin = AtomDictionary("another seed", true_dictionary().atoms[order], true_dictionary().mean, 8)
    verdict = verdict_on(true_dictionary(), second=twin)
    gates = gates_of(verdict)
    assert verdict.verdict == "supported" and gates["seeds"]["tables"]["mcc"] == pytest.approx(1.0)
    assert gates["recovery"]["passed"] and gates["recovery"]["tables"]["recall"] == 1.0
    assert gates["absorption"]["passed"]
    assert failing(verdict_on(true_dictionary(), second=random_atoms(40, 12))) == {"seeds"}


def test_directions_that_were_never_fitted_are_stopped_however_much_they_explain():
    verdict = verdict_on(random_atoms(160, 60))
    gates = gates_of(verdict)
    assert gates["variance"]["passed"] and failing(verdict) == {"random.dictionary"}
    assert verdict.verdict != "supported" and not gates["recovery"]["passed"]


def test_too_few_latents_explain_too_little():
    verdict = verdict_on(true_dictionary("two at a time", 2))
    assert failing(verdict) == {"variance"} and verdict.verdict == "refuted"


def test_a_recipe_must_do_better_than_on_an_untrained_twin():
    acts = tune_acts()[0]
    assert verdict_on(components(acts, 80, 24)).verdict == "supported"
    everything = verdict_on(components(acts, 190, 80))  # nearly a basis: it explains anything
    assert "untrained.dictionary" in failing(everything)
    assert "untrained.dictionary" not in gates_of(verdict_on(true_dictionary()))  # it has no recipe


class Absorbing(AtomDictionary):
    """Where features 0 and 2 fire together, another latent speaks for feature 0."""

    @property
    def width(self):
        return 41

    def encode(self, acts):
        codes = super().encode(acts)
        both = (codes[:, 0] > 0.3) & (codes[:, 2] > 0.3)
        taken = torch.where(both, codes[:, 0], 0.0)
        codes[both, 0] = 0.0
        return torch.cat([codes, taken[:, None]], 1)

    def decode(self, latents):
        return super().decode(latents[:, :40]) + latents[:, 40:] * unit(self.atoms)[:1]


def test_a_hole_that_another_latent_fills_is_absorption():
    whole = true_dictionary()
    gates = gates_of(verdict_on(Absorbing("absorbing", whole.atoms, whole.mean, whole.active)))
    assert not gates["absorption"]["passed"] and not gates["absorption"]["required"]
    assert gates["absorption"]["estimate"] < gates_of(verdict_on(whole))["absorption"]["estimate"] - 0.1


@pytest.mark.parametrize("gate", ["planted.itself", "planted.mean"])
def test_a_broken_instrument_withholds_the_verdict(monkeypatch, gate):
    from assay.evidence.dictionaries import DictionaryInstrument

    honest, shift = DictionaryInstrument.explained, -0.2 if gate == "planted.itself" else 0.8
    monkeypatch.setattr(DictionaryInstrument, "explained", lambda self, x: [value + shift for value in honest(self, x)])
    verdict = verdict_on(true_dictionary())
    assert not gates_of(verdict)[gate]["passed"]
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("instrument",))


def test_subjects_that_cannot_be_claimed_are_refused():
    store, world, source = MemoryStore(), planted().world, planted().source
    given = {"site": world.site, "dictionary": true_dictionary(), "use": "everything"}
    with pytest.raises(UsageError, match="listing features, steering"):
        state_claim(store, world, source, given, statement=Statement("reconstructs"), settings=SETTINGS)
    with pytest.raises(UsageError, match="only holds activations"):
        state_claim(store, world, source, {**given, "use": "steering"}, statement=Statement("reconstructs"), settings=SETTINGS)
    claim, _ = state_claim(store, world, source, {**given, "use": "listing features"},
                           statement=Statement("reconstructs"), settings=SETTINGS)  # fmt: skip
    _OPEN.pop(claim.subject["dictionary"]["digest"])
    with pytest.raises(UsageError, match="not open"):
        test_claim(store, claim.id, world, source=source)


# measurements against independent references -----------------------------------------------------


def test_greedy_codes_equal_a_loop_with_least_squares():
    rng = np.random.default_rng(0)
    atoms = unit(torch.tensor(rng.standard_normal((30, 12)), dtype=torch.float32))
    acts, counts = torch.tensor(rng.standard_normal((5, 12)), dtype=torch.float32), [0, 1, 3, 5, 2]
    got = greedy_codes(acts, atoms, counts)
    for row, (x, n) in enumerate(zip(acts.numpy(), counts, strict=True)):
        rest, chosen, fit = x, [], np.zeros(0)
        for _ in range(n):
            scores = atoms.numpy() @ rest
            scores[chosen] = -np.inf
            chosen.append(int(scores.argmax()))
            fit = np.linalg.lstsq(atoms.numpy()[chosen].T, x, rcond=None)[0]
            rest = x - atoms.numpy()[chosen].T @ fit
        want = np.zeros(30)
        want[chosen] = fit
        assert np.allclose(got[row].numpy(), want, atol=1e-4)


def test_baselines_are_what_they_are_called():
    acts = tune_acts()[0]
    pools = baselines(acts - acts.mean(0), 64, 0)
    assert all(torch.allclose(pool.norm(dim=1), torch.ones(64), atol=1e-5) for pool in pools.values())
    kept = (pools["frozen"] * pools["soft frozen"]).sum(1)
    assert float(kept.min()) >= 0.8 - 1e-5
    near = unit(torch.tensor([[1.0, 0.1]]))
    assert torch.allclose(soft_frozen(torch.tensor([[1.0, 0.0]]), near), near, atol=1e-5)  # within reach: all the way
    assert torch.allclose(directions_of(true_dictionary()), unit(true_dictionary().atoms), atol=1e-5)


def test_behaviour_of_a_language_model_equals_raw_hooks(glass):
    texts = ["the small boat went down the river", "a dog and a cat", "she read a book in the garden"]
    model, site = ModelHost(glass), "resid_post.1"
    data = model.load([Example(text, number % 2, str(number)) for number, text in enumerate(texts)])
    replace = lambda acts: acts * 0.5 + 0.1  # noqa: E731
    got = behaviour_of(model, site, data, replace)
    plain = behaviour_of(model, site, data, None)

    def hook(module, args, output):
        x = (output[0] if isinstance(output, tuple) else output).clone()
        x[:, 1:] = replace(x[:, 1:])
        return (x, *output[1:]) if isinstance(output, tuple) else x

    for hooks, values in (((), plain), ((hook,), got)):
        handles = [glass.hf.model.layers[1].register_forward_hook(each) for each in hooks]
        for ids, value in zip(data.tokens, values.tolist(), strict=True):
            with torch.no_grad():
                logits = glass.hf(torch.tensor([ids[:-1]])).logits[0, -1]
            assert value == pytest.approx(float(logits.log_softmax(-1)[ids[-1]]), abs=1e-4)
        for handle in handles:
            handle.remove()
    assert torch.allclose(behaviour_of(model, site, data, lambda acts: acts), plain, atol=1e-4)
