"""Heads that look behind the last occurrence of a token, and what is lost without them."""

import random

from assay.circuits.head_patterns import BAR, head_patterns, repeated_texts
from assay.evidence.source import Source
from assay.model.edits import patch
from assay.replicate.base import Lab, finding
from assay.replicate.parts import losses, mean_of
from assay.replicate.records import Found, figure

LENGTH = 32


@finding(
    "induction-heads",
    title="Induction heads copy what followed before",
    paper="Olsson et al. 2022, arXiv 2209.11895",
    published="Heads that attend to the token after an earlier occurrence of the present one exist in every model with"
    " two layers or more, and are most of in-context copying: without them it falls far more than without"
    " other heads.",
    method="Heads are found by where they look on random tokens said twice (score above .3). On other random texts:"
    " their score, and the loss on the second copy when their outputs are set to their means, less the same"
    " for as many other heads of the same layers. The claim that they mediate copying in sentences is tested.",
    differs="Mean ablation, single token loss on random text; in-context learning on long natural text is not"
    " measured.",
)
def induction_heads(lab: Lab) -> Found:
    model = lab.model
    patterns = head_patterns(model, lab.sizes.texts, LENGTH, lab.seed)
    heads = [name for name, score in patterns.strongest("induction", model.n_layers * model.n_heads) if score > BAR]
    if not heads:
        best = patterns.strongest("induction", 1)[0]
        return Found(lacks=f"no head looks behind the last occurrence: best {best[0]} with {best[1]:.2f}, the bar is {BAR}")
    claim = lab.tested("mediates", Source("induction"), heads, f"the {len(heads)} induction heads tend to carry copying")
    fresh, start = repeated_texts(model, lab.sizes.texts, LENGTH, lab.seed + 1)
    names = [str(number) for number in range(len(fresh))]
    best = heads[0]
    site = f"pattern.{best.removeprefix('z.')}"
    positions = range(start + LENGTH, start + 2 * LENGTH)
    looks = [float(sum(row[at, at - LENGTH + 1] for at in positions)) / LENGTH for row in model.capture(fresh, site).rows(site)]
    figures = [figure(f"attention of {best} to what followed the last time", looks, names, BAR)]
    others = _others(lab, heads)
    if others:
        without, without_others = (_loss_without(lab, fresh, start, some) for some in (heads, others))
        figures.append(figure(f"loss on the second copy without them, less without {len(others)} other heads, nats",
                              [a - b for a, b in zip(without, without_others, strict=True)], names, 0.2))  # fmt: skip
    return Found(tuple(figures), (claim,), notes=(f"{len(heads)} heads above {BAR}: {', '.join(heads[:8])}",))


def _others(lab: Lab, heads: list[str]) -> list[str]:
    """As many heads of the same layers at random, or fewer where a layer has none left."""
    rng, found = random.Random(f"induction-{lab.seed}"), []
    for layer in sorted({int(name.split(".")[1]) for name in heads}):
        free = [f"z.{layer}.{head}" for head in range(lab.model.n_heads) if f"z.{layer}.{head}" not in heads]
        wanted = sum(name.split(".")[1] == str(layer) for name in heads)
        found += rng.sample(free, min(wanted, len(free)))
    return found


def _loss_without(lab: Lab, texts: list[list[int]], start: int, heads: list[str]) -> list[float]:
    edits = [patch(head, mean_of(lab.model, texts, head)) for head in heads]
    return losses(lab.model, texts, start + LENGTH, edits)
