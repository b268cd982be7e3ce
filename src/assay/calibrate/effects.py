"""*uses*, *steers* and *connects* on the model whose parts are known directions (`testing/effect_models.py`).

The ladder of *uses*: a direction with cosine c to the part that is used and the rest along a part that nothing writes.
Exchanging it moves c^2 of the effect, erasing it c^2 / 2: the binding gate is erasure.mean, bar .2, and c^2 is .2, .4,
.6 and .8. The others have no ladder: their true claims are of a clear effect.
"""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from assay.calibrate.base import CALIBRATIONS, Calibration, Case, Family, ladder
from assay.evidence.connects import Link
from assay.evidence.features import Feature, direction
from assay.evidence.options import OPTIONS
from assay.evidence.run import Settings
from assay.evidence.steers import Steering
from assay.testing.effect_models import (
    D_MODEL,
    filler_source,
    mood_source,
    neutral_texts,
    part_direction,
    planted_effects,
)

GRID = (-4, -2, -1, 1, 2, 4)
SETTINGS = Settings(tune=16, confirm=40, ood=36, draws=9, control_pairs=1, options={"neutral": neutral_texts(20)})


@cache
def _model():
    return planted_effects()


def _at(layer: int, *parts: str, weights: tuple[float, ...] | None = None) -> Feature:
    return direction(f"resid_post.{layer}", part_direction(*parts, weights=weights))


def _random(seed: int, layer: int = 0) -> Feature:
    drawn = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed + 1000 * layer))
    return direction(f"resid_post.{layer}", (drawn - drawn.mean()).tolist())


def _family(truth: Any, make: Any, **changes: Any) -> Family:
    return Family(make.__name__.replace("_", " "), truth, make, " ".join((make.__doc__ or "").split()), **changes)


def _add(kind: str, binding: str, families: tuple[Family, ...], n: dict[str, int], note: str) -> None:
    quick = {truth: max(1, count // 15) for truth, count in n.items()}
    settings = SETTINGS if kind in OPTIONS.get("neutral").kinds else replace(SETTINGS, options={})
    CALIBRATIONS.add(kind, Calibration(kind, binding, families, settings, n, quick, note))


# uses --------------------------------------------------------------------------------------------


def _used(seed: int, subject: Any, **truth: float) -> Case:
    return Case(_model(), mood_source(seed), subject, {name.replace("__", "."): value for name, value in truth.items()})


def random_direction(seed: int) -> Case:
    """A random direction."""
    return _used(seed, _random(seed))


def random_content(seed: int) -> Case:
    """A direction along which much varies, and that nothing reads."""
    return _used(seed, _at(0, f"content{seed % 12}"))


def readable_copy(seed: int) -> Case:
    """The property can be read along it; nothing uses it."""
    return _used(seed, _at(0, "copy"))


def needed_by_all_text(seed: int) -> Case:
    """The used part together with one that ordinary text needs."""
    return _used(seed, [_at(0, "mood"), _at(0, "side")])


def used_part(seed: int) -> Case:
    """The part that carries the behaviour."""
    return _used(seed, _at(0, "mood"))


def uses_rung(seed: int, effect: float) -> Case:
    """A direction that shares c^2 of its variance with the used part."""
    share = 0.4 * effect
    feature = _at(0, "mood", "idle", weights=(share**0.5, (1 - share) ** 0.5))
    return _used(seed, feature, erasure__mean=share / 2, erasure__resample=share)


_add("uses", "erasure.mean", (
    *map(partial(_family, "null"), (random_direction, random_content)),
    *map(partial(_family, "false"), (readable_copy, needed_by_all_text)), _family("true", used_part),
    *ladder(uses_rung, "a direction of known cosine to the used part"),
), {"null": 30, "false": 10, "true": 10, "ladder": 15}, "share of the effect that erasing takes away; bar .2")  # fmt: skip


# steers ------------------------------------------------------------------------------------------


def _steered(seed: int, feature: Feature, grid: tuple[float, ...] = GRID) -> Case:
    return Case(_model(), mood_source(seed), Steering(feature, grid))


def random_push(seed: int) -> Case:
    """A random direction."""
    return _steered(seed, _random(seed + 500))


def idle_push(seed: int) -> Case:
    """A direction that nothing reads."""
    return _steered(seed, _at(0, f"content{seed % 12}"))


def one_sided(seed: int) -> Case:
    """It pushes in one sense only."""
    return _steered(seed, _at(0, "ramp"))


def reversals(seed: int) -> Case:
    """It raises three prompts in four and lowers the fourth."""
    return _steered(seed, _at(0, "gate"))


def temperature(seed: int) -> Case:
    """It makes every difference larger."""
    return _steered(seed, _at(0, "constant", weights=(-1.0,)), (-12, -6, 6, 12))


def breaks_text(seed: int) -> Case:
    """It moves the behaviour, and ordinary text."""
    return _steered(seed, _at(0, "mood", "side", weights=(1.0, 0.6)))


def handle(seed: int) -> Case:
    """The part that carries the behaviour."""
    return _steered(seed, _at(0, "mood"))


_add("steers", "steering.dose", (
    *map(partial(_family, "null"), (random_push, idle_push)),
    *map(partial(_family, "false"), (one_sided, reversals, temperature, breaks_text)), _family("true", handle),
), {"null": 30, "false": 4, "true": 8}, "no ladder; true claims of a clear effect")  # fmt: skip


# connects ----------------------------------------------------------------------------------------


def _linked(seed: int, a: Feature, b: Feature) -> Case:
    return Case(_model(), filler_source(seed), Link(a, b))


def random_pair(seed: int) -> Case:
    """Two random directions."""
    return _linked(seed, _random(seed), _random(seed, layer=1))


def cause_and_another(seed: int) -> Case:
    """A real cause, and the effect of another."""
    return _linked(seed, _at(0, ("cause", "origin")[seed % 2]), _at(1, ("echo", "effect")[seed % 2]))


def common_cause(seed: int) -> Case:
    """Both fire because of a third."""
    return _linked(seed, _at(0, "witness"), _at(1, "echo"))


def moves_everything(seed: int) -> Case:
    """It lowers the target, and all else as much."""
    return _linked(seed, _at(0, "flood"), _at(1, "drop"))


def cause(seed: int) -> Case:
    """A cause and its effect."""
    return _linked(seed, *((_at(0, "cause"), _at(1, "effect")) if seed % 2 else (_at(0, "origin"), _at(1, "echo"))))


_add("connects", "link.effect", (
    *map(partial(_family, "null"), (random_pair, cause_and_another)),
    *map(partial(_family, "false"), (common_cause, moves_everything)), _family("true", cause),
), {"null": 30, "false": 8, "true": 10}, "no ladder; true claims of a clear effect")  # fmt: skip
