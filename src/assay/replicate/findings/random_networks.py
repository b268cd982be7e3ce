"""Dictionaries of networks that learned nothing look as good by the usual numbers."""

import torch

from assay.data.corpora import open_corpus
from assay.features.dictionary import Dictionary, Spec
from assay.features.harvest import LiveStream
from assay.features.train import TrainPlan, train
from assay.model.model import Model
from assay.model.untrained import untrained_model
from assay.replicate.base import Lab, finding
from assay.replicate.parts import passages
from assay.replicate.records import Found, figure

CORPUS, CONTEXT, BATCH = "brown", 128, 512


@finding(
    "random-networks",
    title="Dictionaries of random networks reconstruct as well",
    paper="Heap et al. 2025, arXiv 2501.17727",
    published="Sparse autoencoders trained on transformers with random weights reconstruct, and are rated by automated"
    " interpretation, about as well as those of trained ones.",
    method="The same recipe (TopK, 16 of 8 x 64 latents) on the middle layer of the model and of a twin whose"
    " weights are drawn anew, on the same text. Share of variance explained on other passages, twin less"
    " model, per passage.",
    differs="Small dictionaries and little training; explanations are not rated here (assay map prints its untrained"
    " baseline).",
)
def random_networks(lab: Lab) -> Found:
    twin = untrained_model(lab.model, "all", lab.seed)
    site = f"resid_post.{lab.model.n_layers // 2}"
    own, other = (_explained(lab, model, site, number) for number, model in enumerate((lab.model, twin)))
    names = [str(number) for number in range(len(own))]
    return Found(
        (figure("variance explained with random weights, less with trained ones",
                [b - a for a, b in zip(own, other, strict=True)], names, -0.1),),
        notes=(f"{site}: explained {sum(own) / len(own):.2f} trained, {sum(other) / len(other):.2f} random",),
    )  # fmt: skip


def _explained(lab: Lab, model: Model, site: str, number: int) -> list[float]:
    lab.report("dictionaries", number, 2)
    stream = LiveStream(model, open_corpus(CORPUS), site, lab.sizes.tokens, CONTEXT)
    width = stream.sizes[site]
    spec = Spec("topk", 512, width, width, k=16, inputs=(site,), outputs=(site,))
    made = train(stream, [spec], TrainPlan(tokens=4 * lab.sizes.tokens, batch=BATCH, seed=lab.seed))[0].dictionary
    return [_share(model, made, site, text) for text in passages()]


def _share(model: Model, dictionary: Dictionary, site: str, text: str) -> float:
    x = model.capture(text, site).flat(site)[dictionary.spec.skip_first :].float()
    limit = dictionary.spec.norm_limit
    x = x if limit is None else x[x.norm(dim=1) <= limit]
    error = (x - dictionary.reconstruct(x)).square().sum()
    return 1 - float(error / (x - x.mean(0)).square().sum().clamp_min(torch.finfo(torch.float32).tiny))
