"""Rules over what was read up to a token: one alternative holds, and no exception.

    {"type": "prefix", "any": [[CONDITION, ..], ..], "not": [CONDITION, ..]}

1. `any`: alternatives, each a list of conditions (`conditions.py`) that must all hold. `not`: none of these may hold.
2. A rule says of every token whether the unit should fire there. It sees what the model saw, and nothing after the token.
3. `fires(record, rows)` goes along rows of pieces, `holds(record, prefix)` looks at one text: they agree.
4. Length in bits: gamma(alternatives) + of each gamma(conditions) + gamma(exceptions + 1) + the bits of all conditions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from assay.errors import bad_argument
from assay.explain.conditions import NOUN, Kind, check_condition, condition_bits, gamma_bits
from assay.explain.records import Window
from assay.explain.views import Prefix, Row, as_prefix

TYPE = "prefix"
MOST_ALTERNATIVES, MOST_CONDITIONS = 64, 16
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Condition:
    """A checked condition."""

    kind: Kind
    values: frozenset[str]
    record: Record


@dataclass(frozen=True)
class PrefixRule:
    """A checked rule."""

    any: tuple[tuple[Condition, ...], ...]
    exceptions: tuple[Condition, ...]

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All of them, in order."""
        return (*(condition for alternative in self.any for condition in alternative), *self.exceptions)


def rule_of(record: Record) -> PrefixRule:
    """The rule of a record. Raises UsageError for anything else, NeedsExtra for a condition that needs a missing package."""
    known = isinstance(record, Mapping) and {"type", "any"} <= set(record) <= {"type", "any", "not"}
    if not known or record["type"] != TYPE:
        raise bad_argument("rule", record, '{"type": "prefix", "any": [[condition, ..], ..], "not": [condition, ..]}')
    alternatives = _listed(record["any"], "any", 1, MOST_ALTERNATIVES)
    checked = tuple(tuple(map(_condition, _listed(one, "any", 1, MOST_CONDITIONS))) for one in alternatives)
    return PrefixRule(checked, tuple(map(_condition, _listed(record.get("not", []), "not", 0, MOST_ALTERNATIVES))))


def _listed(given: Any, name: str, least: int, most: int) -> Sequence[Any]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not least <= len(given) <= most:
        raise bad_argument(f"rule.{name}", given, f"a list of {least} to {most}")
    return given


def _condition(record: Any) -> Condition:
    return Condition(check_condition(record), frozenset(record["of"]), record)


def holds(rule: Record | PrefixRule, prefix: Prefix | str) -> bool:
    """Whether a rule says *fires* at the last token of a prefix; of a text alone, its last word, number or marks."""
    prefix = as_prefix(prefix)
    rule = rule if isinstance(rule, PrefixRule) else rule_of(rule)
    kinds = {condition.kind.name: condition.kind for condition in rule.conditions}
    values = {name: set(kind.values(prefix)) for name, kind in kinds.items()}

    def met(condition: Condition) -> bool:
        return not condition.values.isdisjoint(values[condition.kind.name])

    return any(all(map(met, one)) for one in rule.any) and not any(map(met, rule.exceptions))


def fires(rule: Record | PrefixRule, rows: Iterable[Sequence[str]]) -> list[Bool[np.ndarray, " token"]]:
    """Of rows of pieces, at which tokens a rule says *fires*. Pieces of a row begin where the model's reading began."""
    rule = rule if isinstance(rule, PrefixRule) else rule_of(rule)
    return [_along(rule, Row(tuple(pieces))) for pieces in rows]


def fires_in(rule: Record | PrefixRule, windows: Iterable[Window]) -> list[Bool[np.ndarray, " token"]]:
    """Of windows, at which of their tokens a rule says *fires*; what was read before the window (`lead`) is seen too."""
    windows = list(windows)
    found = fires(rule, [(*window.lead, *window.pieces) for window in windows])
    return [one[len(window.lead) :] for one, window in zip(found, windows, strict=True)]


def fires_where(
    rule: Record | PrefixRule, met: Callable[[Condition], Bool[np.ndarray, " token"]]
) -> Bool[np.ndarray, " token"]:  # fmt: skip
    """At which tokens a rule says *fires*, by where each of its conditions is met."""
    rule = rule if isinstance(rule, PrefixRule) else rule_of(rule)
    said = np.logical_or.reduce([np.logical_and.reduce([met(each) for each in alternative]) for alternative in rule.any])
    for condition in rule.exceptions:
        said &= ~met(condition)
    return said


def _along(rule: PrefixRule, row: Row) -> Bool[np.ndarray, " token"]:
    kinds = {condition.kind.name: condition.kind for condition in rule.conditions}
    values = {name: list(kind.along(row)) for name, kind in kinds.items()}

    def met(condition: Condition) -> Bool[np.ndarray, " token"]:
        found = values[condition.kind.name]
        return np.fromiter((not condition.values.isdisjoint(one) for one in found), bool, len(found))

    return fires_where(rule, met)


def rule_bits(record: Record, sizes: Mapping[str, int]) -> float:
    """Bits of a rule; `sizes`: the number of values of every kind that was looked for, in the text it was found in."""
    exceptions = record.get("not", [])
    parts = [*record["any"], exceptions]
    lengths = [len(record["any"]), *(len(one) for one in record["any"]), len(exceptions) + 1]
    return sum(map(gamma_bits, lengths)) + sum(condition_bits(condition, sizes) for part in parts for condition in part)


# in words ------------------------------------------------------------------------------------------


def rule_words(record: Record) -> str:
    """A rule as a plain sentence, the same for the same record. Raises UsageError for a record that is no rule."""
    rule = rule_of(record)
    said = "; also on ".join(_alternative(one) for one in rule.any)
    if not rule.exceptions:
        return f"fires on {said}"
    return f"fires on {said}; but not {' nor '.join(_exception(condition) for condition in rule.exceptions)}"


def _alternative(conditions: Sequence[Condition]) -> str:
    nouns = [_said(condition) for condition in conditions if condition.kind.part == NOUN]
    clauses = [_said(condition) for condition in conditions if condition.kind.part != NOUN]
    return " ".join([" that are also ".join(nouns) or "any token", " and ".join(clauses)]).strip()


def _exception(condition: Condition) -> str:
    return f"{'on ' if condition.kind.part == NOUN else ''}{_said(condition)}"


def _said(condition: Condition) -> str:
    return condition.kind.say(condition.record["of"])

