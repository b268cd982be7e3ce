"""*represents* on planted worlds: what is there, what is not, and what is nearly there.

The ladder's binding gate is sensitivity (recall at the threshold that one in twenty non-members passes; bar .5):
effects of .5, 1, 1.5 and 2 bars are recalls of .25, .5, .75 and .998. At a recall of .5 the AUROC is .89.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from assay.calibrate import trained
from assay.calibrate.base import CALIBRATIONS, Calibration, Case, Family, ladder
from assay.evidence.features import Feature, direction
from assay.evidence.run import Settings
from assay.evidence.source import MemorySource
from assay.records import Example
from assay.testing.hierarchy import hierarchy_world
from assay.testing.ladders import ladder_world
from assay.testing.worlds import SITE, SPLITS, Planted, World, planted_world

PER_TEMPLATE = 8
TRIES = 200  # directions to choose the best of


def sizes(per_template: int) -> Settings:
    """All items of a planted world; few random directions, which makes support easier."""
    return Settings(SPLITS["tune"] * per_template, SPLITS["confirm"] * per_template, SPLITS["ood"] * per_template, draws=9)


def small_world(seed: int, **changes: float) -> Planted:
    """A world of the usual strength, eight texts per template."""
    return planted_world(seed, per_template=PER_TEMPLATE, **changes)  # type: ignore[arg-type]


def along(vector: np.ndarray) -> Feature:
    """The direction of a planted world's site."""
    return direction(SITE, vector.tolist())


# nothing is there --------------------------------------------------------------------------------


def shuffled_source(source: MemorySource, seed: int) -> MemorySource:
    """The same texts, labels permuted inside every template."""
    rng = np.random.default_rng([seed, 50])
    splits: dict[str, list[Example]] = {}
    for split, items in source.splits.items():
        rows: dict[str, list[Example]] = {}
        for item in items:
            rows.setdefault(item.template, []).append(item)
        splits[split] = [replace(item, label=other.label, near_miss=other.near_miss)
                         for group in rows.values()
                         for item, other in zip(group, [group[i] for i in rng.permutation(len(group))],
                                                strict=True)]  # fmt: skip
    return MemorySource(f"{source.name}, labels shuffled", splits)


def shuffled(seed: int) -> Case:
    world = small_world(seed)
    chance = {"detection": 0.5, "lexical": 0.0}
    return Case(world.world, shuffled_source(world.source, seed), along(world.concept), chance)


def random_direction(seed: int) -> Case:
    world = small_world(seed)
    return Case(world.world, world.source, along(np.random.default_rng([seed, 51]).standard_normal(96)))


def random_unit(seed: int) -> Case:
    world = small_world(seed)
    return Case(world.world, world.source, Feature(SITE, int(np.random.default_rng([seed, 52]).integers(96))))


def untrained(seed: int) -> Case:
    """Discovery is run again on the untrained twin: the difference of means there."""
    world = small_world(seed)
    twin = world.world.untrained("all", seed + 1)
    return Case(twin, world.source, along(mean_difference(twin, world.source)))


def transplanted(seed: int) -> Case:
    """A true feature, claimed of a concept that is another feature's."""
    world = small_world(seed)
    return Case(world.world, world.source, along(world.world.directions[3 + seed % 40]))


def best_of_many(seed: int) -> Case:
    """The best of 200 random directions on discover."""
    world = small_world(seed)
    acts, labels = discovered(world.world, world.source)
    drawn = np.random.default_rng([seed, 53]).standard_normal((TRIES, acts.shape[1]))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    scores = acts @ drawn.T
    gap = (scores[labels == 1].mean(0) - scores[labels == 0].mean(0)) / scores.std(0)
    best = int(np.abs(gap).argmax())
    return Case(world.world, world.source, along(drawn[best] * np.sign(gap[best])))


def discovered(world: World, source: MemorySource) -> tuple[np.ndarray, np.ndarray]:
    """Activations (n, width) and labels (n,) of the discover split."""
    items = source.splits["discover"]
    return np.stack([world.vectors[item.text] for item in items]), np.array([item.label for item in items])


def mean_difference(world: World, source: MemorySource) -> np.ndarray:
    """Mean of members minus mean of the others, on discover."""
    acts, labels = discovered(world, source)
    return acts[labels == 1].mean(0) - acts[labels == 0].mean(0)


# something is there, but not that ----------------------------------------------------------------


def twin(seed: int) -> Case:
    world = small_world(seed, twin=0.9)
    return Case(world.world, world.source, along(world.world.directions[1]))


def polysemantic(seed: int) -> Case:
    world = small_world(seed)
    return Case(world.world, world.source, along(world.concept + world.world.directions[2]))


def said_in_words(seed: int) -> Case:
    """All members and no others say so in words: the words do as well."""
    world = small_world(seed, lexical=1.0)
    return Case(world.world, world.source, along(world.concept))


def child_for_parent(seed: int) -> Case:
    found = hierarchy_world(seed, per_template=PER_TEMPLATE)
    return Case(found.world, found.parent, along(found.world.directions[1]))


def parent_for_child(seed: int) -> Case:
    found = hierarchy_world(seed, per_template=12)
    return Case(found.world, found.child, along(found.world.directions[0]))


# it holds ----------------------------------------------------------------------------------------


def planted(seed: int) -> Case:
    world = planted_world(seed)
    return Case(world.world, world.source, along(world.concept))


def rung(seed: int, effect: float) -> Case:
    found = ladder_world(seed, 0.5 * effect)
    return Case(found.world, found.source, along(found.direction), found.truth)


def _family(truth, what: str, make, **settings) -> Family:
    return Family(make.__name__.replace("_", " "), truth, make, what, **settings)


_null, _false = partial(_family, "null"), partial(_family, "false")
FAMILIES = (
    _null("labels shuffled inside templates, the true direction", shuffled),
    _null("a random direction", random_direction),
    _null("a random unit", random_unit),
    _null("an untrained twin, discovery run again on it", untrained),
    _null("a true feature, claimed of another feature's concept", transplanted),
    _null(f"the best of {TRIES} random directions on discover", best_of_many),
    _false("a feature that agrees with the concept on 90% of texts", twin),
    _false("a unit with two unrelated meanings", polysemantic),
    _false("members say in words what they are", said_in_words),
    _false("a unit of a toy model of superposition, which features share", trained.toy_unit, settings=sizes(12), slow=True),
    _false("one of three exclusive children, claimed of the parent", child_for_parent),
    _false("the parent, claimed of its first child", parent_for_child, settings=sizes(12)),
    _family("true", "the planted direction", planted, settings=sizes(12)),
    _family("true", "where a feature of a toy model of superposition points", trained.toy_feature, settings=sizes(12),
            slow=True),
    *ladder(rung, "a planted direction of known recall", sizes(40)),
)

CALIBRATIONS.add("represents", Calibration(
    "represents", "sensitivity", FAMILIES, sizes(PER_TEMPLATE),
    full={"null": 50, "false": 40, "true": 60, "ladder": 60}, quick={"null": 10, "false": 4, "true": 4, "ladder": 6},
    note="recall at the threshold that one in twenty non-members passes on tune; bar .5",
))  # fmt: skip
