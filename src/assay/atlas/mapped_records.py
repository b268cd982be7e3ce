"""What an atlas holds of a mapped feature, as records, and their JSON.

A *set* is one mapping of one group of units (the latents of a dictionary, neurons, heads, directions) of one model over one
corpus. A *feature record* is all that the mapping found of one unit; a *feature page* is that record with what was said of the
unit since: claims with the verdict that stands, circuits it is in, its effects on tasks, later explanations and scores.

1. `Histogram`: counts of activations (where the unit is on) in bins of equal width on a log scale.
2. `participation`: over how many coordinates a vector spreads, (sum w^2)^2 / sum w^4: 1 for a single one, d for d equal ones.
   With w the decoder row it is the spread over residual coordinates, with w = W_out^T d (or W_in d) that over neurons.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.errors import bad_argument
from assay.explain.records import Cost, Explanation, Score, Window
from assay.records import digest, plain

UNITS = ("latent", "neuron", "head", "direction")
BINS = 24
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
LINKS = ("claim", "circuit", "effect")
Named = tuple[str, float]


@dataclass(frozen=True)
class SetRecord:
    """What was mapped. Two mappings of the same units of the same model over the same corpus are one set.

    `unit`: one of `UNITS`. `site`: where the units are, as `resid_post.15`. `dictionary`: its name, and `dictionary_digest` its
    SHA-256; empty for units that are no latents. `selection`: which units were taken ("all", or how they were chosen).
    `units`: how many there are of the selection, mapped or not; `tokens`: how many tokens were read for the contexts.
    `summary`: counts, shares explained and unexplained, dropped units by reason, cost. `about`: passport and hashes of inputs.
    """

    model: str
    model_digest: str
    unit: str
    site: str
    corpus: str
    dictionary: str = ""
    dictionary_digest: str = ""
    selection: str = "all"
    units: int = 0
    tokens: int = 0
    created: str = ""
    features: int = 0
    summary: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise bad_argument("unit", self.unit, ", ".join(UNITS))

    @property
    def id(self) -> str:
        """The name of the set: what it is in words, and eight characters of the hash of what identifies it."""
        identity = (self.model_digest, self.unit, self.site, self.dictionary_digest, self.corpus, self.selection)
        words = f"{self.model}.{self.dictionary or self.site}"
        return f"{re.sub(r'[^a-zA-Z0-9._-]+', '-', words).strip('-.')[:80]}-{digest(identity)[:8]}"


@dataclass(frozen=True)
class Histogram:
    """Counts between edges: `counts[i]` values lie in [edges[i], edges[i + 1]); the last bin holds its upper edge too."""

    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Effect:
    """What taking out or setting a feature does to a task. `value` is on the scale of `metric`, with its 95% interval."""

    task: str
    value: float
    metric: str = ""
    low: float | None = None
    high: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureRecord:
    """All that a mapping found of one unit.

    `name`: as sites name it (`latent.NAME.12`, `mlp_act.3.40`), unique in its set. `density`: share of tokens it is on at;
    `fired`: at how many; `largest`: its largest activation. `quantiles`: (share of firings, activation). `promoted` and
    `suppressed`: (token, what its logit or probability changes by), strongest first. `spread`: participation ratios by basis
    (`{"residual": 310.2, "neurons": 41.0}`). `top_tokens`: (token, share of its firings). `neighbours`: (name, cosine of
    decoder rows); `coactive`: (name, correlation of being on). `explanations`: the one that stands first. `claims`: ids.
    `circuits`: names. `why_not`: why there is no explanation, or why the unit was dropped; empty where there is one.
    """

    name: str
    index: int
    density: float
    largest: float
    fired: int
    histogram: Histogram = field(default_factory=Histogram)
    quantiles: tuple[tuple[float, float], ...] = ()
    promoted: tuple[Named, ...] = ()
    suppressed: tuple[Named, ...] = ()
    spread: Mapping[str, float] = field(default_factory=dict)
    top_tokens: tuple[Named, ...] = ()
    neighbours: tuple[Named, ...] = ()
    coactive: tuple[Named, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    scores: tuple[Score, ...] = ()
    contexts: tuple[Window, ...] = ()
    claims: tuple[str, ...] = ()
    circuits: tuple[str, ...] = ()
    effects: tuple[Effect, ...] = ()
    why_not: str = ""


@dataclass(frozen=True)
class LinkedClaim:
    """A claim about a feature. `verdict`: the one that stands; "not tested" where there is none, "not here" for no claim."""

    id: str
    kind: str
    statement: str
    verdict: str


@dataclass(frozen=True)
class Near:
    """Another feature, how near it is, and what is said of it."""

    feature: str
    value: float
    text: str = ""


@dataclass(frozen=True)
class FeaturePage:
    """One feature with everything the atlas knows of it. `row`: its place in the set."""

    set: SetRecord
    row: int
    record: FeatureRecord
    claims: tuple[LinkedClaim, ...] = ()
    circuits: tuple[str, ...] = ()
    effects: tuple[Effect, ...] = ()
    neighbours: tuple[Near, ...] = ()
    coactive: tuple[Near, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The machine-readable twin."""
        record = plain(self.record)
        for name in ("claims", "circuits", "effects", "neighbours", "coactive"):
            record[name] = plain(getattr(self, name))
        return {"set": {"id": self.set.id, **plain(self.set)}, "row": self.row, **record}


