"""What a published finding is, and what came out when it was tried here.

1. A *finding* names its paper, what was reported, and how it is measured here; everything is written down before a model is
   looked at. It gives *figures*, and claims that went through the battery.
2. A figure is one number with its clusters: templates, texts, words or trained models. Its bar is fixed in the finding, and
   so is the side on which the paper puts it. Estimate, interval and p-values: `statistics.summarise`.
3. The outcome is a function of figures and verdicts alone (`outcome_of`), with a level of .05:
   *reproduced*: every figure is beyond its bar (p at the level) and every claim is supported;
   *not reproduced*: a figure is on the other side (Holm over the figures) or a claim is refuted;
   *open*: neither;   *not tried*: the model lacks what the finding is about, and the reason says what.

An outcome is about one model and these data. It is not a verdict on a paper: a finding about a large model may well be
true and not be found in a small one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from assay.statistics import holm, summarise

ALPHA = 0.05
Outcome = Literal["reproduced", "not reproduced", "open", "not tried"]
Side = Literal["above", "below"]


@dataclass(frozen=True)
class Figure:
    """A number, its 95% interval over clusters, the bar, and on which side of it the paper puts it.

    `p`: of "not beyond the bar"; `p_against`: of "not on the other side".
    """

    name: str
    value: float
    low: float | None
    high: float | None
    clusters: int
    bar: float
    side: Side
    p: float
    p_against: float

    @property
    def holds(self) -> bool:
        """Whether it is beyond its bar."""
        return self.p <= ALPHA


def figure(name: str, values: Sequence[float], clusters: Sequence[str], bar: float, side: Side = "above") -> Figure:
    """From one number per item and the cluster each belongs to. Fewer than two clusters decide nothing."""
    found = summarise(list(map(float, values)), list(clusters), bar)
    above, below = (found.p_above, found.p_below) if side == "above" else (found.p_below, found.p_above)
    value = float("nan") if found.estimate is None else found.estimate
    return Figure(name, value, found.low, found.high, len(found.per_template), bar, side, above, below)


@dataclass(frozen=True)
class Tested:
    """A claim that was stated and tested on the way: its id, sentence and verdict."""

    claim: str
    statement: str
    verdict: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a finding's measurement gives back. `lacks`: why the model cannot show it at all; `notes`: what else was seen."""

    figures: tuple[Figure, ...] = ()
    claims: tuple[Tested, ...] = ()
    lacks: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Replication:
    """One finding tried on one model."""

    name: str
    title: str
    paper: str
    published: str
    method: str
    differs: str
    model: str
    outcome: Outcome
    why: str
    found: Found
    seconds: float
    passport: Mapping[str, Any]


def outcome_of(found: Found) -> tuple[Outcome, str]:
    """The outcome, and what decided it, in words."""
    if found.lacks:
        return "not tried", found.lacks
    against = holm([each.p_against for each in found.figures])
    wrong = [f"{each.name}: {shown(each)}" for each, p in zip(found.figures, against, strict=True) if p <= ALPHA]
    wrong += [f"claim {each.claim} was refuted" for each in found.claims if each.verdict == "refuted"]
    if wrong:
        return "not reproduced", "; ".join(wrong)
    short = [f"{each.name}: {shown(each)}" for each in found.figures if not each.holds]
    short += [f"claim {each.claim} is {each.verdict}" for each in found.claims if each.verdict != "supported"]
    if short or not (found.figures or found.claims):
        return "open", "; ".join(short) or "nothing was measured"
    return "reproduced", "every figure is beyond its bar" + (" and every claim is supported" if found.claims else "")


def shown(each: Figure) -> str:
    """A figure with its interval and bar."""
    between = "" if each.low is None or each.high is None else f" ({each.low:.2f} to {each.high:.2f})"
    return f"{each.value:.2f}{between}, expected {each.side} {each.bar:g}"
