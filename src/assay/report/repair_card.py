"""The card of a repaired model: `README.md` beside its weights, and the terminal's view of the same record.

Both are made from the JSON twin of the report (`RepairReport.json` and what the command adds), so the three cannot differ.
Text from users and models stays text.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from assay.report.cells import visible
from assay.report.markdown import safe, table

HEAD = ("what", "bar", "templates", "before", "after", "change", "95%", "p", "")
TONES = {"repaired": "green", "repaired at a price": "yellow", "not repaired": "red"}
MEANING = {
    "repaired": "right on templates that nothing was made or chosen on, and all else that was measured within its bars",
    "repaired at a price": "right on templates that nothing was made or chosen on, but something else changed, or is not"
    " shown to be unchanged",
    "not repaired": "the answers are not shown to be right on templates that nothing was made or chosen on",
}
BARS = {"gain": "rises by > {:.0%}", "right": "right > {:.0%}", "same": "within {:.0%}", "small": "KL < {:g} nats"}
NOT_SHOWN = (
    "Only what is listed was measured. Other tasks, longer texts, other languages and chat may have changed.",
    "That a change of these weights mends the fault does not show that the fault was kept there.",
    "A check that is not passed by a small sample is not shown to be broken: its interval says what is known.",
)


def repair_card(record: Mapping[str, Any]) -> str:
    """The whole card as Markdown, with the front matter that model hubs read."""
    base = record["model"]["model"]
    front = ["---", f"base_model: {json.dumps(base)}", "library_name: transformers", "pipeline_tag: text-generation",
             "tags: [model-editing, assay]", "---", ""]  # fmt: skip
    verdict = record["verdict"]
    lines = [*front, f"# {safe(base)}, {safe(record['method'])}: {safe(record['fault'])}", "",
             f"**{safe(verdict)}**: {safe(MEANING[verdict])}.", "", safe(record["sentence"]), ""]  # fmt: skip
    lines += ["## Before and after", "", *table(HEAD, (check_row(check) for check in record["checks"])),
              *(f"- {safe(note)}" for note in notes(record)), ""]  # fmt: skip
    if record["examples"]:
        lines += ["## What it says now", "", *table(("prompt", "answer", "before", "after"), (
            (one["prompt"], one["answer"], one["before"], one["after"]) for one in record["examples"]))]  # fmt: skip
    lines += ["## Weights that were changed", "", *table(("weight", "shape", "norm", "change", "rank at most", "how"), map(
        weight_row, record["weights"]))]  # fmt: skip
    lines += [f"- {safe(note)}" for note in record["notes"]] + [""]
    if record["trials"]:
        lines += ["## What was tried on tune", "", *table(("settings", "right", "other prompts right", "KL"), map(
            trial_row, record["trials"]))]  # fmt: skip
    lines += ["## Where it comes from", "", *(f"- {safe(name)}: {safe(value)}" for name, value in origin(record)), ""]
    lines += ["## What this does not show", "", *(f"- {safe(line)}" for line in NOT_SHOWN), "",
              "Load it with `AutoModelForCausalLM.from_pretrained`. All numbers are in `repair.json`. The licence is that of"
              " the base model.", ""]  # fmt: skip
    return "\n".join(lines)


def repair_view(record: Mapping[str, Any]) -> RenderableType:
    """The terminal's view."""
    verdict = record["verdict"]
    shown = Table(*HEAD, box=None, pad_edge=False)
    for check in record["checks"]:
        shown.add_row(*map(Text, check_row(check)))
    head = Text(verdict.upper(), style=f"bold {TONES[verdict]}")
    parts: list[RenderableType] = [head, Text(visible(record["sentence"], 4000)), shown]
    if record["trials"]:
        tried = Table("tried on tune", "right", "other prompts right", "KL", box=None, pad_edge=False)
        for trial in record["trials"]:
            tried.add_row(*map(Text, trial_row(trial)))
        parts.append(tried)
    for one in record["weights"][:8]:
        size = f"{one['change']:.3g} of {one['norm']:.3g}"
        parts.append(Text(f"weights: {visible(one['name'], 80)} ({size}; {visible(one['what'], 120)})", style="dim"))
    if len(record["weights"]) > 8:
        parts.append(Text(f"and {len(record['weights']) - 8} more weights", style="dim"))
    parts += [Text(visible(note, 400), style="dim") for note in (*record["notes"], *notes(record))]
    for one in record["examples"]:
        said = f"before: {visible(one['before'], 40)}  after: {visible(one['after'], 40)}"
        parts.append(Text(f"{visible(one['prompt'], 80)} |  {said}"))
    where = record.get("out")
    last = f"checkpoint: {where} (sha256 {record['digest_after'][:12]})" if where else "nothing was written (--out DIR)"
    return Group(*parts, Text(last), Text(f"audit entry: {record['audit'][:12]}", style="dim"))


