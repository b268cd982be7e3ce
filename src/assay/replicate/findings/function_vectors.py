"""A vector from a few heads makes the model do a task that no example shows."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.model.edits import Edit, add
from assay.replicate.base import Lab, finding
from assay.replicate.parts import first_ids
from assay.replicate.records import Found, figure

TASKS = {
    "past": "walk:walked jump:jumped play:played look:looked call:called help:helped ask:asked talk:talked open:opened"
    " turn:turned clean:cleaned paint:painted cook:cooked watch:watched start:started move:moved wait:waited kick:kicked"
    " push:pushed pull:pulled rain:rained laugh:laughed",
    "plural": "cat:cats dog:dogs tree:trees car:cars hand:hands book:books door:doors king:kings river:rivers house:houses"
    " stone:stones bird:birds ship:ships road:roads flower:flowers window:windows song:songs hill:hills cup:cups star:stars"
    " boat:boats gate:gates",
    "opposite": "hot:cold big:small up:down good:bad day:night old:new fast:slow high:low black:white open:closed happy:sad"
    " long:short rich:poor hard:soft early:late full:empty left:right young:old strong:weak light:dark wet:dry inside:outside",
    "capital": "France:Paris Italy:Rome Spain:Madrid Germany:Berlin Japan:Tokyo China:Beijing Russia:Moscow Egypt:Cairo"
    " Greece:Athens Austria:Vienna Ireland:Dublin Cuba:Havana Poland:Warsaw Norway:Oslo Sweden:Stockholm Portugal:Lisbon"
    " England:London Iran:Tehran Iraq:Baghdad Peru:Lima Kenya:Nairobi Finland:Helsinki",
}
SHOTS, PROMPTS, HEADS, ABLE = 6, 24, 10, 0.4
Words = list[tuple[str, str]]


@dataclass(frozen=True)
class _Prompts:
    """Token ids and the first token of each answer."""

    tokens: list[list[int]]
    answers: list[int]

    def metric(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Log probability of the answer."""
        says = logits.float().log_softmax(-1)
        return says.gather(1, torch.tensor(self.answers)[rows.cpu()].to(logits.device)[:, None])[:, 0]


@finding(
    "function-vectors",
    title="A few heads hold the task of a prompt as a vector",
    paper="Todd et al. 2023, arXiv 2310.15213",
    published="GPT-J and larger models: the sum of the mean outputs of about ten heads, chosen by their effect on"
    " prompts with shuffled examples, added to prompts without examples, brings accuracy on simple tasks from"
    " near 0 to over 50%.",
    method="Per task (past, plural, opposite, capital) that the model does with six examples: heads by the"
    " attributed effect of their mean output on prompts with shuffled answers; the vector is the sum of ten"
    " heads' mean outputs, added at the last position in the layer that is best on other words. On words in no"
    " example: rise of the answer's log probability over no vector and over a random one of equal norm.",
    differs="Attributed effects in place of patched ones; log probability of the first token; four tasks of words.",
)
def function_vectors(lab: Lab) -> Found:
    gains: list[tuple[float, float, str]] = []
    notes = []
    for number, (task, text) in enumerate(TASKS.items()):
        lab.report(task, number, len(TASKS))
        words = [(word, answer) for word, _, answer in (pair.partition(":") for pair in text.split())]
        random.Random(f"{task}-{lab.seed}").shuffle(words)
        shown, chosen, held = words[:10], words[10:14], words[14:]
        able = _accuracy(lab, _with_examples(lab, shown, held, 0))
        if able < ABLE:
            notes.append(f"{task}: left out, right on {able:.0%} with {SHOTS} examples")
            continue
        found, layer = _vector(lab, shown, chosen)
        gains += [(*each, f"{task} {word[0]}") for each, word in zip(_gains(lab, held, found, layer), held, strict=True)]
        notes.append(f"{task}: right on {able:.0%} with examples; added at resid_post.{layer}")
    if not gains:
        return Found(lacks=f"it does none of the tasks with {SHOTS} examples", notes=tuple(notes))
    words_of = [name for _, _, name in gains]
    return Found(
        (figure("rise of the answer's log probability, nats", [a for a, _, _ in gains], words_of, 0.5),
         figure("the same, less that of a random vector of equal norm", [b for _, b, _ in gains], words_of, 0.5)),
        notes=tuple(notes),
    )  # fmt: skip


