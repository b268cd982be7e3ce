"""Indirect objects are carried by a few heads, late ones that look at the name, and some heads work against them."""

from collections.abc import Sequence

import torch

from assay.data.prepare import PreparedTask
from assay.evidence.source import Source
from assay.replicate.base import Lab, finding
from assay.replicate.parts import enough, ranked, restored
from assay.replicate.records import Found, figure


@finding(
    "ioi-heads",
    title="A few heads carry the indirect object",
    paper="Wang et al. 2023, arXiv 2211.00593",
    published="GPT-2 small: 26 heads in seven classes carry the task. Name movers (9.9, 9.6, 10.0) attend from the end"
    " to the indirect object and copy it; negative name movers (10.7, 11.10) write against it.",
    method="Heads are ranked by attribution on discover, as few as carry the task are taken on tune, and the claim"
    " that they mediate it is tested. On tune: what the chosen late heads look at from the last position, and"
    " what the head with the most negative attribution does when it alone is restored.",
    differs="Exchanged names (swap) in place of the ABC distribution; sufficiency and necessity against random heads"
    " in place of a hand-built circuit; classes of heads beyond movers and negative movers are not looked for.",
)
def ioi_heads(lab: Lab) -> Found:
    order = ranked(lab, lab.pairs("ioi", "discover"))
    if not any(effect > 0 for _, effect in order):
        return Found(lacks="no head works towards the answer in indirect-object sentences")
    tune = lab.pairs("ioi", "tune")
    chosen = enough(lab, tune, [name for name, effect in order if effect > 0])
    claim = lab.tested("mediates", Source("ioi"), chosen, f"{', '.join(chosen)} tend to carry the indirect object")
    late = [name for name in chosen if int(name.split(".")[1]) >= lab.model.n_layers / 2] or chosen
    looks = _looks(lab, tune, late)
    worst, _ = order[-1]
    return Found(
        (figure("attention of the chosen late heads from the end to the indirect object, less to the subject", looks,
                tune.templates, 0.1),
         figure(f"share restored by {worst} alone, the most negative head", restored(lab.model, tune, [worst]),
                tune.templates, -0.02, "below")),
        (claim,), notes=(f"heads chosen: {', '.join(chosen)}",),
    )  # fmt: skip


def _looks(lab: Lab, task: PreparedTask, heads: Sequence[str]) -> list[float]:
    """Per pair, mean over heads of attention last -> name that is right, less last -> name said twice (both times)."""
    total = torch.zeros(len(task))
    for head in heads:
        site = f"pattern.{head.removeprefix('z.')}"
        seen = lab.model.capture(task.clean, site).rows(site)
        for row, pattern in enumerate(seen):
            end = pattern[-1]
            places = task.labels
            total[row] += float(end[places["IO"][row]] - end[places["S1"][row]] - end[places["S2"][row]])
    return (total / len(heads)).tolist()
