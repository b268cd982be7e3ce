"""Small models that learn to copy: at once, and only with two layers."""

from assay.replicate.base import Lab, finding
from assay.replicate.records import Found, figure
from assay.testing.formation import train_copiers

STEPS = 1000


@finding(
    "induction-formation",
    title="Induction heads form suddenly, and need two layers",
    paper="Olsson et al. 2022, arXiv 2209.11895",
    published="In models of two layers and more, induction heads appear within a narrow window of training, together"
    " with a sudden fall of the loss; models of one layer have neither.",
    method="Small models with one and with two layers are trained on random tokens that repeat after a random number"
    " of tokens, several seeds each. Figures: the best head's score at the end, and the share of its rise that"
    " falls into the steepest tenth of training.",
    differs="Synthetic text and models of a few thousand parameters with MLPs; attention-only models on natural text"
    " in the paper.",
    needs_model=False,
)
def induction_formation(lab: Lab) -> Found:
    n = lab.sizes.models
    two, one = (train_copiers(layers, STEPS, [lab.seed + seed for seed in range(n)], lab.report) for layers in (2, 1))
    names = [str(seed) for seed in range(n)]
    return Found(
        (figure("induction score with two layers", [run.score[-1] for run in two], names, 0.5),
         figure("induction score with one layer", [run.score[-1] for run in one], names, 0.2, "below"),
         figure("share of the rise within the steepest tenth of training", [run.steepest for run in two], names, 0.3),
         figure("loss on the copy with one layer, less with two, nats",
                [a.loss[-1] - b.loss[-1] for a, b in zip(one, two, strict=True)], names, 0.3)),
    )  # fmt: skip
