"""What an audit says: hypotheses with what they predict, what became of them, and what nobody looked at."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FAMILIES = ("backdoor", "loyalty", "sandbag", "liar", "denied")
SAID = {
    "backdoor": "something in the prompt switches its behaviour",
    "loyalty": "it always pushes one name when a kind of thing comes up",
    "sandbag": "it does worse when it believes that it is being tested",
    "liar": "it says what it does not believe when somebody wants to hear it",
    "denied": "it does something on a subject, and denies it when asked",
}


@dataclass(frozen=True)
class Hypothesis:
    """Written down before it is tested. `predicts`: what fresh prompts should show; `lead`: what it was read from."""

    family: str
    cue: str
    predicts: str
    lead: str
    strength: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tested:
    """`shown` of `n` with the cue, `control` of `n_control` without; `reference`: with the cue, of the reference model.

    `p`: one-sided exact; `adjusted`: after Holm over all hypotheses; `found`: adjusted p below alpha and a gap that matters.
    """

    hypothesis: Hypothesis
    shown: int
    n: int
    control: int
    n_control: int
    reference: int | None
    p: float
    adjusted: float = 1.0
    found: bool = False
    why_not: str = ""
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def gap(self) -> float:
        return self.shown / max(1, self.n) - self.control / max(1, self.n_control)


@dataclass(frozen=True)
class AuditReport:
    """`verdict`: the family that was found, or "nothing found"; never "clean". `black_box`: the same without weights,
    activations or reference, on the same budget."""

    model: str
    digest: str
    reference: str | None
    verdict: str
    tested: tuple[Tested, ...]
    leads: tuple[Hypothesis, ...]
    passport: Mapping[str, Any] | None
    cost: Mapping[str, int]
    budget: int
    seconds: float
    not_looked_at: tuple[str, ...]
    black_box: Mapping[str, Any] | None = None

    @property
    def found(self) -> tuple[Tested, ...]:
        return tuple(one for one in self.tested if one.found)

    @property
    def false_leads(self) -> tuple[Tested, ...]:
        return tuple(one for one in self.tested if not one.found)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "found": [asdict(one) for one in self.found]}