def check_row(check: Mapping[str, Any]) -> tuple[str, ...]:
    """One check as cells."""
    small, about = check["about"] == "small", check["about"]

    def form(x: float | None) -> str:
        return "-" if x is None else f"{x:.4f}" if small else f"{x:.0%}"

    def signed(x: float | None) -> str:
        return "-" if x is None else f"{x:+.4f}" if small else f"{100 * x:+.0f}"

    shown = form if about == "right" else signed
    span = "-" if check["low"] is None else f"{shown(check['low'])} to {shown(check['high'])}"
    cells = (check["name"], BARS[about].format(check["bar"]), str(check["templates"]))
    moved = (form(check["before"]), form(check["after"]), signed(check["change"]), span)
    met = "met" if check["passed"] else "not met" if check["n"] else "not measured"
    return (*cells, *moved, f"{check['p']:.2g}", met)


def notes(record: Mapping[str, Any]) -> list[str]:
    """What the table does not say by itself."""
    text = next((check for check in record["checks"] if check["about"] == "small"), None)
    said = ["Shares are means over templates; intervals and p by template (of the share after, for `right`).",
            "Confirm and ood ask in wordings that nothing was made or chosen on; paraphrases are the prompts of confirm, each"
            " behind a sentence about something else."]  # fmt: skip
    if text is not None and text["log_odds"][0] is not None:
        loss, low, high = text["log_odds"]
        span = "" if low is None else f" (95% {low:+.4f} to {high:+.4f})"
        said.append(f"Loss on ordinary text: {loss:+.4f} nats per token{span}.")
    before, after = record["said_in_full"]["before"], record["said_in_full"]["after"]
    if before is not None and after is not None:
        said.append("Answers are scored on the first token that tells them from the foil; said whole, by greedy decoding:"
                    f" {before:.0%} of confirm prompts before, {after:.0%} after.")  # fmt: skip
    said += [f"{check['name']}: {n} pairs dropped, {why}" for check in record["checks"] for why, n in check["dropped"].items()
             if check["about"] != "right"]  # fmt: skip
    return said


def weight_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    """One changed weight as cells."""
    shape = " x ".join(map(str, one["shape"]))
    return one["name"], shape, f"{one['norm']:.4g}", f"{one['change']:.4g}", str(one["rank"]), one["what"]


def trial_row(trial: Mapping[str, Any]) -> tuple[str, ...]:
    """One trial on tune as cells."""
    settings = ", ".join(f"{name} {value}" for name, value in trial["settings"].items())
    lost = "-" if trial["kl"] is None else f"{trial['kl']:.4f}"
    right, other = (f"{trial[f'{name}_before']:.0%} -> {trial[name]:.0%}" for name in ("right", "other"))
    return settings, right, other, lost


def origin(record: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
    """Digests, reason, audit entry and data."""
    model = record["model"]
    return (
        ("base model", f"{model['model']}, weights {model['digest']}, {model['dtype']}"),
        ("repaired model", f"weights {record['digest_after']}"),
        ("settings", ", ".join(f"{name} {value}" for name, value in record["settings"].items())),
        ("reason", record["reason"] or "none was needed"), ("audit entry", record["audit"]),
        ("fault data", json.dumps(record["data"])),
        ("ordinary text for making it", json.dumps(record["ordinary"]) if record["ordinary"] else "none"),
        ("command", " ".join(record["run"]["command"])),
    )  # fmt: skip
