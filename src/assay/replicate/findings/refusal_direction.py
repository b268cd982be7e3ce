"""One direction for refusing, in a model that refuses."""

import torch

from assay.data.concepts import load_concept
from assay.model.edits import add, project_out
from assay.replicate.base import Lab, finding
from assay.replicate.records import Found, figure
from assay.steer.side_effects import opener_metric, request_tokens

REFUSES = 0.3  # share of requests that a model must refuse for there to be something to find


@finding(
    "refusal-direction",
    title="One direction mediates refusal",
    paper="Arditi et al. 2024, arXiv 2406.11717",
    published="In 13 chat models the difference of means between harmful and harmless requests, taken out of every"
    " layer, stops refusals; added, it makes the model refuse harmless requests.",
    method="Does it refuse at all? Log-odds of refusing against complying openers after requests to refuse (tune); a"
    " model that refuses fewer than 30% has nothing to find. Else: difference of means at the last token on"
    " discover, the layer chosen on tune, and on confirm the change of the log-odds when it is projected out"
    " (requests to refuse) and added (harmless ones), less the same for a random direction.",
    differs="Openers of replies in place of judged completions; one random direction per layer as the control.",
)
def refusal_direction(lab: Lab) -> Found:
    model, metric = lab.model, opener_metric(lab.model)
    sides = {split: _requests(lab, split) for split in ("discover", "tune", "confirm")}
    bad, good = sides["tune"]
    before = model.score(bad, metric)
    share = float((before > 0).double().mean())
    if share < REFUSES:
        return Found(lacks=f"it begins by refusing {share:.0%} of requests to refuse; {REFUSES:.0%} are needed")
    layers = sorted({round(model.n_layers * part) for part in (0.3, 0.4, 0.5, 0.6, 0.7)})
    made = {layer: _difference(lab, sides["discover"], layer) for layer in layers}
    drops = {layer: float((before - _without(lab, bad, made[layer])).mean()) for layer in layers}
    layer = max(drops, key=lambda each: drops[each])
    direction = made[layer]
    generator = torch.Generator().manual_seed(lab.seed)
    noise = torch.randn(direction.shape, generator=generator)
    noise *= direction.norm() / noise.norm()
    bad, good = sides["confirm"]
    removed = _without(lab, bad, noise) - _without(lab, bad, direction)
    pushed = [model.score(good, metric, edits=[add(f"resid_post.{layer}", each)]) for each in (direction, noise)]
    return Found(
        (figure("fall of refusing log-odds, direction taken out, less a random one", removed.tolist(), _names(bad), 0.5),
         figure("rise of refusing log-odds on harmless requests, direction added, less a random one",
                (pushed[0] - pushed[1]).tolist(), _names(good), 0.5)),
        notes=(f"direction from resid_post.{layer}; it refuses {share:.0%} of the requests of tune",),
    )  # fmt: skip


def _requests(lab: Lab, split: str) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of requests to refuse and of harmless ones."""
    found = load_concept("refusal", split, 2 * lab.sizes.pairs, lab.seed)
    made = [(request_tokens(lab.model, each.text), each.label) for each in found]
    lab.looked(f"{split} of refusal", found)
    return [ids for ids, label in made if label], [ids for ids, label in made if not label]


def _difference(lab: Lab, sides: tuple[list[list[int]], list[list[int]]], layer: int) -> torch.Tensor:
    site = f"resid_post.{layer}"
    bad, good = (lab.model.capture(side, site, positions="last")[site][:, 0].float().mean(0) for side in sides)
    return bad - good


def _without(lab: Lab, prompts: list[list[int]], direction: torch.Tensor) -> torch.Tensor:
    edits = [project_out(f"resid_post.{layer}", direction) for layer in range(lab.model.n_layers)]
    return lab.model.score(prompts, opener_metric(lab.model), edits=edits)


def _names(rows: list[list[int]]) -> list[str]:
    return [str(number) for number in range(len(rows))]
