"""Explanations and scores of a few units of a map, from its reading; no model is needed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from assay.errors import bad_argument
from assay.explain.executed import Executed
from assay.explain.lexical import explain_lexical
from assay.explain.reading import Reading, open_reading
from assay.explain.records import Explanation, Score
from assay.explain.sampling import SamplePlan, samples
from assay.explain.scorers.base import deranged, score_features
from assay.explain.tools import Tools
from assay.mapping.features import densities

OTHERS = 16  # units whose rules are exchanged with those asked for


def explain_some(folder: Path, features: Sequence[str]) -> list[Explanation]:
    """Rules of some units. Raises UsageError for one that the map has not read."""
    reading = open_reading(folder / "reading")
    return list(explain_lexical(reading, _names(reading, features)))


def score_some(
    folder: Path, features: Sequence[str], scorers: Sequence[str], seed: int = 0
) -> tuple[list[Score], dict[tuple[str, str], str]]:
    """Scores of the rules of some units, beside those of others that are on about as often; and what could not be scored."""
    reading = open_reading(folder / "reading")
    names = _names(reading, features)
    found = samples(reading, SamplePlan(seed=seed), names)
    if dropped := [name for name in names if name in found.dropped]:
        raise bad_argument("feature", dropped[0], "one that is on often enough", f"{dropped[0]}: {found.dropped[dropped[0]]}.")
    density = densities(reading)
    explained = list(explain_lexical(reading, [*names, *_alike(reading, names, density, seed)]))
    others = deranged(explained, density, seed)
    tools = Tools(reading=reading, executed=Executed(reading.part("scored")), seed=seed)
    skipped: dict[tuple[str, str], str] = {}
    pairs = [(each, sample) for each in explained[: len(names)] if (sample := found.of(each.feature)) is not None]
    return list(score_features(pairs, scorers, tools, others, skipped)), skipped


def _names(reading: Reading, features: Sequence[str]) -> list[str]:
    columns = [reading.column(int(each) if each.isdigit() else each) for each in features]
    return [reading.units[column] for column in dict.fromkeys(columns)]


def _alike(reading: Reading, names: Sequence[str], density: dict[str, float], seed: int) -> list[str]:
    """Units that are on about as often as those asked for."""
    middle = float(np.median([density[name] for name in names]))
    rest = sorted((name for name in reading.units if name not in names and density[name] > 0),
                  key=lambda name: (abs(density[name] - middle), name))  # fmt: skip
    return rest[:OTHERS]
