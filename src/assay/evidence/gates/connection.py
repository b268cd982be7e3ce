"""Connection: does switching A off lower B, more than it lowers others and more than other changes do?

1. `link.effect`: fall of B at its peak when A is switched off where it fires, in standard deviations of B.
2. `link.specific`: that fall minus that of the feature that falls most among those firing about as often as B.
3. `link.random`: that fall minus that under the strongest change of equal size along a random direction at A's
   site (absolute mean change). The empirical p is kept.
4. `link.together`: phi of firing minus its mean over all circular shifts within the text. `link.partial`
   (reported): the same with what token identity explains taken out of both.
5. `link.reverse`: 1 - change of A when B is switched off; A comes first, so any change is the instrument's.
   `link.itself`: B's own fall then, which must be there.
6. `link.direct` (reported): the share of the fall that is left when everything in between is kept as it was.

7. `second_corpus.link`, `second_corpus.together`: 1. and 4. on the texts of a second corpus; planned only for claims that name
   one, and then they decide.

Co-activation alone is what a common cause gives; the fall is what it does not.
"""

from dataclasses import replace

from assay.evidence.edge_link import about_edge
from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register
from assay.evidence.gates.erasure import against_strongest
from assay.evidence.second_corpus import OPTION
from assay.records import Claim, GatePlan

KINDS = ("connects",)


def measure(instrument, gate: GatePlan) -> Columns:
    """Fall of B and of features like it."""
    return instrument.link()


def effect(table: Table, gate: GatePlan) -> Contrast:
    """Fall of B."""
    return Contrast(list(column(table, "link")))


def specific(table: Table, gate: GatePlan) -> Contrast:
    """Fall of B minus that of the feature like it that moves most."""
    return against_strongest(column(table, "link"), either_sense(table, "like."))  # type: ignore[arg-type]


def measure_random(instrument, gate: GatePlan) -> Columns:
    """Fall of B under random changes of equal size."""
    return {**instrument.link(), **instrument.controls()}


def contrast_random(table: Table, gate: GatePlan) -> Contrast:
    """Fall minus that under the strongest random change."""
    return against_strongest(column(table, "link"), either_sense(table, "random.source."))  # type: ignore[arg-type]


def either_sense(table: Table, prefix: str) -> dict[str, list[float | None]]:
    """Columns with a prefix, those that go the other way turned around."""
    found = {}
    for name in sorted(name for name in table["columns"] if name.startswith(prefix)):
        values = list(column(table, name))
        found[name] = values if mean(values) >= 0 else [None if value is None else -value for value in values]
    return found


def measure_together(instrument, gate: GatePlan) -> Columns:
    """Counts of firing."""
    return instrument.together()


def _phi(name: str):
    """Per text, its part of phi minus that under circular shifts; the mean over texts of equal length is the whole."""

    def contrast(table: Table, gate: GatePlan) -> Contrast:
        n, a, b, aa, bb, ab, shifted = (
            [value or 0.0 for value in column(table, f"{name}.{part}")] for part in ("n", "a", "b", "aa", "bb", "ab", "shifted")
        )  # fmt: skip
        total = sum(n)
        spread = [sum(squares) / total - (sum(sums) / total) ** 2 for sums, squares in ((a, aa), (b, bb))]
        scale = total / len(n) * (spread[0] * spread[1]) ** 0.5 if min(spread) > 1e-9 else float("inf")  # constant: phi is 0
        values: list[float | None] = [(both - null) / scale for both, null in zip(ab, shifted, strict=True)]
        return Contrast(values, notes={"rates": [sum(a) / total, sum(b) / total]})

    return contrast


def measure_reverse(instrument, gate: GatePlan) -> Columns:
    """B switched off."""
    return instrument.reverse()


def reverse(table: Table, gate: GatePlan) -> Contrast:
    """1 - change of A."""
    return Contrast([None if value is None else 1 - abs(value) for value in column(table, "reverse")])


def itself(table: Table, gate: GatePlan) -> Contrast:
    """B's own fall."""
    return Contrast(list(column(table, "itself")))


def measure_direct(instrument, gate: GatePlan) -> Columns:
    """Fall of B with everything in between kept."""
    return {**instrument.link(), **instrument.direct()}


def direct(table: Table, gate: GatePlan) -> Contrast:
    """Direct fall as a share of the mean total fall."""
    total = mean(column(table, "link"))
    if total <= 0:
        raise KeyError("no total effect")
    return Contrast(difference(column(table, "direct"), [0.0] * len(column(table, "direct")), total))


def about_features(claim: Claim) -> bool:
    """Whether a claim is about two features."""
    return not about_edge(claim)


def measure_second(instrument, gate: GatePlan) -> Columns:
    """Per text of the second corpus, not per item."""
    return instrument.second()


def second(contrast):
    """A contrast of the columns `second.*`, with the templates of the second corpus for clusters."""

    def of(table: Table, gate: GatePlan) -> Contrast:
        templates = [f"template {number:g}" for number in column(table, "second.template")]
        own = {key.removeprefix("second."): values for key, values in table["columns"].items() if key.startswith("second.")}
        return replace(contrast({**table, "columns": own}, gate), clusters=templates)

    return of


def _add(name, group, sesoi, measured, contrast, says="", required=True, version=1, asked=None) -> None:
    register(Gate(name if "." in name else f"link.{name}", group, KINDS, sesoi, required, measured, contrast, says=says,
                  version=version, about=about_features, asked=asked))  # fmt: skip


_add("effect", "link", 0.2, measure, effect, "switching A off lowers B by {estimate} of its spread")
_add("specific", "specific", 0.05, measure, specific, "{estimate} more than the feature like B that moves most")
_add("random", "random", 0.05, measure_random, contrast_random, "{estimate} more than the strongest change of equal size",
     version=2)
_add("together", "coactivation", 0.1, measure_together, _phi("together"), "they fire together with a phi of {estimate}")
_add("partial", "coactivation", 0.1, measure_together, _phi("partial"), required=False)
_add("reverse", "instrument", 0.9, measure_reverse, reverse, required=False)
_add("itself", "instrument", 0.2, measure_reverse, itself, required=False)
_add("direct", "direct", 0.5, measure_direct, direct, "{estimate} of it is direct", required=False)
_add("second_corpus.link", "link", 0.2, measure_second, second(effect), "in the second corpus it lowers B by {estimate}",
     asked=OPTION)
_add("second_corpus.together", "coactivation", 0.1, measure_second, second(_phi("together")),
     "in the second corpus they fire together with a phi of {estimate}", asked=OPTION)
