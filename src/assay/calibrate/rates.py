"""Error rates from outcomes: counts, exact bounds, and what the intervals and p-values are worth.

1. False support: supported claims among null claims, with the exact (Clopper-Pearson) upper bound at 95%,
   one-sided: 0 of 59 give .05.
2. Power: supported claims at every rung of the ladder, with exact two-sided bounds; and how often a claim that
   holds was refuted.
3. p-values: where the true value of a gate lies exactly on its bar, p must be uniform or larger (one-sided
   Kolmogorov-Smirnov against uniform; small p of that test = too many small p-values).
4. Coverage: how often the 95% interval of a gate holds its true value.
5. Gates: which false or null claims would be supported if one required gate were left out.

The rates hold for these families. How common such claims are among those people make is not known.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from scipy import stats

from assay.calibrate.base import Calibration, Outcome
from assay.statistics import clopper_pearson

COVERED = (0.93, 0.97)
MOST_FALSE = 0.05
LEAST_POWER = 0.80


def upper95(hits: int, n: int) -> float:
    """One-sided exact 95% upper bound of a share; 1 without data."""
    return clopper_pearson(hits, n, 0.90)[1]


def rates(calibration: Calibration, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything about one kind, as plain data."""
    truths = {family.name: family for family in calibration.families}
    by = {truth: [o for o in outcomes if truths[o.family].truth == truth] for truth in ("null", "false", "true", "ladder")}
    return {
        "binding": calibration.binding, "note": calibration.note,
        "null": {**_support(by["null"]), "families": _families(by["null"])},
        "false": {**_support(by["false"]), "families": _families(by["false"])},
        "true": {**_support(by["true"]), **_refuted(by["true"]), "families": _families(by["true"])},
        "power": [_rung(truths[name].effect, [o for o in by["ladder"] if o.family == name], calibration.binding)
                  for name in dict.fromkeys(o.family for o in by["ladder"])],
        "p_values": _p_values(calibration, by["ladder"], by["null"]),
        "coverage": _coverage([*by["ladder"], *by["true"]]),
        "gates": _gates([*by["null"], *by["false"]]),
        "verdicts": dict(Counter(o.verdict for o in outcomes)),
        "families": {family.name: {"truth": family.truth, "what": family.what} for family in calibration.families},
    }  # fmt: skip


def _support(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    hits = sum(o.verdict == "supported" for o in outcomes)
    return {"n": len(outcomes), "supported": hits, "upper95": upper95(hits, len(outcomes))}


def _refuted(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    hits = sum(o.verdict == "refuted" for o in outcomes)
    return {"refuted": hits, "refuted_upper95": upper95(hits, len(outcomes))}


def _families(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.family, []).append(outcome)
    return {name: {**_support(rows), "verdicts": dict(Counter(o.verdict for o in rows)),
                   "reasons": dict(Counter(reason for o in rows for reason in o.reasons).most_common())}
            for name, rows in found.items()}  # fmt: skip


def _rung(effect: float | None, rows: Sequence[Outcome], binding: str) -> dict[str, Any]:
    hits = sum(o.verdict == "supported" for o in rows)
    low, high = clopper_pearson(hits, len(rows))
    stopped = Counter(name for o in rows if o.verdict != "supported" for name in failed(o))
    return {"effect_in_sesoi": effect, "truth": rows[0].truth.get(binding), "n": len(rows), "supported": hits,
            "low": low, "high": high,
            "refuted": sum(o.verdict == "refuted" for o in rows), "stopped_by": dict(stopped.most_common(5))}  # fmt: skip


def failed(outcome: Outcome) -> list[str]:
    """Labels of the required gates that a claim did not pass."""
    return [label for label, (*_, passed, required) in outcome.gates.items() if required and not passed]


def uniform_or_larger(p: Sequence[float]) -> float | None:
    """One-sided KS p-value of "these p-values are uniform or larger"; None for fewer than 20."""
    return float(stats.kstest(p, "uniform", alternative="greater").pvalue) if len(p) >= 20 else None


def _p_values(calibration: Calibration, ladder: Sequence[Outcome], null: Sequence[Outcome]) -> dict[str, Any]:
    """The binding gate at its bar, and gates whose value under the null families is at most their bar."""
    at_bar = [o.gates[calibration.binding][3] for o in ladder if o.family == "1 x SESOI" and calibration.binding in o.gates]
    found = {f"{calibration.binding} at its bar": at_bar}
    for name in sorted({label for o in null for label, (*_, required) in o.gates.items() if required and "@" not in label}):
        known = [o for o in null if name in o.truth and name in o.gates]
        found[f"{name} in null claims"] = [o.gates[name][3] for o in known]
    return {name: {"n": len(p), "share_below_05": sum(value <= 0.05 for value in p) / len(p), "ks": uniform_or_larger(p)}
            for name, p in found.items() if p}  # fmt: skip


def _coverage(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Per gate and family with a known value: share of intervals that hold it."""
    found: dict[str, list[bool]] = {}
    for outcome in outcomes:
        for name, value in outcome.truth.items():
            _, low, high, *_ = outcome.gates.get(name, (None, None, None))
            if low is not None and high is not None:
                found.setdefault(f"{name}, {outcome.family}", []).append(low - 1e-9 <= value <= high + 1e-9)
    return {name: {"n": len(hits), "covered": sum(hits) / len(hits),
                   "low": clopper_pearson(sum(hits), len(hits))[0], "high": clopper_pearson(sum(hits), len(hits))[1]}
            for name, hits in found.items()}  # fmt: skip


def _gates(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Per required gate: how many claims it stops at all, how many nothing else stops, by family."""
    names = dict.fromkeys(label.partition("@")[0] for o in outcomes for label, (*_, required) in o.gates.items() if required)
    found = {}
    for name in names:
        slipped = Counter(o.family for o in outcomes if name in o.only)
        stops = sum(any(label.partition("@")[0] == name for label in failed(o)) for o in outcomes)
        found[name] = {"claims": len(outcomes), "stopped": stops, "only_by_it": sum(slipped.values()),
                       "families": dict(slipped)}  # fmt: skip
    return found


def judged(found: dict[str, Any], say: Callable[[str], None] = lambda text: None) -> bool:
    """Whether the rates of a kind are what the battery promises; says what is not."""
    problems = []
    if found["null"]["upper95"] > MOST_FALSE:
        problems.append(f"false support: upper bound {found['null']['upper95']:.3f}, at most {MOST_FALSE} promised")
    for rung in found["power"]:
        if rung["effect_in_sesoi"] == 1.5 and rung["supported"] < LEAST_POWER * rung["n"]:
            problems.append(f"power at 1.5 SESOI: {rung['supported']} of {rung['n']}, {LEAST_POWER:.0%} promised")
        if rung["effect_in_sesoi"] == 0.5 and rung["supported"] > 0.05 * rung["n"]:
            problems.append(f"support at 0.5 SESOI: {rung['supported']} of {rung['n']}, at most 5% promised")
    for text in problems:
        say(text)
    return not problems
