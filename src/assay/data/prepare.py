"""From texts to token ids that can be compared position by position.

1. Clean and corrupted must have the same number of tokens, and every word must begin at the same
   token in both. A pair that does not is dropped and counted: it is never shifted into place.
2. Answers and foils are tokenised where they stand, after the prompt. One that merges with the
   prompt's last token cannot be scored.
3. A single answer and a single foil are scored on the first token in which they differ: what they
   share is appended to both prompts.
4. Sets of answers or foils are scored on first tokens. A first token that can begin both an answer
   and a foil is left out of both; a pair of which one side is then empty is dropped.
5. A pair with more tokens than the model's context is dropped.

`dropped` counts pairs by reason; `notes` counts pairs (3) and left out tokens or texts (4, 2).
"""

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from assay.data.metrics import NAMES, Metric
from assay.errors import TaskError, bad_argument
from assay.model.context import context_length
from assay.records import Pair

Ids = list[int]


class NothingLeft(TaskError):
    """No pair of a task can be used with this model; `dropped` counts them by reason."""

    def __init__(self, message: str, dropped: dict[str, int]) -> None:
        super().__init__(message)
        self.dropped = dropped


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
    def items(self) -> list[Pair]:
        return self.pairs

    @property
    def templates(self) -> list[str]:
        return [pair.template for pair in self.pairs]

    @property
    def words(self) -> None:
        """Words of bundled tasks are drawn anew for every pair: templates alone are the clusters."""
        return None

    def select(self, rows: Sequence[int]) -> "PreparedTask":
        """Only these pairs, in this order."""

        def of(column: Sequence[Any]) -> list[Any]:
            return [column[row] for row in rows]

        return PreparedTask(of(self.pairs), of(self.clean), of(self.corrupted), of(self.answers), of(self.foils),
                            self.dropped, self.notes, {name: of(places) for name, places in self.labels.items()})  # fmt: skip

    def metric(
        self, metric: str | Callable[[Tensor, Tensor, Tensor], Tensor] = "logit_diff", reference: Tensor | None = None
    ) -> Metric:
        """A metric bound to these pairs: a name, or your own function.

        Your own gets logits (batch, vocab) at the last position, answer ids (batch, k) and foil ids
        (batch, m), both padded with -1, and returns one number per prompt, (batch,). `reference`, the
        clean run's logits, is what `kl` needs. Raises UsageError for an unknown name.
        """
        if callable(metric):
            return Metric(getattr(metric, "__name__", "custom"), self.answers, self.foils, reference, function=metric)
        if metric not in NAMES:
            close = difflib.get_close_matches(str(metric), NAMES, n=1)
            raise bad_argument("metric", metric, f"{', '.join(NAMES)}, or a function",
                               f"Did you mean {close[0]!r}?" if close else "")  # fmt: skip
        return Metric(metric, self.answers, self.foils, reference)


def prepare(pairs: Sequence[Pair], model: Any) -> PreparedTask:
    """Tokenise pairs for this model. Raises TaskError, with counts, when none can be used."""
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    kept: list[_Row] = []
    most = longest_of(model)
    for pair in pairs:
        try:
            row = _prepare_one(pair, model)
            if len(row.clean) > most:
                raise Unusable(f"longer than the model's {most} tokens")
        except Unusable as reason:
            dropped[str(reason)] += 1
        else:
            kept.append(row)
            notes.update(row.notes)
    if not kept:
        counts = "; ".join(f"{reason}: {n}" for reason, n in dropped.most_common())
        message = f"none of {len(pairs)} pairs can be used with {model.name} ({counts or 'no pairs'})."
        raise NothingLeft(message, dict(dropped))
    names = set(kept[0].labels).intersection(*(row.labels for row in kept))
    labels = {name: [row.labels[name] for row in kept] for name in sorted(names)}
    return PreparedTask(
        [row.pair for row in kept], [row.clean for row in kept], [row.corrupted for row in kept],
        [row.answers for row in kept], [row.foils for row in kept], dict(dropped), dict(notes),
        {**labels, "end": [len(row.clean) - 1 for row in kept]},
    )  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """One pair, ready."""

    pair: Pair
    clean: Ids
    corrupted: Ids
    answers: tuple[int, ...]
    foils: tuple[int, ...]
    labels: dict[str, int]
    notes: Counter[str]


class Unusable(Exception):
    """Why a pair is dropped."""


def longest_of(model: Any) -> int:
    """How many tokens a prompt may have; next to no bound where the model's config does not say."""
    return context_length(getattr(model, "hf", None)) or 1 << 30


def beginnings(model: Any, prompts: Any) -> list[Ids]:
    """Token ids of prompts, each cut where the model's context ends."""
    return [list(ids[: longest_of(model)]) for ids in model.tokens(prompts)]


