"""What a few latents can be used for: sparse probes, and two tests that remove latents.

1. Sparse probing (Gurnee et al. 2023): the k features whose means differ most between members and others, in standard
   deviations, chosen on texts for fitting; a logistic probe on them, scored on other texts. Beside it the same with the
   site's raw coordinates and its principal axes, and a probe on everything.
2. Targeted probe perturbation (TPP, Karvonen et al. 2025, arXiv 2503.09532): linear probes for several properties; for
   property i the n latents with the largest (mean difference, 0 or more) x (direction . probe i) are taken out.
       TPP = mean_i (A_i - A_ii) - mean_(i != j) (A_j - A_ij),     A_ij: accuracy of probe j with latents of i taken out
3. Spurious correlation removal (SCR, the same paper, after SHIFT of Marks et al. 2024): a probe for `target` learns from
   texts where `spurious` goes with it; the n latents that a probe for `spurious` uses most, either way, are taken out.
       SCR = (A - A_base) / (A_oracle - A_base)    on balanced texts; the oracle learned from balanced texts
   Where the biased probe is hardly worse than the oracle there is nothing to remove, and none is given.
   Both are defined with latents set to zero. That moves every text by what the latents add on average, past the
   threshold of a probe that learned with them; `ablation="mean"` sets them to their mean instead (SCR: over texts in which
   the four combinations are as frequent, as they are where it is scored).

Accuracies are balanced. TPP and SCR rank dictionaries unreliably at their usual settings (arXiv 2605.18229): read them
as a check that removal does something, and sparse probing first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor

from assay.errors import bad_argument
from assay.features.labelled import Labelled
from assay.features.ratios import Measure, jackknife

KS, REMOVED, LEAST_GAP = (1, 2, 5), (2, 5, 10, 20, 50), 0.05
STILL, NOISE = 2e-7, 1e-8  # spreads over the largest value, and over that of the first axis, that are rounding
Array = NDArray[np.float64]
Direction = tuple[Array, float]
Ablation = Literal["zero", "mean"]


@dataclass(frozen=True)
class Probed:
    """One probe on some features. `accuracy`: balanced by weights, bounds over clusters; `chosen`: which features."""

    features: str
    k: int | None
    auroc: float
    accuracy: Measure | None
    chosen: tuple[int, ...]


@dataclass(frozen=True)
class Removal:
    """Scores of a removal test by how many latents were taken out; empty where the test says nothing, and `why`."""

    name: str
    scores: tuple[tuple[int, float], ...]
    base: float
    why: str = ""


def sparse_probing(fit: Labelled, held: Labelled, label: str, ks: Sequence[int] = KS) -> tuple[Probed, ...]:
    """Probes on latents, raw coordinates and principal axes. Raises UsageError where a class is missing on either side."""
    check_classes(fit, held, label)
    if min(ks, default=1) < 1:
        raise bad_argument("ks", list(ks), "1 or more each")
    centre = fit.x.double().mean(0)
    axes = _axes(fit.x - centre)
    ways = {
        "latents": (fit.codes, held.codes), "raw coordinates": (fit.x, held.x),
        "principal axes": (((fit.x - centre) @ axes).float(), ((held.x - centre) @ axes).float()),
    }  # fmt: skip
    found = []
    for name, (a, b) in ways.items():
        gaps = mean_gaps(a, fit.label(label))
        for k in ks:
            chosen = gaps.argsort(descending=True, stable=True)[: min(k, len(gaps))]
            found.append(_probed(name, k, a[:, chosen], b[:, chosen], fit, held, label, tuple(chosen.tolist())))
    return (*found, _probed("everything", None, fit.x, held.x, fit, held, label, ()))


def check_classes(fit: Labelled, held: Labelled, label: str) -> None:
    """Raises UsageError where all texts of a side have a property, or none."""
    for name, part in (("fit", fit), ("held", held)):
        if len(set(part.label(label).tolist())) < 2:
            raise bad_argument(f"texts ({name})", f"one class of {label!r}", "members and others")


def _axes(centred: Float[Tensor, "text d"]) -> Float[Tensor, "d axis"]:
    """Principal axes that are more than rounding: of n texts at most n - 1."""
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    return axes[sizes > NOISE * sizes[:1]].T


def mean_gaps(values: Float[Tensor, "text feature"], member: np.ndarray) -> Float[Tensor, " feature"]:
    """|mean of members - mean of others| in standard deviations; 0 for features that do not vary."""
    rows, exact = torch.as_tensor(member), values.double()
    gap = (exact[rows].mean(0) - exact[~rows].mean(0)).abs()
    spread = exact.std(0)
    return torch.where(spread > STILL * exact.abs().amax(0), gap / spread, 0.0).float()


def _probed(
    name: str, k: int | None, a: Tensor, b: Tensor, fit: Labelled, held: Labelled, label: str, chosen: tuple[int, ...]
) -> Probed:
    weights, bias = linear_probe(a, fit.label(label))
    scores, truth = b.numpy().astype(float) @ weights + bias, held.label(label)
    return Probed(name, k, float(roc_auc_score(truth, scores)), _accuracy(scores > 0, truth, held.clusters), chosen)


def linear_probe(values: Float[Tensor, "text feature"], member: np.ndarray, weight: float = 1.0) -> Direction:
    """Logistic regression on standardised features, classes weighted alike; weights and bias for raw ones."""
    raw = values.numpy().astype(float)
    mean, spread = raw.mean(0), raw.std(0)
    varies = spread > STILL * np.abs(raw).max(0)
    spread = np.where(varies, spread, 1.0)
    scaled = np.where(varies, (raw - mean) / spread, 0.0)
    model = LogisticRegression(C=weight, class_weight="balanced", max_iter=2000).fit(scaled, member)
    weights = np.where(varies, model.coef_[0] / spread, 0.0)
    return weights, float(model.intercept_[0] - weights @ mean)


def _accuracy(said: np.ndarray, truth: np.ndarray, clusters: Sequence[str]) -> Measure | None:
    """Balanced accuracy: each class counts half; bounds over clusters, none where a class is in one cluster alone."""
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    places = np.array([names[name] for name in clusters])
    right = [np.bincount(places[truth == own], (said == truth)[truth == own], len(names)) for own in (True, False)]
    count = [np.bincount(places[truth == own], minlength=len(names)) for own in (True, False)]
    sums = list(zip(right, count, strict=True))
    value = float(np.mean([hits.sum() / n.sum() for hits, n in sums]))
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.mean([(hits.sum() - hits) / (n.sum() - n) for hits, n in sums], axis=0)
    return jackknife(value, left)


# what removing latents does ----------------------------------------------------------------------


def targeted_perturbation(
    fit: Labelled, held: Labelled, directions: Float[Tensor, "latent d"], removed: Sequence[int] = REMOVED,
    ablation: Ablation = "zero",
) -> Removal:  # fmt: skip
    """TPP over all properties of the texts. Says nothing where one property is the opposite of another: what is removed of one
    is removed of the other, and TPP is 0 whatever latents do. Raises UsageError for fewer than two."""
    _check_removed(removed)
    names = list(fit.labels)
    if len(names) < 2:
        raise bad_argument("labels", names, "two properties or more", "TPP asks what latents of one do to another.")
    for part, texts in (("fit", fit), ("held", held)):
        for name in names:
            if len(set(texts.label(name).tolist())) < 2:
                raise bad_argument(f"texts ({part})", f"{name}: all or none", "texts that have it and texts that lack it")
    probes = {name: linear_probe(fit.y, fit.label(name)) for name in names}
    before = {name: _balanced(held.y, probes[name], held.label(name)) for name in names}
    mirrors = [f"{a} and {b}" for number, a in enumerate(names) for b in names[:number]
               if (fit.label(a) == ~fit.label(b)).all()]  # fmt: skip
    if mirrors:
        why = f"each text is of either {mirrors[0]}: their probes are opposites. Three concepts are needed."
        return Removal("TPP", (), float(np.mean(list(before.values()))), why)
    scores, to = [], _set_to(fit.written, ablation)
    for n in removed:
        own, others = [], []
        for name in names:
            left = without(held, directions, used_latents(fit, directions, probes[name], name)[:n], to)
            for other in names:
                (own if other == name else others).append(before[other] - _balanced(left, probes[other], held.label(other)))
        scores.append((n, float(np.mean(own) - np.mean(others))))
    return Removal("TPP", tuple(scores), float(np.mean(list(before.values()))))


def spurious_removal(
    fit: Labelled, held: Labelled, directions: Float[Tensor, "latent d"], target: str, spurious: str,
    removed: Sequence[int] = REMOVED, ablation: Ablation = "zero",
) -> Removal:  # fmt: skip
    """SCR. Texts of all four combinations of the two properties are needed, for fitting and for scores."""
    _check_removed(removed)
    for name, part in (("fit", fit), ("held", held)):
        if min(map(len, _cells(part, target, spurious))) < 2:
            raise bad_argument(f"texts ({name})", "a combination with fewer than 2 texts", "2 of each of the four")
    agree = fit.label(target) == fit.label(spurious)
    biased = linear_probe(fit.y[torch.as_tensor(agree)], fit.label(target)[agree])
    even, scored = _balanced_rows(fit, target, spurious), _balanced_rows(held, target, spurious)
    oracle = linear_probe(fit.y[even], fit.label(target)[even])
    unwanted = linear_probe(fit.y[even], fit.label(spurious)[even])
    truth = held.label(target)[scored]
    base, best = (_balanced(held.y[scored], probe, truth) for probe in (biased, oracle))
    if best - base < LEAST_GAP:
        return Removal("SCR", (), base, f"the biased probe ({base:.2f}) is hardly worse than the oracle ({best:.2f})")
    order = used_latents(fit, directions, unwanted, spurious, even, True)  # in all rows, latents of the target differ, too
    to = _set_to(fit.written[even], ablation)
    left = {n: _balanced(without(held, directions, order[:n], to)[scored], biased, truth) for n in removed}
    return Removal("SCR", tuple((n, (value - base) / (best - base)) for n, value in left.items()), base)


def used_latents(
    fit: Labelled, directions: Float[Tensor, "latent d"], probe: Direction, label: str, among: np.ndarray | None = None,
    either: bool = False,
) -> list[int]:  # fmt: skip
    """Latents by (mean of members - mean of others) x (direction . probe), largest first; those at 0 are left out.

    TPP takes a difference below 0 as 0; SCR (`either`) takes the product's size. `among`: the rows these means are of; None:
    all.
    """
    chosen = slice(None) if among is None else torch.as_tensor(among)
    written, rows = fit.written[chosen], torch.as_tensor(fit.label(label))[chosen]
    gap = written[rows].mean(0) - written[~rows].mean(0)
    effect = (gap if either else gap.clamp_min(0)).double() * (directions.double() @ torch.as_tensor(probe[0]))
    effect = effect.abs() if either else effect
    order = effect.argsort(descending=True, stable=True)
    return order[effect[order] > 0].tolist()


def without(
    part: Labelled, directions: Float[Tensor, "latent d"], latents: Sequence[int], to: Float[Tensor, " latent"]
) -> Float[Tensor, "text d"]:
    """Targets with what some latents add set to other values; the reconstruction's error stays."""
    chosen = list(latents)
    return part.y - (part.written[:, chosen] - to[chosen]) @ directions[chosen]


def _check_removed(removed: Sequence[int]) -> None:
    if min(removed, default=0) < 0:
        raise bad_argument("removed", list(removed), "0 or more each, a number of latents")


def _set_to(written: Float[Tensor, "text latent"], ablation: Ablation) -> Float[Tensor, " latent"]:
    if ablation not in ("zero", "mean"):
        raise bad_argument("ablation", ablation, "zero, mean")
    mean = written.mean(0)
    return mean if ablation == "mean" else torch.zeros_like(mean)


def _balanced(y: Tensor, probe: Direction, truth: np.ndarray) -> float:
    return float(balanced_accuracy_score(truth, y.numpy().astype(float) @ probe[0] + probe[1] > 0))


def _cells(part: Labelled, target: str, spurious: str) -> list[np.ndarray]:
    """Rows of each combination."""
    a, b = part.label(target), part.label(spurious)
    return [np.flatnonzero((a == x) & (b == y)) for x in (False, True) for y in (False, True)]


def _balanced_rows(part: Labelled, target: str, spurious: str) -> np.ndarray:
    """As many rows of each combination, the first ones."""
    cells = _cells(part, target, spurious)
    least = min(map(len, cells))
    return np.sort(np.concatenate([cell[:least] for cell in cells]))
