"""Whether a text has the concept: only a rule, or the claim's own labels, may say so.

1. `concept_rule`, a regular expression among the claim's locked options, labels any text: the concept is there
   when the expression is found. A claim of the kind *explains* carries its rule, and "member" means what that rule
   says: items are labelled by it before any method looks at them.
2. Without one, only words of the claim's own data have labels: a token that occurs in non-members and in no
   member of the confirm split cannot bring the concept in. Texts with other tokens have no sure label.

What a language model says about a text is no label.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from assay.data.prepare_concept import PreparedConcept
from assay.errors import bad_argument
from assay.evidence.rules import rule_of
from assay.evidence.search.base import Found, Hunt
from assay.records import Example

Rule = Callable[[str], bool]
FROM_DATA = "concept"  # a rule that only repeats the labels of the data


def as_claimed(find: Callable[[Hunt], Found]) -> Callable[[Hunt], Found]:
    """A method that meets items with the labels that the claim is about."""

    @functools.wraps(find)
    def with_labels(hunt: Hunt) -> Found:
        labels = measured_labels(hunt) if isinstance(hunt.data, PreparedConcept) else None
        if labels is None or labels == hunt.data.labels:
            return find(hunt)
        items = [replace(item, label=label) for item, label in zip(hunt.data.examples, labels, strict=True)]
        return find(replace(hunt, data=replace(hunt.data, examples=items)))

    return with_labels


def measured_labels(hunt: Hunt) -> list[int] | None:
    """The labels that the gates were measured with, else what the claim's own rule says; None where items keep theirs."""
    if "label" in hunt.columns:
        return [int(label or 0) for label in hunt.columns["label"]]
    rule = claimed_rule(hunt)
    return None if rule is None else rule_of(rule)(hunt.data.examples)


def claimed_rule(hunt: Hunt) -> Mapping[str, Any] | None:
    """The rule that is part of the claim itself, when it is more than the labels of the data."""
    rule = hunt.claim.subject.get("rule")
    return None if not isinstance(rule, Mapping) or rule.get("type") == FROM_DATA else rule


def concept_rule(hunt: Hunt) -> Rule | None:
    """text -> whether the concept is there; None when the claim has no rule. Raises UsageError for a wrong one."""
    claimed = claimed_rule(hunt)
    if claimed is not None:
        said = rule_of(claimed)
        return lambda text: bool(said([Example(text, 0, "")])[0])
    given = hunt.plan.settings.get("options", {}).get("concept_rule")
    if given is None:
        return None
    try:
        pattern = re.compile(given)
    except (re.error, TypeError) as problem:
        raise bad_argument("concept_rule", given, "a regular expression", f"{problem}.") from problem
    return lambda text: pattern.search(text) is not None


def token_sets(hunt: Hunt) -> tuple[set[int], set[int]]:
    """(tokens of members, tokens of non-members) of the confirm split."""
    members: set[int] = set()
    others: set[int] = set()
    for example, ids in zip(hunt.data.items, hunt.data.tokens, strict=True):
        (members if example.label else others).update(ids)
    return members, others
