"""What a client asks for: requests of the completions APIs of OpenAI, checked.

1. Only what is done is accepted. A parameter that would change the answer and is not supported is refused by name unless it has
   the value that changes nothing; names nobody knows are refused.
2. Defaults are those of the API: temperature 1, top_p 1, one choice, no seed (then one is drawn, and said in the answer).
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from assay.data.chat import ROLES, STOP, chat_text, has_template, opening
from assay.data.turns import places
from assay.errors import UsageError
from assay.model.context import context_length
from assay.model.model import Model
from assay.model.stream import Picking, stop_ids
from assay.serving.refused import Refused, no_model

MOST_STOPS, LONGEST_STOP = 4, 200
MOST_CHOICES = 8
MOST_MESSAGES = 512
SHORT = 16  # tokens of a completion, where none are asked for
IDLE: dict[str, tuple[Any, ...]] = {  # parameters that are not supported, and the values that ask for nothing
    "frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {}), "logprobs": (None, False),
    "top_logprobs": (None, 0), "response_format": (None, {"type": "text"}), "tools": (None, []), "functions": (None, []),
    "tool_choice": (None, "none", "auto"), "modalities": (None, ["text"]), "audio": (None,), "echo": (None, False),
    "best_of": (None, 1), "suffix": (None, ""), "parallel_tool_calls": (None, True, False), "store": (None, False),
    "prediction": (None,),
}  # fmt: skip
IDLE_IN_MESSAGE: dict[str, tuple[Any, ...]] = {  # what clients send back of an answer that had none of it
    "name": (None,), "refusal": (None,), "tool_calls": (None, []), "function_call": (None,), "audio": (None,),
    "annotations": (None, []), "parsed": (None,),
}  # fmt: skip
IGNORED = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key")  # about the caller, not the answer
KNOWN = ("model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "n", "stream",
         "stream_options", "assay")  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One request. `prompts` (token ids) times `picks` (one per choice) are the rows that are generated.

    `turns`: (start, stop) of what the assistant said before, in the one prompt of a chat. `opening`: tokens that its template
    writes before anybody's first word, and that no monitor judges.
    """

    chat: bool
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    picks: tuple[Picking, ...]
    stops: tuple[str, ...]
    stream: bool
    usage: bool
    scores: bool
    seed: int
    turns: tuple[tuple[int, int], ...] = ()
    opening: int = 1


def read_chat(model: Model, served: str, body: Mapping[str, Any], most: int) -> Asked:
    """A request to /v1/chat/completions. Raises Refused."""
    _known(body, ("messages",))
    _named(served, body)
    messages = _messages(body.get("messages"))
    try:
        text = chat_text(model, messages)
    except UsageError as error:
        raise Refused(400, f"messages: {error}", "messages") from error
    tokens = _tokens(model, text, "messages")
    stops = _stops(body.get("stop"))
    stops = stops if has_template(model) else (*stops, STOP)
    asked = _asked(model, body, most, True, [tokens], [text], stops, None)
    return replace(asked, turns=_turns(model, messages, tokens), opening=opening(model, messages, tokens))


def read_completion(model: Model, served: str, body: Mapping[str, Any], most: int) -> Asked:
    """A request to /v1/completions. Raises Refused."""
    _known(body, ("prompt",))
    _named(served, body)
    given = body.get("prompt")
    several = isinstance(given, list) and given and not all(_whole(item) for item in given)
    prompts: list[Any] = given if several else [given]  # type: ignore[assignment]
    if len(prompts) > MOST_CHOICES:
        raise Refused(400, f"prompt: got {len(prompts)} prompts; allowed: at most {MOST_CHOICES}.", "prompt")
    found = [_prompt(model, prompt) for prompt in prompts]
    ids, texts = [ids for ids, _ in found], [text for _, text in found]
    return _asked(model, body, most, False, ids, texts, _stops(body.get("stop")), SHORT)


# parts -------------------------------------------------------------------------------------------


def _asked(
    model: Model, body: Mapping[str, Any], most: int, chat: bool, prompts: Sequence[Sequence[int]], texts: Sequence[str],
    stops: tuple[str, ...], short: int | None,
) -> Asked:  # fmt: skip
    choices = _number(body, "n", 1, int, 1, MOST_CHOICES)
    if choices * len(prompts) > MOST_CHOICES:
        raise Refused(400, f"n: got {choices} for {len(prompts)} prompts; allowed: {MOST_CHOICES} replies at once.", "n")
    seed = _number(body, "seed", None, int, -(2**63), 2**63 - 1)
    seed = secrets.randbits(32) if seed is None else seed
    length = _length(model, body, most, max(map(len, prompts)), short)
    temperature, top_p = _number(body, "temperature", 1.0, float, 0, 2), _number(body, "top_p", 1.0, float, 0, 1)
    top_p = max(top_p, 1e-6)  # 0 leaves the likeliest token alone
    ends = stop_ids(model)
    picks = tuple(Picking(length, temperature, top_p, (seed + at) % 2**63, ends) for at in range(choices))
    streamed, options = _flag(body, "stream"), body.get("stream_options")
    if options is not None and not (streamed and isinstance(options, dict)):
        raise Refused(400, "stream_options: allowed: an object, and only with stream=true.", "stream_options")
    if unknown := [name for name in options or {} if name != "include_usage"]:
        raise Refused(400, f"stream_options.{unknown[0][:60]}: not supported by this server; leave it out.", "stream_options",
                      "unsupported_parameter")  # fmt: skip
    extra = body.get("assay") or {}
    if not isinstance(extra, dict) or set(extra) - {"token_scores"}:
        raise Refused(400, 'assay: allowed: {"token_scores": true}.', "assay")
    usage, scores = _flag(options or {}, "include_usage"), _flag(extra, "token_scores")
    return Asked(chat, tuple(tuple(p) for p in prompts), tuple(texts), picks, stops, streamed, usage, scores, seed)


