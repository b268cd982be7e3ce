"""Logistic probes at many sites, for many penalties and all folds of groups, in one call.

The optimum is that of scikit-learn's LogisticRegression(C) on StandardScaler(training rows), intercept free:

    min over w, b of   sum_i log(1 + exp(-s_i (z_i . w + b))) + |w|^2 / (2 C),    z_i = (x_i - mean) / sd,  s_i = +-1

1. A site's rows are standardised once to u. Each fold's own z is u rescaled per feature, so all fits of a site share one
   matrix, with weight 0 for rows a fold leaves out: a product with it serves all of them at once.
2. Newton steps of all folds and Cs at once. Steps are found by conjugate gradients in fp32; gradients, step lengths
   (halved until the loss falls) and results are fp64, so fp32 costs steps, never accuracy.
3. Preconditioner: with equal weights on rows the Hessian is diagonal in the eigenbasis of u'u, for every fold and C.
   One decomposition per site, of (d, d) or, with fewer rows than features, of (n, n).
4. The loss is 1/C-strongly convex in w, so |w - w*| <= C |gradient|. A fit stops when C |gradient| / |w| is at most
   `tol`, a bound of the relative error; `Path.error` has it. Fits that do not get there in `ROUNDS` steps are made by
   the library instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from assay.errors import UsageError, bad_argument

Array = NDArray[np.float64]
Single = NDArray[np.float32]
Rows = NDArray[np.int64]
CS = tuple(float(c) for c in np.logspace(-5, 0, 10))
TOLERANCE, ROUNDS, CG_STEPS, HALVINGS = 1e-4, 100, 200, 30
FORCING = 0.2  # share of the gradient that a step may leave, at most
NOISE = 1e-12  # of a gradient's largest possible length: below it there is nothing to fit


@dataclass(frozen=True, eq=False)
class Path:
    """Fits of every site and C, strongest penalty first. Coefficients are in activation space, fitted on all rows.

    `held_out` (site, C, n): log odds of every row by the probe that did not see its group; `coef` (site, C, d),
    `intercept` (site, C); `fold` (n,): the fold that left a row out; `error` (site, C): the largest bound of the relative
    error of coefficients over folds.
    """

    Cs: tuple[float, ...]
    held_out: Array
    coef: Array
    intercept: Array
    fold: Rows
    error: Array

    def log_loss(self, labels: ArrayLike) -> Array:
        """Mean log loss (site, C) of the held-out scores in nats: what C (and the site) can be chosen by."""
        signs = np.where(np.asarray(labels) == 1, -1.0, 1.0)
        return np.logaddexp(0.0, signs * self.held_out).mean(-1)

    def decide(self, X: ArrayLike | Sequence[ArrayLike]) -> Array:
        """Log odds (site, C, m) of other rows, X (site, m, d)."""
        rows = [np.asarray(x, float) @ coef.T for x, coef in zip(X, self.coef, strict=True)]  # type: ignore[call-overload]
        return np.stack(rows).transpose(0, 2, 1) + self.intercept[:, :, None]


def fit_path(
    X: ArrayLike | Sequence[ArrayLike], y: ArrayLike, groups: Sequence[object] | None = None, Cs: Sequence[float] = CS,
    folds: int = 5, seed: int = 0, tol: float = TOLERANCE, progress: Callable[[int], Any] | None = None,
) -> Path:  # fmt: skip
    """X (site, n, d), or one (n, d) array per site; y (n,) of 0 and 1; groups (n,), without them every row is its own.

    `progress(n)` after n more sites. Raises UsageError naming the argument.
    """
    sites, labels, penalties = _checked(X, y, groups, Cs)
    fold = folds_of(labels, groups, folds, seed)
    train = np.stack([fold != number for number in range(int(fold.max()) + 1)] + [np.ones(len(fold), bool)]).astype(float)
    found = []
    for x in sites:
        found.append(_fit_site(np.asarray(x, float), labels, train, fold, penalties, tol))
        if progress is not None:
            progress(1)
    held, coef, intercept, error = (np.stack(part) for part in zip(*found, strict=True))
    return Path(penalties, held, coef, intercept, fold, error)


def can_fold(labels: ArrayLike, groups: Sequence[object] | None) -> bool:
    """Whether `folds_of` finds any."""
    try:
        return len(folds_of(labels, groups)) > 0
    except UsageError:
        return False


def folds_of(labels: ArrayLike, groups: Sequence[object] | None, folds: int = 5, seed: int = 0) -> Rows:
    """The fold (n,) that leaves each row out: groups stay together, labels are spread evenly.

    At most as many folds as there are groups of the rarer label. Raises UsageError where that leaves fewer than two, or
    where a fold holds all rows of a label.
    """
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.asarray(labels)
    names = np.arange(len(labels)) if groups is None else np.unique([str(g) for g in groups], return_inverse=True)[1]
    n = min(folds, *(len(np.unique(names[labels == value])) for value in (0, 1)))
    if n < 2:
        raise bad_argument("groups" if folds > 1 else "folds", f"{n}", "two or more groups of each label, and two folds",
                           "Give more templates, documents or sources of the rarer label.")  # fmt: skip
    fold = np.zeros(len(labels), np.int64)
    splitter = StratifiedGroupKFold(n, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore"):
        for number, (_, out) in enumerate(splitter.split(labels, labels, names)):
            fold[out] = number
    fold = np.unique(fold, return_inverse=True)[1]
    if fold.max() < 1 or any(len(np.unique(labels[fold != number])) < 2 for number in range(int(fold.max()) + 1)):
        raise bad_argument("groups", "a group with nearly all rows of a label", "groups that folds can keep apart",
                           "Give more groups, or fewer folds.")  # fmt: skip
    return fold


# one site ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Site:
    """What all fits of a site share. Row f of `rescale` (F, d) makes a fold's standardised features of u; `shift` is
    that times the fold's mean. `basis` (d, r) and `squares` (r,): eigenvectors and values of u'u."""

    u: Array
    single: Single
    middle: Array
    spread: Array
    rescale: Array
    shift: Array
    basis: Single
    squares: Single


@dataclass(frozen=True, eq=False)
class _Fits:
    """The state of all fits, one row each: fold `f` and penalty `lam` = 1/C."""

    f: Rows
    lam: Array
    w: Array
    b: Array
    odds: Array
    p: Array
    loss: Array
    error: Array


def _fit_site(x: Array, y: Array, train: Array, fold: Rows, Cs: tuple[float, ...], tol: float) -> tuple[Array, ...]:
    """(held_out (C, n), coef (C, d), intercept (C,), error (C,)) of one site."""
    site = _prepare(x, train)
    fits = _solve(site, y, train, Cs, tol)
    _finish_by_library(site, fits, x, y, train, tol)
    by_c = fits.odds.reshape(len(Cs), len(train), -1)
    held = by_c[:, fold, np.arange(len(fold))]
    whole = fits.f == len(train) - 1
    coef = fits.w[whole] * site.rescale[-1] / site.spread
    intercept = fits.b[whole] - coef @ site.middle - fits.w[whole] @ site.shift[-1]
    return held, coef, intercept, fits.error.reshape(len(Cs), -1).max(1)


def _prepare(x: Array, train: Array) -> _Site:
    middle, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    u = (x - middle) / spread
    sizes = train.sum(1)[:, None]
    mean = train @ u / sizes
    variance = train @ (u * u) / sizes - mean**2
    rescale = _rescale(x, train, spread, variance)
    single = u.astype(np.float32)
    basis, squares = _eigenbasis(single)
    return _Site(u, single, middle, spread, rescale, rescale * mean, basis, squares)


def _rescale(x: Array, train: Array, spread: Array, variance: Array) -> Array:
    """1 / sd of u in every fold (F, d). Features that hardly vary in a fold are done as the library does them, exactly;
    those constant there get 0: no fit can use them."""
    from assay.probe.estimators import standards

    rescale = 1 / np.sqrt(np.maximum(variance, 1e-300))
    for f in np.flatnonzero((variance < 1e-6).any(1)):
        few = np.flatnonzero(variance[f] < 1e-6)
        inside = x[train[f] > 0][:, few]
        rescale[f, few] = np.where(np.ptp(inside, axis=0) > 0, spread[few] / standards(inside)[1], 0.0)
    return rescale


def _eigenbasis(u: Single) -> tuple[Single, Single]:
    n, d = u.shape
    if d <= n:
        squares, basis = np.linalg.eigh(u.T @ u)
        return basis, np.maximum(squares, 0)
    squares, left = np.linalg.eigh(u @ u.T)
    kept = squares > 1e-6 * squares[-1]
    return (u.T @ left[:, kept] / np.sqrt(squares[kept])).astype(np.float32), squares[kept]


# the solver --------------------------------------------------------------------------------------


def _solve(site: _Site, y: Array, train: Array, Cs: tuple[float, ...], tol: float) -> _Fits:
    """All fits of a site; rows are folds within Cs. They start from the share of label 1 alone."""
    folds, (n, d) = len(train), site.u.shape
    f, lam = np.tile(np.arange(folds), len(Cs)), np.repeat(1 / np.array(Cs), folds)
    share = (train @ y / train.sum(1))[f]
    b = np.log(share / (1 - share))
    odds = np.repeat(b[:, None], n, axis=1)
    p, losses = _logistic(odds, y)
    fits = _Fits(f, lam, np.zeros((len(f), d)), b, odds, p, (train[f] * losses).sum(1), np.full(len(f), np.inf))
    rows = np.arange(len(f))
    for _ in range(ROUNDS):
        rows = _newton(site, fits, rows, y, train, tol)
        if not len(rows):
            break
    return fits


def _newton(site: _Site, fits: _Fits, rows: Rows, y: Array, train: Array, tol: float) -> Rows:
    """One step of all `rows` that are not done; gives those."""
    f, lam, weight = fits.f[rows], fits.lam[rows, None], train[fits.f[rows]]
    miss = weight * (fits.p[rows] - y)
    g_b = miss.sum(1)
    g = site.rescale[f] * (site.u.T @ np.ascontiguousarray(miss.T)).T - site.shift[f] * g_b[:, None] + lam * fits.w[rows]
    length = np.sqrt(np.square(g).sum(1) + g_b**2)
    size = np.linalg.norm(fits.w[rows], axis=1)
    silent = length <= NOISE * weight.sum(1) * np.sqrt(g.shape[1] + 1)
    fits.error[rows] = np.where(silent, 0.0, length / np.maximum(lam[:, 0] * size, 1e-300))
    left = fits.error[rows] > tol
    if not left.any():
        return rows[:0]
    rows, g, g_b, weight = rows[left], g[left], g_b[left], weight[left]
    curvature = weight * fits.p[rows] * (1 - fits.p[rows])
    step = _conjugate_gradients(site, fits, rows, g, g_b, curvature, tol)
    return _move(site, fits, rows, step, (g, g_b), y, weight)


def _move(
    site: _Site, fits: _Fits, rows: Rows, step: tuple[Array, Array], slope: tuple[Array, Array], y: Array, weight: Array
) -> Rows:
    """Take the step, halved until the loss falls; gives the rows. Rows where it never does are given up."""
    (s, s_b), f, lam = step, fits.f[rows], fits.lam[rows]
    change = (site.rescale[f] * s) @ site.u.T + (s_b - (site.shift[f] * s).sum(1))[:, None]
    downhill = (slope[0] * s).sum(1) + slope[1] * s_b
    t, high = np.ones(len(rows)), np.ones(len(rows), bool)
    odds, w, p, loss = fits.odds[rows], fits.w[rows], fits.p[rows], fits.loss[rows]
    for halving in range(HALVINGS):
        t[high] = 0.5**halving
        odds, w = fits.odds[rows] + t[:, None] * change, fits.w[rows] + t[:, None] * s
        p, losses = _logistic(odds, y)
        loss = (weight * losses).sum(1) + 0.5 * lam * np.square(w).sum(1)
        high = ~(loss <= fits.loss[rows] + 1e-4 * t * downhill + 1e-10 * np.abs(fits.loss[rows]))  # also where it is nan
        if not high.any():
            break
    rows, moved = rows[~high], ~high
    fits.w[rows], fits.odds[rows], fits.p[rows], fits.loss[rows] = w[moved], odds[moved], p[moved], loss[moved]
    fits.b[rows] += (t * s_b)[moved]
    return rows


def _conjugate_gradients(
    site: _Site, fits: _Fits, rows: Rows, g: Array, g_b: Array, curvature: Array, tol: float
) -> tuple[Array, Array]:
    """(step of w (k, d), step of b (k,)): H step = -g, each row as exactly as its error asks for. The last column of
    every array here is the intercept's."""
    f, lam, error = fits.f[rows], fits.lam[rows].astype(np.float32), fits.error[rows]
    scale, shift, weight = (a.astype(np.float32) for a in (site.rescale[f], site.shift[f], curvature))
    total = np.maximum(weight.sum(1), 1e-30)
    r = -np.concatenate([g, g_b[:, None]], axis=1).astype(np.float32)
    step, precondition = np.zeros_like(r), _preconditioner(site, total, lam)
    asked = np.maximum(np.minimum(FORCING, np.sqrt(np.minimum(error, 1))), 0.5 * np.minimum(tol / error, 1)) ** 2
    c = np.arange(len(rows))
    z = precondition(r, c)
    way, left = z.copy(), (r * z).sum(1)
    start = left.copy()
    for _ in range(CG_STEPS):
        v, v_b = way[c, :-1], way[c, -1]
        h = (scale[c] * v) @ site.single.T
        h += (v_b - (shift[c] * v).sum(1))[:, None]
        h *= weight[c]
        h_b = h.sum(1)
        hv = scale[c] * (h @ site.single) - shift[c] * h_b[:, None] + lam[c, None] * v
        bend = (v * hv).sum(1) + v_b * h_b
        ahead = left[c] / np.maximum(bend, 1e-30)
        step[c] += ahead[:, None] * way[c]
        r[c, :-1] -= ahead[:, None] * hv
        r[c, -1] -= ahead * h_b
        z = precondition(r[c], c)
        now = (r[c] * z).sum(1)
        way[c] = z + (now / np.maximum(left[c], 1e-30))[:, None] * way[c]
        left[c] = now
        c = c[now > asked[c] * start[c]]
        if not len(c):
            break
    return step[:, :-1].astype(float), step[:, -1].astype(float)