def _with_examples(lab: Lab, shown: Words, asked: Words, seed: int, shuffled: bool = False) -> _Prompts:
    """Prompts that show examples and ask for one word each; `shuffled`: answers of the examples are mixed up."""
    texts, rng = [], random.Random(f"shots-{seed}-{lab.seed}")
    for word, _ in asked:
        some = rng.sample([pair for pair in shown if pair[0] != word], SHOTS)
        answers = [answer for _, answer in some]
        answers = answers[1:] + answers[:1] if shuffled else answers
        texts.append("".join(f"{a} -> {b}\n" for (a, _), b in zip(some, answers, strict=True)) + f"{word} ->")
    return _asked(lab, texts, asked)


def _without_examples(lab: Lab, asked: Words) -> _Prompts:
    return _asked(lab, [f"{word} ->" for word, _ in asked], asked)


def _asked(lab: Lab, texts: list[str], asked: Words) -> _Prompts:
    return _Prompts(lab.model.tokens(texts), first_ids(lab.model, [f" {answer}" for _, answer in asked]))


def _accuracy(lab: Lab, prompts: _Prompts) -> float:
    best = lab.model.logits(prompts.tokens).argmax(1).tolist()
    return sum(a == b for a, b in zip(best, prompts.answers, strict=True)) / len(best)


def _vector(lab: Lab, shown: Words, chosen: Words) -> tuple[Tensor, int]:
    """The sum of the chosen heads' mean outputs at the last position, and the layer where adding it helps most."""
    model = lab.model
    asked = [pair for _ in range(-(-PROMPTS // len(shown))) for pair in shown][:PROMPTS]
    good, bad = (_with_examples(lab, shown, asked, 1, mixed) for mixed in (False, True))
    sites = [f"z.{layer}" for layer in range(model.n_layers)]
    means = model.capture(good.tokens, sites, positions="last")
    slopes, values, _ = model.gradients(bad.tokens, sites, bad.metric)
    effects = []
    for layer, site in enumerate(sites):
        mean = means[site][:, 0].float().mean(0)
        rows = zip(slopes.rows(site), values.rows(site), strict=True)
        effect = torch.stack([(slope[-1].float() * (mean - value[-1].float())).sum(-1) for slope, value in rows]).mean(0)
        effects += [(float(one), layer, head) for head, one in enumerate(effect)]
    heads = [f"attn_out.{layer}.{head}" for _, layer, head in sorted(effects, reverse=True)[:HEADS]]
    wrote = model.capture(good.tokens, heads, positions="last")
    vector = torch.stack([wrote[head][:, 0].float().mean(0) for head in heads]).sum(0)
    layers = sorted({round((model.n_layers - 1) * part) for part in (0.2, 0.35, 0.5, 0.65)})
    plain = _without_examples(lab, chosen)
    scores = {layer: float(model.score(plain.tokens, plain.metric, edits=[_added(vector, layer)]).mean()) for layer in layers}
    return vector, max(scores, key=lambda layer: scores[layer])


def _gains(lab: Lab, held: Words, vector: Tensor, layer: int) -> list[tuple[float, float]]:
    """Per word: the rise over no vector, and over a random one."""
    plain = _without_examples(lab, held)
    noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(lab.seed))
    noise *= vector.norm() / noise.norm()
    base, own, other = (lab.model.score(plain.tokens, plain.metric, edits=edits)
                        for edits in ((), [_added(vector, layer)], [_added(noise, layer)]))  # fmt: skip
    return list(zip((own - base).tolist(), (own - other).tolist(), strict=True))


def _added(vector: Tensor, layer: int) -> Edit:
    return add(f"resid_post.{layer}", vector, positions="last")
