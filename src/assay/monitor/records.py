"""A monitor: which sites it reads, what it makes of them, what its thresholds promise, and what it is bound to.

1. Score of a token: the mean over heads of  x . w + b  (log odds), x the activation at the head's site, or the latents of an
   open dictionary (`latent.NAME`), which are made from the activations it reads. Where it pools by attention, a token has a
   second number, the mean over heads of  x . query.
2. Units and pooling are in `units.py`, thresholds in `thresholds.py`, drift in `drift.py`.
3. It is *calibrated* only for the model, tokenizer and chat template it was calibrated on, until it expires, and while nothing
   has drifted. Otherwise it still gives scores, and its state says why its thresholds promise nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from assay.errors import bad_argument
from assay.features.opened import PREFIX, dictionary_at, is_latent, read_latents, sources_of
from assay.model.model import Model
from assay.monitor.thresholds import Threshold
from assay.monitor.units import Pooling
from assay.records import digest

Array = NDArray[np.float64]
CALIBRATED = "calibrated"
DAYS = 90  # until a monitor expires, where nothing else was asked


@dataclass(frozen=True, eq=False)
class Head:
    """Reads one site, or all latents of a dictionary: x . weight + bias. `query`: of the pooling attention."""

    site: str
    weight: Float[np.ndarray, " d"]
    bias: float
    query: Float[np.ndarray, " d"] | None = None


@dataclass(frozen=True, eq=False)
class Baseline:
    """What benign replies looked like: `scores` (n,) of replies, `axes` (k, d) of their mean activations at `site`, and
    `places` (n, k) along these, to notice when that changes."""

    scores: Float[np.ndarray, " n"]
    site: str
    axes: Float[np.ndarray, "k d"]
    places: Float[np.ndarray, "n k"]


@dataclass(frozen=True, eq=False)
class Monitor:
    """`thresholds` by unit; `odds` (slope, shift) make a probability of a reply's score. `bound`: model, tokenizer, template,
    dtype and data by hash, with `created` and `expires` (ISO times). `card`: how it was fitted and measured."""

    name: str
    watches: str
    heads: tuple[Head, ...]
    pooling: Pooling
    bound: Mapping[str, Any]
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    odds: tuple[float, float] = (1.0, 0.0)
    baseline: Baseline | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    drifted: str = ""

    def __post_init__(self) -> None:
        if self.pooling.name == "attention" and any(head.query is None for head in self.heads):
            raise bad_argument("pooling", "attention, with heads that have no query", "heads that `fit` made for attention")

    @property
    def sites(self) -> list[str]:
        """What must be captured. Raises SiteError where a head reads latents of a dictionary that is not open."""
        return sources(head.site for head in self.heads)

    @property
    def seen(self) -> set[str]:
        """Hashes (`data_digest` of one) of the texts that it was fitted or calibrated on."""
        return {digest for name in ("texts", "calibration_texts", "odds_texts") for digest in self.card.get(name, ())}

    @property
    def dictionaries(self) -> dict[str, str]:
        """Name -> digest of the dictionaries whose latents it reads."""
        return dict(self.bound.get("dictionaries", {}))

    def token_scores(self, acts: Mapping[str, Float[np.ndarray, "token d"]]) -> Float[np.ndarray, " token"]:
        """Score of every token from the activations at `sites`. Raises UsageError where a site or its width is missing."""
        total: Any = 0.0
        for head in self.heads:
            total = total + self._at(head, acts) @ head.weight + head.bias
        return total / len(self.heads)

    def token_logits(self, acts: Mapping[str, Float[np.ndarray, "token d"]]) -> Float[np.ndarray, " token"] | None:
        """What attention weighs every token by; None for other poolings. Raises UsageError as `token_scores` does."""
        if self.pooling.name != "attention":
            return None
        return sum(self._at(head, acts) @ head.query for head in self.heads) / len(self.heads)  # type: ignore[operator]

    def _at(self, head: Head, acts: Mapping[str, Any]) -> Array:
        x = at_site(head.site, acts)
        if x is None or np.ndim(x) != 2 or np.shape(x)[1] != len(head.weight):
            got = "nothing" if x is None else f"shape {np.shape(x)}"
            raise bad_argument("activations", f"{got} at {head.site}", f"(tokens, {len(head.weight)}) at {self.sites}")
        return np.asarray(x, np.float64)

    def state(self, model: Model | None = None, now: datetime | None = None) -> str:
        """"calibrated", or "uncalibrated: ..." with the first reason."""
        if why := self._why_not(model, now):
            return f"un{CALIBRATED}: {why}"
        return CALIBRATED

    def probability(self, score: float) -> float:
        """Probability that a reply is what is watched for, at the base rate of the data that it was calibrated on."""
        slope, shift = self.odds
        return float(1 / (1 + np.exp(-np.clip(slope * score + shift, -60, 60))))

    def _why_not(self, model: Model | None, now: datetime | None) -> str:
        if not self.thresholds:
            return "no threshold was set on benign data"
        if model is not None:
            for name, value in bindings(model).items():
                if self.bound.get(name) != value:
                    return f"it was calibrated with another {name}"
            for name, value in self.dictionaries.items():
                if dictionary_at(PREFIX + name).digest != value:
                    return f"it was calibrated with another dictionary {name}"
        if datetime.fromisoformat(self.bound["expires"]) <= (now or datetime.now(UTC)):
            return f"it expired at {self.bound['expires']}"
        return self.drifted


def sources(sites: Iterable[str]) -> list[str]:
    """The sites of the model that these are read from."""
    return list(dict.fromkeys(source for site in sites for source in sources_of(site)))


def at_site(site: str, acts: Mapping[str, Any]) -> Any:
    """(token, d) at a site, latents made from what their dictionary reads; None where it is missing."""
    if site in acts or not is_latent(site) or not all(source in acts for source in sources_of(site)):
        return acts.get(site)
    return read_latents(site, lambda source: torch.from_numpy(np.asarray(acts[source], np.float32))).numpy()


def dictionaries_of(sites: Iterable[str]) -> dict[str, str]:
    """Name -> digest of the open dictionaries among sites."""
    return {site.removeprefix(PREFIX): dictionary_at(site).digest for site in sites if is_latent(site)}


def bindings(model: Model) -> dict[str, Any]:
    """What a monitor is bound to: model weights and config, how texts become tokens, how conversations become texts, dtype."""
    return {"model": model.digest, "tokenizer": model.tokenizer_digest, "template": template_digest(model),
            "dtype": str(model.dtype).removeprefix("torch.")}  # fmt: skip


def template_digest(model: Model) -> str:
    """Hash of the chat template; of none, of the plain one."""
    return digest(getattr(model.tokenizer, "chat_template", None) or "plain")


def data_digest(texts: Sequence[Any]) -> str:
    """Hash of the data something was fitted or calibrated on."""
    return digest(list(texts))
