"""Let a model reply under a monitor: scores of prompt and reply come from the very passes that write the reply."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from assay.data.chat import chat_text, cut_reply, has_template, opening, reply_end
from assay.model.model import Model
from assay.monitor.reading import finite
from assay.monitor.records import CALIBRATED, Monitor
from assay.monitor.thresholds import Array
from assay.monitor.units import unit_scores
from assay.sites import parse_site


@dataclass(frozen=True)
class Watched:
    """One reply. `pieces` and `scores`: of its tokens that were read (the last is never fed back, and what comes after its end
    is no part of it); `units`: the largest value of each, none where no token was read; `alerts`: units above their threshold,
    none of an uncalibrated monitor; `prompt_score`: of the prompt from its first word on. A score that is no number is
    `BROKEN`."""

    prompt: str
    reply: str
    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    units: dict[str, float]
    prompt_score: float
    alerts: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def watch(
    model: Model, monitor: Monitor, prompts: Sequence[str], tokens: int = 48, chat: bool | None = None
) -> list[Watched]:  # fmt: skip
    """Greedy replies to the prompts. `chat`: with the chat template; None: where the model has one."""
    talk = has_template(model) if chat is None else chat
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = [chat_text(model, messages) if talk else messages[0]["content"] for messages in asked]
    made = model.generate(texts, max_new_tokens=tokens, sites=monitor.sites)
    armed = monitor.state(model) == CALIBRATED
    found = []
    for row, prompt in enumerate(prompts):
        acts = {site: made.activations.rows(parse_site(site))[row].float().flatten(1).numpy() for site in monitor.sites}
        scores, logits, start = monitor.token_scores(acts), monitor.token_logits(acts), len(made.prompts[row])
        text = cut_reply(model, made.texts[row]) if talk else made.texts[row]
        reply = scores[start:][: _before_end(model, made.tokens[row], made.texts[row]) if talk else None]
        first = min(max(1, opening(model, asked[row], made.prompts[row]) if talk else 1), start - 1)
        parts = slice(start, start + len(reply)), slice(first, start)
        after, before = (_units(monitor, scores, logits, part) for part in parts)
        most = {unit: float(values.max()) for unit, values in after.items()}
        alerts = tuple(unit for unit, bar in monitor.thresholds.items() if armed and unit in most and bar.alert(most[unit]))
        pieces = tuple(model.piece(token) for token in made.tokens[row][: len(reply)])
        scored = tuple(finite(reply).tolist())
        found.append(Watched(prompt, text, pieces, scored, most, float(before["reply"][0]), alerts))
    return found


def _units(monitor: Monitor, scores: Array, logits: Array | None, part: slice) -> dict[str, Array]:
    """Scores of the units of some tokens; of none, none."""
    if not len(scores[part]):
        return {}
    keys = None if logits is None else [logits[part]]
    return {unit: finite(values) for unit, values in unit_scores([scores[part]], monitor.pooling, keys).items()}


def _before_end(model: Model, tokens: Sequence[int], text: str) -> int:
    """How many tokens of what was generated lie before the end of the turn."""
    end = reply_end(model, text)
    if end == len(text):
        return len(tokens)
    return next(n for n in range(len(tokens) + 1) if len(model.text(list(tokens[:n]))) >= end)
