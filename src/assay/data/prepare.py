"""From texts to token ids that can be compared position by position.

A pair is kept when clean and corrupted have the same number of tokens, and its answers and foils
are single tokens that stand where the prompt ends. Everything else is dropped and counted by reason:
a misaligned pair is never shifted into place.

A single answer and a single foil of several tokens are scored on the first token in which they
differ: what they share is appended to both prompts (counted in `notes`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from assay.data.metrics import NAMES, Metric
from assay.errors import TaskError, bad_argument
from assay.records import Pair


@dataclass(frozen=True, eq=False)
class PreparedTask:
    """Aligned token ids of n pairs; `labels[name][i]` is a token position in pair i."""

    pairs: list[Pair]
    clean: list[list[int]]
    corrupted: list[list[int]]
    answers: list[tuple[int, ...]]
    foils: list[tuple[int, ...]]
    dropped: dict[str, int]
    notes: dict[str, int]
    labels: dict[str, list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def templates(self) -> list[str]:
        return [pair.template for pair in self.pairs]

    def metric(self, name: str = "logit_diff", reference: Any = None) -> Metric:
        """A metric bound to these pairs. Raises UsageError for an unknown name."""
        if name not in NAMES:
            raise bad_argument("metric", name, ", ".join(NAMES))
        return Metric(name, self.answers, self.foils, reference)


def prepare(pairs: Sequence[Pair], model: Any) -> PreparedTask:
    """Tokenise pairs for this model. Raises TaskError, with counts, when none can be used."""
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    kept: list[tuple[Pair, list[int], list[int], tuple[int, ...], tuple[int, ...]]] = []
    for pair in pairs:
        try:
            kept.append((pair, *_prepare_one(pair, model, notes)))
        except _Unusable as reason:
            dropped[str(reason)] += 1
    if not kept:
        counts = "; ".join(f"{reason}: {n}" for reason, n in dropped.most_common())
        raise TaskError(f"none of {len(pairs)} pairs can be used with {model.name} ({counts or 'no pairs'}).")
    columns = list(zip(*kept, strict=True))
    labels = _labels(columns[0], columns[1], model)
    return PreparedTask(
        *(list(column) for column in columns), dict(dropped), dict(notes), labels  # type: ignore[arg-type]
    )


class _Unusable(Exception):
    """Why a pair is dropped."""


def _prepare_one(pair: Pair, model: Any, notes: Counter[str]) -> tuple[Any, ...]:
    if not pair.clean or not pair.corrupted:
        raise _Unusable("empty prompt")
    if pair.clean == pair.corrupted:
        raise _Unusable("clean and corrupted are the same")
    if set(pair.answers) & set(pair.foils):
        raise _Unusable("an answer is also a foil")
    if any(answer.strip() and pair.clean.endswith(answer) for answer in pair.answers):
        raise _Unusable("the prompt already ends with the answer")
    clean, corrupted = model.tokens([pair.clean, pair.corrupted])
    if len(clean) != len(corrupted):
        raise _Unusable("clean and corrupted have different numbers of tokens")
    answers = [_continuation(text, pair.clean, clean, model) for text in pair.answers]
    foils = [_continuation(text, pair.clean, clean, model) for text in pair.foils]
    if len(answers) == len(foils) == 1:
        shared = _shared(answers[0], foils[0])
        if shared == min(len(answers[0]), len(foils[0])):
            raise _Unusable("answer or foil begins with the other")
        if max(len(answers[0]), len(foils[0])) > 1:
            notes["scored on the first token in which answer and foil differ"] += 1
        clean, corrupted = clean + answers[0][:shared], corrupted + answers[0][:shared]
        return clean, corrupted, (answers[0][shared],), (foils[0][shared],)
    if any(len(ids) != 1 for ids in (*answers, *foils)):
        raise _Unusable("an answer or foil of a set is more than one token")
    return clean, corrupted, tuple(a[0] for a in answers), tuple(f[0] for f in foils)


def _continuation(text: str, prompt: str, ids: list[int], model: Any) -> list[int]:
    whole = model.tokens(prompt + text)[0]
    if not text or whole[: len(ids)] != ids or len(whole) == len(ids):
        raise _Unusable("answer or foil merges with the prompt's last token")
    return whole[len(ids) :]


def _shared(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _labels(pairs: Sequence[Pair], clean: Sequence[list[int]], model: Any) -> dict[str, list[int]]:
    """Token positions of labels that every pair has: the token holding the labelled character."""
    names = set(pairs[0].labels).intersection(*(pair.labels for pair in pairs))
    found = {name: [_token_at(pair, pair.labels[name][0], model) for pair in pairs] for name in sorted(names)}
    return {**found, "end": [len(ids) - 1 for ids in clean]}


def _token_at(pair: Pair, offset: int, model: Any) -> int:
    spans = model.tokenizer(pair.clean, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    shift = len(model.tokens(pair.clean)[0]) - len(spans)
    return shift + next((i for i, (start, end) in enumerate(spans) if start <= offset < end), len(spans) - 1)
