"""A head whose output, given Monday, says Tuesday."""

import torch

from assay.model.edits import patch
from assay.replicate.base import Lab, finding
from assay.replicate.records import Found, figure
from assay.sites import Site

SERIES = {
    "numbers": "one two three four five six seven eight nine ten eleven twelve",
    "digits": "1 2 3 4 5 6 7 8 9",
    "letters": "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    "days": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "months": "January February March April May June July August September October November December",
}
CHOSEN = ("numbers", "digits", "letters")


@finding(
    "successor-heads",
    title="Successor heads increment",
    paper="Gould et al. 2023, arXiv 2312.09230",
    published="Models from 31M to 12B parameters have heads that map a token with an order to its successor (Monday to"
    " Tuesday), through output-value weights, above other tokens of its class, in most cases.",
    method="What a head writes when it attends to one token alone: the token's residual stream after the first layer"
    " enters the head's layer at a position that can only look at itself. Among tokens of the same series, is"
    " the successor the one whose logit rises most? The head is chosen on numbers, digits and letters;"
    " measured on days and months.",
    differs="The head's output is read by the final norm alone, as if nothing else were in the stream.",
)
def successor_heads(lab: Lab) -> Found:
    series = {name: ids for name, words in SERIES.items() if len(ids := _ids(lab, words.split())) >= 5}
    if not set(series) & set(CHOSEN) or not set(series) - set(CHOSEN):
        return Found(lacks="its tokenizer splits the words of these series")
    names = list(series)
    scores = {name: _hits(lab, ids, number, len(names)) for number, (name, ids) in enumerate(series.items())}
    chosen = torch.stack([scores[name].double().mean(2) for name in names if name in CHOSEN]).mean(0)
    layer, head = divmod(int(chosen.argmax()), lab.model.n_heads)
    held = [name for name in names if name not in CHOSEN]
    values = [float(hit) for name in held for hit in scores[name][layer, head]]
    words = [f"{name} {place}" for name in held for place in range(scores[name].shape[2])]
    chance = sum(1 / (len(series[name]) - 1) for name in held) / len(held)
    return Found(
        (figure(f"z.{layer}.{head}: share of days and months whose successor it writes most", values, words, 0.5),),
        notes=(f"chance {chance:.2f}; on the series it was chosen on {float(chosen.max()):.2f}; best head on days and months"
               f" {_best(scores, held):.2f}",),
    )  # fmt: skip


def _ids(lab: Lab, words: list[str]) -> list[int]:
    """Tokens of the words that are one token, with a space before; order kept, the longest run without a gap."""
    run: list[int] = []
    best: list[int] = []
    for word in words:
        ids = lab.model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        run = [*run, ids[0]] if len(ids) == 1 else []
        best = run if len(run) > len(best) else best
    return best


def _hits(lab: Lab, ids: list[int], done: int, of: int) -> torch.Tensor:
    """(layer, head, member but the last): the successor has the largest logit among the others of the series."""
    model, norm = lab.model, lab.model.readers().norm(Site("logits"))
    before = [model.bos_id] if model.bos_id is not None else []
    start = model.capture([[*before, token] for token in ids], "resid_post.0", positions="last")["resid_post.0"][:, :1]
    found = torch.zeros(model.n_layers, model.n_heads, len(ids) - 1, dtype=torch.bool)
    wanted = torch.arange(1, len(ids))
    for layer in range(1, model.n_layers):
        lab.report("what heads write", done * model.n_layers + layer, of * model.n_layers)
        sites = [f"attn_out.{layer}.{head}" for head in range(model.n_heads)]
        wrote = model.capture([[token] for token in ids], sites, edits=[patch(f"resid_pre.{layer}", start)])
        for head, site in enumerate(sites):
            logits = model.unembed(norm(wrote[site][:, 0].float())).float()[:, ids]
            logits[torch.arange(len(ids)), torch.arange(len(ids))] = -torch.inf
            found[layer, head] = logits[:-1].argmax(1) == wanted
    return found


def _best(scores: dict[str, torch.Tensor], names: list[str]) -> float:
    return float(torch.cat([scores[name] for name in names], 2).double().mean(2).max())
