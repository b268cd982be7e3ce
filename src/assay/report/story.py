"""Turns records into what a page shows: rows, badges and the opening paragraph. No markup here.

1. Verdicts (JSON twins, older ones with fewer keys too) become claim cards with every part present.
2. Shares, counts and commands become lists in a fixed form.
3. The opening paragraph is put together from the numbers in the report and says nothing beyond them.
"""

import math
from collections.abc import Mapping
from typing import Any

from assay.records import PatchResult
from assay.report.cells import one_of, top_cells, visible
from assay.report.context import DemoReport

BADGES = {"supported": ("good", "✓"), "refuted": ("bad", "✗"), "inconclusive": ("open", "?"),
          "not tested": ("none", "–")}  # fmt: skip
COUNTS = {2: "Two", 3: "Three", 4: "Four", 5: "Five"}
LEDGER_WORDS = {"stated": "claims stated", "looks": "looks taken", "tickets": "sealed splits read", "tried": "claims tried",
                "supported": "claims supported", "refuted": "claims refuted", "inconclusive": "claims undecided",
                "not tested": "claims not tested"}  # fmt: skip


def number(value: Any, digits: int = 2) -> str:
    """A number for people; an en dash where there is none."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")


def interval(low: Any, high: Any) -> str:
    """Two bounds as words; an en dash where there are none."""
    return "–" if number(low) == "–" or number(high) == "–" else f"{number(low)} to {number(high)}"


def chance(p: Any) -> str:
    """A p-value, never 0."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def percent(share: Any) -> str:
    """A share in whole per cent; nearly none is not called none, nor nearly all all."""
    if number(share) == "–":
        return "–"
    if 0 < share < 0.005 or 0.995 <= share < 1:
        return "under 0.01%" if share < 0.00005 else "over 99.99%" if share >= 0.99995 else f"{share:.2%}"
    return f"{share:.0%}".replace("-", "−")


