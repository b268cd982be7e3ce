"""Probes: small readers fitted on tune examples, and how they are fitted without fooling oneself.

1. Three of them: the difference of class means, a linear probe (standardised logistic regression), and a
   small MLP (one hidden layer). The linear one is what claims are about unless they say otherwise.
2. Regularisation of the linear probe is chosen by cross-validation inside tune, in folds that keep a
   *unit* together: the word that a probe could memorise, else the template.
3. `held_out` scores tune examples by probes that have not seen their unit: thresholds and spreads taken
   from a probe's own training examples would be too good.
4. The control task gives every unit a random label (Hewitt & Liang 2019): what a probe reads of it is memory.
5. The online code length (Voita & Titov 2020) counts the bits that labels cost when every block of units
   is coded by a probe fitted on what came before.

A probe that succeeds shows that the property can be read there, not that the model reads it.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from assay.errors import TaskError
from assay.evidence.scored import Scorer

Array = NDArray[np.float64]
Rows = list[int]
C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
DEFAULT_C = 1e-2  # where tune has too few units to choose
FOLDS = 5
CHOOSING_FOLDS = 3
HIDDEN = 32


@dataclass(frozen=True, eq=False)
class FitData:
    """Activations (n, d), labels 0 or 1 and the unit of every tune example."""

    acts: Float[Tensor, "example d"]
    labels: Sequence[int]
    units: Sequence[str]

    def rows(self, keep: Rows) -> "FitData":
        """Only these rows."""
        return FitData(self.acts[keep], [self.labels[r] for r in keep], [self.units[r] for r in keep])

    def relabelled(self, labels: Sequence[int]) -> "FitData":
        """The same examples with other labels."""
        return FitData(self.acts, labels, self.units)


def check_labels(labels: Sequence[int]) -> None:
    """Raises TaskError unless both labels are there."""
    if len(set(labels)) < 2:
        raise TaskError("tune: every example has the same label; a probe needs members and non-members.")


# fitting -----------------------------------------------------------------------------------------


def fit_mean(data: FitData, c: float, seed: int) -> Scorer:
    """Difference of class means; `c` and `seed` are not used."""
    member = torch.tensor(data.labels).bool()
    towards = data.acts[member].mean(0) - data.acts[~member].mean(0)
    middle = (data.acts[member].mean(0) + data.acts[~member].mean(0)) / 2
    return lambda acts: (acts - middle) @ towards


def fit_linear(data: FitData, c: float, seed: int) -> Scorer:
    """Standardised logistic regression with inverse regularisation `c`: log odds of being a member."""
    weights, bias = logistic(_array(data.acts), np.array(data.labels), c)
    towards = torch.tensor(weights)
    return lambda acts: acts.double() @ towards + bias


def logistic(acts: Array, labels: Array, c: float) -> tuple[Array, float]:
    """(weights, bias) on the activations as they are; the penalty is on standardised ones."""
    from sklearn import config_context
    from sklearn.linear_model import LogisticRegression

    middle, spread = acts.mean(0), acts.std(0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    with config_context(assume_finite=True, skip_parameter_validation=True), _quiet():
        model = LogisticRegression(C=c, max_iter=1000, solver="newton-cholesky").fit((acts - middle) / spread, labels)
    weights = model.coef_[0] / spread
    return weights, float(model.intercept_[0] - weights @ middle)


def fit_mlp(data: FitData, c: float, seed: int) -> Scorer:
    """One hidden layer of ReLU units; log odds of being a member. `c` is not used."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((HIDDEN,), alpha=0.1, learning_rate_init=0.01, max_iter=80, random_state=seed, tol=0.0,
                            n_iter_no_change=80)  # fmt: skip
    pipe = make_pipeline(StandardScaler(), network)
    with _quiet():
        pipe.fit(_array(data.acts), np.array(data.labels))

    def score(acts: Float[Tensor, "example d"]) -> Float[Tensor, " example"]:
        odds = np.clip(pipe.predict_proba(_array(acts))[:, 1], 1e-12, 1 - 1e-12)
        return torch.tensor(np.log(odds) - np.log1p(-odds))

    return score