def _known(body: Mapping[str, Any], own: Sequence[str]) -> None:
    for name, value in body.items():
        if name in IDLE:
            if not any(value == idle and isinstance(value, bool) == isinstance(idle, bool) for idle in IDLE[name]):
                raise Refused(400, f"{name}: not supported by this server; leave it out.", name, "unsupported_parameter")
        elif name not in (*own, *KNOWN, *IGNORED):
            raise Refused(400, f"Unrecognized request argument supplied: {name[:60]}.", name[:60], "unknown_parameter")


def _named(served: str, body: Mapping[str, Any]) -> None:
    name = body.get("model")
    if not isinstance(name, str):
        raise Refused(400, f"model: got {type(name).__name__}; allowed: {served!r}.", "model")
    if name != served:
        raise no_model(name, served)


def _messages(given: object) -> list[dict[str, str]]:
    if not isinstance(given, list) or not given:
        raise Refused(400, 'messages: allowed: a list like [{"role": "user", "content": ".."}].', "messages")
    if len(given) > MOST_MESSAGES:
        raise Refused(400, f"messages: got {len(given)}; allowed: at most {MOST_MESSAGES}.", "messages")
    return [_message(item, f"messages[{at}]") for at, item in enumerate(given)]


def _message(item: object, where: str) -> dict[str, str]:
    role = item.get("role") if isinstance(item, dict) else None
    role = "system" if role == "developer" else role
    if not isinstance(item, dict) or not isinstance(role, str) or role not in ROLES:
        raise Refused(400, f"{where}: allowed: an object whose role is one of {', '.join(ROLES)}.", where)
    for key, value in item.items():
        if key not in ("role", "content", "assay") and value not in IDLE_IN_MESSAGE.get(key, ()):
            raise Refused(400, f"{where}.{key[:60]}: not supported by this server; leave it out.", f"{where}.{key[:60]}",
                          "unsupported_parameter")  # fmt: skip
    content: Any = item.get("content")
    if isinstance(content, list):
        parts = [part["text"] if isinstance(part, dict) and part.get("type") == "text" and part.keys() == {"type", "text"}
                 else None for part in content]  # fmt: skip
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
    if not isinstance(content, str):
        raise Refused(400, f"{where}: content must be a text, or parts of type text.", where)
    return {"role": role, "content": content}


def _prompt(model: Model, given: object) -> tuple[list[int], str]:
    if isinstance(given, str):
        return _tokens(model, given, "prompt"), given
    if isinstance(given, list) and given and all(_whole(token) and 0 <= token < model.dims.d_vocab for token in given):
        return list(given), model.text(given)
    raise Refused(400, "prompt: allowed: a text, token ids of this model, or a list of these; not empty.", "prompt")


def _tokens(model: Model, text: str, param: str) -> list[int]:
    try:
        text.encode()
        return model.tokens(text)[0]
    except (UsageError, UnicodeEncodeError) as error:  # half of a surrogate pair is no text
        raise Refused(400, f"{param}: {error}", param) from error


def _turns(model: Model, messages: Sequence[Mapping[str, str]], tokens: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Where the assistant's earlier turns lie in the prompt; left out where the template writes them in other words."""
    if not any(message["role"] == "assistant" for message in messages):
        return ()
    found = zip(messages, places(model, messages, tokens), strict=True)
    return tuple(place for message, place in found if message["role"] == "assistant" and place is not None)


def _length(model: Model, body: Mapping[str, Any], most: int, prompt: int, short: int | None) -> int:
    """Tokens of the reply: as asked, at most what the server allows and the context holds."""
    asked = _number(body, "max_completion_tokens", _number(body, "max_tokens", None, int, 1, 2**31), int, 1, 2**31)
    limit = context_length(model.hf)
    left = most if limit is None else limit - prompt
    if left < 1 or (asked is not None and limit is not None and asked > left):
        raise Refused(400, f"This model's context is {limit} tokens; the prompt has {prompt}, and {asked or 1} are asked for.",
                      "max_tokens", "context_length_exceeded")  # fmt: skip
    if asked is not None and asked > most:
        raise Refused(400, f"max_tokens: got {asked}; this server makes replies of at most {most} tokens.", "max_tokens")
    return min(left, most, short or most) if asked is None else asked


def _stops(given: object) -> tuple[str, ...]:
    items: Any = [given] if isinstance(given, str) else given if given is not None else []
    few = isinstance(items, list) and len(items) <= MOST_STOPS
    if not few or not all(isinstance(item, str) and 0 < len(item) <= LONGEST_STOP for item in items):
        raise Refused(400, f"stop: allowed: up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters.", "stop")
    return tuple(items)  # type: ignore[arg-type]


def _number(body: Mapping[str, Any], name: str, default: Any, kind: Callable[[Any], Any], low: float, high: float) -> Any:
    value = body.get(name)
    if value is None:
        return default
    fits = _whole(value) if kind is int else isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not low <= value <= high:
        kinds = "a whole number" if kind is int else "a number"
        raise Refused(400, f"{name}: got {str(value)[:40]}; allowed: {kinds} from {low} to {high}.", name)
    return kind(value)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False) or isinstance(value, int | float) and not isinstance(value, bool):
        raise Refused(400, f"{name}: allowed: true or false.", name)
    return bool(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
