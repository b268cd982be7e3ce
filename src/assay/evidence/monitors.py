"""A saved monitor as the subject of *detects*: heads at several sites, pooled over the tokens of a text.

1. A claim keeps heads, pooling and threshold themselves, so it is measured again without the file; and the hashes of the texts
   that the monitor was fitted or calibrated on, which must not come again in confirm and ood.
2. `MonitorHost` reads a text as k numbers: the pooled score of the monitor, then those of its controls, from one pass. Every
   token after the first is judged, as monitors do. A host without tokens (a planted world) has one vector a text.
3. Controls pool as the monitor does, in place of attention by the mean. Random contrast pairs: per site the difference of
   class means over variance, of mean activations, as long as makes its scores spread by 1 on tune. Twins: logistic regression
   on their own mean activations at the same sites, with regularisation chosen in folds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from assay.data.prepare_concept import PreparedConcept
from assay.errors import bad_argument
from assay.evidence.hosts import Host, ModelHost
from assay.evidence.probes import FitData, choose_c, logistic
from assay.monitor.reading import read
from assay.monitor.records import Head, Monitor, at_site
from assay.monitor.talks import Talk
from assay.monitor.units import Pooling, pooled_columns
from assay.records import Example, digest

SAVED = "saved"
PARTS = {"type", "name", "watches", "heads", "pooling", "dictionaries", "seen"}
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MonitorHost:
    """A host read by monitors of the same sites; the pooled scores (example, k) whatever site is asked for."""

    base: Host
    monitors: Sequence[Monitor]

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def digest(self) -> str:
        return self.base.digest

    def load(self, examples: Sequence[Example]) -> PreparedConcept:
        return self.base.load(examples)

    def read(self, site: str, data: PreparedConcept) -> Float[Tensor, "example k"]:
        first, rows = self.monitors[0], []
        heads = list(zip(*(each.heads for each in self.monitors), strict=True))  # of one site
        weights = [np.stack([head.weight for head in same], 1) for same in heads]
        bias = np.mean([[head.bias for head in same] for same in heads], 0)
        for acts in read_tokens(self.base, first.sites, data):
            parts = [np.asarray(at_site(same[0].site, acts), np.float64) @ w for same, w in zip(heads, weights, strict=True)]
            scores = sum(parts) / len(parts) + bias
            own = pooled_columns(scores[:, :1], first.pooling, first.token_logits(acts))
            rows.append(np.r_[own, pooled_columns(scores[:, 1:], first.pooling.of_controls())])
        return torch.tensor(np.array(rows))

    def untrained(self, scheme: str, seed: int) -> "MonitorHost":
        return MonitorHost(self.base.untrained(scheme, seed), self.monitors)


def read_tokens(host: Host, sites: Sequence[str], data: PreparedConcept) -> Iterator[dict[str, Array]]:
    """Per example, site -> (token, d) of the tokens that are judged."""
    if isinstance(host, ModelHost):
        talks = [Talk(tuple(ids), ((min(1, len(ids) - 1), len(ids)),)) for ids in data.tokens]
        for number, acts in read(host.model, talks, sites):
            yield {site: values[talks[number].turns[0][0] :] for site, values in acts.items()}
        return
    whole = {site: host.read(site, data).double().numpy() for site in sites}
    for row in range(len(data)):
        yield {site: values[row : row + 1] for site, values in whole.items()}


class Saved:
    """A saved monitor and the controls fitted like it, on tune. `fair`: its scores of tune texts, which it has not seen."""

    feature, c = None, 0.0

    def __init__(self, host: Host, subject: Mapping[str, Any], tune: PreparedConcept, seed: int, draws: int) -> None:
        self.base, self.tune, self.seed = host, tune, seed
        self.monitor = monitor_of(subject["monitor"])
        self.site = subject["sites"][0]
        self.means = self._means(host)
        self.dealt = [self._random(number) for number in range(draws)]
        self.host = MonitorHost(host, [self.monitor, *self.dealt])
        self.score = column(0)
        self.fair = self.host.read(self.site, tune)[:, 0].tolist()

    def random_pairs(self, draws: int) -> dict[str, Any]:
        """name -> the column of a monitor fitted on labels that were dealt out at random."""
        return {f"pairs.{number:02d}": column(number + 1) for number in range(draws)}

    def twin(self, twin: Host) -> tuple[Host, Any]:
        """A twin with a monitor of the same sites that was fitted there."""
        means, labels = self._means(twin), np.array(self.tune.labels)

        def head(of: Head) -> Head:
            data = FitData(torch.tensor(means[of.site]), self.tune.labels, self.tune.templates)
            weight, bias = logistic(means[of.site], labels, choose_c(data, self.seed))
            return Head(of.site, weight, bias)

        return MonitorHost(twin, [self._like(head(of) for of in self.monitor.heads)]), column(0)

    def _random(self, number: int) -> Monitor:
        labels = np.array(halves(np.array(self.tune.labels) == 1, np.random.default_rng([self.seed, 1, number]))) == 1

        def head(of: Head) -> Head:
            x = self.means[of.site]
            variance = x.var(0)
            weight = (x[labels].mean(0) - x[~labels].mean(0)) / np.where(variance > 1e-12, variance, np.inf)
            return Head(of.site, weight / (float((x @ weight).std()) or 1.0), 0.0)

        return self._like(head(of) for of in self.monitor.heads)

    def _like(self, heads: Iterator[Head]) -> Monitor:
        return Monitor(self.monitor.name, self.monitor.watches, tuple(heads), self.monitor.pooling.of_controls(), {})

    def _means(self, host: Host) -> dict[str, Array]:
        sites = list(dict.fromkeys(head.site for head in self.monitor.heads))
        rows = [{site: acts[site].mean(0) for site in sites} for acts in read_tokens(host, sites, self.tune)]
        return {site: np.array([row[site] for row in rows], np.float64) for site in sites}


def column(number: int) -> Any:
    """The score that is a column of what `MonitorHost` reads."""
    return lambda values: values[:, number]


def halves(member: NDArray[np.bool_], rng: np.random.Generator) -> list[int]:
    """1 for a random half of the members and a random half of the rest."""
    label, more = np.zeros(len(member), dtype=int), int(rng.integers(2))  # which side of an odd number gets one more
    for rows, odd in ((np.flatnonzero(member), more), (np.flatnonzero(~member), 1 - more)):
        label[rng.permutation(rows)[: (len(rows) + odd) // 2]] = 1
    return label.tolist()


# as a claim keeps it -----------------------------------------------------------------------------


def record_of(monitor: Monitor) -> dict[str, Any]:
    """Plain data: everything its scores depend on, and the hashes of the texts it has seen."""
    heads = [{"site": head.site, "bias": float(head.bias), "weight": _plain(head.weight),
              "query": None if head.query is None else _plain(head.query)} for head in monitor.heads]  # fmt: skip
    how = {"name": monitor.pooling.name, "width": monitor.pooling.width, "temperature": monitor.pooling.temperature}
    return {"type": SAVED, "name": monitor.name, "watches": monitor.watches, "heads": heads, "pooling": how,
            "dictionaries": monitor.dictionaries, "seen": sorted({each[:16] for each in monitor.seen})}  # fmt: skip


def monitor_of(record: Any) -> Monitor:
    """The monitor of a record, without thresholds. Raises UsageError for what is none."""
    try:
        heads = tuple(Head(str(head["site"]), np.array(head["weight"], np.float64), float(head["bias"]),
                           None if head.get("query") is None else np.array(head["query"], np.float64))
                      for head in record["heads"])  # fmt: skip
        bound = {"dictionaries": dict(record["dictionaries"])}
        if not heads or set(record) != PARTS:
            raise ValueError
        return Monitor(str(record["name"]), str(record["watches"]), heads, Pooling(**record["pooling"]), bound)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise bad_argument("monitor", sorted(record) if isinstance(record, Mapping) else record,
                           f"the record of a saved monitor: {', '.join(sorted(PARTS))}") from error  # fmt: skip


def names_of(monitor: Monitor) -> list[str]:
    """Its heads as directions are named: `site#hash`."""
    return [f"{head.site}#{digest([_plain(head.weight), float(head.bias)])[:8]}" for head in monitor.heads]


def _plain(vector: Any) -> list[float]:
    return np.asarray(vector, float).tolist()
