"""Frozen records that methods return and stores keep. No torch, no SQL, no drawing."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Pair:
    """One minimal pair of prompts of a task.

    `answers` are the continuations the model should prefer after `clean`, `foils` those it should
    prefer after `corrupted`; both as they follow the prompt, leading space included. `labels` name
    character offsets: label -> (offset of a character inside `clean`, offset inside `corrupted`).
    `cluster` joins template, words and document: two pairs of one cluster never go to two splits.
    """

    clean: str
    corrupted: str
    answers: tuple[str, ...]
    foils: tuple[str, ...]
    template: str
    labels: dict[str, tuple[int, int]] = field(default_factory=dict)
    entities: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskSummary:
    """What a model can do on a task: is there a behaviour to study?"""

    task: str
    n_pairs: int
    dropped: dict[str, int]
    accuracy: float
    logit_diff: float
    low: float
    high: float
    n_templates: int


@dataclass(frozen=True)
class PatchResult:
    """A patching sweep: one effect per cell of a grid.

    `effect[i][j]` is (mean patched - mean corrupted) / (mean clean - mean corrupted) over pairs:
    0 = like the corrupted run, 1 = like the clean run. `low` and `high` are 95% bootstrap bounds
    over pairs. `axis` says what the columns are: positions, heads, components or neurons.
    """

    plan: dict[str, Any]
    layers: list[int]
    axis: str
    columns: list[str]
    effect: list[list[float]]
    low: list[list[float]]
    high: list[list[float]]
    clean: float
    corrupted: float
    n_pairs: int
    dropped: dict[str, int]
    checks: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The machine-readable twin, with the keys scripts rely on."""
        record = asdict(self)
        plan, axis, columns = record.pop("plan"), record.pop("axis"), record.pop("columns")
        return {**plan, **record, axis: columns, "plan": plan}
