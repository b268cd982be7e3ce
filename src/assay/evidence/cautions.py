"""What a careful person would change in a plan before it is locked for good: warnings, and nothing else.

1. Too few templates to support anything, or to find effects that are worth finding (from the smallest detectable
   effect on tune data); too few groups of texts for a certificate, counted without any model.
2. A plan that asks for less than the battery does by itself: an easier bar, level, search, or fewer controls. Such a
   plan may be locked; what is supported under it says less.
"""

import math
from collections.abc import Sequence

from assay.data.prepare_concept import PreparedConcept
from assay.data.splits import SHARES
from assay.evidence.gates.base import get_gate
from assay.evidence.search import searches_for
from assay.evidence.source import Population
from assay.evidence.verdicts import MIN_CLUSTERS
from assay.records import Example, GatePlan, Plan
from assay.statistics import certificate

USUAL_ALPHA, USUAL_DRAWS, FEWEST_DRAWS = 0.05, 99, 19  # 19: the fewest whose strongest is beaten by chance 1 time in 20


def warnings_of(plan: Plan, source: Population | None = None) -> list[str]:
    """What a careful person would change before testing, and how many templates it takes.

    `source`: where the texts come from, so that those a certificate needs can be counted.
    """
    return [*lenient(plan), *weak(plan, source)]


def weak(plan: Plan, source: Population | None = None) -> list[str]:
    """Data that are too few: for a certificate, for any support, for effects that are worth finding."""
    found = [] if source is None else uncertified(plan, source)
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
            least = gate.sesoi + size
            missed = f"effects below {least:.2f}" if least < 1 else "even an effect of 1.00"
            found.append(f"{gate.name}: {missed} would probably be missed (SESOI {gate.sesoi:g}, MDE {size:.2f} on {k}"
                         f" templates); about {math.ceil(k * (size / wanted) ** 2)} templates are needed to find"
                         f" {gate.sesoi + wanted:.2f}.")  # fmt: skip
    return found


def uncertified(plan: Plan, source: Population) -> list[str]:
    """Certificates that the texts of a split can never give, not even without one failure: what is short, what is needed.

    Without a failure on K clusters the exact binomial gives p = bar^K; so K clusters reach a bar of level^(1/K).
    """
    found = []
    for gate in plan.gates:
        counted = get_gate(gate.name).certifies
        if counted is None or not gate.required:
            continue
        needed = {split: certificate(0.0, gate.sesoi, level) or 0 for split, level in plan.levels.items()}
        there = {split: clusters_with(source.items(split, plan.splits[split]["n"], plan.splits[split]["seed"]), counted)
                 for split in needed}  # fmt: skip
        if any(there[split] < needed[split] for split in needed):
            found.append(_short(plan, source, gate, needed, there))
    return found


def _short(plan: Plan, source: Population, gate: GatePlan, needed: dict[str, int], there: dict[str, int]) -> str:
    asked = ", ".join(f"{needed[split]} groups of benign texts in {split} ({there[split]} there)" for split in needed)
    reach = min(level ** (1 / max(1, there[split])) for split, level in plan.levels.items())
    more = all(source.n_templates(split) >= needed[split] for split in needed)
    ask = "ask for more items (" + ", ".join(f"--set {split}=N" for split in needed) + ")"
    whole = max(math.ceil(count * sum(SHARES.values()) / SHARES[split]) for split, count in needed.items())
    give = ask if more else f"give a file with about {whole} such groups"
    lower = math.floor(100 * reach) / 100
    return (f"{gate.name}: this claim cannot be supported. A bar of {gate.sesoi:g} takes {asked}. Either {give}, or claim"
            f" less: --sesoi {gate.name}={lower:g} is the most that these can show, and without one failure.")  # fmt: skip


def clusters_with(items: Sequence[Example], label: int) -> int:
    """How many clusters of a split have an example with a label: of templates, or of words where those are fewer."""
    words = PreparedConcept(list(items), [], [], {}).words
    kept = [row for row, example in enumerate(items) if example.label == label]
    templates = {items[row].template for row in kept}
    return len(templates) if words is None else min(len(templates), len({words[row] for row in kept}))


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
