"""Dictionaries of networks that learned nothing look as good by the usual numbers."""

import torch

from assay.data.corpora import open_corpus
from assay.data.corpus_rows import packed
from assay.errors import CorpusError
from assay.features.dictionary import Dictionary, Spec
from assay.features.stream import TensorStream
from assay.features.train import TrainPlan, train
from assay.model.model import Model
from assay.model.untrained import untrained_model
from assay.replicate.base import Lab, finding
from assay.replicate.records import Found, figure

CORPUS, CONTEXT, BATCH = "brown", 64, 512
WIDTH, ACTIVE, EPOCHS, EVERY = 512, 16, 6, 4


@finding(
    "random-networks",
    title="Dictionaries of random networks reconstruct as well",
    paper="Heap et al. 2025, arXiv 2501.17727",
    published="Sparse autoencoders trained on transformers with random weights reconstruct, and are rated by automated"
    " interpretation, about as well as those of trained ones.",
    method="The same recipe (TopK, 16 of 512 latents) on the middle layer of the model and of a twin whose"
    " weights are drawn anew, on the same text. Share of variance explained in other documents, twin less"
    " model, per document.",
    differs="Small dictionaries and little training; explanations are not rated here (assay map prints its untrained"
    " baseline).",
)
def random_networks(lab: Lab) -> Found:
    twin = untrained_model(lab.model, "all", lab.seed)
    site = f"resid_post.{lab.model.n_layers // 2}"
    own, other = (_explained(lab, model, site, number) for number, model in enumerate((lab.model, twin)))
    apart = [other[name] - own[name] for name in own]
    means = [sum(side.values()) / len(side) for side in (own, other)]
    return Found(
        (figure("variance explained with random weights, less with trained ones", apart, list(own), -0.1),),
        notes=(f"{site}: explained {means[0]:.2f} trained, {means[1]:.2f} random",),
    )


def _explained(lab: Lab, model: Model, site: str, number: int) -> dict[str, float]:
    """Per document that the dictionary was not trained on, the share of variance (around the mean of training) explained."""
    lab.report("dictionaries", number, 2)
    parts: dict[str, list[torch.Tensor]] = {}
    for row in packed(model, open_corpus(CORPUS), CONTEXT, tokens=lab.sizes.tokens):  # once; training takes it several times
        x = _typical(model.capture([row.tokens.tolist()], site).flat(site))
        parts.setdefault(row.name, []).append(x)
    names = list(parts)
    if len(names) == 1:
        raise CorpusError(f"corpus {CORPUS}: {lab.sizes.tokens} tokens are of one document; two at least are needed.")
    held = set(names[::EVERY])
    x = torch.cat([rows for name in names if name not in held for rows in parts[name]])
    spec = Spec("topk", WIDTH, x.shape[1], x.shape[1], k=ACTIVE, inputs=(site,), outputs=(site,))
    plan = TrainPlan(tokens=EPOCHS * len(x), batch=BATCH, seed=lab.seed)
    made = train(TensorStream({site: x}), [spec], plan)[0].dictionary
    middle = x.mean(0)
    return {name: _share(made, torch.cat(parts[name]), middle) for name in names if name in held}


def _typical(x: torch.Tensor) -> torch.Tensor:
    """Tokens past the first whose norm is at most ten times the median."""
    rest = x[1:].float()
    norms = rest.norm(dim=1)
    return rest[norms <= 10 * norms.median()]


def _share(dictionary: Dictionary, x: torch.Tensor, middle: torch.Tensor) -> float:
    return 1 - float((x - dictionary.reconstruct(x)).square().sum() / (x - middle).square().sum())
