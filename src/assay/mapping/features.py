"""What the atlas keeps of a mapped unit, made from a reading, its samples, explanations and scores.

Density, values and tokens are over the part *shown*. Windows kept are those shown to explainers, and scored ones are not: what
judges an explanation is not put beside it. Promoted and suppressed tokens are by the unit's direction through the unembedding.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from assay.atlas.mapped_records import FeatureRecord, histogram_of, participation, quantiles_of
from assay.explain.reading import Reading
from assay.explain.records import Explanation, Sample, Score
from assay.mapping.claims import counts_of
from assay.mapping.units import MapUnits

TOP_TOKENS = 12
Named = tuple[tuple[str, float], ...]


def says(explanation: Explanation) -> bool:
    """Whether it says anything: a rule, or words of somebody who was asked."""
    return explanation.rule is not None or (bool(explanation.text) and not explanation.explainer.startswith("lexical"))


def densities(reading: Reading) -> dict[str, float]:
    """Share of tokens of *shown*, of those that are read, at which each unit is on."""
    part = reading.part("shown")
    counts = np.diff(part.by_unit.indptr) / max(1, int(np.asarray(part.typical).sum()))
    return dict(zip(reading.units, counts.tolist(), strict=True))


class Records:
    """Feature records of one reading. `outputs`: feature -> (promoted, suppressed), where they were read; `neurons`: over how
    many each unit is spread, where that is known."""

    def __init__(
        self, reading: Reading, units: MapUnits, outputs: Mapping[str, tuple[Named, Named]] | None = None,
        neurons: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.reading, self.units, self.outputs, self.neurons = reading, units, dict(outputs or {}), neurons
        self.part = reading.part("shown")
        self.read = max(1, int(np.asarray(self.part.typical).sum()))

    @cached_property
    def _counts(self) -> Any:
        return counts_of(self.part)

    @cached_property
    def _spread(self) -> dict[str, np.ndarray]:
        """Basis -> over how many of its coordinates each unit is spread."""
        decoder = self.units.decoder
        found = {"residual": None if decoder is None else participation(decoder.numpy()), "neurons": self.neurons}
        return {basis: each for basis, each in found.items() if each is not None}

    @cached_property
    def _piece(self) -> dict[int, str]:
        return dict(zip(np.asarray(self.part.tokens).tolist(), self.part.pieces, strict=True))

    def record(
        self, column: int, sample: Sample | None, explanation: Explanation | None, scores: Sequence[Score], why_not: str
    ) -> FeatureRecord:
        """One unit, explained or not."""
        name, by_unit = self.reading.units[column], self.part.by_unit
        values = by_unit.data[by_unit.indptr[column] : by_unit.indptr[column + 1]]
        promoted, suppressed = self.outputs.get(name, ((), ()))
        explained = explanation is not None and says(explanation)
        return FeatureRecord(
            name, column, len(values) / self.read, float(values.max()) if len(values) else 0.0, len(values),
            histogram_of(values), quantiles_of(values), promoted, suppressed,
            {basis: float(each[column]) for basis, each in self._spread.items()}, self._tokens(column),
            () if sample is None else sample.neighbours, () if sample is None else sample.coactive,
            (explanation,) if explained and explanation is not None else (), tuple(scores),
            () if sample is None else sample.shown, why_not=why_not,
        )  # fmt: skip

    def _tokens(self, column: int) -> Named:
        """Tokens it is on at most often, with their share of its firings."""
        start, end = self._counts.indptr[column], self._counts.indptr[column + 1]
        data, ids = self._counts.data[start:end], self._counts.indices[start:end]
        order = np.argsort(-data, kind="stable")[:TOP_TOKENS]
        total = max(1, int(data.sum()))
        return tuple((self._piece.get(int(ids[place]), ""), float(data[place] / total)) for place in order)
