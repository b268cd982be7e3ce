"""Turn candidates into counterexamples: run again alone, token by token, as short as they can be.

1. Every candidate is run again on its own; only one that fails again can be *verified*.
2. It stays *open* when its label is not certain, or when its text is off the manifold (less fluent than 19 in
   20 confirm texts) and was made by the search rather than found.
3. Shortening keeps the tokens up to the one that is read and cuts from the left: doubled lengths first, then
   bisection, each verified by a forward pass. Members are not cut: a cut member may be none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from assay.evidence.hunting.reading import Reader, fluency_floor
from assay.evidence.search.base import Hunt
from assay.records import Counterexample

MINIMISED = 5  # of the hits of one method


@dataclass(frozen=True)
class Candidate:
    """An input on which the claim seems to fail. `at`: the token that is read; `certain`: whether the label is;
    `made`: whether the search made the text, so that it has to be fluent; `said`: who labelled it."""

    text: str
    ids: tuple[int, ...]
    at: int
    label: int
    template: str = ""
    certain: bool = True
    made: bool = True
    said: str = ""


def fails(setup: Any, label: int, score: float) -> bool:
    """A member that is silent, or a non-member that fires."""
    return score <= setup.strict if label else score > setup.half


def show(hunt: Hunt, reader: Reader, found: Sequence[Candidate], method: str) -> tuple[list[Counterexample], dict[str, Any]]:
    """Counterexamples in the order given, and what to note about their fluency."""
    if not found:
        return [], {}
    floor, kept, off = fluency_floor(hunt, reader), [], 0
    for number, one in enumerate(found[: hunt.keep]):
        ((scores, fluency),) = reader.both([one.ids])
        again = fails(hunt.setup, one.label, scores[one.at])
        strange = one.made and fluency is not None and fluency < floor
        off += strange
        words = zip([reader.model.piece(token) for token in one.ids], scores, strict=True)
        minimal = ""
        if again and not one.label and number < MINIMISED:
            minimal = reader.text(shortest(reader, one.ids[: one.at + 1], hunt.setup.half))
        kept.append(Counterexample(
            hunt.claim.id, one.text, "", one.template, "sensitivity" if one.label else "firing", scores[one.at],
            _expected(hunt, one), "verified" if again and one.certain and not strange else "open", method,
            tuple(words), minimal, fluency,
        ))  # fmt: skip
    return kept, {"fluency_floor": floor, "off_manifold": off}


def _expected(hunt: Hunt, one: Candidate) -> str:
    who = f", {one.said}" if one.said else "" if one.certain else ", but no rule says so"
    return f"above {hunt.setup.strict:.3g} (member{who})" if one.label else f"at most {hunt.setup.half:.3g} (not a member{who})"


def shortest(reader: Reader, ids: Sequence[int], threshold: float) -> list[int]:
    """The fewest last tokens of `ids` that doubling and bisection find to score above the threshold at the end."""
    ids, first = list(ids), reader.first
    lead, body = ids[:first], ids[first:]
    full = len(body)
    if full < 2:
        return ids
    sizes = [1 << power for power in range(full.bit_length()) if 1 << power < full]
    scores = reader.scores([lead + body[full - size :] for size in sizes])
    enough = next((size for size, row in zip(sizes, scores, strict=True) if row[-1] > threshold), full)
    low = max((size for size in sizes if size < enough), default=0)
    while enough - low > 1:
        middle = (enough + low) // 2
        if reader.scores([lead + body[full - middle :]])[0][-1] > threshold:
            enough = middle
        else:
            low = middle
    return lead + body[full - enough :]
