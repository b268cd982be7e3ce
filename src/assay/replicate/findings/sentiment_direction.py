"""One direction for sentiment: it carries a judgement on, and ranks reviews that it was not made from."""

from assay.data.prepare import PreparedTask
from assay.errors import AssayError
from assay.evidence.features import Feature
from assay.evidence.source import Source
from assay.model.edits import clamp
from assay.replicate.base import Lab, finding
from assay.replicate.records import Found, figure
from assay.statistics import placements
from assay.steer.directions import Direction, from_pairs, read_concept_at


@finding(
    "sentiment-direction",
    title="Sentiment is one linear direction, and is used",
    paper="Tigges et al. 2023, arXiv 2310.15154",
    published="GPT-2 small and Pythia: directions found by five methods agree; ablating one removes 76% of above-chance"
    " accuracy on the Stanford Sentiment Treebank.",
    method="Mean difference of favourable and unfavourable prompts at the end of the prompt (discover); the layer on"
    " tune, where holding the component at its mean costs most of the preference. The claim that the model"
    " uses it is tested against random directions of equal change. It then ranks film reviews that it was not"
    " made from (sentiment, tune).",
    differs="A preference between words of judgement in place of the Treebank's labels; one method of five.",
)
def sentiment_direction(lab: Lab) -> Found:
    discover, tune = lab.pairs("opinion", "discover"), lab.pairs("opinion", "tune")
    layers = sorted({round((lab.model.n_layers - 1) * part) for part in (0.2, 0.35, 0.5, 0.65, 0.8)})
    ways = [from_pairs(lab.model, discover, f"resid_post.{layer}") for layer in layers]
    way = max(ways, key=lambda each: _lost(lab, tune, each))
    subject = Feature(str(way.site), None, tuple(way.vector.tolist()))
    claim = lab.tested("uses", Source("opinion"), subject, f"the model tends to use a direction of {way.site} for opinions")
    figures, notes = [], [f"chosen on tune: {way.site}"]
    try:
        reviews = lab.examples("sentiment", "tune")
        scores = (read_concept_at(lab.model, reviews, [str(way.site)], "mean")[0] @ way.vector).tolist()
        found = placements(scores, reviews.labels, ["all"] * len(reviews))
        kept = [(value, group) for value, group in zip(found, reviews.templates, strict=True) if value is not None]
        figures.append(figure("share of unfavourable film reviews that lie below a favourable one",
                              [value for value, _ in kept], [group for _, group in kept], 0.6))  # fmt: skip
    except AssayError as error:
        notes.append(f"film reviews could not be had: {error}")
    return Found(tuple(figures), (claim,), notes=tuple(notes))


def _lost(lab: Lab, task: PreparedTask, way: Direction) -> float:
    """Fall of the mean log-odds on clean prompts with the component held at its mean over both sides."""
    metric = task.metric("logit_diff")
    both = [*task.clean, *task.corrupted]
    held = float((lab.model.capture(both, way.site).flat(way.site).float() @ way.vector).mean())
    edits = [clamp(way.site, way.vector, held)]
    return float((lab.model.score(task.clean, metric) - lab.model.score(task.clean, metric, edits=edits)).mean())
