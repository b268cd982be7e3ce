"""Directions: one vector at one site, with what it was made from and what it is bound to.

1. Activations x_i are read at one site and one position of every text or prompt, in fp32. + is always towards label 1, or
   towards the answer of a task's clean prompts.
2. mean_difference: mean of positives minus mean of negatives (Marks & Tegmark 2023; CAA, Panickssery et al. 2023).
   pca: first right singular vector of the pair differences, not centred; of a concept, of the activations around the middle
   of the two class means. Its sign is that of the mean difference (RepE, Zou et al. 2023, leaves it open).
   linear, lda and the other probes: their weight in activation space (`assay.probe.estimators`).
   A latent: its decoder row. A file: its numbers as they are.
3. Before anything is steered: coherence of the pairs, mean cosine of each pair difference with the mean difference of the
   other templates, 0 for noise (Braun et al. 2025, arXiv 2505.22637, find that it predicts how reliably a vector steers);
   separability, AUROC of a mean-difference direction on templates it was not made from.
4. The vector is kept at unit norm, its length as `scale`; `card["along"]` has the mean read-out x.u of each side, and
   `card["threshold"]` the read-out that tells them apart: a probe's own, else the middle.

That a property can be read along a direction does not show that pushing along it does anything.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.prepare import PreparedTask
from assay.data.prepare_concept import PreparedConcept
from assay.data.vectors import read_vector
from assay.errors import ShapeError, bad_argument
from assay.features.dictionary import Dictionary
from assay.model.model import Model
from assay.records import digest
from assay.sites import Site, parse_site

FOLDS = 5
TOGETHER = 256  # prompts read at a time
TOWARDS_LABEL, TOWARDS_ANSWER = "+ is towards label 1", "+ is towards the answer"


@dataclass(frozen=True, eq=False)
class Direction:
    """A unit vector (d,) at a site, in the model's own activation units; `scale` is the norm it had.

    `convention`: {"positions": where it was read, "sign": what + means, ..}. `model_digest` is "" where a file did not say.
    `source`: what it was made from. `card`: what was measured when it was made.
    """

    site: str
    vector: Float[Tensor, " d"]
    scale: float
    method: str
    convention: dict[str, Any] = field(default_factory=dict)
    model_digest: str = ""
    tokenizer_digest: str | None = None
    source: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def raw(self) -> Float[Tensor, " d"]:
        """The vector with the norm it had."""
        return self.vector * self.scale

    @property
    def digest(self) -> str:
        """SHA-256 of the site and the numbers."""
        return digest([self.site, self.vector.tolist()])

    @property
    def name(self) -> str:
        """`site#hash`."""
        return f"{self.site}#{self.digest[:8]}"

    @property
    def threshold(self) -> float | None:
        """The read-out that tells the two sides apart, as the card keeps it or as a probe's intercept says; None without."""
        kept, intercept = self.card.get("threshold"), self.card.get("intercept")
        found = kept if kept is not None else -intercept / self.scale if _is_number(intercept) else None
        return float(found) if _is_number(found) else None

    def readout(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
        """x.u of activations at its site, in fp32."""
        return x.float() @ self.vector.to(x.device)

    def flipped(self) -> "Direction":
        """The same direction with the opposite sign."""
        sign = str(self.convention.get("sign", "")) + ", flipped"
        return replace(self, vector=-self.vector, convention={**self.convention, "sign": sign.lstrip(", ")}, card={})


# makers ------------------------------------------------------------------------------------------


def from_concept(
    model: Model, prepared: PreparedConcept, site: str | Site, method: str = "mean_difference", at: str = "marked",
    source: Mapping[str, Any] | None = None, x: Float[Tensor, "n d"] | None = None,
) -> Direction:  # fmt: skip
    """Direction of a labelled concept. `at`: marked (each example's own position), last, or mean (all but the first token).

    `x`: the activations, where they were read already (`read_concept_at`).
    Raises UsageError for an unknown method or position, or examples of one label only; SiteError for a site that has no
    single vector per position.
    """
    place = vector_site(model, site)
    x = read_concept_at(model, prepared, [str(place)], at)[0] if x is None else x
    labels = torch.tensor(prepared.labels)
    if len(labels.unique()) != 2:
        raise bad_argument("concept", f"{len(prepared)} examples of one label", "examples with both labels")
    raw, extra = _fitted(method, x, labels, prepared.templates)
    found = {"n": len(prepared), "texts": digest([example.text for example in prepared.examples])}
    convention = {"positions": at, "sign": TOWARDS_LABEL}
    card = {**screened(x, labels, prepared.templates), **extra}
    return _direction(model, place, raw, method, convention, {"kind": "concept", **(source or {}), **found}, card, (x, labels))


def from_pairs(
    model: Model, task: PreparedTask, site: str | Site, method: str = "mean_difference", at: str = "end",
    source: Mapping[str, Any] | None = None, read: tuple[Float[Tensor, "pair d"], Float[Tensor, "pair d"]] | None = None,
) -> Direction:  # fmt: skip
    """Direction from the corrupted to the clean prompts of a task, + towards the answer. `at`: a label of the task, or end;
    `read`: both sides at the site, where they were read before (`read_pairs_at`).

    Raises UsageError for an unknown method or label, SiteError for a site that has no single vector per position.
    """
    place = vector_site(model, site)
    clean, corrupted = read or read_pairs_at(model, task, [str(place)], at)[0]
    x, labels = torch.cat([clean, corrupted]), torch.tensor([1] * len(task) + [0] * len(task))
    groups = [*task.templates, *task.templates]
    if method == "pca":
        raw, extra = _signed(_first_axis(clean - corrupted), x, labels), {}
    else:
        raw, extra = _fitted(method, x, labels, groups)
    found = {"n": len(task), "texts": digest([[pair.clean, pair.corrupted] for pair in task.pairs])}
    card = {**coherence(clean - corrupted, task.templates), "auroc": separability(x, labels, groups), **extra}
    convention = {"positions": at, "sign": TOWARDS_ANSWER}
    return _direction(model, place, raw, method, convention, {"kind": "task", **(source or {}), **found}, card, (x, labels))


def from_latent(dictionary: Dictionary, n: int, model: Model | None = None, site: str | Site | None = None) -> Direction:
    """The decoder row of a latent, at the site it writes to; `site` says which where it writes to several.

    With a model the direction is bound to it. Raises UsageError for a latent or site the dictionary does not have.
    """
    if not 0 <= n < dictionary.width:
        raise bad_argument("latent", n, f"0 to {dictionary.width - 1}")
    outputs = [str(parse_site(name)) for name in dictionary.spec.outputs]
    wanted = str(parse_site(site)) if site is not None else outputs[0] if len(outputs) == 1 else ""
    if wanted not in outputs:
        raise bad_argument("site", wanted or "none", ", ".join(outputs) or "none: the dictionary names no site",
                           "Give the site that the latent writes to.")  # fmt: skip
    whole = dictionary.directions()[n].float().cpu()
    if len(whole) % len(outputs):
        raise bad_argument("dictionary", dictionary.name, "one whose output sites are equally wide")
    raw = whole.chunk(len(outputs))[outputs.index(wanted)]
    if model is not None:
        _fits(model, vector_site(model, wanted), raw)
    source = {"kind": "latent", "dictionary": dictionary.name, "digest": dictionary.digest, "latent": n}
    return _direction(model, wanted, raw, "latent", {"positions": "all", "sign": "+ is what the latent adds"}, source, {})


def from_vector(
    model: Model, vector: Sequence[float] | Tensor, site: str | Site, source: Mapping[str, Any] | None = None
) -> Direction:
    """Numbers (d,) as a direction at a site. Raises ShapeError where they do not fit, UsageError for zeros."""
    place, raw = vector_site(model, site), torch.as_tensor(vector, dtype=torch.float32).detach().cpu()
    _fits(model, place, raw)
    convention = {"positions": "unknown", "sign": "+ is as given"}
    return _direction(model, place, raw, "given", convention, {"kind": "vector", **(source or {})}, {})


def from_file(model: Model, path: str, site: str | Site) -> Direction:
    """The numbers of a plain .safetensors, .npy or .json file at a site; see `assay.data.vectors`."""
    name = path.replace("\\", "/").rpartition("/")[2]
    return from_vector(model, read_vector(path), site, {"kind": "file", "file": name})


# screening ---------------------------------------------------------------------------------------


def screened(x: Float[Tensor, "n d"], labels: Tensor, groups: Sequence[str]) -> dict[str, Any]:
    """Coherence of the differences within templates that have both labels, and separability."""
    names = sorted(set(groups))
    member = torch.tensor([[group == name for group in groups] for name in names])
    both = [(row & (labels == 1), row & (labels == 0)) for row in member]
    differences = [x[yes].mean(0) - x[no].mean(0) for yes, no in both if yes.any() and no.any()]
    kept = [name for name, (yes, no) in zip(names, both, strict=True) if yes.any() and no.any()]
    paired = coherence(torch.stack(differences), kept) if differences else coherence(x[:0], [])
    return {**paired, "auroc": separability(x, labels, groups)}


def coherence(differences: Float[Tensor, "pair d"], groups: Sequence[str]) -> dict[str, Any]:
    """{"pairs", "cosine", "reversed"}: mean cosine of each difference with the mean of other templates' differences, and the
    share below 0. None for both with fewer than two templates."""
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    if len(names) < 2:
        return {"pairs": len(differences), "cosine": None, "reversed": None}
    member, wide = torch.tensor([names[group] for group in groups]), differences.double()
    sums = torch.zeros(len(names), wide.shape[1], dtype=wide.dtype).index_add_(0, member, wide)
    cosines = torch.nn.functional.cosine_similarity(wide, sums.sum(0) - sums[member], dim=1)
    return {"pairs": len(wide), "cosine": float(cosines.mean()), "reversed": float((cosines < 0).double().mean())}


def separability(x: Float[Tensor, "n d"], labels: Tensor, groups: Sequence[str]) -> float | None:
    """AUROC of mean-difference directions on templates left out of them, in up to five folds; None where there is none."""
    from sklearn.metrics import roc_auc_score

    names = sorted(set(groups))
    fold_of = {name: number % min(FOLDS, len(names)) for number, name in enumerate(names)}
    fold = torch.tensor([fold_of[group] for group in groups])
    scores = torch.full((len(x),), float("nan"), dtype=torch.float64)
    for number in sorted(set(fold_of.values())):
        rest = fold != number
        if len(labels[rest].unique()) < 2:
            continue
        means = [x[rest & (labels == label)].double().mean(0) for label in (0, 1)]
        u = torch.nn.functional.normalize(means[1] - means[0], dim=0)
        scores[~rest] = (x[~rest].double() - (means[0] + means[1]) / 2) @ u
    known = scores.isfinite()
    return float(roc_auc_score(labels[known], scores[known])) if len(labels[known].unique()) == 2 else None


# reading -----------------------------------------------------------------------------------------


def vector_site(model: Model, site: str | Site) -> Site:
    """A site of this model that holds one vector per position. Raises SiteError or UsageError for any other."""
    (found,) = model.sites(parse_site(site))
    if len(model.feature_shape(found) or ()) != 1:
        raise bad_argument("site", str(site), "a site with one vector per position, such as resid_post.3, mlp_out.3, z.3.0")
    return found


def _means(model: Model, tokens: Sequence[list[int]], site: Site) -> Float[Tensor, "prompt d"]:
    """Mean over all positions but the first of every prompt, fp32."""
    parts = []
    for start in range(0, len(tokens), TOGETHER):
        rows = model.capture(list(tokens[start : start + TOGETHER]), site).rows(site)
        parts += [row[min(1, len(row) - 1) :].float().mean(0) for row in rows]
    return torch.stack(parts)


def read_concept_at(
    model: Model, prepared: PreparedConcept, sites: Sequence[str], at: str = "marked"
) -> list[Float[Tensor, "n d"]]:
    """Activations of a concept's examples at several sites, from one pass where a single position is read."""
    places, wanted = _concept_places(prepared, at), [vector_site(model, site) for site in sites]
    if places is None:
        return [_means(model, prepared.tokens, site) for site in wanted]
    seen = model.capture(prepared.tokens, wanted, positions=torch.tensor(places)[:, None])
    return [seen[site][:, 0].float() for site in wanted]


def read_pairs_at(
    model: Model, task: PreparedTask, sites: Sequence[str], at: str = "end"
) -> list[tuple[Float[Tensor, "pair d"], Float[Tensor, "pair d"]]]:
    """Clean and corrupted activations of a task's pairs at several sites, from one pass of each side."""
    if at not in task.labels:
        raise bad_argument("at", at, ", ".join(task.labels))
    wanted, places = [vector_site(model, site) for site in sites], torch.tensor(task.labels[at])[:, None]
    clean, corrupted = (model.capture(side, wanted, positions=places) for side in (task.clean, task.corrupted))
    return [(clean[site][:, 0].float(), corrupted[site][:, 0].float()) for site in wanted]


def _concept_places(prepared: PreparedConcept, at: str) -> list[int] | None:
    if at not in ("marked", "last", "mean"):
        raise bad_argument("at", at, "marked, last or mean")
    return prepared.at if at == "marked" else [len(ids) - 1 for ids in prepared.tokens] if at == "last" else None


# fitting -----------------------------------------------------------------------------------------


def _fitted(method: str, x: Tensor, labels: Tensor, groups: Sequence[str]) -> tuple[Tensor, dict[str, Any]]:
    """The raw vector, and what a probe adds to the card."""
    if method == "mean_difference":
        return _mean_difference(x, labels), {}
    if method == "pca":
        middle = (x[labels == 1].mean(0) + x[labels == 0].mean(0)) / 2
        return _signed(_first_axis(x - middle), x, labels), {}
    from assay.probe.estimators import PROBES

    directed = [name for name in PROBES.names() if name not in ("mlp", "attention")]
    if method not in directed:
        raise bad_argument("method", method, ", ".join(directed), "" if method not in PROBES else "It has no single direction.")
    probe: Any = PROBES.get(method)()
    probe.fit(x.double().numpy(), labels.numpy(), groups=list(groups))
    raw = torch.from_numpy(np.asarray(probe.direction_)).float().flatten()
    return raw, {"intercept": float(np.ravel(probe.intercept_)[0])}


def _mean_difference(x: Tensor, labels: Tensor) -> Tensor:
    wide = x.double()
    return (wide[labels == 1].mean(0) - wide[labels == 0].mean(0)).float()


def _first_axis(rows: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """The first right singular vector, as long as the rows are along it on average (root mean square)."""
    _, sizes, axes = torch.linalg.svd(rows.double(), full_matrices=False)
    return (axes[0] * sizes[0] / len(rows) ** 0.5).float()


def _signed(axis: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    return axis if float(axis @ _mean_difference(x, labels)) >= 0 else -axis


def _direction(
    model: Model | None, site: Site | str, raw: Tensor, method: str, convention: dict[str, Any], source: dict[str, Any],
    card: dict[str, Any], read: tuple[Tensor, Tensor] | None = None,
) -> Direction:  # fmt: skip
    """The record; `read`: activations and labels, for the mean read-outs of both sides and their middle."""
    scale = float(raw.double().norm())
    if not 0 < scale < float("inf"):
        raise bad_argument("direction", f"norm {scale:g}", "finite numbers that are not all zero")
    unit = (raw.double() / scale).float()
    if read is not None:
        x, labels = read
        along = {str(label): float((x[labels == label] @ unit).mean()) for label in (0, 1)}
        middle = -card["intercept"] / scale if "intercept" in card else (along["0"] + along["1"]) / 2
        card = {**card, "along": along, "threshold": middle}
    bound = ("", None) if model is None else (model.digest, model.tokenizer_digest)
    named = source if model is None else {"model": model.name, **source}
    return Direction(str(site), unit, scale, method, {**convention, "norm": "unit"}, *bound, named, card)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fits(model: Model, site: Site, raw: Tensor) -> None:
    shape = model.feature_shape(site)
    if tuple(raw.shape) != shape:
        raise ShapeError(f"direction at {site}: got shape {tuple(raw.shape)}; allowed: {shape}.")
