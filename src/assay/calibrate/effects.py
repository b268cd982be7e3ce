"""*uses*, *steers* and *connects* on the model whose parts are known directions (`testing/effect_models.py`).

Ladders (`testing/effect_ladders.py`), each rung a multiple of the bar of the binding gate:

1. *uses*, erasure.mean (.2): the part carries a share of the behaviour, the rest takes a road past the site. Erasing
   it takes away half of its share, which is .2, .4, .6 and .8. A direction that leans on a part that carries everything
   is no such ladder: of the energy of its erasure a share is spent where nothing happens, and random changes of as much
   energy, which need not spend it there, come near it whatever the share.
2. *steers*, steering.dose (.2): the largest strength is chosen for doses of .1, .2, .3 and .4.
3. *connects*, link.effect (.2): the effect falls by .1, .2, .3 and .4 of its standard deviation.
"""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from assay.calibrate import trained
from assay.calibrate.base import CALIBRATIONS, Calibration, Case, Family, ladder
from assay.evidence.connects import Link
from assay.evidence.features import Feature, direction
from assay.evidence.options import OPTIONS
from assay.evidence.run import Settings
from assay.evidence.steers import Steering
from assay.testing.effect_ladders import STRENGTHS, lever, lever_strength, linked, mood_pairs, two_roads
from assay.testing.effect_models import (
    D_MODEL,
    filler_source,
    mood_source,
    neutral_texts,
    part_direction,
    planted_effects,
)

GRID = (-4, -2, -1, 1, 2, 4)
SETTINGS = Settings(tune=16, confirm=40, ood=36, draws=27, control_pairs=1, options={"neutral": neutral_texts(20)})
PAIRS = replace(SETTINGS, tune=48, confirm=80, ood=56, control_pairs=4)
TEXTS = replace(SETTINGS, tune=128, confirm=56, ood=48, options={})


@cache
def planted_model():
    """The model, made once."""
    return planted_effects()


def along_part(layer: int, *parts: str, weights: tuple[float, ...] | None = None) -> Feature:
    """The direction of a part, or of a weighted sum of parts, after a layer."""
    return direction(f"resid_post.{layer}", part_direction(*parts, weights=weights))


def random_along(seed: int, layer: int = 0) -> Feature:
    """A random direction after a layer."""
    drawn = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed + 1000 * layer))
    return direction(f"resid_post.{layer}", (drawn - drawn.mean()).tolist())


def _family(truth: Any, make: Any, **changes: Any) -> Family:
    return Family(make.__name__.replace("_", " "), truth, make, " ".join((make.__doc__ or "").split()), **changes)


