"""Is what was found carried by the difference inside? Steering with it, on fresh prompts, against random directions.

1. v = mean over prompts of the half for looking of (x_model - x_reference) at the last position, in the residual stream after
   the layer where |mean d|^2 / mean |d|^2 is largest: the difference that the prompts of one hypothesis share.
2. On prompts of the other half, from the last position on: v is taken from the model (does the behaviour go?), and added to the
   reference (does it come?). The same with random directions of v's norm.

It says where a finding lives. It names nothing: a family was named before, by what the model says.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from assay.audit.asked import Asker
from assay.audit.differences import Inside
from assay.audit.probes import PROBES, Exam
from assay.audit.records import Hypothesis, Steered
from assay.data.chat import chat_text, cut_reply
from assay.model.edits import Edit, add
from assay.model.model import Model
from assay.sites import Site

PROMPTS, RANDOM = 10, 2
STAGE = "test: steering"


def steered(inside: Inside, asker: Asker, hypothesis: Hypothesis, seed: int = 0) -> Steered:
    """Raises Spent."""
    looked, fresh = (PROBES.get(hypothesis.family).exam(hypothesis, tests) for tests in (False, True))
    layer, v = _difference(inside, [chat_text(inside.model, prompt.messages) for prompt in looked.prompts])
    draw = torch.Generator().manual_seed(seed)
    others = [torch.randn(v.shape, generator=draw) for _ in range(RANDOM)]
    others = [x / x.norm() * v.norm() for x in others]
    shows = [fresh.shows(at, reply) for at, reply in enumerate(asker.replies(STAGE, fresh.prompts, fresh.length))]
    chosen = [at for at, shown in enumerate(shows) if shown][:PROMPTS]  # only what is there can go

    def count(model: Model, change: Tensor) -> int:
        return _count(inside, model, fresh, chosen, add(Site("resid_post", layer), change, phase="last"))

    return Steered(layer, float(v.norm()), len(chosen), count(inside.model, -v), tuple(count(inside.model, -x) for x in others),
                   count(inside.reference, v), tuple(count(inside.reference, x) for x in others))  # fmt: skip


def _difference(inside: Inside, texts: Sequence[str]) -> tuple[int, Float[Tensor, " d"]]:
    """The layer whose difference is most the same on all prompts, and its mean there."""
    ids = inside.model.tokens(texts)
    inside.budget.pay(STAGE, 2 * sum(map(len, ids)))
    sites = [Site("resid_post", layer) for layer in range(inside.model.n_layers)]
    mine, other = (one.capture(ids, sites, positions="last") for one in inside.both)
    shared, means = [], []
    for site in sites:
        d = torch.cat(list(mine.rows(site))).float() - torch.cat(list(other.rows(site))).float()
        energy = float(d.pow(2).sum(1).mean())
        means.append(d.mean(0))
        shared.append(float(means[-1].pow(2).sum()) / energy if energy else 0.0)
    layer = max(range(len(sites)), key=shared.__getitem__)
    return layer, means[layer]


def _count(inside: Inside, model: Model, exam: Exam, chosen: Sequence[int], edit: Edit) -> int:
    """In how many replies to the chosen prompts the behaviour shows under an edit."""
    if not chosen:
        return 0
    texts = [chat_text(model, exam.prompts[at].messages) for at in chosen]
    inside.budget.pay(STAGE, sum(len(ids) + exam.length for ids in model.tokens(texts)))
    said = model.generate(texts, max_new_tokens=exam.length, edits=[edit]).texts
    return sum(exam.shows(at, cut_reply(model, reply)) for at, reply in zip(chosen, said, strict=True))
