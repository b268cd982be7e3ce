"""Options of a claim: what its kind, or a search that serves it, takes besides the settings every claim has.

Each has one name, the kinds that read it, and a check. An option that nothing reads is refused when the claim is
stated: it would be locked, and change nothing. A further option is one entry of `OPTIONS`.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from assay.data.tasks import TASKS
from assay.errors import bad_argument
from assay.registry import Registry

AN_ADDRESS = "an http address without user, password or query: it is locked and shown"
SCORED = ("represents", "decodes", "explains", "detects")


@dataclass(frozen=True)
class Option:
    """An option: the kinds that read it, what is allowed in words, and whether a value is."""

    kinds: tuple[str, ...]
    allowed: str
    holds: Callable[[Any], bool]


OPTIONS: Registry[Option] = Registry("option")


def check_options(kind: str, given: Mapping[str, Any]) -> None:
    """Raises UsageError for an option that a kind does not have, or a value that it cannot take."""
    names = [name for name in OPTIONS.names() if kind in OPTIONS.get(name).kinds]
    for name, value in given.items():
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else ""
            raise bad_argument("option", name, f"{', '.join(names) or 'none'} for kind {kind}", hint)
        option = OPTIONS.get(name)
        if not option.holds(value):
            raise bad_argument(f"option {name}", value, option.allowed)


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_text, value)) and 0 < len(value) == len(set(value))


def _true(value: Any) -> bool:
    return value is True


def _bare_name(value: Any) -> bool:
    return _text(value) and not set(value) & set("/\\")


def _tasks(value: Any) -> bool:
    return _texts(value) and all(name in TASKS for name in value)


def _pattern(value: Any) -> bool:
    try:
        return _text(value) and re.compile(value) is not None
    except re.error:
        return False


def _address(value: Any) -> bool:
    try:
        parts = urlsplit(value) if _text(value) else None
    except ValueError:
        return False
    return parts is not None and parts.scheme in ("http", "https") and "@" not in parts.netloc and not parts.query


OPTIONS.add("reader_url", Option(("detects",), AN_ADDRESS, _address))
OPTIONS.add("reader_model", Option(("detects",), "the name of a model", _text))
OPTIONS.add("reader_question", Option(("detects",), "a question about a text whose answer is yes for members", _text))
OPTIONS.add("off_target", Option(("uses", "steers"), f"a list of bundled tasks, of: {', '.join(TASKS.names())}", _tasks))
OPTIONS.add("second_corpus", Option((*SCORED, "connects"), "a bundled concept, or a concept file in the working folder",
                                    _bare_name))  # fmt: skip
OPTIONS.add("output", Option(("represents", "explains"), "a list of words, all different", _texts))
OPTIONS.add("interchange", Option(("uses",), "true", _true))
OPTIONS.add("scrub", Option(("mediates",), "true", _true))
OPTIONS.add("generation", Option(("steers",), "a regular expression that steered texts should match", _pattern))
OPTIONS.add("neutral", Option(("uses", "steers"), "a list of ordinary texts, all different", _texts))
OPTIONS.add("rival", Option(("mediates",), "a list of edges and nodes of another circuit, all different", _texts))
OPTIONS.add("instruction", Option(("steers",), "a text", _text))
OPTIONS.add("lag", Option(("connects",), "a whole number of tokens, 0 or more", _whole(0)))
OPTIONS.add("screened", Option(("connects",), "how many pairs were screened, 1 or more", _whole(1)))
OPTIONS.add("whole_corpus", Option(("explains",), "true", _true))
OPTIONS.add("concept_rule", Option(SCORED, "a regular expression", _pattern))
OPTIONS.add("proposer_url", Option(SCORED, AN_ADDRESS, _address))
OPTIONS.add("proposer_model", Option(SCORED, "the name of a model", _text))