PROBES: dict[str, Callable[[FitData, float, int], Scorer]] = {"linear": fit_linear, "mean": fit_mean, "mlp": fit_mlp}


def choose_c(data: FitData, seed: int) -> float:
    """The regularisation with the least log loss in folds that keep units together; the strongest of equals."""
    acts, labels = _array(data.acts), np.array(data.labels)
    folds = folds_of(data, seed, CHOOSING_FOLDS)
    loss = dict.fromkeys(C_GRID, 0.0) if folds else {DEFAULT_C: 0.0}
    for train, test in folds:
        for c in loss:
            weights, bias = logistic(acts[train], labels[train], c)
            odds = acts[test] @ weights + bias
            loss[c] += float(np.logaddexp(0.0, np.where(labels[test] == 1, -odds, odds)).sum())
    return min(loss, key=loss.__getitem__)


def folds_of(data: FitData, seed: int, folds: int = FOLDS) -> list[tuple[Rows, Rows]]:
    """(train rows, held-out rows) that keep units together, with both labels in every train part."""
    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.array(data.labels)
    per_label = [len({u for u, label in zip(data.units, labels, strict=True) if label == value}) for value in (0, 1)]
    n = min(folds, *per_label)
    if n < 2:
        return []
    with _quiet():
        made = list(StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(labels, labels, list(data.units)))
    return [(train.tolist(), test.tolist()) for train, test in made if len(set(labels[train])) == 2]


def held_out(data: FitData, probe: str, c: float, seed: int) -> list[float]:
    """Scores of tune examples by probes that have not seen their unit; by the one probe where units are too few."""
    scores = PROBES[probe](data, c, seed)(data.acts).double()
    for train, test in folds_of(data, seed):
        scores[test] = PROBES[probe](data.rows(train), c, seed)(data.acts[test]).double()
    return scores.tolist()


def half_of_units(data: FitData, seed: int) -> FitData:
    """The examples of half of the units of each label, drawn by seed; one unit of each at least."""
    label = dict(zip(data.units, data.labels, strict=True))
    rng, kept = np.random.default_rng([seed, 9]), set[str]()
    for value in (0, 1):
        units = sorted(unit for unit, own in label.items() if own == value)
        kept.update(rng.permutation(units)[: -(-len(units) // 2)].tolist())
    rows = [row for row, unit in enumerate(data.units) if unit in kept]
    both = len({data.labels[row] for row in rows}) == 2
    return data.rows(rows) if both else data  # units with both labels


# control task and code length --------------------------------------------------------------------


def online_bits(tune: FitData, asked: FitData, c: float, blocks: int = 4) -> list[float]:
    """Bits that each asked label costs: the first block of units is coded by a linear probe fitted on tune, every
    later one by a probe fitted on tune and the blocks before it."""
    order = sorted(set(asked.units), key=lambda unit: hashlib.sha256(unit.encode()).digest())
    block = {unit: place * blocks // len(order) for place, unit in enumerate(order)}
    where = np.array([block[unit] for unit in asked.units])
    bits = [0.0] * len(where)
    for number in sorted(set(where.tolist())):
        seen, now = np.flatnonzero(where < number).tolist(), np.flatnonzero(where == number).tolist()
        known = FitData(torch.cat([tune.acts, asked.acts[seen]]), [*tune.labels, *(asked.labels[r] for r in seen)], [])
        odds = fit_linear(known, c, 0)(asked.acts[now]).tolist()
        for row, value in zip(now, odds, strict=True):
            bits[row] = float(np.logaddexp(0.0, -value if asked.labels[row] else value)) / math.log(2)
    return bits


def _array(acts: Tensor) -> Array:
    return acts.double().numpy()


def _quiet() -> Any:
    """Not converging in the set number of steps, and unequal folds, are expected and no news."""
    import warnings

    return warnings.catch_warnings(action="ignore")
