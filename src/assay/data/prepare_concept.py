"""From labelled texts to token ids and the token that is read.

An example with a character offset is read at the token that holds that character, any other at its last
token. An example that is empty, that is longer than the model's context, or whose offset is in no token, is dropped and
counted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from assay.data.prepare import Unusable, longest_of, token_finder
from assay.errors import TaskError
from assay.records import Example


@dataclass(frozen=True, eq=False)
class PreparedConcept:
    """Token ids of n examples and, per example, the position that is read."""

    examples: list[Example]
    tokens: list[list[int]]
    at: list[int]
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def items(self) -> list[Example]:
        return self.examples

    @property
    def labels(self) -> list[int]:
        return [example.label for example in self.examples]

    @property
    def templates(self) -> list[str]:
        return [example.template for example in self.examples]

    @property
    def words(self) -> list[str] | None:
        """The first entity of every example, when some entity is used in several templates."""
        if not all(example.entities for example in self.examples):
            return None
        words = [example.entities[0] for example in self.examples]
        crossed = len({(w, t) for w, t in zip(words, self.templates, strict=True)}) > len(set(words))
        return words if crossed else None

    def select(self, rows: Sequence[int]) -> "PreparedConcept":
        """Only these examples, in this order."""
        return PreparedConcept([self.examples[r] for r in rows], [self.tokens[r] for r in rows],
                               [self.at[r] for r in rows], self.dropped)  # fmt: skip


def prepare_concept(examples: Sequence[Example], model: Any) -> PreparedConcept:
    """Tokenise examples for this model. Raises TaskError, with counts, when none can be used."""
    found = _prepare(examples, model)
    if not found.examples:
        counts = "; ".join(f"{reason}: {n}" for reason, n in found.dropped.items()) or "no examples"
        raise TaskError(f"none of {len(examples)} examples can be used with {model.name} ({counts}).")
    return found


def unreadable(examples: Sequence[Example], model: Any) -> dict[str, int]:
    """How many examples would be dropped with this model, by reason."""
    return _prepare(examples, model).dropped


def _prepare(examples: Sequence[Example], model: Any) -> PreparedConcept:
    dropped: Counter[str] = Counter()
    kept: list[Example] = []
    tokens: list[list[int]] = []
    at: list[int] = []
    readable = [example.text for example in examples if example.text]
    texts = iter(model.tokens(readable) if readable else [])
    most = longest_of(model)
    for example in examples:
        try:
            ids = next(texts) if example.text else []
            if len(ids) > most:
                raise Unusable(f"longer than the model's {most} tokens")
            place = _place(example, ids, model)
        except Unusable as reason:
            dropped[str(reason)] += 1
            continue
        kept.append(example)
        tokens.append(ids)
        at.append(place)
    return PreparedConcept(kept, tokens, at, dict(dropped.most_common()))


def _place(example: Example, ids: Sequence[int], model: Any) -> int:
    """The position that is read. Raises Unusable when there is none."""
    if not example.text or not ids:
        raise Unusable("empty text")
    if example.position is None:
        return len(ids) - 1
    if not getattr(model.tokenizer, "is_fast", False):
        raise Unusable("the tokenizer has no character offsets, and a position is given")
    return token_finder(example.text, len(ids), model)(example.position)
