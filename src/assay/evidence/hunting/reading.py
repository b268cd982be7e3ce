"""Read any token ids with a claim's score, at every token, and say how fluent they are.

1. A claim of a score (*represents*, *decodes*, *explains*, *detects*) about a language model can be read on
   texts that nobody prepared: the site is captured at every token and the fixed score is applied there.
2. Fluency is the mean log-probability of a text's tokens under the model itself, the first one left out.
3. A text is off the manifold when it is less fluent than 19 in 20 confirm texts.
4. Prompts are taken in chunks, so memory is bounded whatever the number of candidates; every prompt that
   is run is counted.

Hosts without texts of their own (planted worlds) have no reader: methods that need one look at nothing.
"""

from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import SiteError
from assay.evidence.hosts import ModelHost, as_host
from assay.evidence.scored import ScoreSetup
from assay.evidence.search.base import Found, Hunt
from assay.features.opened import dictionary_at, is_latent, read_latents, sources_of
from assay.model.activations import Activations
from assay.model.model import Model

CHUNK_FLOATS = 1 << 24
FLOOR_TEXTS = 32
NO_FLOOR = -1e9  # confirm texts of one token have no fluency
LONGEST = 96  # tokens of a text that is not the claim's own
_floors: WeakKeyDictionary[ScoreSetup, tuple[list[list[int]], float]] = WeakKeyDictionary()

Ids = Sequence[int]


class Reader:
    """A claim's score on a language model. `passes` counts the prompts that were run."""

    def __init__(self, model: Model, setup: ScoreSetup) -> None:
        self.model, self.setup = model, setup
        self.passes = 0

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, cut off where they are too long."""
        return [ids[:LONGEST] for ids in self.model.tokens(list(texts))]

    def text(self, ids: Ids) -> str:
        """The text of some ids, without the token that begins every text."""
        lead = 1 if self.model.prepend_bos and ids and ids[0] == self.model.bos_id else 0
        return self.model.text(list(ids)[lead:])

    def is_text(self, ids: Ids) -> bool:
        """Whether the text of these ids is read as these ids again."""
        text = self.text(ids)
        return bool(text) and self.model.tokens([text])[0] == list(ids)

    @property
    def first(self) -> int:
        """The first position that is not the token that begins every text."""
        return 1 if self.model.prepend_bos and self.model.bos_id is not None else 0

    def scores(self, prompts: Sequence[Ids]) -> list[list[float]]:
        """The score at every token of every prompt."""
        return [scores for scores, _ in self._read(prompts, fluent=False)]

    def at(self, prompts: Sequence[Ids], places: Sequence[int]) -> list[float]:
        """The score at one token of every prompt."""
        return [scores[place] for scores, place in zip(self.scores(prompts), places, strict=True)]

    def both(self, prompts: Sequence[Ids]) -> list[tuple[list[float], float | None]]:
        """Scores at every token, and fluency, from one pass per prompt."""
        return self._read(prompts, fluent=True)

    def _read(self, prompts: Sequence[Ids], fluent: bool) -> list[tuple[list[float], float | None]]:
        site = self.setup.site
        dims, ids = self.model.dims, [list(prompt) for prompt in prompts]
        width = dims.d_vocab if fluent else max(dims.d_model, dims.d_mlp, dims.n_heads * dims.d_head)
        width = max(width, dictionary_at(site).width) if is_latent(site) else width
        out: list[tuple[list[float], float | None]] = []
        for chunk in chunks(ids, width):
            acts = self.model.capture(chunk, [*sources_of(site), *(["logits"] if fluent else [])])
            scores = self.setup.score(_values(acts, site)).detach().double()
            logits = acts.flat("logits").split(acts.lengths) if fluent else [None] * len(chunk)
            for prompt, part, row in zip(chunk, scores.split(acts.lengths), logits, strict=True):
                out.append((part.tolist(), None if row is None else mean_log_probability(row, prompt)))
        self.passes += len(ids)
        return out


def reader_of(hunt: Hunt) -> Reader | None:
    """A reader of the hunted claim, when its host is a language model with a tokenizer and has the site itself."""
    host = as_host(hunt.model)
    if type(host) is not ModelHost or host.model.tokenizer is None or not isinstance(hunt.setup, ScoreSetup):
        return None
    if hunt.setup.host is not None:  # a score of whole texts
        return None
    try:
        host.model.sites(list(sources_of(hunt.setup.site)))
    except SiteError:  # a site that only its kind can read
        return None
    return Reader(host.model, hunt.setup)


def _values(acts: Activations, site: str) -> Float[Tensor, "token d"]:
    """A whole site at every token, or the latents of an open dictionary there."""
    if not is_latent(site):
        return acts.flat(site).flatten(1).float()
    return read_latents(site, acts.flat, torch.cat([torch.arange(length) for length in acts.lengths]))


def nothing(why: str, passes: int = 0) -> Found:
    """What a method says that had nothing to look at."""
    return Found(0, 0, passes=passes, notes={"skipped": why})


def chunks(prompts: Sequence[list[int]], width: int) -> Iterator[list[list[int]]]:
    """Prompts in order, as many at a time as the memory bound allows."""
    chunk: list[list[int]] = []
    for prompt in prompts:
        if chunk and (len(chunk) + 1) * max(len(prompt), *map(len, chunk)) * width > CHUNK_FLOATS:
            yield chunk
            chunk = []
        chunk.append(prompt)
    if chunk:
        yield chunk


def mean_log_probability(logits: Tensor, ids: Ids) -> float | None:
    """Mean log-probability of ids[1:] from logits (pos, vocab); None for a single token."""
    if len(ids) < 2:
        return None
    rows = torch.log_softmax(logits[:-1].float(), -1)
    return float(rows.gather(1, torch.tensor(list(ids[1:]))[:, None]).mean())


def fluency_floor(hunt: Hunt, reader: Reader) -> float:
    """The 5th percentile of the fluency of confirm texts, from up to 32 of them drawn by seed; kept per trial."""
    prompts: list[list[int]] = hunt.data.tokens
    known = _floors.get(hunt.setup)
    if known is not None and known[0] is prompts:
        return known[1]
    rows = np.random.default_rng([hunt.seed, 5]).permutation(len(prompts))[:FLOOR_TEXTS]
    found = [fluency for _, fluency in reader.both([prompts[row] for row in rows]) if fluency is not None]
    floor = float(np.quantile(found, 0.05, method="lower")) if found else NO_FLOOR
    _floors[hunt.setup] = (prompts, floor)
    return floor
