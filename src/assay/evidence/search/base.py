"""What a search method is, and how one is added: one file in this folder, one `register_search` call.

1. `find(hunt)` looks for inputs on which the claim fails. A hit that it reports as *verified* failed again
   when it was measured on its own.
2. `sampled` methods look through items drawn beforehand: their rate of hits estimates a share. Hits of
   all others are found by trying: they are shown, but their rate is a property of the search.
3. Search can only lower a verdict. A method that does not finish keeps a claim from being supported, when
   it is `required`.
4. No hit among n independent draws bounds the share of failures among them by 3/n (95%). What a search tries is
   no sample: only draws that a method names as `independent` get the bound.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assay.records import Claim, Counterexample, Plan
from assay.registry import Registry


@dataclass(frozen=True, eq=False)
class Hunt:
    """What a method may use. `data` and `columns`: the confirm split as measured; `setup`: what the kind fixed
    before; `budget`: how many candidates to try; `keep`: how many hits to keep."""

    model: Any
    claim: Claim
    plan: Plan
    kind: Any
    data: Any
    setup: Any
    columns: Mapping[str, Sequence[float | None]]
    budget: int
    keep: int
    seed: int
    corpus: Sequence[str] = ()


@dataclass(frozen=True)
class Found:
    """What a method found: candidates tried, all hits counted, the worst kept, forward passes (prompts run).

    `independent`: how many of the tries were drawn independently of each other and of what was found before. `failed`: of
    methods that look through the confirm items, which of them fail, so that their share can be told by cluster.
    """

    tried: int
    n_hits: int
    kept: tuple[Counterexample, ...] = ()
    passes: int = 0
    complete: bool = True
    notes: dict[str, Any] = field(default_factory=dict)
    independent: int = 0
    failed: tuple[int, ...] | None = None

    def record(self, sampled: bool) -> dict[str, Any]:
        """As stored. `bound_if_none`: with no hit among n independent tries, the share is below 3/n (95%)."""
        draws = self.tried if sampled else self.independent
        bound = min(1.0, 3 / draws) if draws and not self.n_hits else None
        return {"tried": self.tried, "hits": self.n_hits, "kept": len(self.kept), "passes": self.passes,
                "complete": self.complete, "sampled": sampled, "bound_if_none": bound, "notes": self.notes}  # fmt: skip


@dataclass(frozen=True)
class SearchMethod:
    """A registered method. `kinds`: the claim kinds it serves; `budget`: candidates tried unless told otherwise."""

    name: str
    kinds: tuple[str, ...]
    find: Callable[[Hunt], Found]
    sampled: bool = False
    required: bool = False
    budget: int = 1000


SEARCHES: Registry[SearchMethod] = Registry("search method")


def register_search(method: SearchMethod) -> SearchMethod:
    """Make a method known. Raises UsageError when its name is taken."""
    return SEARCHES.add(method.name, method)


def searches_for(kind: str) -> list[SearchMethod]:
    """The methods that serve a claim kind, in order of registration."""
    return [method for method in SEARCHES if kind in method.kinds]