def deciding(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict with only the gates that decide it; `informing` says how many others were measured."""
    gates = [gate for gate in verdict["gates"] if gate.get("required", True)]
    return {**verdict, "gates": gates, "informing": len(verdict["gates"]) - len(gates)}


def claim_card(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Every part of a claim card, from a verdict's JSON twin."""
    tone, mark = BADGES.get(str(verdict["verdict"]), ("none", "–"))
    decision = verdict.get("decision") or {}
    return {
        "id": verdict["claim"], "kind": verdict["kind"], "verdict": verdict["verdict"], "tone": tone, "mark": mark,
        "sentence": verdict["sentence"], "reasons": list(verdict.get("reasons", ())),
        "qualifiers": list(verdict.get("qualifiers", ())), "gates": [_gate_row(gate) for gate in verdict["gates"]],
        "controls": _controls(verdict), "split": dict(verdict.get("split") or {}),
        "does_not_show": list(verdict.get("does_not_show", ())), "notes": list(decision.get("notes", ())),
        "informing": verdict.get("informing", 0), "outlook": outlook(verdict),
        "counterexamples": _counterexamples(verdict.get("counterexamples")),
    }  # fmt: skip


def outlook(verdict: Mapping[str, Any]) -> str:
    """Whether more data would help an inconclusive claim, in one sentence; empty for others."""
    if verdict["verdict"] != "inconclusive":
        return ""
    failed = [gate for gate in verdict["gates"] if gate.get("required", True) and not gate["passed"]]
    against = [f"{gate['name']} ({number(gate['estimate'])}, bar {number(gate['sesoi'])})" for gate in failed
               if gate.get("estimate") is not None and gate["estimate"] <= gate["sesoi"]]  # fmt: skip
    if against:
        return f"more data would hardly support it as it stands; not above the bar: {', '.join(against)}"
    more = (verdict.get("decision") or {}).get("more_clusters")
    return f"about {more} more sentence patterns or documents per split would probably settle it" if more else ""


def _gate_row(gate: Mapping[str, Any]) -> dict[str, Any]:
    required = gate.get("required", True)
    return {
        "name": gate["name"], "estimate": number(gate.get("estimate")), "required": required,
        "interval": interval(gate.get("low"), gate.get("high")), "sesoi": number(gate.get("sesoi")),
        "p": chance(gate.get("p")), "passed": gate["passed"], "result": result_words(gate), "clusters": gate.get("K"),
        "tone": ("good" if gate["passed"] else "bad") if required else "none",
    }  # fmt: skip


def result_words(gate: Mapping[str, Any]) -> str:
    """What came of a gate; gates that only inform neither pass nor fail."""
    if not gate.get("required", True):
        return "above its bar" if gate["passed"] else "below its bar"
    return "✓ passed" if gate["passed"] else "✗ not passed"


def _controls(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Controls as given, else the random sets of every control gate: how many, mean, strongest."""
    rows = [{"name": control.get("name", "control"), "n": control.get("n"), "mean": number(control.get("estimate")),
             "strongest": number(control.get("high"))} for control in verdict.get("controls") or ()]  # fmt: skip
    for gate in verdict["gates"]:
        values = (gate.get("tables") or {}).get("per_control") or {}
        if values:
            best = max(values, key=lambda name: values[name])
            rows.append({"name": gate["name"], "n": len(values), "mean": number(sum(values.values()) / len(values)),
                         "strongest": number(values[best]), "which": str(best)})  # fmt: skip
    return rows


def _counterexamples(found: Any) -> dict[str, Any] | None:
    """Counts and the worst prompts; None when no search was reported."""
    if not found:
        return None
    record = found if isinstance(found, Mapping) else {"worst": list(found)}
    given = list(record.get("worst") or ())
    hits = [hit if isinstance(hit, Mapping) else {"clean": hit} for hit in given[:5]]
    worst = [{"clean": visible(hit.get("clean", ""), 400), "score": number(hit.get("score"))} for hit in hits]
    return {"hits": record.get("hits", len(given)), "candidates": record.get("candidates"),
            "share": percent(record.get("share")), "worst": worst}  # fmt: skip


def unexplained_rows(unexplained: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per unexplained share, first the one to print large. Shares are clipped to 0..1."""
    named = {"of the effect": unexplained} if "share" in unexplained else dict(unexplained)
    rows = []
    for name, value in named.items():
        record = value if isinstance(value, Mapping) else {"share": value}
        share = record.get("share")
        if isinstance(share, int | float) and math.isfinite(share):
            clipped = min(1.0, max(0.0, float(share)))
            rows.append({"name": str(name).replace("_", " "), "share": clipped, "text": percent(clipped),
                         "low": record.get("low"), "high": record.get("high"), "note": record.get("note", "")})  # fmt: skip
    return rows


def ledger_rows(ledger: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Counts with readable names, in the order given."""
    return [(LEDGER_WORDS.get(name, str(name).replace("_", " ")), count)
            for name, count in ledger.items() if isinstance(count, int)]  # fmt: skip


def commands(run: Mapping[str, Any]) -> list[dict[str, str]]:
    """Commands with what they do; plain strings are accepted."""
    given = run.get("commands", ())
    return [{"command": item, "what": ""} if isinstance(item, str) else
            {"command": str(item["command"]), "what": str(item.get("what", ""))} for item in given]  # fmt: skip


def passport_rows(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The passport as rows; nested entries become one line, long digests are shortened."""
    rows = []
    for name, value in model.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        text = "–" if value is None else str(value)
        digest = len(text) >= 40 and all(char in "0123456789abcdef" for char in text)
        rows.append((str(name).replace("_", " "), f"{text[:16]}…" if digest else text))
    return rows


def strongest(result: PatchResult, tokens: Any = None) -> str:
    """The strongest cell in words, or why there is none."""
    cells = top_cells(result, 1, tokens)
    if not cells:
        return "no cell was measured"
    cell = cells[0]
    return f"layer {cell.layer}, {one_of(result.axis)} {cell.label} (effect {number(cell.effect)})"


def summary(report: DemoReport) -> str:
    """The report in one paragraph."""
    name, lines = visible(str(report.model.get("name", "the model")), 60), []
    if report.tasks:
        told = report.positions.plan.get("task")
        best = next((task for task in report.tasks if task.task == told), report.tasks[0])
        lines.append(f"On the task {visible(best.task, 40)}, {name} prefers the right answer on {percent(best.accuracy)} of"
                     f" {best.n_pairs} prompts, where guessing gives 50%.")  # fmt: skip
    lines.append("We copied its inner activations from a prompt with one answer into a prompt with another, one place at"
                 f" a time: the place that moves the answer most is {strongest(report.positions, report.tokens)};"
                 f" among the attention heads it is {strongest(report.heads)}.")  # fmt: skip
    count = len(report.claims)
    if count:
        words = ", ".join(str(claim["verdict"]) for claim in report.claims)
        who, verdicts = (f"{COUNTS.get(count, count)} claims", "verdicts are") if count > 1 else ("One claim", "verdict is")
        lines.append(f"{who} about this went through tests with controls, on prompts that were not used to find"
                     f" them; the {verdicts}: {words}.")  # fmt: skip
    rows = unexplained_rows(report.unexplained)
    if rows:
        lines.append(f"Still unexplained: {rows[0]['text']} {rows[0]['name']}.")
    return " ".join(lines)
