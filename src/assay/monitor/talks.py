"""Conversations as a monitor reads them: token ids, and where each turn that is judged lies.

1. A text is a conversation of one turn, all of it judged. A conversation of messages is written with the chat template; the
   turns that are judged are those of the assistant; where it has not spoken, the prompt from its first word on. What the
   template writes before it is the same in every prompt, and where a score is the highest of all tokens may be all of it.
2. The first token of a sequence is never judged: its activation is massive and says nothing.
3. Data files: JSONL with {"text"} or {"messages": [{"role", "content"}]}, and, where known, "label" (1: what is watched for),
   "group" (what is kept together: a source, an author, a template) and "slice" (what is reported apart).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.data.chat import chat_text, check_messages, has_template, opening
from assay.data.turns import places
from assay.errors import UsageError, bad_argument
from assay.model.context import context_length
from assay.model.model import Model
from assay.records import Example, digest

LARGEST = 64 << 20  # bytes of a data file
LONGEST = 4096  # tokens of a conversation that are read, where the context is as long
KEYS = ("text", "messages", "label", "group", "slice")


@dataclass(frozen=True)
class Talk:
    """Token ids, and (start, stop) of the turns that are judged. `messages`: what it was written from; () for a plain text."""

    ids: tuple[int, ...]
    turns: tuple[tuple[int, int], ...]
    label: int | None = None
    group: str = ""
    slice: str = ""
    text: str = ""
    messages: tuple[Mapping[str, str], ...] = ()


def read_talks(model: Model, path: str | Path, labelled: bool = False) -> list[Talk]:
    """The conversations of a JSONL file. Raises UsageError, naming the line, for what is none."""
    path = Path(path)
    if not path.is_file():
        raise bad_argument("file", str(path), "a JSONL file of texts or conversations")
    if path.stat().st_size > LARGEST:
        raise bad_argument("file", f"{path} of {path.stat().st_size} bytes", f"at most {LARGEST} bytes")
    found = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    found.append(_talk(model, _record(line, where, labelled), number))
                except UsageError as error:
                    raise UsageError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    if not found:
        raise bad_argument("file", str(path), "at least one text or conversation")
    return found


def talks_of(model: Model, examples: Iterable[Example]) -> list[Talk]:
    """Examples of a concept as conversations of one turn; groups are their templates."""
    return [_of_text(model, each.text, each.label, each.template, each.template.split("/")[0]) for each in examples]


def texts_as_talks(model: Model, texts: Sequence[str], group: str = "", label: int | None = 0) -> list[Talk]:
    """Plain texts; each is a group of its own unless one is given."""
    return [_of_text(model, text, label, group or f"text {number}", group) for number, text in enumerate(texts)]


def messages_as_talk(model: Model, messages: Sequence[Mapping[str, str]], **facts: Any) -> Talk:
    """A conversation; judged are the assistant's turns, or, where it has not spoken, all of it from its first word on."""
    check_messages(messages)
    ids: list[int] = []
    turns: list[tuple[int, int]] = []
    spoken = any(message["role"] == "assistant" for message in messages)
    for at, message in enumerate(messages):
        judged = message["role"] == "assistant" if spoken else at == len(messages) - 1
        if judged and spoken:
            before = model.tokens(chat_text(model, messages[:at]))[0] if at else ids
            after = [*before, *_ids(model, message["content"] if has_template(model) else f" {message['content']}")]
            if ids[:-1] != before[: max(0, len(ids) - 1)]:  # as of templates that leave out what was thought, or add a space
                turns = _again(model, messages[:at], before)
            turns.append((len(before), len(after)))
            ids = after
        elif judged:
            ids = model.tokens(chat_text(model, messages))[0]
            turns.append((opening(model, messages, ids), len(ids)))
    text = "\n".join(message["content"] for message in messages)
    return _cut(model, ids, turns, text, messages=tuple(messages), **facts)


def refuse_seen(name: str, talks: Sequence[Talk], seen: Iterable[str], how: str) -> None:
    """Raises UsageError where the text of a conversation is among those whose hashes are given."""
    known = set(seen)
    same = [talk.text for talk in talks if digest([talk.text]) in known]
    if same:
        raise bad_argument(name, f"{len(same)} texts that the monitor was {how}", "other texts", f"One is {same[0][:60]!r}.")


def _again(model: Model, messages: Sequence[Mapping[str, str]], ids: Sequence[int]) -> list[tuple[int, int]]:
    """Where the assistant's turns lie in a later writing of the conversation. Raises UsageError where they are not there."""
    found = [place for message, place in zip(messages, places(model, messages, ids), strict=True)
             if message["role"] == "assistant"]  # fmt: skip
    if None in found:
        raise UsageError("the chat template writes what the assistant said earlier in other words: its turns cannot be told"
                         " apart. Give each as a conversation of its own.")  # fmt: skip
    return [place for place in found if place is not None]


def _of_text(model: Model, text: str, label: int | None, group: str, name: str) -> Talk:
    ids = model.tokens(text)[0]
    return _cut(model, ids, [(0, len(ids))], text, label=label, group=group, slice=name)


def _cut(model: Model, ids: Sequence[int], turns: Sequence[tuple[int, int]], text: str, **facts: Any) -> Talk:
    """As much of it as is read: no position that the model has not."""
    longest = min(LONGEST, context_length(model.hf) or LONGEST)
    inside = [(max(1, start), min(stop, longest)) for start, stop in turns if min(stop, longest) > max(1, start)]
    if not inside and turns and max(stop for _, stop in turns) > longest:
        raise bad_argument("text", f"{text[:60]!r}.., judged from token {turns[0][0]} on",
                           f"words within the first {longest} tokens, which are read")  # fmt: skip
    if not inside:
        raise bad_argument("text", text[:60], "two tokens or more")
    return Talk(tuple(ids[:longest]), tuple(inside), text=text, **facts)


def _ids(model: Model, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def _record(line: bytes, where: str, labelled: bool) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
        json.dumps(record, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise UsageError(f'{where}: not JSON ({error}). One object a line: {{"text": ..}} or {{"messages": [..]}}.') from error
    if not isinstance(record, dict) or ("text" in record) == ("messages" in record):
        raise UsageError(f'{where}: allowed: an object with either "text" or "messages".')
    if unknown := sorted(set(record) - set(KEYS)):
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(KEYS)}.")
    if labelled and record.get("label") not in (0, 1) or record.get("label") not in (0, 1, None):
        raise UsageError(f'{where}: "label" is {record.get("label")!r}; allowed: 1 (what is watched for) or 0.')
    return record


def _talk(model: Model, record: Mapping[str, Any], number: int) -> Talk:
    facts = {"label": record.get("label"), "group": str(record.get("group", f"line {number}")),
             "slice": str(record.get("slice", ""))}  # fmt: skip
    if "messages" in record:
        said: list[Any] = record["messages"] if isinstance(record["messages"], list) else [None]
        if not all(isinstance(each, dict) and isinstance(each.get("content"), str) for each in said):
            raise bad_argument("messages", str(record["messages"])[:60], 'a list of {"role": .., "content": a text}')
        return messages_as_talk(model, said, **facts)
    if not isinstance(record["text"], str):
        raise bad_argument(f"line {number}", record["text"], "a text")
    ids = model.tokens(record["text"])[0] if record["text"] else []
    return _cut(model, ids, [(0, len(ids))], record["text"], **facts)
