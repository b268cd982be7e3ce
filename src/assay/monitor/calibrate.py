"""Set a monitor's thresholds on benign conversations, each for the unit that alerts (see `thresholds.py`).

1. All conversations are others than those it was fitted on; one that is the same text is refused.
2. Conversations of one group (a source, a template, an author) resemble each other. Rates are of a random conversation; the
   table by slice says where they are worse, worst first, with exact intervals.
3. Conversations may repeat, as traffic does. Copies are not independent, so what is promised is promised of different texts,
   and the threshold is not below the one that all of them give: a text that comes often does not alert each time.
4. The same conversations are the baseline that drift is measured against (`drift.py`).
5. Where labelled conversations are given as well, scores become probabilities by Platt's logistic fit.
6. Whatever was true of other thresholds ends: a drift that was found, the date of expiry, and rates of evasion.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from assay.errors import UsageError, bad_argument
from assay.model.model import Model
from assay.monitor.drift import baseline
from assay.monitor.reading import reply_scores, score, turn_means
from assay.monitor.records import DAYS, Monitor, bindings, data_digest
from assay.monitor.talks import Talk, refuse_seen
from assay.monitor.thresholds import Array, Threshold, needed, one_of_each, rate, threshold
from assay.monitor.units import UNITS
from assay.probe.calibration import Calibrated

Report = Callable[[int], None]


def calibrate(
    monitor: Monitor, model: Model, benign: Sequence[Talk], target: float = 0.01,
    units: Sequence[str] = ("reply", "conversation"), labelled: Sequence[Talk] = (), seed: int = 0,
    report: Report | None = None,
) -> Monitor:  # fmt: skip
    """The monitor with thresholds; it expires as many days from now as it was fitted for. Raises UsageError for too few benign
    conversations or different texts among them, for another model than it was fitted on, and for texts it was fitted on."""
    for unit in units:
        if unit not in UNITS:
            raise bad_argument("units", unit, ", ".join(UNITS))
    for name, value in bindings(model).items():
        if monitor.bound.get(name) != value:
            raise UsageError(f"monitor {monitor.name!r} was fitted with another {name} than {model.name} has. Fit it anew.")
    if any(talk.label == 1 for talk in benign):
        raise bad_argument("benign", "conversations with label 1", "benign ones only")
    refuse_seen("benign", benign, monitor.card.get("texts", ()), "fitted on")
    refuse_seen("labelled", labelled, monitor.card.get("texts", ()), "fitted on")
    first = {talk.text: number for number, talk in reversed(list(enumerate(benign)))}
    single = sorted(first.values())
    if len(single) < len(benign) and len(single) < needed(target):
        raise bad_argument("benign", f"{len(benign)} conversations that hold {len(single)} different texts",
                           f"{needed(target)} different ones for a false-alarm rate of {target:.3g}")  # fmt: skip
    scored = score(model, monitor, benign, report)
    drawn = {unit: one_of_each([one.units[unit] for one in scored], seed) for unit in units}
    once = {unit: one_of_each([scored[number].units[unit] for number in single], seed) for unit in units}
    thresholds = {unit: _threshold(unit, once[unit], drawn[unit], target) for unit in units}
    slices = {unit: _slices([benign[number] for number in single], once[unit], made.value) for unit, made in thresholds.items()}
    site = monitor.sites[0]
    held = baseline(reply_scores(scored), turn_means(model, benign, [site])[site], site)
    expires = datetime.now(UTC) + timedelta(days=monitor.card.get("plan", {}).get("days", DAYS))
    bound = {**monitor.bound, "benign": data_digest([talk.text for talk in benign]),
             "expires": expires.isoformat(timespec="seconds")}  # fmt: skip
    odds = _odds(monitor, model, labelled) if labelled else monitor.odds
    of_odds = [data_digest([talk.text]) for talk in labelled] if labelled else monitor.card.get("odds_texts", [])
    card = {**monitor.card, "calibration": {unit: asdict(made) for unit, made in thresholds.items()}, "slices": slices,
            "benign": {"conversations": len(benign), "texts": len(single), "groups": len({talk.group for talk in benign})},
            "calibration_texts": [data_digest([talk.text]) for talk in benign], "odds_texts": of_odds}  # fmt: skip
    card.pop("evasion", None)
    return replace(monitor, thresholds=thresholds, bound=bound, card=card, baseline=held, odds=odds, drifted="")


def _threshold(unit: str, once: Array, drawn: Array, target: float) -> Threshold:
    """From one of each text, and not below that of all of them."""
    return threshold(unit, once, target, least=-np.inf if len(once) == len(drawn) else threshold(unit, drawn, target).value)


def _slices(talks: Sequence[Talk], drawn: Sequence[float] | Array, at: float) -> list[dict[str, Any]]:
    """Per slice: alarms of one unit of each conversation, worst first."""
    found = []
    for name in dict.fromkeys(talk.slice for talk in talks):
        values = [value for talk, value in zip(talks, drawn, strict=True) if talk.slice == name]
        found.append({"slice": name, **asdict(rate(values, at))})
    return sorted(found, key=lambda row: (-row["hits"] / max(1, row["n"]), -row["high"]))


def _odds(monitor: Monitor, model: Model, labelled: Sequence[Talk]) -> tuple[float, float]:
    labels = [talk.label for talk in labelled]
    if set(labels) != {0, 1}:
        raise bad_argument("labelled", f"labels {sorted(set(map(str, labels)))}", "conversations of both labels")
    fitted = Calibrated.fit(reply_scores(score(model, monitor, labelled)), np.array(labels))
    assert fitted.slope is not None and fitted.offset is not None
    return fitted.slope, fitted.offset
