"""*reconstructs* on worlds whose directions are known.

Null: dictionaries that have nothing to do with the activations claimed for, with latents enough to explain much of
them: random directions, random mixtures of activations, recipes fitted to another model, to activations whose
numbers were shuffled among texts, and a recipe claimed of an untrained model itself.

The ladder's binding gate is explained variance (bar .6): effects of .5, 1, 1.5 and 2 bars are shares of .3, .6, .9 and
.998. What a world's dictionary misses is noise at right angles to it (`testing/dictionaries.py`).
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.calibrate.base import CALIBRATIONS, Calibration, Case, Family, ladder
from assay.calibrate.represents import discovered
from assay.evidence.run import Settings
from assay.testing.dictionaries import AtomDictionary, Reader, components, explained_by_atoms
from assay.testing.worlds import SITE, Planted, planted_world

SPLITS = {"discover": 8, "tune": 8, "confirm": 12, "ood": 10}
SETTINGS = Settings(tune=96, confirm=144, ood=120, draws=3)
LATENTS, ACTIVE = 160, 60  # of dictionaries that know nothing: enough to explain much
HIGHEST = 0.998


def world_of(seed: int) -> Planted:
    """Forty features in 96 dimensions: sparse codes can be read exactly."""
    return planted_world(seed, n_features=40, noise=0.05, template_spread=0.1, strength=1.2, splits=SPLITS)


def _acts(planted: Planted) -> Tensor:
    return torch.tensor(discovered(planted.world, planted.source)[0], dtype=torch.float32)


def _claimed(planted: Planted, dictionary: Any, model: Any = None, **more: Any) -> Case:
    given = {"site": SITE, "dictionary": dictionary, "use": "listing features", **more}
    return Case(model or planted.world, planted.source, given)


def _reader(planted: Planted) -> Reader:
    """A host whose behaviour is the concept: right where it lies on the right side of the means of both classes."""
    acts, labels = discovered(planted.world, planted.source)
    along = acts @ planted.concept
    bar = float(along[labels == 1].mean() + along[labels == 0].mean()) / 2
    return Reader(planted.world, torch.tensor(planted.concept, dtype=torch.float32), bar)


def _whole(planted: Planted, name: str = "the planted directions", active: int = 9) -> AtomDictionary:
    return AtomDictionary(name, torch.tensor(planted.world.directions, dtype=torch.float32), torch.zeros(96), active)


# nothing is there --------------------------------------------------------------------------------


def random_atoms(seed: int) -> Case:
    """Random directions, as many latents as explain much."""
    planted = world_of(seed)
    atoms = torch.tensor(np.random.default_rng([seed, 60]).standard_normal((LATENTS, 96)), dtype=torch.float32)
    return _claimed(planted, AtomDictionary("random directions", atoms, _acts(planted).mean(0), ACTIVE))


def random_mixtures(seed: int) -> Case:
    """Random mixtures of activations."""
    planted = world_of(seed)
    acts = _acts(planted)
    mixed = np.random.default_rng([seed, 61]).standard_normal((LATENTS, len(acts))) @ (acts - acts.mean(0)).numpy()
    return _claimed(planted, AtomDictionary("mixtures", torch.tensor(mixed, dtype=torch.float32), acts.mean(0), ACTIVE))


def fitted_to_another_model(seed: int) -> Case:
    """A recipe fitted to another model."""
    planted, other = world_of(seed), world_of(seed + 10_000)
    return _claimed(planted, components(_acts(other), LATENTS, ACTIVE).made)


def fitted_to_shuffled(seed: int) -> Case:
    """A recipe fitted to activations whose numbers were shuffled among texts."""
    planted = world_of(seed)
    shuffled = np.random.default_rng([seed, 62]).permuted(_acts(planted).numpy(), axis=0)
    return _claimed(planted, components(torch.tensor(shuffled), LATENTS, ACTIVE).made)


def untrained_model(seed: int) -> Case:
    """A recipe fitted to an untrained model, claimed of it."""
    planted = world_of(seed)
    twin = planted.world.untrained("all", seed + 1)
    acts = torch.tensor(discovered(twin, planted.source)[0], dtype=torch.float32)
    return _claimed(planted, components(acts, LATENTS, ACTIVE), twin)


# something is there, but not that ----------------------------------------------------------------


def without_the_concept(seed: int) -> Case:
    """All directions but the one that the behaviour needs, for steering."""
    planted = world_of(seed)
    blind = AtomDictionary("all but the concept", _whole(planted).atoms[1:], torch.zeros(96))
    return _claimed(planted, blind, _reader(planted), use="steering")


def too_few_latents(seed: int) -> Case:
    """The right directions, two at a time."""
    planted = world_of(seed)
    return _claimed(planted, _whole(planted, "two at a time", 2))


def explains_anything(seed: int) -> Case:
    """A recipe that does as well on an untrained model."""
    planted = world_of(seed)
    return _claimed(planted, components(_acts(planted), 190, 80))


def another_second(seed: int) -> Case:
    """The right directions, and a second dictionary that has others."""
    planted = world_of(seed)
    atoms = torch.tensor(np.random.default_rng([seed, 63]).standard_normal((40, 96)), dtype=torch.float32)
    return _claimed(planted, _whole(planted), second=AtomDictionary("others", atoms, torch.zeros(96)))


# it holds ----------------------------------------------------------------------------------------


def planted_directions(seed: int) -> Case:
    """The planted directions, for listing features."""
    planted = world_of(seed)
    return _claimed(planted, _whole(planted))


def in_the_loss(seed: int) -> Case:
    """The planted directions, in the place of the activations."""
    planted = world_of(seed)
    return _claimed(planted, _whole(planted), _reader(planted), use="standing in the loss")


def rung(seed: int, effect: float) -> Case:
    """A dictionary that explains a known share."""
    share = min(0.6 * effect, HIGHEST)
    world, source, dictionary = explained_by_atoms(seed, share)
    given = {"site": SITE, "dictionary": dictionary, "use": "listing features"}
    return Case(world, source, given, {"variance": share})


def _family(truth: Any, make: Any) -> Family:
    return Family(make.__name__.replace("_", " "), truth, make, " ".join((make.__doc__ or "").split()))


FAMILIES = (
    *map(partial(_family, "null"), (
        random_atoms, random_mixtures, fitted_to_another_model, fitted_to_shuffled, untrained_model)),
    *map(partial(_family, "false"), (without_the_concept, too_few_latents, explains_anything, another_second)),
    *map(partial(_family, "true"), (planted_directions, in_the_loss)),
    *ladder(rung, "a dictionary that explains a known share", Settings(tune=96, confirm=168, ood=144, draws=3)),
)

CALIBRATIONS.add("reconstructs", Calibration(
    "reconstructs", "variance", FAMILIES, SETTINGS,
    full={"null": 20, "false": 10, "true": 10, "ladder": 20}, quick={"null": 2, "false": 1, "true": 1, "ladder": 2},
    note="share of the variance that is explained; bar .6",
))  # fmt: skip
