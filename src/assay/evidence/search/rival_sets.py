"""Rival sets: random sets of parts that do what the claimed ones do.

1. The random sets of the plan, as they were measured on the confirm split (`gates/random_control.py`); no model is run.
2. A set is a rival when what falls without it and what it restores are, in the mean, at least what the claimed parts reach on
   the same pairs, and reach the bars of *necessity.resample* and *sufficiency*.
3. Rivals are listed, the strongest first, with their parts.

Judged on one number per set, and drawn without regard to the task: sets that were chosen with care may do better still. A rival
does not make a claim false; it makes "these parts" one of several answers.
"""

from assay.evidence.gates.base import mean
from assay.evidence.gates.random_control import drops, recoveries
from assay.evidence.hunting.reading import nothing
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search

LISTED, NAMED = 20, 12  # rivals, and parts of each
NEEDED, DRAWN = ("necessity.resample", "sufficiency"), ("random.ablated", "random.restored")


def find(hunt: Hunt) -> Found:
    """Random sets at least as good as the claim."""
    table = {"templates": hunt.data.templates, "columns": hunt.columns}
    try:
        measured = drops(table), recoveries(table)
    except KeyError:
        return nothing("no random sets were measured")
    bars = {gate.name: gate.sesoi for gate in hunt.plan.gates}
    least = [max(bars.get(name, 0.0), _same_pairs(own, sets)) for name, (own, sets) in zip(NEEDED, measured, strict=True)]
    rivals = []
    for place, units in enumerate(hunt.setup.random_sets):
        drop, restored = (mean(sets[f"{prefix}.{place:02d}"]) for prefix, (_, sets) in zip(DRAWN, measured, strict=True))
        if drop >= least[0] and restored >= least[1]:
            rivals.append({"parts": [str(unit) for unit in units[:NAMED]], "drop": drop, "restored": restored})
    rivals.sort(key=lambda rival: -min(rival["drop"], rival["restored"]))
    return Found(len(hunt.setup.random_sets), 0, notes={"rivals": rivals[:LISTED], "n_rivals": len(rivals)})


def _same_pairs(own: list[float | None], sets: dict[str, list[float | None]]) -> float:
    """Mean effect of the claimed parts on the pairs that controls were measured on."""
    measured = next(iter(sets.values()))
    return mean([None if other is None else value for value, other in zip(own, measured, strict=True)])


register_search(SearchMethod("rival sets", ("mediates",), find))
