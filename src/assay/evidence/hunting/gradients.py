"""Gradient of a claim's score with respect to the token embeddings (Ebrahimi et al. 2018, HotFlip).

1. The embedding's output becomes a leaf; the pass goes on to the claim's site and stops there.
2. One backward pass from the tokens that are read, along the score's slope there: prompts do not mix.
3. Of a latent it is the slope of its pre-activation: where it is silent the latent itself has none.
4. Exchanging token x for v at a position changes the score by about gradient . (E[v] - E[x]).

First order only: every exchange it suggests is run before anything is said about it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.evidence.hunting.reading import Reader
from assay.evidence.scored import Scorer
from assay.features.opened import before_selection, is_latent, sources_of
from assay.model.request import Request
from assay.sites import Site, parse_site

EMBED = Site("embed")
STEP = 0.05  # of the mean activation, for differences


def embedding_gradients(reader: Reader, prompts: Sequence[Sequence[int]], places: Sequence[int]) -> list[Tensor]:
    """d score at its place / d embedding, (positions, d_model) per prompt. Counts as one prompt run each."""
    model, name = reader.model, reader.setup.site
    sites = [parse_site(source) for source in sources_of(name)]
    out: list[Tensor] = [torch.empty(0)] * len(prompts)
    request = Request([list(ids) for ids in prompts], tuple(dict.fromkeys((EMBED, *sites))), gradients=True, logits=None)
    at = torch.tensor(list(places))
    with model.engine.exclusive(), torch.enable_grad():
        for batch in model.engine.batches(request):
            held: dict[Site, Tensor] = {}
            model.engine.run(batch, request, _leaf_at_embedding(held))
            rows = batch.rows.cpu()
            read = {str(site): held[site][torch.arange(len(rows)), at[rows].to(held[site].device)] for site in sites}
            flat = before_selection(name, read.__getitem__) if is_latent(name) else read[str(sites[0])].reshape(len(rows), -1)
            toward = score_slope(reader.setup.score, flat.detach().float().cpu())
            (slope,) = torch.autograd.grad(flat, [held[EMBED]], toward.to(flat))
            for place, row in enumerate(rows.tolist()):
                out[row] = slope[place, : len(request.tokens[row])].float().cpu()
    reader.passes += len(prompts)
    return out


def score_slope(score: Scorer, acts: Float[Tensor, "example d"]) -> Float[Tensor, "example d"]:
    """d score / d activation; by differences where the score leaves torch, as a network of scikit-learn does."""
    leaf = acts.clone().requires_grad_(True)
    try:
        (slope,) = torch.autograd.grad(score(leaf).sum(), [leaf])
    except RuntimeError:
        return _by_differences(score, acts)
    return slope


def _by_differences(score: Scorer, acts: Float[Tensor, "example d"]) -> Float[Tensor, "example d"]:
    out, width = torch.empty_like(acts), acts.shape[1]
    for row, at in enumerate(acts):
        step = STEP * float(at.abs().mean() + 1e-6)
        moved = step * torch.eye(width)
        out[row] = ((score(at + moved) - score(at - moved)) / (2 * step)).to(acts)
    return out


def _leaf_at_embedding(held: dict[Site, Tensor]) -> Any:
    def sink(site: Site, value: Tensor) -> Tensor | None:
        if site == EMBED:
            held[site] = value.detach().clone().requires_grad_(True)
            return held[site].clone()
        held[site] = value.clone()
        return None

    return sink


def swap_gains(reader: Reader, ids: Sequence[int], slope: Tensor, allowed: Sequence[int]) -> Tensor:
    """First-order gain of every exchange, (positions, allowed). The embedding's constant factor is left out:
    it is the same for all."""
    table = reader.model.hf.get_input_embeddings().weight.detach().float().cpu()  # type: ignore[operator]
    now = (slope * table[list(ids)]).sum(1, keepdim=True)
    return (slope @ table.T)[:, list(allowed)] - now
