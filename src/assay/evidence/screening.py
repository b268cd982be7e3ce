"""Screening lists: many features looked at one after another, false discoveries controlled along the way.

1. p-values come in a fixed order and are never tested again: an append-only sequence.
2. An online procedure gives every test its level from what was discovered before: ADDIS (Tian & Ramdas 2019;
   discards conservative nulls, the usual ones here), SAFFRON (Ramdas et al. 2018), LORD++ (Ramdas et al. 2017) for
   independent p-values, LORD dep (Javanmard & Montanari 2018) for any dependence.
3. The outcome is an *FDR list, not individually confirmed*: a member is a candidate for a claim on fresh data.

The procedures are those of the package online-fdr; only order, records and label are kept here. FDR is a promise
about the list: the best member may still be a false one. ADDIS, SAFFRON and LORD++ assume independence: p-values
of features that share texts are not independent, and "lord-dep" is the one to use for them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from online_fdr.p_values.investing.addis.addis import Addis
from online_fdr.p_values.investing.lord.dependent import LordDependent
from online_fdr.p_values.investing.lord.plus_plus import LordPlusPlus
from online_fdr.p_values.investing.saffron.saffron import Saffron

from assay.errors import EvidenceError, bad_argument

LABEL = "FDR list, not individually confirmed"
PROCEDURES: dict[str, Callable[[float], Any]] = {
    "addis": lambda alpha: Addis(alpha, alpha / 2, 0.25, 0.5),
    "saffron": lambda alpha: Saffron(alpha, alpha / 2, 0.5),
    "lord": lambda alpha: LordPlusPlus(alpha, alpha / 2),
    "lord-dep": lambda alpha: LordDependent(alpha, alpha / 2, alpha / 2),
}


@dataclass(frozen=True)
class Screened:
    """One test of a screen: its place in the sequence, its p-value, the level it had, whether it is listed."""

    index: int
    name: str
    p: float
    level: float
    listed: bool


class Screen:
    """An append-only sequence of tests under an online FDR procedure."""

    def __init__(self, alpha: float = 0.1, procedure: str = "addis") -> None:
        if procedure not in PROCEDURES:
            raise bad_argument("procedure", procedure, ", ".join(PROCEDURES))
        if not 0 < alpha < 1:
            raise bad_argument("alpha", alpha, "above 0, below 1")
        self.alpha, self.procedure = alpha, procedure
        self._test = PROCEDURES[procedure](alpha)
        self._tests: list[Screened] = []
        self._names: set[str] = set()

    def add(self, name: str, p: float) -> Screened:
        """Test the next feature. Raises EvidenceError for one that was tested before: a screen has no second try."""
        if name in self._names:
            raise EvidenceError(f"screen: {name} was tested before. A second try needs fresh data and a claim of its own.")
        if not 0 <= p <= 1:
            raise bad_argument(f"p of {name}", p, "0 to 1")
        found = self._test.test_one_detail(p)
        level = found.test_level if found.test_level is not None else found.rejection_threshold
        screened = Screened(len(self._tests), name, float(p), float(level or 0.0), bool(found.rejected))
        self._tests.append(screened)
        self._names.add(name)
        return screened

    def extend(self, tests: Iterable[tuple[str, float]]) -> None:
        """Test several features, in the order given."""
        for name, p in tests:
            self.add(name, p)

    @property
    def tests(self) -> tuple[Screened, ...]:
        """Everything tested, in order: the denominator of the list."""
        return tuple(self._tests)

    @property
    def listed(self) -> tuple[Screened, ...]:
        """The screening list."""
        return tuple(test for test in self._tests if test.listed)

    def record(self) -> dict[str, Any]:
        """Plain data, with the label that every such list carries; `replayed` makes the screen again from it."""
        return {"label": LABEL, "procedure": self.procedure, "alpha": self.alpha, "tested": len(self._tests),
                "listed": [test.name for test in self.listed], "p": {test.name: test.p for test in self._tests}}  # fmt: skip


def replayed(record: dict[str, Any]) -> Screen:
    """The screen of a record, tested again in its order. Raises EvidenceError when another list comes out."""
    screen = Screen(record["alpha"], record["procedure"])
    screen.extend(record["p"].items())
    if [test.name for test in screen.listed] != list(record["listed"]):
        raise EvidenceError("screen: the list in the record does not follow from its p-values and their order.")
    return screen
