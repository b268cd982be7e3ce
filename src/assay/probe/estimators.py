"""Probes: small readers of activations, as scikit-learn classifiers of two classes.

All but `mlp` and `attention` read one direction; the later class (of the sorted two) is the positive one:

    decision(x) = x . direction_ + intercept_        > 0: the later class

1. `linear`: logistic regression on standardised activations, L2 penalty 1/C, intercept free. Decision: log odds.
   With several `C` the one with the least log loss in folds that keep groups together is taken.
2. `mean_difference`: m1 - m0, the threshold half-way between the class means (Marks & Tegmark 2023).
3. `lda`: S^-1 (m1 - m0) with the pooled covariance S shrunk towards a diagonal (Ledoit & Wolf 2004).
4. `pca`: the first principal component, found without labels; labels only give its sign and threshold.
5. `k_sparse`: logistic regression on the k features whose class means differ most in standard deviations (Gurnee et
   al. 2023). On latents of a dictionary this asks how many of them carry a property.
6. `mlp`: one hidden layer of ReLU units on standardised activations.
7. `attention`: tokens are pooled with weights softmax(q . x), a learned query, then read linearly. X is a list of
   (tokens, d) arrays.

Directions are in the space of the activations: standardisation is undone, so the same vector can be added to them. One
that reads well need not be one that moves the model well.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import (
    assert_all_finite,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from assay.errors import bad_argument
from assay.registry import Registry

Array = NDArray[np.float64]
PROBES: Registry[type["Probe"]] = Registry("probe")


class Probe(ClassifierMixin, BaseEstimator):
    """What all probes share: two classes, `decision_function`, `predict`, `predict_proba`."""

    classes_: NDArray[Any]

    def fit(self, X: Any, y: ArrayLike, groups: Sequence[object] | None = None) -> Self:
        """Fit on X (n, d) and labels y (n,). `groups` (n,): rows kept together where something is chosen by folds.

        Raises ValueError, as scikit-learn does, for data that are not finite or do not have two classes.
        """
        X, y = self._data(X, y)
        self.classes_, member = _two_classes(y)
        self._learn(X, member, groups)
        return self

    def decision_function(self, X: Any) -> Array:
        """Scores (n,); above 0 for the later class."""
        check_is_fitted(self)
        return self._decide(self._data(X))

    def predict_proba(self, X: Any) -> Array:
        """Probabilities (n, 2). Of the training data's own scores, so too sure where n is small: see `calibration`."""
        scores = self.decision_function(X)
        above = expit(self._slope() * scores)
        return np.stack([1 - above, above], axis=1)

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels (n,)."""
        above = self.decision_function(X) > 0
        return self.classes_[above.astype(int)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _data(self, X: Any, y: Any = "no_validation") -> Any:
        return validate_data(self, X, y, dtype=np.float64, reset=not isinstance(y, str), ensure_min_samples=1)

    def _learn(self, X: Any, member: Array, groups: Sequence[object] | None) -> None:
        raise NotImplementedError

    def _decide(self, X: Any) -> Array:
        raise NotImplementedError

    def _slope(self) -> float:
        """By what a decision must be multiplied to be log odds."""
        return 1.0


class DirectionProbe(Probe):
    """A probe that reads `direction_` (d,) with `intercept_`."""

    direction_: Array
    intercept_: float

    @property
    def coef_(self) -> Array:
        """(1, d), as scikit-learn's linear classifiers have it."""
        return self.direction_[None]

    def _decide(self, X: Array) -> Array:
        return X @ self.direction_ + self.intercept_


class ScaledProbe(DirectionProbe):
    """A direction whose threshold lies half-way between the class means, and whose slope is fitted for probabilities."""

    slope_: float

    def _aim(self, X: Array, member: Array, direction: Array) -> None:
        scores = X @ direction
        self.direction_ = direction
        self.intercept_ = -float(scores[member == 1].mean() + scores[member == 0].mean()) / 2
        self.slope_ = _log_odds_slope(scores + self.intercept_, member)

    def _slope(self) -> float:
        return self.slope_


@PROBES.register("linear")
class LinearProbe(DirectionProbe):
    """Standardised logistic regression; `C` one number or several to choose from by folds of groups; `C_` is the chosen."""

    def __init__(self, C: float | Sequence[float] = 0.01, folds: int = 5, random_state: int = 0) -> None:
        self.C, self.folds, self.random_state = C, folds, random_state

    def _learn(self, X: Array, member: Array, groups: Sequence[object] | None) -> None:
        options = tuple(np.ravel(self.C).astype(float).tolist())
        if not options or min(options) <= 0:
            raise bad_argument("C", self.C, "numbers above 0")
        self.C_ = options[0] if len(options) == 1 else self._choose(X, member, groups, options)
        self.direction_, self.intercept_ = logistic(X, member, self.C_)

    def _choose(self, X: Array, member: Array, groups: Sequence[object] | None, options: Sequence[float]) -> float:
        from assay.probe.path import fit_path

        path = fit_path(X[None], member, groups, options, self.folds, self.random_state)
        return path.Cs[int(path.log_loss(member)[0].argmin())]