def _prepare_one(pair: Pair, model: Any) -> _Row:
    _check_texts(pair)
    clean, corrupted = model.tokens([pair.clean, pair.corrupted])
    labels = aligned(pair, clean, corrupted, model)
    notes: Counter[str] = Counter()
    answers, foils = (_continuations(texts, pair, clean, corrupted, model) for texts in (pair.answers, pair.foils))
    if not answers or not foils:
        raise Unusable("answer or foil merges with the prompt's last token")
    if len(pair.answers) == len(pair.foils) == 1:
        shared = _shared(answers[0], foils[0])
        if max(len(answers[0]), len(foils[0])) > 1:
            notes["scored on the first token in which answer and foil differ"] += 1
        ends = (answers[0][shared],), (foils[0][shared],)
        return _Row(pair, clean + answers[0][:shared], corrupted + answers[0][:shared], *ends, labels, notes)
    left_out = len(pair.answers) + len(pair.foils) - len(answers) - len(foils)
    if left_out:
        notes["answers or foils left out: they merge with the prompt's last token"] += left_out
    return _Row(pair, clean, corrupted, *_first_tokens(answers, foils, notes), labels, notes)


def _check_texts(pair: Pair) -> None:
    if not pair.clean or not pair.corrupted:
        raise Unusable("empty prompt")
    if pair.clean == pair.corrupted:
        raise Unusable("clean and corrupted are the same")
    if set(pair.answers) & set(pair.foils):
        raise Unusable("an answer is also a foil")
    whole = [text for text in pair.answers if text.strip() and (text[0].isspace() or len(pair.answers) == 1)]
    if any(pair.clean.endswith(answer) for answer in whole):
        raise Unusable("the prompt already ends with the answer")


# answers -----------------------------------------------------------------------------------------


def _continuations(texts: Sequence[str], pair: Pair, clean: Ids, corrupted: Ids, model: Any) -> list[Ids]:
    """Token ids of texts after the prompt, without those that merge with it or differ after the other prompt."""
    after_clean = [_after(text, pair.clean, clean, model) for text in texts]
    after_corrupted = [_after(text, pair.corrupted, corrupted, model) for text in texts]
    return [ids for ids, other in zip(after_clean, after_corrupted, strict=True) if ids and ids == other]


def _after(text: str, prompt: str, ids: Ids, model: Any) -> Ids:
    whole = model.tokens(prompt + text)[0] if text else ids
    return whole[len(ids) :] if whole[: len(ids)] == ids else []


def _shared(a: Ids, b: Ids) -> int:
    """How many tokens two continuations begin with in common; each must go on after them."""
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if length is None:
        raise Unusable("answer or foil begins with the other")
    return length


def _first_tokens(answers: list[Ids], foils: list[Ids], notes: Counter[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    good, bad = (list(dict.fromkeys(ids[0] for ids in side)) for side in (answers, foils))
    both = set(good) & set(bad)
    if both:
        notes["first tokens left out: they begin an answer and a foil"] += len(both)
    good, bad = (tuple(token for token in side if token not in both) for side in (good, bad))
    if not good or not bad:
        raise Unusable("no first token tells answers from foils")
    if max(map(len, (*answers, *foils))) > 1:
        notes["scored on first tokens"] += 1
    return good, bad


# alignment ---------------------------------------------------------------------------------------


def aligned(pair: Pair, clean: Ids, corrupted: Ids, model: Any) -> dict[str, int]:
    """Token position of every label, when the two prompts agree token by token on where words stand."""
    if len(clean) != len(corrupted):
        raise Unusable("clean and corrupted have different numbers of tokens")
    if clean == corrupted:
        raise Unusable("clean and corrupted have the same tokens")
    if not getattr(model.tokenizer, "is_fast", False):  # no character offsets: compare the ids, give no labels
        if _moved(clean, corrupted):
            raise Unusable("words of clean and corrupted stand at different tokens")
        return {}
    finders = [token_finder(text, len(ids), model) for text, ids in ((pair.clean, clean), (pair.corrupted, corrupted))]
    starts = [_word_starts(text) for text in (pair.clean, pair.corrupted)]
    if len(starts[0]) == len(starts[1]):
        moved = list(map(finders[0], starts[0])) != list(map(finders[1], starts[1]))
    else:
        moved = _moved(clean, corrupted)
    labels = {name: (finders[0](places[0]), finders[1](places[1])) for name, places in pair.labels.items()}
    if moved or any(here != there for here, there in labels.values()):
        raise Unusable("words of clean and corrupted stand at different tokens")
    return {name: here for name, (here, _) in labels.items()}


def _moved(clean: Ids, corrupted: Ids) -> bool:
    """Whether tokens that both have stand at different places."""
    blocks = difflib.SequenceMatcher(None, clean, corrupted, autojunk=False).get_matching_blocks()
    return any(block.a != block.b for block in blocks)


def _word_starts(text: str) -> list[int]:
    return [i for i, letter in enumerate(text) if not letter.isspace() and (i == 0 or text[i - 1].isspace())]


def token_finder(text: str, n_tokens: int, model: Any) -> Callable[[int], int]:
    """Character offset -> position of the token that holds it, BOS counted."""
    spans = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    owner: dict[int, int] = {}
    for place, (start, end) in enumerate(spans, n_tokens - len(spans)):
        for offset in range(start, end):
            owner.setdefault(offset, place)

    def find(offset: int) -> int:
        if offset not in owner:
            raise Unusable("a word or label is in no token")
        return owner[offset]

    return find
