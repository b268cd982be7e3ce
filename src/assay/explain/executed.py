"""Rules applied to windows of a part that was cut into conditions once: the same answers as from the text, many times faster.

1. The part's rows become a table of all conditions at all tokens (`assay.explain.table`); a rule is applied to all at once.
2. A window is found in its row by document, position and its very tokens; what the rule says there is its verdict.
3. A window of other rows, or a rule with a condition that the table lacks, is read from its text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from assay.explain.lexical import table_of
from assay.explain.reading import CodedPart
from assay.explain.records import Window
from assay.explain.rules import PrefixRule, fires_in, rule_of
from assay.explain.table import Table

Said = Bool[np.ndarray, " token"]


class Executed:
    """What rules say at the windows of one part. `table`: of all its tokens, where it was made before."""

    def __init__(self, part: CodedPart, table: Table | None = None) -> None:
        self.part, self.table = part, table_of(part) if table is None else table
        self._rows: dict[str, list[int]] = {}
        for row, document in enumerate(part.documents.tolist()):
            self._rows.setdefault(part.names[document], []).append(row)

    def __call__(self, rule: Mapping[str, Any] | PrefixRule, windows: Sequence[Window]) -> list[Said]:
        """Whether a rule fires, for every token of every window."""
        rule = rule if isinstance(rule, PrefixRule) else rule_of(rule)
        starts = [self.start(window) for window in windows]
        if any(condition.kind.name not in self.table.sizes for condition in rule.conditions):
            starts = [None] * len(windows)
        everywhere = self.table.fires(rule) if any(start is not None for start in starts) else np.zeros(0, bool)
        other = iter(fires_in(rule, [window for window, start in zip(windows, starts, strict=True) if start is None]))
        return [next(other) if start is None else everywhere[start : start + len(window.tokens)]
                for window, start in zip(windows, starts, strict=True)]  # fmt: skip

    def start(self, window: Window) -> int | None:
        """Where a window begins among the tokens of the part; None where it is not from it."""
        for row in self._rows.get(window.document, ()):
            first, end = int(self.part.starts[row]), int(self.part.starts[row + 1])
            start = first + window.position - window.at
            inside = first <= start and start + len(window.tokens) <= end and start - first == len(window.lead)
            if inside and self.part.tokens[start : start + len(window.tokens)].tolist() == list(window.tokens):
                return start
        return None
