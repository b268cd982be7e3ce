"""What `assay circuit test` measures beside the claim, in plain words: areas over sizes, and the tests of Shi et al.

Both are of tune pairs, which were looked at when the circuit was found: they describe it and decide nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

AXES = (("linear", "cpr", "cmd"), ("log", "cpr_log", "cmd_log"))


def areas_record(held: Any) -> dict[str, Any] | None:
    """Areas of the curve that a circuit file keeps, other edges resampled; None where it keeps none."""
    from assay.circuits.faithfulness import areas_of

    points = sorted((m.n_edges, m.value, m.selection) for m in held.faithfulness if m.ablation == "resample")
    if not points:
        return None
    areas = areas_of([n / held.graph.n_edges for n, _, _ in points], [value for _, value, _ in points])
    found = {axis: {"cpr": _value(getattr(areas, cpr)), "cmd": _value(getattr(areas, cmd))} for axis, cpr, cmd in AXES}
    return {"selection": points[0][2], "ablation": "resample", "axis": areas.axis, "first": areas.first,
            "sizes": len(points), **found}  # fmt: skip


def curve_record(curve: Any) -> dict[str, Any]:
    """The same of a curve that was just measured."""
    areas = curve.actual
    found = {axis: {"cpr": _value(getattr(areas, cpr)), "cmd": _value(getattr(areas, cmd))} for axis, cpr, cmd in AXES}
    return {"selection": curve.selection, "ablation": curve.ablation, "axis": areas.axis, "first": areas.first,
            "sizes": len(curve.points), **found}  # fmt: skip


def areas_text(record: dict[str, Any] | None) -> list[str]:
    """Areas in words."""
    if record is None:
        return ["no curve over sizes is kept in this file: CPR and CMD cannot be said"]
    lines = [f"areas over {record['sizes']} sizes, from {100 * record['first']:.2g}% of the edges kept to all, chosen by"
             f" {record['selection'] or 'a rule that the file does not name'}, other edges resampled:"]  # fmt: skip
    for axis, _, _ in AXES:
        cpr, cmd = record[axis]["cpr"], record[axis]["cmd"]
        if cpr is not None and cmd is not None:
            lines.append(f"  {axis + ' axis':<12} CPR {cpr:.3f} (share carried), CMD {cmd:.3f} (distance from the model)")
    return lines


def shi_tests(common: Any, store: Any, model: Any, claim: Any, n_random: int) -> Any:
    """The five tests of a claim's circuit on its tune pairs; None for claims about parts that are no circuit."""
    from assay.circuits.graph import graph_of
    from assay.circuits.hypotheses import all_tests
    from assay.circuits.subgraph import Bench
    from assay.data.prepare import prepare
    from assay.evidence.claims import record_look
    from assay.evidence.edges_instrument import classes_for, is_circuit, mask_of, parts_of
    from assay.evidence.source import source_of

    if claim.kind != "mediates" or not is_circuit(claim.subject["sites"]):
        return None
    locked = store.plan(claim.id).splits["tune"]
    pairs = source_of(claim.task).items("tune", locked["n"], locked["seed"])
    task = prepare(pairs, model)
    graph = graph_of(model, classes_for(claim.subject["sites"], task))
    mask = mask_of(graph, parts_of(model, claim.subject["sites"]))
    half = n_random // 2 or 1
    n_edges = min(half, int(mask.sum()))
    with common.progress("tests of Shi et al.") as report:
        bench: Any = _Counted(Bench(model, task, graph), report, 2 * n_random + 2 * half + n_edges + 5)
        found = all_tests(bench, mask, n_random=n_random, n_inflated=half, n_edges=n_edges, seed=common.seed)
    record_look(store, model.digest, "circuit test: tests of Shi et al.", task.pairs)
    return found


class _Counted:
    """A bench that says how many circuits were run."""

    def __init__(self, bench: Any, report: Callable[[str, int, int], None], total: int) -> None:
        self._bench, self._report, self._done, self._total = bench, report, 0, total

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bench, name)

    def scores(self, masks: Sequence[Any]) -> Any:
        return self._bench.scores(masks, self._told)

    def _told(self, circuits: int) -> None:
        self._done += circuits
        self._report("circuits", min(self._done, self._total), self._total)


def tests_text(found: Any) -> list[str]:
    """The five tests, one line each."""
    if found is None:
        return []
    equal, apart, minimal, enough = found.equivalence, found.independence, found.minimality, found.sufficiency
    p, idle = found.p_holm, minimal.idle()
    lines = [
        ("as good as the model", f"above it on {equal.share:.0%} of {equal.n} pairs; an equal would be on half", "equivalence"),
        ("nothing left outside", f"what the rest does goes with the model's own answer: HSIC {apart.statistic:.3f}",
         "independence"),
        ("no edge too many", f"{len(idle)} of {len(minimal.edges)} edges tried matter less than random ones", "minimality"),
        ("better than random", f"closer to the model than {enough.share:.0%} of {enough.n} random circuits",
         "sufficiency"),
        ("missed more than random", f"cutting it does more than cutting {found.partial_necessity.share:.0%} of as many",
         "partial_necessity"),
    ]  # fmt: skip
    against, strict = set(found.against()), ("equivalence", "independence", "minimality")
    said = {test: ("rejected" if test in against else "stands") if test in strict
            else "not shown" if test in against else "shown" for _, _, test in lines}  # fmt: skip
    head = f"tests of Shi et al. (2410.13032), on tune pairs, p after Holm over the five; {found.ablation} ablation:"
    return [head, *(f"  {name:<24} {said[test]:<9}  {what} (p {p[test]:.2g})" for name, what, test in lines),
            "  where one of the first three stands, nothing was found against it: few pairs find little"]  # fmt: skip


def _value(estimate: Any) -> float | None:
    return None if estimate is None else float(estimate.value)
