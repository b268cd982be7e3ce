"""The explainer that asks nobody: rules on the text read so far, found by description length.

1. The part *shown* of a reading as a table of values of all conditions at all its tokens (`table`); tokens that are not read
   (first, massive) are left out. Of more than `tokens` tokens, rows spread evenly over the part are taken.
2. For every unit the rule that shortens the description of where it is on the most, if any does (`search`).
3. The explanation is the rule in words; the rule itself goes with it, so that anything can check it. Where no rule pays the
   text is "no rule found".
4. Only on and off are explained, not how much; and only by what stands before: units that look for a meaning which no list
   of words, place or pattern gives away get no rule.

Blocks of units are kept in a folder, named by a hash of everything that decides them: a killed run goes on with the next block.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from assay.errors import bad_argument
from assay.explain.conditions import KINDS, Kind, usable
from assay.explain.reading import CodedPart, Reading, open_reading
from assay.explain.records import Explanation
from assay.explain.rules import rule_words
from assay.explain.search import Found, Searcher, SearchPlan
from assay.explain.table import Table, make_table
from assay.features.engines import HERE, Where, in_order
from assay.files import write_file
from assay.records import digest

EXPLAINER, NO_RULE = "lexical/1", "no rule found"
FOLDER = "lexical"
Report = Callable[[int], Any]


@dataclass(frozen=True)
class LexicalPlan:
    """`search`: how long rules may be. `tokens`: of *shown*, at most. `kinds`: names of conditions, None for all that need no
    model of their own. `block`: units whose explanations are kept together."""

    search: SearchPlan = field(default_factory=SearchPlan)
    tokens: int = 300_000
    kinds: tuple[str, ...] | None = None
    block: int = 128

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("block", 1)):
            if getattr(self, name) < least:
                raise bad_argument(name, getattr(self, name), f"{least} or more")

    @property
    def chosen(self) -> tuple[Kind, ...]:
        """The kinds that are looked for. Raises UsageError for an unknown one, NeedsExtra where a package is missing."""
        if self.kinds is None:
            return usable()
        kinds = tuple(KINDS.get(name) for name in self.kinds)
        for kind in kinds:
            kind.able()
        return kinds


def explain_lexical(
    reading: Reading, units: Sequence[str] | None = None, plan: LexicalPlan | None = None, report: Report | None = None,
    folder: Path | None = None, where: Where = HERE,
) -> Iterator[Explanation]:  # fmt: skip
    """An explanation of every unit, in order; `folder`: where blocks are kept, beside the reading if not said.

    `report` is called with the number of units done. `where`: where blocks are explained. Raises UsageError for units that
    the reading does not have.
    """
    plan = LexicalPlan() if plan is None else plan
    names = list(reading.units if units is None else units)
    columns = [reading.column(name) for name in names]
    identity = {"reading": reading.digest, "plan": asdict(plan), "kinds": [kind.name for kind in plan.chosen],
                "explainer": EXPLAINER}  # fmt: skip
    folder = ((reading.folder / FOLDER if folder is None else folder) / digest(identity)[:16]).absolute()
    blocks = []
    for number, start in enumerate(range(0, len(names), plan.block)):
        some = names[start : start + plan.block]
        blocks.append(_Block(number, some, columns[start : start + plan.block], folder / f"{digest(some)[:16]}.json"))
    there = partial(_explainer_there, reading.folder.absolute(), plan)
    for done in in_order(where.run(there if where.engine is not None else lambda: _Explainer(reading, plan), blocks)):
        if report is not None:
            report(len(done))
        yield from done


@dataclass(frozen=True)
class _Block:
    """Units whose explanations are kept in one file."""

    number: int
    names: list[str]
    columns: list[int]
    path: Path


class _Explainer:
    """Explains blocks that are not kept; what it takes is made for the first of them."""

    def __init__(self, reading: Reading, plan: LexicalPlan) -> None:
        self.reading, self.plan = reading, plan

    @cached_property
    def work(self) -> "_Work":
        return _Work(self.reading.part("shown"), self.plan)

    def __call__(self, block: _Block) -> tuple[int, list[Explanation]]:
        done = _kept(block.path, block.names)
        if done is None:
            done = [self.work.explain(name, column) for name, column in zip(block.names, block.columns, strict=True)]
            write_file(block.path, json.dumps([asdict(one) for one in done]).encode())
        return block.number, done


def _explainer_there(folder: Path, plan: LexicalPlan) -> _Explainer:
    return _Explainer(open_reading(folder), plan)


def table_of(
    part: CodedPart, kinds: Sequence[Kind] | None = None, least: int = 1, keep: Bool[np.ndarray, " token"] | None = None,
    report: Report | None = None,
) -> Table:  # fmt: skip
    """All tokens of a part (or those to keep) as a table: `table.fires(rule)` says where a rule holds, fast for many rules."""
    rows = rows_of(part)
    return make_table(rows, [int(number) for number in part.documents], keep, kinds, least, report)


def rows_of(part: CodedPart) -> list[list[str]]:
    """Pieces row by row."""
    starts = part.starts.tolist()
    return [part.pieces[start:end] for start, end in zip(starts[:-1], starts[1:], strict=True)]


class _Work:
    """The table of what was shown, made once."""

    def __init__(self, part: CodedPart, plan: LexicalPlan) -> None:
        keep = np.asarray(part.typical, bool) & _spread(part, plan.tokens)
        if not keep.any():
            raise bad_argument("reading", "no token of the part shown that is read", "at least one")
        table = table_of(part, plan.chosen, plan.search.documents, keep)
        self.searcher, self.codes = Searcher(table, plan.search), part.by_unit
        self.place = np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)

    def explain(self, name: str, column: int) -> Explanation:
        tokens = self.codes.indices[self.codes.indptr[column] : self.codes.indptr[column + 1]]
        fired = self.place[np.sort(tokens)]
        return explanation_of(name, self.searcher.find(fired[fired >= 0]))


def explanation_of(name: str, found: Found) -> Explanation:
    """What a search found, in words."""
    bits = {"without": found.without, "with": found.given, "rule": found.rule, "fired": found.fired, "said": found.said,
            "hits": found.hits}  # fmt: skip
    text = NO_RULE if found.record is None else rule_words(found.record)
    return Explanation(name, text, EXPLAINER, found.record, bits)


def _spread(part: CodedPart, most: int) -> Bool[np.ndarray, " token"]:
    """All tokens, or those of rows spread evenly."""
    lengths: Int[np.ndarray, " row"] = np.diff(part.starts)
    wanted = int(len(lengths) * min(1.0, most / max(1, part.n_tokens)))
    chosen = np.zeros(len(lengths), bool)
    chosen[np.linspace(0, len(lengths) - 1, max(1, wanted)).round().astype(int)] = True
    return np.repeat(chosen, lengths)


def _kept(path: Path, names: Sequence[str]) -> list[Explanation] | None:
    """Explanations of a block that was done before; None where there are none, or the file is damaged."""
    try:
        found = [Explanation(**{**record, "cost": Explanation("", "", "").cost}) for record in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        return None
    return found if [one.feature for one in found] == list(names) else None
