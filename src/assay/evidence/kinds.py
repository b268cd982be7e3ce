"""Claim kinds: what a claim of each kind names, and how it is measured and searched.

A kind is one object in one file, registered by name. The trial (`run.py`), the gates, the rule and
the store know only this interface:

1. `subject(model, sites)`: the canonical parts that a claim names.
2. `prepare(model, plan, subject, tune)`: everything fixed before sealed data are read (means, random
   sets); also a plain record of it, which is locked with the plan.
3. `measure(model, task, setup, gates)`: one column of numbers per quantity, one number per pair.
4. `search(model, task, setup, columns)`: counterexamples among the pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from assay.data.prepare import PreparedTask
from assay.model.model import Model
from assay.records import GatePlan, Plan
from assay.registry import Registry

Columns = dict[str, list[float | None]]
Progress = Callable[[str, int, int], None]


@runtime_checkable
class Kind(Protocol):
    """What the trial needs of a claim kind."""

    name: str

    def subject(self, model: Model, sites: str | Sequence[str]) -> list[str]:
        """The parts a claim names, canonical and sorted. Raises UsageError for parts of another kind."""
        ...

    def prepare(
        self, model: Model, plan: Plan, subject: Sequence[str], tune: PreparedTask
    ) -> tuple[Any, dict[str, Any]]:
        """(setup for `measure`, plain record of the controls)."""
        ...

    def measure(
        self, model: Model, task: PreparedTask, setup: Any, gates: Sequence[GatePlan], report: Progress | None = None
    ) -> Columns:
        """All columns the gates need, over all pairs."""
        ...

    def search(
        self, model: Model, task: PreparedTask, setup: Any, columns: Mapping[str, Sequence[float | None]], keep: int
    ) -> "Search":
        """Pairs on which the claim fails."""
        ...


@dataclass(frozen=True)
class Hit:
    """One failing pair: its row, the gate it speaks against, the effect, and whether it failed again alone."""

    row: int
    gate: str
    score: float
    again: bool


@dataclass(frozen=True)
class Search:
    """What a counterexample search found: all failing pairs counted, the worst kept and re-run."""

    n_failing: int
    kept: tuple[Hit, ...]
    passes: int


KINDS: Registry[Kind] = Registry("claim kind")
