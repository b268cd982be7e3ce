"""Whether a statement is true can be read along a mean difference, on subjects that were not fitted."""

import torch

from assay.data.prepare_concept import PreparedConcept
from assay.evidence.source import ConceptSource
from assay.replicate.base import Lab, finding
from assay.replicate.records import Found, figure
from assay.statistics import placements


@finding(
    "truth-direction",
    title="True statements lie along one direction",
    paper="Marks & Tegmark 2023, arXiv 2310.06824",
    published="In LLaMA-2 13B and 70B the difference of means between true and false statements separates statements of"
    " other topics, too; it is weak in small models.",
    method="Statements about capitals and cities, true and false, read at their last token. The layer is chosen on"
    " tune. The claim that a linear probe decodes truth there, better than words and untrained weights, is"
    " tested. Then the mean difference of discover ranks statements of ood, whose form is another: placement"
    " of true ones among false ones.",
    differs="Two related topics; whether the model uses the direction is a claim of its own (assay probe --causal).",
)
def truth_direction(lab: Lab) -> Found:
    discover, tune = lab.examples("truth", "discover"), lab.examples("truth", "tune")
    layers = sorted({round((lab.model.n_layers - 1) * part) for part in (0.25, 0.4, 0.5, 0.6, 0.75, 0.9)})
    ways = {layer: _direction(lab, discover, layer) for layer in layers}
    layer = max(layers, key=lambda each: _mean(_placed(lab, tune, each, ways[each])[0]))
    claim = lab.tested("decodes", ConceptSource("truth"), f"resid_post.{layer}",
                       f"a linear probe at resid_post.{layer} tends to read whether a statement is true")  # fmt: skip
    values, groups = _placed(lab, lab.examples("truth", "ood"), layer, ways[layer])
    name = "share of false statements of another form that lie below a true one"
    return Found((figure(name, values, groups, 0.6),), (claim,), notes=(f"chosen on tune: resid_post.{layer}",))


def _read(lab: Lab, some: PreparedConcept, layer: int) -> torch.Tensor:
    site = f"resid_post.{layer}"
    return lab.model.capture(some.tokens, site, positions=torch.tensor(some.at)[:, None])[site][:, 0].double()


def _direction(lab: Lab, some: PreparedConcept, layer: int) -> torch.Tensor:
    x, labels = _read(lab, some, layer), torch.tensor(some.labels)
    return x[labels == 1].mean(0) - x[labels == 0].mean(0)


def _placed(lab: Lab, some: PreparedConcept, layer: int, way: torch.Tensor) -> tuple[list[float], list[str]]:
    """Per true statement, the share of all false ones that score below it; and its template."""
    scores = (_read(lab, some, layer) @ way).tolist()
    found = placements(scores, some.labels, ["all"] * len(some))
    kept = [(value, group) for value, group in zip(found, some.templates, strict=True) if value is not None]
    return [value for value, _ in kept], [group for _, group in kept]


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))