def _add(kind: str, binding: str, families: tuple[Family, ...], n: dict[str, int], note: str) -> None:
    quick = {truth: max(1, count // 15) for truth, count in n.items()}
    settings = SETTINGS if kind in OPTIONS.get("neutral").kinds else replace(SETTINGS, options={})
    CALIBRATIONS.add(kind, Calibration(kind, binding, families, settings, n, quick, note))


# uses --------------------------------------------------------------------------------------------


def _used(seed: int, subject: Any) -> Case:
    return Case(planted_model(), mood_source(seed), subject)


def random_direction(seed: int) -> Case:
    """A random direction."""
    return _used(seed, random_along(seed))


def random_content(seed: int) -> Case:
    """A direction along which much varies, and that nothing reads."""
    return _used(seed, along_part(0, f"content{seed % 12}"))


def readable_copy(seed: int) -> Case:
    """The property can be read along it; nothing uses it."""
    return _used(seed, along_part(0, "copy"))


def needed_by_all_text(seed: int) -> Case:
    """The used part together with one that ordinary text needs."""
    return _used(seed, [along_part(0, "mood"), along_part(0, "side")])


def used_part(seed: int) -> Case:
    """The part that carries the behaviour."""
    return _used(seed, along_part(0, "mood"))


@cache
def _share(share: float):
    return two_roads(share)


def uses_rung(seed: int, effect: float) -> Case:
    """The part carries a share of the behaviour."""
    share = 0.4 * effect
    truth = {"erasure.mean": share / 2, "erasure.resample": share}
    return Case(_share(share), mood_pairs(seed), along_part(0, "mood"), truth)


_add("uses", "erasure.mean", (
    *map(partial(_family, "null"), (random_direction, random_content)),
    *map(partial(_family, "null", settings=trained.settings(), slow=True), (trained.clean_twin, trained.random_in_backdoored)),
    *map(partial(_family, "false"), (readable_copy, needed_by_all_text)), _family("true", used_part),
    *map(partial(_family, "true", settings=trained.settings(), slow=True), (trained.learned_mood, trained.backdoor)),
    *ladder(uses_rung, "the used part, a known share of the behaviour", PAIRS),
), {"null": 30, "false": 10, "true": 10, "ladder": 20}, "share of the effect that erasing takes away; bar .2")  # fmt: skip


# steers ------------------------------------------------------------------------------------------


def _steered(seed: int, feature: Feature, grid: tuple[float, ...] = GRID) -> Case:
    return Case(planted_model(), mood_source(seed), Steering(feature, grid))


def random_push(seed: int) -> Case:
    """A random direction."""
    return _steered(seed, random_along(seed + 500))


def idle_push(seed: int) -> Case:
    """A direction that nothing reads."""
    return _steered(seed, along_part(0, f"content{seed % 12}"))


def one_sided(seed: int) -> Case:
    """It pushes in one sense only."""
    return _steered(seed, along_part(0, "ramp"))


def reversals(seed: int) -> Case:
    """It raises three prompts in four and lowers the fourth."""
    return _steered(seed, along_part(0, "gate"))


def temperature(seed: int) -> Case:
    """It makes every difference larger."""
    return _steered(seed, along_part(0, "constant", weights=(-1.0,)), (-12, -6, 6, 12))


def breaks_text(seed: int) -> Case:
    """It moves the behaviour, and ordinary text."""
    return _steered(seed, along_part(0, "mood", "side", weights=(1.0, 0.6)))


def handle(seed: int) -> Case:
    """The part that carries the behaviour."""
    return _steered(seed, along_part(0, "mood"))


@cache
def _lever():
    return lever()


def steers_rung(seed: int, effect: float) -> Case:
    """A push of a known dose."""
    top = lever_strength(0.2 * effect)
    grid = tuple(top * share for share in STRENGTHS)
    return Case(_lever(), mood_pairs(seed), Steering(along_part(0, "lever"), grid), {"steering.dose": 0.2 * effect})


_add("steers", "steering.dose", (
    *map(partial(_family, "null"), (random_push, idle_push)),
    *map(partial(_family, "false"), (one_sided, reversals, temperature, breaks_text)), _family("true", handle),
    *ladder(steers_rung, "a lever pushed to a known dose", PAIRS),
), {"null": 30, "false": 4, "true": 8, "ladder": 20},
   "log-odds moved at the largest strength, in shares of the task's own contrast; bar .2")  # fmt: skip


# connects ----------------------------------------------------------------------------------------


def _linked(seed: int, a: Feature, b: Feature) -> Case:
    return Case(planted_model(), filler_source(seed), Link(a, b))


def random_pair(seed: int) -> Case:
    """Two random directions."""
    return _linked(seed, random_along(seed), random_along(seed, layer=1))


def cause_and_another(seed: int) -> Case:
    """A real cause, and the effect of another."""
    return _linked(seed, along_part(0, ("cause", "origin")[seed % 2]), along_part(1, ("echo", "effect")[seed % 2]))


def common_cause(seed: int) -> Case:
    """Both fire because of a third."""
    return _linked(seed, along_part(0, "witness"), along_part(1, "echo"))


def moves_everything(seed: int) -> Case:
    """It lowers the target, and all else as much."""
    return _linked(seed, along_part(0, "flood"), along_part(1, "drop"))


def cause(seed: int) -> Case:
    """A cause and its effect."""
    a, b = ("cause", "effect") if seed % 2 else ("origin", "echo")
    return _linked(seed, along_part(0, a), along_part(1, b))


@cache
def _linked_by(fall: float):
    return linked(fall)


def connects_rung(seed: int, effect: float) -> Case:
    """A cause of known weight."""
    found = _linked_by(0.2 * effect)
    return Case(found.model, filler_source(seed, per_template=16), Link(along_part(0, "cause"), along_part(1, "effect")),
                {"link.effect": found.fall})  # fmt: skip


_add("connects", "link.effect", (
    *map(partial(_family, "null"), (random_pair, cause_and_another)),
    *map(partial(_family, "false"), (common_cause, moves_everything)), _family("true", cause),
    *ladder(connects_rung, "a cause of known weight", TEXTS),
), {"null": 30, "false": 8, "true": 10, "ladder": 20},
   "fall of the effect with its cause switched off, in its standard deviations; bar .2")  # fmt: skip
