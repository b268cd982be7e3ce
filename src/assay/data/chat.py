"""Conversations as prompts: the model's own chat template, or a plain one that is stated.

A tokenizer with a chat template says how its model was taught to talk, system text included. Without one, turns are written as

    {system}

    User: {text}
    Assistant:

and replies end where the next "User:" begins, or at the end token. A text begins with the model's BOS token once, whether the
template writes it or not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from assay.errors import UsageError, bad_argument
from assay.model.model import Model
from assay.model.stream import stop_ids

ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]
STOP = "\nUser:"


def has_template(model: Model) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(getattr(model.tokenizer, "chat_template", None))


def chat_text(model: Model, messages: Sequence[Message]) -> str:
    """The conversation as one text that ends where the assistant begins to speak. Raises UsageError for other roles, and for
    a conversation that the template refuses (many take no system text, or want the speakers to take turns)."""
    check_messages(messages)
    if has_template(model):
        return _templated(model, messages, add_generation_prompt=True)
    names = {"user": "User: ", "assistant": "Assistant: ", "system": ""}
    gaps = {"system": "\n\n", "user": "\n", "assistant": "\n"}
    return "".join(f"{names[m['role']]}{m['content']}{gaps[m['role']]}" for m in messages) + "Assistant:"


def takes_system(model: Model) -> bool:
    """Whether a conversation may begin with a system text."""
    try:
        return "pebble" in chat_text(model, [{"role": "system", "content": "pebble"}, {"role": "user", "content": "Hello"}])
    except UsageError:
        return False


def _templated(model: Model, messages: Sequence[Message], **how: Any) -> str:
    tokenizer: Any = model.tokenizer
    try:
        text = str(tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, **how))
    except Exception as error:  # templates are programs of whoever made the model, and refuse in their own way
        said = ", ".join(message["role"] for message in messages[:6])
        raise UsageError(f"the chat template of {model.name} refuses a conversation of {said}: {error}") from error
    doubled = model.prepend_bos and model.bos_id is not None  # tokens of texts get it as well
    return text.removeprefix(model.text([model.bos_id])) if doubled else text  # type: ignore[list-item]


def opening(model: Model, messages: Sequence[Message], said: Sequence[int]) -> int:
    """How many tokens of a conversation, `said`, the template writes before anybody's first word (a standing system text, say):
    those that stay the same when every message says something else. Not only the first one: a template may write a system text
    into the last turn, or not at all. One token where nothing of the messages is written."""
    other = [{**one, "content": "1" if one["content"].lstrip().startswith("0") else "0"} for one in messages]
    changed = model.tokens(chat_text(model, other))[0]
    pairs = enumerate(zip(said, changed, strict=False))
    same = min(len(said), len(changed)) if len(said) != len(changed) else 1
    return next((at for at, (one, two) in pairs if one != two), same)


def reply_text(model: Model, reply: str) -> str:
    """A reply as it follows `chat_text`, with what ends it, for training."""
    if has_template(model):
        return reply + end_token(model)
    return f" {reply.strip()}{STOP}"


def end_token(model: Model) -> str:
    """The text of the token that ends a turn, as the template writes it after a reply; "" where there is none."""
    marks = _ends(model)
    if has_template(model) and len(marks) > 1:
        told = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "pebble"}]
        after = _templated(model, told).rpartition("pebble")[2]
        marks = sorted((mark for mark in marks if mark in after), key=after.index) or marks
    return marks[0] if marks else ""


def _ends(model: Model) -> list[str]:
    """Texts of the tokens that end what the model writes, that of the tokenizer first."""
    eos = str(getattr(model.tokenizer, "eos_token", None) or "")
    return list(dict.fromkeys(filter(None, (eos, *(model.text([token]) for token in stop_ids(model))))))


def cut_reply(model: Model, text: str) -> str:
    """What was generated, up to where the turn ends."""
    return text[: reply_end(model, text)].strip()


def reply_end(model: Model, text: str) -> int:
    """Where in what was generated the turn ends: its length where it does not."""
    marks = (*_ends(model), *(() if has_template(model) else (STOP,)))
    return min([len(text), *(at for mark in marks if (at := text.find(mark)) >= 0)])


def check_messages(messages: Sequence[Message]) -> None:
    """Raises UsageError for anything but a list of {"role", "content"} that ends with what somebody said."""
    if not messages:
        raise bad_argument("messages", "none", 'at least one: {"role": "user", "content": ".."}')
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise bad_argument(f"messages[{number}]", message, f'{{"role": one of {", ".join(ROLES)}, "content": a text}}')
