"""*decodes*, *explains* and *detects* on planted texts.

Ladders, each rung a multiple of what puts the binding gate on its bar:

1. *decodes*, detection (AUROC .7). Twice .7 is no AUROC, so effects are multiples of d, the distance of two normal
   distributions with that AUROC = Phi(d / sqrt 2): .603, .7, .784 and .853. Words of both classes are that far apart.
2. *explains*, sensitivity (recall .6): the unit is on in .3, .6, .9 and all of the texts that the rule names.
3. *detects*, recall (.8 at the threshold set on tune): multiples of the distance between members and benign texts.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from assay.calibrate.base import CALIBRATIONS, Calibration, Case, Family, ladder
from assay.calibrate.represents import shuffled_source
from assay.evidence.features import direction
from assay.evidence.run import Settings
from assay.evidence.source import MemorySource
from assay.testing.score_worlds import (
    OTHER,
    OWN,
    STATING,
    ScorePlanted,
    decodable_world,
    explained_world,
    graded_monitor,
    graded_words,
    monitored_world,
    recall_at,
)

SITE = "resid_post.0"


def _family(truth: Any, make: Any, **settings: Any) -> Family:
    return Family(make.__name__.replace("_", " "), truth, make, " ".join((make.__doc__ or "").split()), **settings)


def _registered(
    kind: str, binding: str, families: tuple[Family, ...], settings: Settings, n: dict[str, int], note: str
) -> None:
    quick = {truth: max(1, count // 15) for truth, count in n.items()}
    CALIBRATIONS.add(kind, Calibration(kind, binding, families, settings, n, quick, note))


# decodes -----------------------------------------------------------------------------------------


def _decoded(planted: ScorePlanted, source: MemorySource | None = None) -> Case:
    return Case(planted.world, source or planted.source, SITE)


def labels_by_word(seed: int) -> Case:
    """A label per word that means nothing."""
    planted = decodable_world(seed)
    rng = np.random.default_rng([seed, 80])
    words = sorted({item.entities[0] for items in planted.source.splits.values() for item in items})
    drawn = dict(zip(words, rng.integers(0, 2, len(words)).tolist(), strict=True))
    splits = {split: [replace(item, label=drawn[item.entities[0]]) for item in items]
              for split, items in planted.source.splits.items()}  # fmt: skip
    return _decoded(planted, MemorySource("random labels by word", splits))


def labels_by_text(seed: int) -> Case:
    """Labels shuffled inside templates."""
    planted = decodable_world(seed)
    return _decoded(planted, shuffled_source(planted.source, seed))


def written_nowhere(seed: int) -> Case:
    """The class of a word is written nowhere; only the word is."""
    return _decoded(decodable_world(seed, coding="identity"))


def remembered_words(seed: int) -> Case:
    """Words seen on tune come again under no name: a probe can remember them."""
    return _decoded(decodable_world(seed, coding="identity", shared=True, told=False))


def nonlinear(seed: int) -> Case:
    """Only a stronger probe can read it; a linear one is claimed."""
    return _decoded(decodable_world(seed, coding="xor"))


def written(seed: int) -> Case:
    """The class is a direction."""
    return _decoded(decodable_world(seed, n_words=40))  # with 24 a split may have fewer than eight members


D_ON_THE_BAR = float(np.sqrt(2) * norm.ppf(0.7))


def decodes_rung(seed: int, effect: float) -> Case:
    """Words of two classes at a known distance."""
    distance = effect * D_ON_THE_BAR
    truth = {"detection": float(norm.cdf(distance / np.sqrt(2)))}
    return replace(_decoded(graded_words(seed, distance)), truth=truth)


_registered("decodes", "detection", (
    *map(partial(_family, "null"), (labels_by_word, labels_by_text, written_nowhere)),
    *map(partial(_family, "false"), (remembered_words, nonlinear)), _family("true", written),
    *ladder(decodes_rung, "words of two classes at a known distance", Settings(480, 600, 420, draws=9)),
), Settings(tune=140, confirm=160, ood=140, draws=9), {"null": 21, "false": 15, "true": 30, "ladder": 40},
   "AUROC; bar .7, d = .742")  # fmt: skip


# explains ----------------------------------------------------------------------------------------


def _explained(planted: ScorePlanted, words: tuple[str, ...] = OWN, unit: int = 0) -> Case:
    rule = {"type": "lexicon", "words": list(words)}
    return Case(planted.world, planted.source, {"feature": f"mlp_act.0.{unit}", "rule": rule, "text": "small hunters"})


def other_unit(seed: int) -> Case:
    """The right rule, of a unit that has nothing to do with it."""
    return _explained(explained_world(seed), unit=1 + seed % 40)


def other_words(seed: int) -> Case:
    """A rule about other words."""
    return _explained(explained_world(seed), words=OTHER)


def untrained_unit(seed: int) -> Case:
    """The rule, of a unit of an untrained twin."""
    planted = explained_world(seed)
    return Case(planted.world.untrained("all", seed), planted.source, _explained(planted).subject)


def two_meanings(seed: int) -> Case:
    """The unit also fires for other words."""
    return _explained(explained_world(seed, second=True))


def look_alikes(seed: int) -> Case:
    """The unit fires for words that look alike, too."""
    return _explained(explained_world(seed, look_alike=True))


def half_missed(seed: int) -> Case:
    """The unit misses 60% of what the rule says."""
    return _explained(explained_world(seed, missed=0.6))


def right_rule(seed: int) -> Case:
    """The rule that the unit follows."""
    return _explained(explained_world(seed))


def explains_rung(seed: int, effect: float) -> Case:
    """The unit is on in a share of the texts that the rule names."""
    recall = min(1.0, 0.6 * effect)
    return replace(_explained(explained_world(seed, missed=1 - recall, rounds=2)), truth={"sensitivity": recall})


_registered("explains", "sensitivity", (
    *map(partial(_family, "null"), (other_unit, other_words, untrained_unit)),
    *map(partial(_family, "false"), (two_meanings, look_alikes, half_missed)), _family("true", right_rule),
    *ladder(explains_rung, "a unit that follows the rule in a known share of texts", Settings(512, 640, 448, draws=19)),
), Settings(tune=256, confirm=320, ood=224, draws=19), {"null": 20, "false": 10, "true": 20, "ladder": 20},
   "share of the texts named by the rule in which the unit is on; bar .6")  # fmt: skip


# detects -----------------------------------------------------------------------------------------


def _watched(planted: ScorePlanted, axis: Any = None, source: MemorySource | None = None) -> Case:
    monitor = direction(SITE, np.asarray(planted.axis if axis is None else axis).tolist())
    return Case(planted.world, source or planted.source, {"feature": monitor, "evidence": list(STATING)})


def random_monitor(seed: int) -> Case:
    """A random direction as a monitor."""
    planted = monitored_world(seed)
    return _watched(planted, np.random.default_rng([seed, 81]).standard_normal(32))


def shuffled_labels(seed: int) -> Case:
    """The right direction, labels shuffled among all texts of a split."""
    planted = monitored_world(seed)
    rng = np.random.default_rng([seed, 82])
    splits = {split: [replace(item, label=items[other].label) for item, other in
                      zip(items, rng.permutation(len(items)).tolist(), strict=True)]
              for split, items in planted.source.splits.items()}  # fmt: skip
    return _watched(planted, source=MemorySource("shuffled", splits))


def said_words_only(seed: int) -> Case:
    """The monitor reads the words that state it, others in confirm than on tune."""
    return _watched(monitored_world(seed, reads="words"))


def false_alarms(seed: int) -> Case:
    """One benign document in twenty carries the direction."""
    return _watched(monitored_world(seed, alarms=0.05))


def a_family_missed(seed: int) -> Case:
    """In one family of situations half of the members carry nothing."""
    return _watched(monitored_world(seed, weak=0.5))


def state(seed: int) -> Case:
    """The direction that carries the state."""
    return _watched(monitored_world(seed))


ON_THE_BAR = float(brentq(lambda distance: recall_at(distance) - 0.8, 1.0, 4.0))  # type: ignore[arg-type]


def detects_rung(seed: int, effect: float) -> Case:
    """Members at a known distance from benign texts."""
    distance = effect * ON_THE_BAR
    recall = recall_at(distance)
    return replace(_watched(graded_monitor(seed, distance)), truth={"recall": recall})


_registered("detects", "recall", (
    *map(partial(_family, "null"), (random_monitor, shuffled_labels)),
    *map(partial(_family, "false"), (said_words_only, false_alarms, a_family_missed)), _family("true", state),
    *ladder(detects_rung, "members at a known distance", Settings(820, 920, 840, draws=9)),
), Settings(tune=460, confirm=480, ood=400, draws=9), {"null": 30, "false": 8, "true": 15, "ladder": 20},
   "recall at the threshold set on tune; bar .8, which is a distance of 2.57 standard deviations")  # fmt: skip
