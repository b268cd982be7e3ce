"""Rules: explanations that a machine can apply to a text without asking anybody.

`{"type": "regex", "pattern": ..}`     the text matches (case does not matter)
`{"type": "lexicon", "words": [..]}`   one of the words is in it, whole
`{"type": "concept"}`                  the labels that came with the texts
`{"type": "prefix", "any": [[..]]}`    conditions on the text up to the token that is read (`assay.explain.rules`)

A rule says of every text whether the feature should be on. A further type is one entry of `RULES`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay.errors import bad_argument
from assay.explain import rules as prefix_rules
from assay.explain.views import Prefix, prefix_of
from assay.records import Example, digest
from assay.registry import Registry

Rule = Callable[[Sequence[Example]], list[int]]
LONGEST_PATTERN = 500

RULES: Registry[Callable[[Mapping[str, Any]], Rule]] = Registry("rule")


def rule_of(record: Mapping[str, Any]) -> Rule:
    """The rule that a record describes. Raises UsageError for an unknown type or a pattern that is none."""
    return RULES.get(str(record.get("type")))(record)


@dataclass(frozen=True)
class Ruled(Example):
    """An example whose label is what a rule says of it. `by`: the hash of that rule; `place`: (part, token) of a corpus."""

    by: str = ""
    place: tuple[str, int] = ("", -1)


def said(record: Mapping[str, Any], examples: Sequence[Example]) -> list[int]:
    """What a rule says of examples; where their labels are its own verdicts already, these."""
    by = digest(dict(record))
    if examples and all(isinstance(example, Ruled) and example.by == by for example in examples):
        return [example.label for example in examples]
    return rule_of(record)(examples)


def rule_words(record: Mapping[str, Any]) -> str:
    """A rule in words, for a claim's sentence."""
    if record["type"] == "regex":
        return f"the text matches /{record['pattern']}/"
    if record["type"] == "lexicon":
        words = [str(word) for word in record["words"]]
        return f"the text has one of {', '.join(words[:5])}{f' and {len(words) - 5} more' if len(words) > 5 else ''}"
    if record["type"] == prefix_rules.TYPE:
        return f"what was read ends in {prefix_rules.rule_words(record).removeprefix('fires on ')}"
    return "the text is a member of the concept" if record["type"] == "concept" else f"the rule {record['type']} says so"


@RULES.register("regex")
def regex(record: Mapping[str, Any]) -> Rule:
    """1 where the pattern is found."""
    pattern = record.get("pattern")
    if not isinstance(pattern, str) or not 0 < len(pattern) <= LONGEST_PATTERN:
        raise bad_argument("pattern", pattern, f"a regular expression of 1 to {LONGEST_PATTERN} characters")
    try:
        found = re.compile(pattern, re.IGNORECASE)
    except re.error as problem:
        raise bad_argument("pattern", pattern, f"a regular expression ({problem})") from problem
    return lambda examples: [int(found.search(example.text) is not None) for example in examples]


@RULES.register("lexicon")
def lexicon(record: Mapping[str, Any]) -> Rule:
    """1 where one of the words stands by itself."""
    words = record.get("words")
    if not isinstance(words, Sequence) or isinstance(words, str) or not words or not all(map(str.strip, words)):
        raise bad_argument("words", words, "a list of words")
    found = re.compile(r"(?<!\w)(?:" + "|".join(re.escape(word) for word in words) + r")(?!\w)", re.IGNORECASE)
    return lambda examples: [int(found.search(example.text) is not None) for example in examples]


@RULES.register("concept")
def concept(record: Mapping[str, Any]) -> Rule:
    """The label of every example."""
    return lambda examples: [example.label for example in examples]


@RULES.register(prefix_rules.TYPE)
def prefix(record: Mapping[str, Any]) -> Rule:
    """1 where the conditions hold of what was read up to the token of an example (`prefix_of` says where that begins)."""
    rule = prefix_rules.rule_of(record)
    return lambda examples: [int(prefix_rules.holds(rule, _prefix(example))) for example in examples]


def _prefix(example: Example) -> Prefix:
    """Items of a corpus that was read end with the token that is read; of other texts its place is found in them."""
    exact = isinstance(example, Ruled) and example.position is not None
    return Prefix(example.text, example.position or 0) if exact else prefix_of(example)
