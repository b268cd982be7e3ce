"""Failing pairs of prompts: token by token, and as short as they can be.

1. Tokens are those of the clean prompt, or of a text: 1 where the corrupted prompt has another one, else 0.
2. What both prompts begin with is cut from the left, so that 0, 1, 2, 4, .. tokens are left of it; every cut is measured, and
   the shortest on which the claim still fails is shown. The token that begins every text stays.

Pairs of pictures have no tokens. Texts, and pairs whose positions have names, are not cut: what is claimed of a text may need
what is cut, and names would point elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from assay.circuits.patch import first_difference
from assay.data.prepare import PreparedTask
from assay.evidence.search.base import Hunt

MINIMISED = 5  # of the hits of one method
Fails = Callable[[PreparedTask], Sequence[bool]]


@dataclass(frozen=True)
class Shown:
    """How a failing pair is shown. `measured`: pairs that were measured to shorten it."""

    tokens: tuple[tuple[str, float], ...] = ()
    minimal: str = ""
    measured: int = 0


def shown_pair(hunt: Hunt, task: Any, row: int, fails: Fails | None) -> Shown:
    """A pair of a task, or a text; shortened where `fails` says of pairs whether the claim fails on them."""
    if not isinstance(task, PreparedTask):
        ids = getattr(task, "tokens", None)
        return Shown() if ids is None else Shown(tokens_of(hunt, ids[row], _other(hunt, task, row)))
    tokens = tokens_of(hunt, task.clean[row], task.corrupted[row])
    cuts = [] if fails is None or getattr(hunt.setup, "classes", ()) else shorter(hunt, task.select([row]))
    if fails is None or not cuts:
        return Shown(tokens)
    found = [cut for cut, failed in zip(cuts, fails(together(cuts)), strict=True) if failed]
    return Shown(tokens, hunt.model.text(found[0].clean[0][lead_of(hunt) :]) if found else "", len(cuts))


def tokens_of(hunt: Hunt, ids: Sequence[int], other: Sequence[int]) -> tuple[tuple[str, float], ...]:
    """Tokens, each with 1 where another prompt differs."""
    beside = [*other, *[-1] * max(0, len(ids) - len(other))]
    return tuple((hunt.model.piece(a), float(a != b)) for a, b in zip(ids, beside, strict=False))


def _other(hunt: Hunt, data: Any, row: int) -> Sequence[int]:
    """The corrupted prompt of an item that is read as a text; the text itself where there is none."""
    texts = data.items[row].texts
    return hunt.model.tokens([texts[1]])[0] if len(texts) > 1 else data.tokens[row]


def shorter(hunt: Hunt, pair: PreparedTask) -> list[PreparedTask]:
    """One pair, cut in all lengths that are tried, the shortest first."""
    lead, first = lead_of(hunt), first_difference(pair.clean[0], pair.corrupted[0])
    lengths = [0] * bool(lead) + [1 << power for power in range(16)]
    return [replace(pair, clean=[_cut(pair.clean[0], lead, first - kept)], labels={},
                    corrupted=[_cut(pair.corrupted[0], lead, first - kept)])
            for kept in lengths if kept < first - lead]  # fmt: skip


def together(pairs: Sequence[PreparedTask]) -> PreparedTask:
    """Some tasks of one pair as one task."""
    def of(name: str) -> list:
        return [item for pair in pairs for item in getattr(pair, name)]

    return replace(pairs[0], **{name: of(name) for name in ("pairs", "clean", "corrupted", "answers", "foils")})


def lead_of(hunt: Hunt) -> int:
    """How many tokens begin every text."""
    return 1 if hunt.model.prepend_bos and hunt.model.bos_id is not None else 0


def _cut(ids: Sequence[int], lead: int, start: int) -> list[int]:
    return [*ids[:lead], *ids[start:]]