@PROBES.register("mean_difference")
class MeanDifferenceProbe(ScaledProbe):
    """Difference of class means."""

    def _learn(self, X: Array, member: Array, groups: Sequence[object] | None) -> None:
        self._aim(X, member, X[member == 1].mean(0) - X[member == 0].mean(0))


@PROBES.register("lda")
class LDAProbe(DirectionProbe):
    """Linear discriminant with shrinkage ("auto": Ledoit & Wolf, or a share from 0 to 1)."""

    def __init__(self, shrinkage: str | float = "auto") -> None:
        self.shrinkage = shrinkage

    def _learn(self, X: Array, member: Array, groups: Sequence[object] | None) -> None:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=self.shrinkage).fit(X, member)  # type: ignore[arg-type]
        self.direction_, self.intercept_ = fitted.coef_[0], float(fitted.intercept_[0])


@PROBES.register("pca")
class PCAProbe(ScaledProbe):
    """First principal component; with `standardise` that of standardised activations."""

    def __init__(self, standardise: bool = False) -> None:
        self.standardise = standardise

    def _learn(self, X: Array, member: Array, groups: Sequence[object] | None) -> None:
        from sklearn.decomposition import PCA

        middle, spread = standards(X) if self.standardise else (X.mean(0), np.ones(X.shape[1]))
        axis = np.asarray(PCA(1, svd_solver="full").fit((X - middle) / spread).components_)[0] / spread
        scores = X @ axis
        self._aim(X, member, axis if scores[member == 1].mean() >= scores[member == 0].mean() else -axis)


@PROBES.register("k_sparse")
class KSparseProbe(DirectionProbe):
    """Logistic regression on `k` features chosen by standardised mean difference; `chosen_` (k,) are their places."""

    def __init__(self, k: int = 5, C: float = 1.0) -> None:
        self.k, self.C = k, C

    def _learn(self, X: Array, member: Array, groups: Sequence[object] | None) -> None:
        import torch

        from assay.features.sparse_probing import mean_gaps

        if self.k < 1:
            raise bad_argument("k", self.k, "a whole number from 1 on")
        gaps = mean_gaps(torch.from_numpy(X), member == 1).numpy()
        self.chosen_ = np.argsort(-gaps, kind="stable")[: self.k]
        weights, self.intercept_ = logistic(X[:, self.chosen_], member, self.C)
        self.direction_ = np.zeros(X.shape[1])
        self.direction_[self.chosen_] = weights


@PROBES.register("mlp")
class MLPProbe(Probe):
    """One hidden layer on standardised activations; decision: log odds."""

    def __init__(self, hidden: int = 32, alpha: float = 0.1, epochs: int = 80, random_state: int = 0) -> None:
        self.hidden, self.alpha, self.epochs, self.random_state = hidden, alpha, epochs, random_state

    def _learn(self, X: Array, member: Array, groups: Sequence[object] | None) -> None:
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        network = MLPClassifier((self.hidden,), alpha=self.alpha, learning_rate_init=0.01, max_iter=self.epochs, tol=0.0,
                                n_iter_no_change=self.epochs, random_state=self.random_state)  # fmt: skip
        self.network_ = make_pipeline(StandardScaler(), network)
        with warnings.catch_warnings(action="ignore"):  # the number of epochs is what was asked for
            self.network_.fit(X, member)

    def _decide(self, X: Array) -> Array:
        odds = np.clip(self.network_.predict_proba(X)[:, 1], 1e-12, 1 - 1e-12)
        return np.log(odds) - np.log1p(-odds)


