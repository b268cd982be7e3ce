"""Heads rest on the first token, whose activation is massive in few dimensions, and the model breaks without them."""

import random

import torch

from assay.model.edits import patch
from assay.replicate.base import Lab, finding
from assay.replicate.parts import losses, passages
from assay.replicate.records import Found, figure

DIMENSIONS, CHOSEN = 2, 3  # dimensions that are set to 0; passages they are found on


@finding(
    "attention-sinks",
    title="Attention sinks and massive activations",
    paper="Xiao et al. 2023, arXiv 2309.17453; Sun et al. 2024, arXiv 2402.17762",
    published="Beyond the first layers most heads put most of their attention on the first token. Its residual norm is"
    " far above all others, in a few fixed dimensions; setting those to zero ruins the model, other dimensions"
    " do nothing.",
    method="Passages of ordinary text. Attention to the first position, mean over heads and later positions, from"
    " the third layer on; norm of the first position over the median of the others in the middle layer; loss"
    " when the two largest dimensions of the first position (found on other passages) are set to zero there,"
    " less the loss with two random ones.",
    differs="Short passages; streaming with a rolling cache is not tried.",
)
def attention_sinks(lab: Lab) -> Found:
    model, texts = lab.model, [lab.model.tokens(text)[0] for text in passages()]
    rest = texts[CHOSEN:]
    names, middle = [str(number) for number in range(len(rest))], model.n_layers // 2
    site = f"resid_post.{middle}"
    stream = model.capture(texts, site).rows(site)
    ratios = [float(row[0].norm() / row[1:].norm(dim=1).median()) for row in stream[CHOSEN:]]
    largest = torch.stack([row[0].abs() for row in stream[:CHOSEN]]).mean(0).topk(DIMENSIONS).indices.tolist()
    other = random.Random(f"sinks-{lab.seed}").sample([n for n in range(len(stream[0][0])) if n not in largest], DIMENSIONS)
    costs = [[_cost(lab, row, site, dims) for row in rest] for dims in (largest, other)]
    return Found(
        (figure("attention to the first position", _to_first(lab, rest), names, 0.3),
         figure(f"norm of the first position over the median of the others at {site}", ratios, names, 10.0),
         figure("loss with its two largest dimensions at zero, less with two random ones, nats",
                [a - b for a, b in zip(*costs, strict=True)], names, 0.5)),
        notes=(f"dimensions {largest} of {site}",),
    )  # fmt: skip


def _to_first(lab: Lab, texts: list[list[int]]) -> list[float]:
    layers = range(min(2, lab.model.n_layers - 1), lab.model.n_layers)
    total = torch.zeros(len(texts))
    for layer in layers:
        for row, pattern in enumerate(lab.model.capture(texts, f"pattern.{layer}").rows(f"pattern.{layer}")):
            total[row] += _share(pattern)
    return (total / len(layers)).tolist()


def _share(pattern: torch.Tensor) -> float:
    """(query, head, key) or (head, query, key): mean of the first key over heads and queries past the first."""
    square = pattern if pattern.shape[1] == pattern.shape[2] else pattern.transpose(0, 1)
    return float(square[:, 1:, 0].mean())


def _cost(lab: Lab, tokens: list[int], site: str, dims: list[int]) -> float:
    value = lab.model.capture([tokens], site, positions=[0])[site][:, :1].clone()
    value[..., dims] = 0.0
    return losses(lab.model, [tokens], 1, [patch(site, value, positions=[0])])[0] - losses(lab.model, [tokens], 1)[0]
