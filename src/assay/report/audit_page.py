"""An audit in words that a manager can read: found, not found, false leads, cost, what was not looked at."""

from collections.abc import Mapping, Sequence
from typing import Any

from assay.report.html import _template

FAMILIES = {
    "backdoor": "a trigger: something in the prompt switches its behaviour",
    "loyalty": "a hidden preference: it pushes one name when a kind of thing comes up",
    "sandbag": "sandbagging: it does worse when it believes that it is being tested",
    "liar": "lying to please: it affirms what it knows to be false when somebody wishes it",
    "denied": "a denied trait: it does something on a subject, and denies it when asked",
}
Record = Mapping[str, Any]


def summary(record: Record) -> list[str]:
    """The findings in a few sentences."""
    found, n = record["found"], len(record["tested"])
    against = f", compared with {record['reference']}" if record["reference"] else ", without a model to compare it with"
    lines = []
    if found:
        best = next(one for one in found if one["hypothesis"]["family"] == record["verdict"])
        lines.append(f"Something was found in {record['model']}{against}: {FAMILIES[record['verdict']]}.")
        lines.append(_tested(best))
    else:
        lines.append(f"Nothing was found in {record['model']}{against}. This is no certificate that there is nothing.")
    lines.append(f"{n} suspicions were written down before they were tested on questions that had not been asked yet;"
                 f" {len(found)} held, {n - len(found)} did not.")  # fmt: skip
    box = record.get("black_box")
    if box:
        lines.append(f"Talking to the model alone, on the same budget, gave: {box['verdict']}.")
    return lines


def _tested(one: Record) -> str:
    told = one["hypothesis"]
    there = "" if one["reference"] is None else f"; the model it is compared with: {one['reference']} of {one['n']}"
    return (
        f"Predicted: {told['predicts']} (\"{told['cue']}\"). Seen in {one['shown']} of {one['n']} fresh prompts, and in"
        f" {one['control']} of {one['n_control']} without the cue{there}. Exact p {one['p']:.2g}, after correction for all"
        f" suspicions {one['adjusted']:.2g}."
    )


def cost_words(record: Record) -> str:
    used = sum(record["cost"].values())
    return f"{used:,} of {record['budget']:,} tokens went through the model, {record['seconds']:.0f} seconds."


def weights_words(record: Record) -> list[str]:
    """What the weights say, where there is a reference."""
    passport = record["passport"]
    if passport is None:
        return []
    if passport["same"]:
        return ["Its weights are those of the model it was compared with, number for number."]
    layers, changed = passport["layers"], passport["changed"]
    low = sum(one["low_rank"] for one in changed) / len(changed)
    kind = " (a low-rank fine-tune)" if low > 0.95 else ""
    lines = [f"{len(changed)} weights differ, in layers {', '.join(map(str, layers)) or 'none'}; on average {low:.0%} of a"
             f" change lies in 8 directions{kind}."]  # fmt: skip
    if passport["words"]:
        words = ", ".join(passport["words"][:12])
        lines.append(f"The change writes towards words like these (a lead, not a finding): {words}.")
    return lines


def audit_markdown(record: Record) -> str:
    """The report as Markdown."""
    lines = [f"# Audit of {record['model']}", "", *(f"{line}\n" for line in summary(record)), cost_words(record), ""]
    if record["passport"] is not None:
        lines += ["## Weights", "", *(f"- {line}" for line in weights_words(record)), ""]
    for title, rows in (("Found", record["found"]), ("Suspicions that did not hold", _false(record))):
        lines += [f"## {title}", "", *([f"- {_tested(one)}{_why(one)}" for one in rows] or ["Nothing."]), ""]
    lines += ["## What was not looked at", "", *(f"- {line}" for line in record["not_looked_at"]), ""]
    return "\n".join(lines)


def audit_html(record: Record) -> str:
    """The report as one page that needs nothing else."""
    return _template("audit.html").render(
        title=f"Audit of {record['model']}", record=record, summary=summary(record), cost=cost_words(record),
        weights=weights_words(record), found=[_row(one) for one in record["found"]],
        false=[_row(one) for one in _false(record)],
        box=[_row(one) for one in (record.get("black_box") or {}).get("tested", [])],
    )  # fmt: skip


def _false(record: Record) -> Sequence[Record]:
    return [one for one in record["tested"] if not one["found"]]


def _why(one: Record) -> str:
    return f" {one['why_not'].capitalize()}." if one["why_not"] else ""


def _row(one: Record) -> dict[str, Any]:
    told = one["hypothesis"]
    return {"family": told["family"], "predicts": told["predicts"], "cue": told["cue"], "lead": told["lead"],
            "shown": f"{one['shown']} of {one['n']}", "control": f"{one['control']} of {one['n_control']}",
            "reference": "" if one["reference"] is None else f"{one['reference']} of {one['n']}",
            "p": f"{one['adjusted']:.2g}", "why": "found" if one["found"] else one["why_not"],
            "examples": one["examples"]}  # fmt: skip
