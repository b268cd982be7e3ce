"""A head that works against names in one task lowers, on ordinary text, the tokens it looks at."""

import random

import torch

from assay.data.corpus_rows import packed
from assay.model.edits import patch
from assay.replicate.base import Lab, finding
from assay.replicate.parts import mean_of, ranked
from assay.replicate.records import Found, figure

CORPUS, CONTEXT, LIKELY = "brown", 64, 50


@finding(
    "copy-suppression",
    title="A negative head suppresses copying",
    paper="McDougall et al. 2023, arXiv 2310.04625",
    published="GPT-2 small, head 10.7: where an earlier token is predicted again, it attends to that token and lowers"
    " its logit; this explains 76.9% of what the head does. It is the head that works against names in"
    " indirect-object sentences.",
    method="The head with the most negative attribution on indirect objects (discover). On ordinary text, at"
    " positions where the token it looks at most (first position aside) is among the model's 50 likeliest next"
    " tokens: rise of that token's log probability when the head's output is set to its mean; and the same"
    " less that of another head of the layer with the token that head looks at.",
    differs="Any token that is looked at and likely; the share of the head's effect that is copy suppression is not"
    " computed.",
)
def copy_suppression(lab: Lab) -> Found:
    head, effect = ranked(lab, lab.pairs("ioi", "discover"))[-1]
    if effect >= 0:
        return Found(lacks="no head works against the answer in indirect-object sentences")
    layer = int(head.split(".")[1])
    free = [f"z.{layer}.{n}" for n in range(lab.model.n_heads) if f"z.{layer}.{n}" != head]
    if not free:
        return Found(lacks=f"{head} is the only head of its layer: there is none to compare it with")
    other = random.Random(f"copy-{lab.seed}").choice(free)
    rows = packed(lab.model, CORPUS, CONTEXT, tokens=CONTEXT * 2 * lab.sizes.texts)
    texts = [rows.tokens(row).tolist() for row in range(min(len(rows), lab.sizes.texts))]
    own, control = (_rises(lab, texts, name) for name in (head, other))
    names = [str(number) for number in range(len(texts))]
    apart = [(a - b, name) for a, b, name in zip(own, control, names, strict=True) if a is not None and b is not None]
    seen = [(a, name) for a, name in zip(own, names, strict=True) if a is not None]
    return Found(
        (figure(f"rise of the token that {head} looks at, without it, nats", [a for a, _ in seen], [n for _, n in seen], 0.02),
         figure(f"the same, less that of {other}", [a for a, _ in apart], [n for _, n in apart], 0.02)),
        notes=(f"{head}: {effect:+.2f} of the indirect-object effect",),
    )  # fmt: skip


def _rises(lab: Lab, texts: list[list[int]], head: str) -> list[float | None]:
    """Per text, mean over its positions that count; None where no position does."""
    site, edit = f"pattern.{head.removeprefix('z.')}", patch(head, mean_of(lab.model, texts, head))
    found: list[float | None] = []
    for number, text in enumerate(texts):
        lab.report(head, number, len(texts))
        pattern = lab.model.capture([text], site).rows(site)[0]
        looked = torch.tensor(text)[1 + pattern[2:, 1:].argmax(1)]
        before, after = (lab.model.capture([text], "logits", edits=some)["logits"][0, 2:].float().log_softmax(-1)
                         for some in ((), (edit,)))  # fmt: skip
        likely = (before.topk(min(LIKELY, before.shape[1]), 1).indices == looked[:, None]).any(1)
        rise = (after - before).gather(1, looked[:, None])[:, 0]
        found.append(float(rise[likely].mean()) if bool(likely.any()) else None)
    return found
