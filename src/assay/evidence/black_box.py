"""A black-box reader: a language model that sees the texts, and nothing of the model under study.

1. Endpoint and model are named by the claim's options (`reader_url`, `reader_model`), so they are locked with it; a key is
   taken from the environment variable ASSAY_READER_KEY. `reader_question` says in words what members have in common.
2. It is shown examples of tune with their labels, as many of each, and then sealed texts without them, some at a time.
   Where one word of a text is what is judged, it stands in double brackets.
3. It answers a whole number per text, 0 (surely not a member) to 100 (surely one). A reply that does not fit is asked
   for once more, text by text; what does not fit then has no score.

A monitor that finds no more than such a reader may be reading what the text says. A reader that fails shows nothing about
better readers. Texts leave this machine when the endpoint is elsewhere. (Goldowsky-Dill et al. 2025, 2502.03407.)
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.errors import EvidenceError, bad_argument
from assay.evidence.endpoint import Endpoint
from assay.records import Example, digest

SHOWN = 8  # examples of each label
AT_ONCE = 16
LONGEST_TEXT = 4000  # characters of a text that are shown
WORD = re.compile(r"\w+")
ASK = """{question}
Here are texts with the right answer.

{shots}

Now judge these {n} texts. Where one word stands in [[double brackets]], the question is about that word.

{texts}

Answer with JSON only: {{"scores": [..]}} with {n} whole numbers in the order of the texts, from 0 (surely no) to 100
(surely yes)."""
PLAIN = "Some texts have a property (yes) and others do not (no). Find out from the examples what it is."


@dataclass(frozen=True)
class BlackBox:
    """Whom to ask, and what stands before every question."""

    endpoint: Endpoint
    question: str
    shots: str

    def record(self) -> dict[str, str]:
        """What is locked of it."""
        told = digest([self.question, self.shots])[:12]
        return {"endpoint": self.endpoint.address, "model": self.endpoint.model, "told": told}

    def scores(self, examples: Sequence[Example]) -> list[float | None]:
        """0 to 100 per text; None where there is no usable answer. Raises EvidenceError when the endpoint fails."""
        found: list[float | None] = []
        for start in range(0, len(examples), AT_ONCE):
            found.extend(self._ask(examples[start : start + AT_ONCE]))
        return found

    def _ask(self, examples: Sequence[Example]) -> list[float | None]:
        texts = "\n".join(f"{number + 1}. {json.dumps(shown(example))}" for number, example in enumerate(examples))
        prompt = ASK.format(question=self.question, shots=self.shots, n=len(examples), texts=texts)
        try:
            answer = scores_in(self.endpoint.ask(prompt), len(examples))
        except ConnectionError as problem:
            raise EvidenceError(f"reader: {problem}. Nothing was decided: test the claim again when it answers.") from problem
        if answer is not None:
            return list(answer)
        return [None] if len(examples) == 1 else [score for example in examples for score in self._ask([example])]


def black_box(options: dict[str, Any], tune: Sequence[Example], seed: int) -> BlackBox | None:
    """The reader that a claim's options name; None when they name none. Raises UsageError for half of a name."""
    url, model = options.get("reader_url"), options.get("reader_model")
    if url is None and model is None and "reader_question" not in options:
        return None
    if url is None or model is None:
        raise bad_argument("option", "a part of a reader", "reader_url and reader_model together")
    endpoint = Endpoint(str(url), str(model), os.environ.get("ASSAY_READER_KEY", ""))
    shots = "\n".join(f"{json.dumps(shown(example))} {'yes' if example.label else 'no'}" for example in examples_of(tune, seed))
    return BlackBox(endpoint, str(options.get("reader_question", PLAIN)), shots)


def examples_of(tune: Sequence[Example], seed: int) -> list[Example]:
    """As many members as others, drawn by seed and mixed."""
    rng = np.random.default_rng([seed, 17])
    rows = [[row for row, example in enumerate(tune) if example.label == label] for label in (0, 1)]
    n = min(SHOWN, *map(len, rows))
    chosen = [row for group in rows for row in rng.permutation(group)[:n].tolist()]
    return [tune[row] for row in rng.permutation(chosen).tolist()]


def shown(example: Example) -> str:
    """The text as the reader gets it: the word that is judged in brackets."""
    text, at = example.text, example.position
    if at is not None:
        start, end = next((word.span() for word in WORD.finditer(text) if word.start() <= at < word.end()), (at, at + 1))
        text = f"{text[:start]}[[{text[start:end]}]]{text[end:]}"
    return text[:LONGEST_TEXT]


def scores_in(reply: str, n: int) -> list[float] | None:
    """The n scores of a reply; None when it has others."""
    body = re.search(r"\{.*\}", reply, re.S)
    try:
        found = json.loads(body[0]) if body else None
    except ValueError:
        return None
    scores = found.get("scores") if isinstance(found, dict) else None
    if not isinstance(scores, list) or len(scores) != n:
        return None
    good = all(isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 100 for score in scores)
    return [float(score) for score in scores] if good else None