@dataclass(frozen=True)
class Hit:
    """A feature that a search found. `value`: how well, on the scale of that search, larger is better."""

    set: str
    feature: str
    row: int
    value: float
    text: str
    why: str = ""


# what is computed for a record -------------------------------------------------------------------


def histogram_of(values: NDArray[np.floating[Any]], bins: int = BINS) -> Histogram:
    """Counts of positive values in bins of equal width on a log scale, from the smallest to the largest. Empty for none."""
    values = np.asarray(values, np.float64)
    values = values[values > 0]
    if not len(values):
        return Histogram()
    low, high = float(values.min()), float(values.max())
    edges = np.geomspace(low, high, bins + 1) if high > low else np.array([low, high])
    edges[0], edges[-1] = low, high
    counts = np.histogram(values, edges)[0]
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def quantiles_of(values: NDArray[np.floating[Any]], at: Sequence[float] = QUANTILES) -> tuple[tuple[float, float], ...]:
    """(share, value) of positive values; empty for none."""
    values = np.asarray(values, np.float64)
    values = values[values > 0]
    return tuple(zip(at, np.quantile(values, at).tolist(), strict=True)) if len(values) else ()


def participation(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Participation ratio of each row: (sum w^2)^2 / sum w^4, between 1 and the number of columns; 0 for a row of zeros."""
    squares = np.square(np.asarray(vectors, np.float64))
    total, fourth = squares.sum(-1), np.square(squares).sum(-1)
    return np.divide(np.square(total), fourth, out=np.zeros_like(total), where=fourth > 0)


# JSON ---------------------------------------------------------------------------------------------

ELSEWHERE = ("contexts", "claims", "circuits", "effects")  # kept in other columns, see `contexts_store` and `notes`


def to_text(value: Any) -> str:
    """JSON in one spelling. Numbers of numpy are numbers; NaN and infinity become null."""
    return json.dumps(_finite(plain(value)), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def record_text(record: FeatureRecord) -> str:
    """A feature record as JSON, without what is kept elsewhere."""
    return to_text({each.name: getattr(record, each.name) for each in fields(record) if each.name not in ELSEWHERE})


def record_of(body: Mapping[str, Any], contexts: Sequence[Window] = ()) -> FeatureRecord:
    """A feature record from its JSON."""
    given = {name: _named(body[name]) for name in
             ("promoted", "suppressed", "top_tokens", "neighbours", "coactive", "quantiles")}  # fmt: skip
    histogram = Histogram(tuple(body["histogram"]["edges"]), tuple(body["histogram"]["counts"]))
    return FeatureRecord(**{**body, **given, "histogram": histogram, "contexts": tuple(contexts),
                            "explanations": tuple(explanation_of(each) for each in body["explanations"]),
                            "scores": tuple(score_of(each) for each in body["scores"])})  # fmt: skip


def explanation_of(body: Mapping[str, Any]) -> Explanation:
    """An explanation from its JSON."""
    return Explanation(**{**body, "cost": Cost(**body["cost"])})


def score_of(body: Mapping[str, Any]) -> Score:
    """A score from its JSON."""
    return Score(**{**body, "cost": Cost(**body["cost"])})


def _named(pairs: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    return tuple(tuple(pair) for pair in pairs)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