@PROBES.register("attention")
class AttentionProbe(Probe):
    """Tokens pooled by a learned query, then read linearly. X: a list of (tokens, d) arrays; (n, d) is one token each.

    The loss is that of `linear`: sum of log losses + (|w|^2 + |q|^2) / (2 C), on tokens standardised over all texts. It is
    not convex: the start is drawn from `random_state`, and the same start gives the same probe. `query_`, `weights_` (d,)
    are in activation space; `attention(X)` gives what each token counts.
    """

    def __init__(self, C: float = 0.1, steps: int = 100, random_state: int = 0) -> None:
        self.C, self.steps, self.random_state = C, steps, random_state

    def attention(self, X: Any) -> list[Array]:
        """Weights (tokens,) of every text; they sum to 1."""
        check_is_fitted(self)
        tokens, sizes = self._data(X)
        return np.split(self._shares(tokens, sizes), np.cumsum(sizes)[:-1])

    def _data(self, X: Any, y: Any = "no_validation") -> Any:
        """(tokens of all texts (m, d), tokens of each (n,)), and y where it is given."""
        given = not isinstance(y, str)
        if isinstance(X, np.ndarray) and X.ndim == 3:
            X = list(X)
        if _is_ragged(X):
            texts = [np.asarray(text, float) for text in X]
            if any(text.ndim != 2 or not len(text) for text in texts):
                raise ValueError("X: every text needs a (tokens, d) array with one token or more.")
            flat: Array = validate_data(self, np.concatenate(texts), dtype=np.float64, reset=given)  # type: ignore[arg-type]
            sizes = np.array([len(text) for text in texts])
        else:
            flat = validate_data(self, X, dtype=np.float64, reset=given)  # type: ignore[arg-type]
            sizes = np.ones(len(flat), int)
        if not given:
            return flat, sizes
        labels = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_consistent_length(sizes, labels)
        return (flat, sizes), labels

    def _learn(self, X: Any, member: Array, groups: Sequence[object] | None) -> None:
        tokens, sizes = X
        middle, spread = standards(tokens)
        if self.C <= 0 or self.steps < 1:
            raise bad_argument("C and steps", (self.C, self.steps), "a number above 0, and a whole number from 1 on")
        query, weights, bias = _fit_attention((tokens - middle) / spread, sizes, member, self.C, self.steps, self.random_state)
        self.query_, self.weights_ = query / spread, weights / spread
        self.intercept_ = bias - float(self.weights_ @ middle)

    def _decide(self, X: Any) -> Array:
        tokens, sizes = X
        starts = np.cumsum(sizes) - sizes
        return np.add.reduceat(self._shares(tokens, sizes) * (tokens @ self.weights_), starts) + self.intercept_

    def _shares(self, tokens: Array, sizes: NDArray[np.int64]) -> Array:
        starts, score = np.cumsum(sizes) - sizes, tokens @ self.query_
        score = np.exp(score - np.repeat(np.maximum.reduceat(score, starts), sizes))
        return score / np.repeat(np.add.reduceat(score, starts), sizes)


def _is_ragged(X: Any) -> bool:
    return isinstance(X, (list, tuple)) and len(X) > 0 and np.ndim(X[0]) == 2


def _fit_attention(
    tokens: Array, sizes: NDArray[np.int64], member: Array, C: float, steps: int, seed: int
) -> tuple[Array, Array, float]:
    """(query, weights, bias) for standardised tokens, by L-BFGS. The query is small at first: near the mean of tokens."""
    import torch

    x, truth, of = torch.from_numpy(tokens), torch.from_numpy(member), torch.repeat_interleave(torch.from_numpy(sizes))
    n, d = len(sizes), x.shape[1]
    start = torch.zeros(2 * d + 1, dtype=torch.float64)
    start[:d] = 0.01 * torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / d**0.5
    theta = start.requires_grad_()
    optimiser = torch.optim.LBFGS([theta], max_iter=steps, tolerance_grad=1e-6 * n, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        score, value = (x @ torch.stack([theta[:d], theta[d : 2 * d]], 1)).T
        most = torch.full((n,), -torch.inf, dtype=x.dtype).scatter_reduce(0, of, score.detach(), "amax")
        share = (score - most[of]).exp()
        total = torch.zeros(n, dtype=x.dtype).index_add(0, of, share)
        odds = torch.zeros(n, dtype=x.dtype).index_add(0, of, share * value) / total + theta[-1]
        fit = torch.nn.functional.binary_cross_entropy_with_logits(odds, truth, reduction="sum")
        whole = fit + theta[: 2 * d].square().sum() / (2 * C)
        whole.backward()
        return whole

    with torch.enable_grad():
        optimiser.step(loss)
    found = theta.detach().numpy()
    return found[:d], found[d : 2 * d], float(found[-1])


# shared ------------------------------------------------------------------------------------------


def logistic(X: Array, member: Array, C: float) -> tuple[Array, float]:
    """(weights (d,), bias) on X as it is; the L2 penalty is on standardised features, the intercept is free.

    A fit that stops short of the tolerance, on separable data with next to no penalty, is kept without a warning.
    """
    from sklearn import config_context
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    middle, spread = standards(X)
    solver = "newton-cholesky" if X.shape[1] <= 1024 else "lbfgs"
    with config_context(assume_finite=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=C, solver=solver, tol=1e-6, max_iter=10_000).fit((X - middle) / spread, member)
    weights = fitted.coef_[0] / spread
    return weights, float(fitted.intercept_[0] - weights @ middle)


def standards(X: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of every feature, 1 for those that do not vary, as StandardScaler has them."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(X)
    return scaler.mean_, scaler.scale_  # type: ignore[return-value]


def _two_classes(y: Any) -> tuple[NDArray[Any], Array]:
    check_classification_targets(y)
    if type_of_target(y, input_name="y", raise_unknown=True) == "multiclass":
        raise ValueError("Only binary classification is supported. The type of the target is multiclass.")
    classes, member = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError("y: rows of one class only; a probe needs two.")
    return classes, member.astype(float)


def _log_odds_slope(scores: Array, member: Array) -> float:
    """Slope of a logistic regression through 0 on scores; above 0 where the class means lie on both sides of 0."""
    from sklearn.linear_model import LogisticRegression

    spread = float(np.sqrt(np.mean(scores**2)))
    if spread == 0:
        return 1.0
    fitted = LogisticRegression(fit_intercept=False, solver="newton-cholesky").fit(scores[:, None] / spread, member)
    return float(fitted.coef_[0, 0]) / spread