def _preconditioner(site: _Site, total: Single, lam: Single) -> Callable[[Single, Rows], Single]:
    """Solves with the Hessian that equal weights on rows would give; outside of the basis its least value stands in."""
    mean = (total / len(site.u))[:, None]
    inverse = 1 / (mean * site.squares + lam[:, None])
    outside = np.zeros_like(lam)
    if site.basis.shape[1] < site.basis.shape[0] and len(site.squares):
        outside = 1 / np.maximum(lam, 1e-5 * mean[:, 0] * site.squares[-1])
        inverse = inverse - outside[:, None]

    def solve(r: Single, c: Rows) -> Single:
        out = np.empty_like(r)
        out[:, :-1] = (r[:, :-1] @ site.basis * inverse[c]) @ site.basis.T
        if outside.any():
            out[:, :-1] += outside[c, None] * r[:, :-1]
        out[:, -1] = r[:, -1] / total[c]
        return out

    return solve


def _logistic(odds: Array, y: Array) -> tuple[Array, Array]:
    """(probability, log loss), from one exponential."""
    small = np.exp(-np.abs(odds))
    share = 1 / (1 + small)
    return np.where(odds >= 0, share, small * share), np.maximum(odds, 0) - y * odds + np.log1p(small)


def _finish_by_library(site: _Site, fits: _Fits, x: Array, y: Array, train: Array, tol: float) -> None:
    """Fits that are not there yet, by scikit-learn; `error` is then that of what it found."""
    from assay.probe.estimators import logistic

    late = np.flatnonzero(fits.error > tol)
    for row in late.tolist():
        f = int(fits.f[row])
        inside, used = train[f] > 0, site.rescale[f] > 0
        weights, bias = logistic(x[inside], y[inside], 1 / float(fits.lam[row]))
        fits.w[row] = np.where(used, weights * site.spread / np.where(used, site.rescale[f], 1.0), 0.0)
        fits.b[row] = bias + weights @ site.middle + fits.w[row] @ site.shift[f]
        fits.odds[row] = x @ weights + bias
        fits.p[row] = _logistic(fits.odds[row], y)[0]
    if len(late):
        _newton(site, fits, late, y, train, np.inf)  # measures the error, and moves nothing


