"""Monitors and audits that are kept: list them, show one, and let a monitor read a text. All of it only reads.

Watching reads a text that is given: nothing is generated, and nothing is blocked or steered. A monitor that is not calibrated
for the model still gives scores; its state says why its thresholds promise nothing, and it raises no alert.
"""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from assay.app import explore, monitors
from assay.app.arguments import string
from assay.app.blocks import Bar, Fact, bars, column, facts, href, table, text, tokens
from assay.app.results import keep_result
from assay.app.verbs import Report, Result, verb
from assay.errors import bad_argument

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.monitor.records import Monitor

NAME = string("A kept monitor by name (see: monitor_list).", longest=200)
HASH = re.compile(r"[0-9a-f]{32,}")
LONGEST = 1024  # tokens of a text that is watched
UNITS = {"token": "one token", "segment": "tokens in a row that agree", "reply": "the whole text as one reply",
         "conversation": "all turns together"}  # fmt: skip


@verb("monitor_list", "read", "Monitors that are kept here: what each watches for, its state, and who signed it.")
def monitor_list(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    rows = [row_of(monitors.kept_monitor(workspace, name)) for name in monitors.monitor_names(workspace)]
    return {"record": {"monitors": rows}, "blocks": [monitor_table(rows)]}


@verb("monitor_show", "read", "The card of a monitor: what it reads, its thresholds with the false-alarm rates they promise,"
      " what it is bound to, how it was measured.", required=("monitor",), monitor=NAME)  # fmt: skip
def monitor_show(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    kept = monitors.kept_monitor(workspace, arguments["monitor"])
    record = {**row_of(kept), **({} if kept.monitor is None else card_of(kept.monitor))}
    return {"record": record, "blocks": monitor_blocks(kept)}


@verb("monitor_watch", "read", "Score a text with a monitor: every token, and every unit that could alert.",
      required=("monitor", "text"), monitor=NAME, model=explore.model_name(),
      text=string("The text.", longest=8000))  # fmt: skip
def monitor_watch(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    kept = monitors.kept_monitor(workspace, arguments["monitor"])
    if kept.monitor is None:
        raise bad_argument("monitor", kept.name, "one that can be read", kept.why)
    report("loading the model", 0, 2)
    with workspace.using(arguments.get("model")) as model:
        from assay.explain.pieces import Pieces
        from assay.monitor.files import load_monitor
        from assay.monitor.reading import score
        from assay.monitor.records import CALIBRATED
        from assay.monitor.talks import texts_as_talks

        found = load_monitor(monitors.monitor_file(workspace, kept.name), model)
        (talk,) = texts_as_talks(model, [arguments["text"]])
        if len(talk.ids) > LONGEST:
            raise bad_argument("text", f"{len(talk.ids)} tokens", f"up to {LONGEST} tokens")
        explore.look_at_texts(workspace, model, f"monitor_watch {kept.name}", [arguments["text"]])
        report("reading", 1, 2)
        (scored,) = score(model, found, [talk])
        pieces = Pieces(model).of(list(talk.ids), begins=True)
        state = found.state(model)
        units = _units(found, scored.units, armed=state == CALIBRATED)
        record = {"monitor": kept.name, "model": model.name, "state": state, "signature": kept.signature,
                  "tokens": pieces, "scores": [None] * talk.turns[0][0] + scored.units["token"].tolist(), "units": units,
                  "alerts": [row["unit"] for row in units if row["alert"]]}  # fmt: skip
        return keep_result(workspace.atlas, "monitor_watch", arguments, model.digest, f"“{arguments['text'][:60]}”",
                           {"record": record, "blocks": watch_blocks(found, record)})  # fmt: skip


@verb("audit_list", "read", "Audits that are kept here: of which model, what was found, at what cost.")
def audit_list(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    rows = [audit_row(found) for found in monitors.audits(workspace)]
    return {"record": {"audits": rows}, "blocks": [audit_table(rows)]}


@verb("audit_show", "read", "One audit: what was found and not found, false leads, cost, and what was not looked at.",
      required=("audit",), audit=string("Its name (see: audit_list).", longest=200))  # fmt: skip
def audit_show(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    found = monitors.audit(workspace, arguments["audit"])
    return {"record": found, "blocks": audit_blocks(found)}


# monitors ------------------------------------------------------------------------------------------


def row_of(kept: monitors.Kept) -> dict[str, Any]:
    """A monitor in a list."""
    found = kept.monitor
    if found is None:
        return {"monitor": kept.name, "watches": "", "state": f"not used: {kept.why}", "signature": ""}
    return {"monitor": kept.name, "watches": found.watches, "state": found.state(), "signature": kept.signature}


def monitor_table(rows: Sequence[dict[str, Any]]) -> Any:
    """Monitors that are kept."""
    shown = [{**row, "monitor": {"value": row["monitor"], "href": href("monitor", monitor=row["monitor"])}} for row in rows]
    columns = [column("monitor", "monitor", "link"), column("watches", "watches for"), column("state", "state"),
               column("signature", "signature")]  # fmt: skip
    return table("monitors", columns, shown, title="Kept monitors", help="monitor")


def card_of(found: "Monitor") -> dict[str, Any]:
    """A monitor as plain values, without its numbers."""
    thresholds = [{"unit": unit, "threshold": each.value, "target": each.target, "benign": each.n, "alarms": each.alarms,
                   "low": each.low, "high": each.high} for unit, each in found.thresholds.items()]  # fmt: skip
    return {"name": found.name, "sites": found.sites, "pooling": found.pooling.name, "thresholds": thresholds,
            "bound": dict(found.bound), "card": dict(found.card)}  # fmt: skip


def monitor_blocks(kept: monitors.Kept) -> list[Any]:
    """The card of a monitor."""
    found = kept.monitor
    if found is None:
        return [text("monitor-refused", f"{kept.name} is not used: {kept.why}")]
    card, state = card_of(found), found.state()
    rows = [{**row, "rate": f"{row['low']:.2%} to {row['high']:.2%}"} for row in card["thresholds"]]
    columns = [column("unit", "what alerts"), column("threshold", "above", "number"),
               column("target", "promised rate", "percent"), column("rate", "true rate, 95% interval"),
               column("benign", "benign units", "number"), column("alarms", "alarms among them", "number")]  # fmt: skip
    told: list[Fact] = [{"label": key.replace("_", " "), "value": value} for key, value in found.card.items()
            if isinstance(value, str | int | float) and not isinstance(value, bool)]  # fmt: skip
    read: list[Bar] = [{"label": site, "value": value} for site, value in (found.card.get("held_out_auroc") or {}).items()]
    bound: list[Fact] = [{"label": key.replace("_", " "), "value": _short(value)}
                         for key, value in found.bound.items() if value]  # fmt: skip
    return [
        facts("monitor-facts", [
            {"label": "watches for", "value": found.watches},
            {"label": "state", "value": state, "tone": "good" if state == "calibrated" else "warn",
             "note": "Whether it holds for the model in use is said when it reads a text."},
            {"label": "signature", "value": kept.signature.rpartition("/")[2],
             "note": "Who vouches for the bytes; not that the card is right."},
            {"label": "reads", "value": ", ".join(found.sites)}, {"label": "pooling", "value": found.pooling.name}],
            title=found.name, help="monitor"),
        table("monitor-thresholds", columns, rows, title="Thresholds, and what they promise",
              note="The promise is about benign data like those it was calibrated on, and about one unit, not about all of"
                   " them at once."),
        *([facts("monitor-card", told, title="How it was measured")] if told else []),
        *([bars("monitor-auroc", read, "AUROC on held-out groups, 0.5 is guessing", title="How well each site is read",
                help="probe")] if read else []),
        facts("monitor-bound", bound, title="What it is bound to"),
    ]  # fmt: skip


def _short(value: Any) -> str:
    """A value of a card; of a hash, its beginning."""
    said = str(value)
    return f"{said[:16]}…" if HASH.fullmatch(said) else said[:60]


def _units(found: "Monitor", units: Any, armed: bool) -> list[dict[str, Any]]:
    """The highest score of every unit, its threshold, and whether it alerts: with one, and where the monitor is `armed`."""
    rows = []
    for unit, scores in units.items():
        if not len(scores):
            continue
        highest, bar = float(scores.max()), found.thresholds.get(unit)
        rows.append({"unit": unit, "score": highest, "threshold": None if bar is None else bar.value,
                     "alert": armed and bar is not None and bar.alert(highest)})  # fmt: skip
    return rows


def watch_blocks(found: "Monitor", record: dict[str, Any]) -> list[Any]:
    """A text as the monitor reads it."""
    chances = [0.0 if each is None else 1 / (1 + math.exp(-max(-60.0, min(60.0, each)))) for each in record["scores"]]
    calm = record["state"] == "calibrated"
    rows = [{"unit": f"{row['unit']}: {UNITS[row['unit']]}", "score": row["score"], "threshold": row["threshold"],
             "alert": "alert" if row["alert"] else "no threshold" if row["threshold"] is None else "no" if calm
             else "none: uncalibrated"} for row in record["units"]]  # fmt: skip
    columns = [column("unit", "unit"), column("score", "highest score", "number"),
               column("threshold", "alerts above", "number"), column("alert", "alert")]  # fmt: skip
    return [
        facts("watch-facts", [
            {"label": "alerts", "value": ", ".join(record["alerts"]) or "none",
             "tone": "good" if calm and not record["alerts"] else "warn"},
            {"label": "state", "value": record["state"], "tone": "good" if calm else "warn",
             "note": "" if calm else "Its thresholds promise nothing here, so it raises no alert."},
            {"label": "watches for", "value": found.watches}]),
        tokens("watch-tokens", record["tokens"], [
            {"name": record["monitor"], "label": found.watches, "href": href("monitor", monitor=record["monitor"]),
             "values": chances}], title="Score at every token, between 0 and 1", help="monitor",
               note="The logistic function of the score: how often tokens like it are what is watched for was not measured."),
        table("watch-units", columns, rows, title="What could alert"),
    ]  # fmt: skip


# audits --------------------------------------------------------------------------------------------


def audit_row(found: dict[str, Any]) -> dict[str, str]:
    """An audit in a list."""
    if "why" in found:
        return {"audit": found["name"], "model": "", "verdict": "", "sentence": found["why"]}
    return {"audit": found["name"], "model": found["model"], "verdict": found["verdict"], "sentence": found["summary"][0]}


def audit_table(rows: Sequence[dict[str, str]]) -> Any:
    """Audits that are kept."""
    columns = [column("audit", "audit", "link"), column("model", "model"), column("sentence", "what came out")]
    shown = [{"audit": {"value": row["audit"], "href": href("monitor", audit=row["audit"])}, "model": row["model"],
              "sentence": row["sentence"]} for row in rows]  # fmt: skip
    return table("audits", columns, shown, title="Kept audits")


def audit_blocks(found: dict[str, Any]) -> list[Any]:
    """An audit in words, what was suspected, and what was not looked at."""
    columns = [column("family", "family"), column("predicts", "predicted"), column("cue", "cue"),
               column("with", "seen with the cue"), column("without", "without"), column("p", "p, corrected", "number"),
               column("came_out", "what came of it")]  # fmt: skip
    return [
        text("audit-summary", *found["summary"], found["cost"]),
        *([text("audit-weights", *found["weights"], title="Weights")] if found["weights"] else []),
        table("audit-tested", columns, found["tested"], title="Suspicions, false leads included"),
        text("audit-missed", *found["not_looked_at"], title="What was not looked at"),
    ]  # fmt: skip
