"""What a careful person would change in a plan before it is locked for good: warnings, and nothing else.

1. Too few templates to support anything, or to find effects that are worth finding (from the smallest detectable
   effect on tune data).
2. A plan that asks for less than the battery does by itself: an easier bar, level, search, or fewer controls. Such a
   plan may be locked; what is supported under it says less.
"""

import math

from assay.evidence.gates.base import get_gate
from assay.evidence.search import searches_for
from assay.evidence.verdicts import MIN_CLUSTERS
from assay.records import Plan

USUAL_ALPHA, USUAL_DRAWS, FEWEST_DRAWS = 0.05, 99, 19  # 19: the fewest whose strongest is beaten by chance 1 time in 20


def warnings_of(plan: Plan) -> list[str]:
    """What a careful person would change before testing, and how many templates it takes."""
    found = lenient(plan)
    for split in plan.levels:
        k = plan.splits[split]["templates"]
        if k < MIN_CLUSTERS:
            found.append(f"{split}: {k} templates; fewer than {MIN_CLUSTERS} can never be supported, so {MIN_CLUSTERS - k}"
                         " more are needed.")  # fmt: skip
    k = plan.splits["confirm"]["templates"]
    for gate in plan.gates:
        size = plan.mde.get(gate.name)
        if size is None or not gate.required:
            continue
        wanted = min(gate.sesoi or 0.1, 1 - gate.sesoi)  # twice the SESOI, or as much as there can be
        if size > wanted > 0:
            found.append(f"{gate.name}: effects below {gate.sesoi + size:.2f} would probably be missed (SESOI {gate.sesoi:g},"
                         f" MDE {size:.2f} on {k} templates); about {math.ceil(k * (size / wanted) ** 2)} templates are"
                         f" needed to find {gate.sesoi + wanted:.2f}.")  # fmt: skip
    return found


def lenient(plan: Plan) -> list[str]:
    """Where a plan asks for less than the battery does by itself: a verdict under it says less than others of its kind."""
    found = []
    if plan.levels["confirm"] > USUAL_ALPHA:
        found.append(f"alpha {plan.levels['confirm']:g}: above the usual {USUAL_ALPHA:g}, so false claims pass more often.")
    for gate in plan.gates:
        known = get_gate(gate.name)
        usual = known.bars.get(plan.kind, known.sesoi)
        if gate.sesoi < usual and (gate.required or known.group == "rival"):
            found.append(f"{gate.name}: its SESOI {gate.sesoi:g} is below the usual {usual:g}; supported then says less.")
    draws = int(plan.settings.get("draws", USUAL_DRAWS))
    if draws < FEWEST_DRAWS:
        found.append(f"draws {draws}: the strongest of so few random controls is a weak one; {USUAL_DRAWS} are usual.")
    for method in searches_for(plan.kind):
        if plan.search["methods"].get(method.name, 0) < method.budget and method.required:
            found.append(f"search {method.name}: fewer candidates than its usual {method.budget}.")
    return found