def _checked(
    X: ArrayLike | Sequence[ArrayLike], y: ArrayLike, groups: Sequence[object] | None, Cs: Sequence[float]
) -> tuple[list[NDArray[Any]], Array, tuple[float, ...]]:
    sites, labels = [np.asarray(x) for x in X], np.asarray(y)  # type: ignore[union-attr]
    if not sites or any(x.ndim != 2 or x.shape != sites[0].shape or not x.size for x in sites):
        raise bad_argument("X", sorted({x.shape for x in sites}), "one (n, d) array per site, all of one shape, not empty")
    if labels.shape != sites[0].shape[:1] or set(labels.tolist()) != {0, 1}:
        raise bad_argument("y", f"{labels.shape} of {sorted(set(labels.ravel().tolist()))[:5]}", "a 0 or 1 per row, both there")
    if groups is not None and len(groups) != len(labels):
        raise bad_argument("groups", f"{len(groups)} names", f"one per row: {len(labels)}")
    penalties = tuple(sorted({float(c) for c in Cs}))
    if not penalties or not np.isfinite(penalties).all() or penalties[0] <= 0:
        raise bad_argument("Cs", tuple(Cs), "finite numbers above 0, at least one")
    for number, x in enumerate(sites):
        if not np.isfinite(x).all():
            raise bad_argument(f"X, site {number}", "nan or infinite", "finite numbers")
    return sites, labels.astype(float), penalties
