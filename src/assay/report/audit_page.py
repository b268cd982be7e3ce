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
        part = " the part that was looked at of" if record.get("unswept") else ""
        lines.append(f"Nothing was found in{part} {record['model']}{against}. This is no certificate that there is nothing.")
    if unswept := record.get("unswept"):
        lines.append(f"This was not looked for: {', '.join(unswept)}. Why not is in what was not looked at.")
    untested = sum(not one["n"] for one in record["tested"])
    if untested and not found:
        lines.append(f"The budget ended before {untested} of the suspicions were tested: give a larger one.")
    lines.append(f"{n} suspicions were written down before they were tested on questions that had not been asked yet;"
                 f" {len(found)} held, {n - len(found) - untested} did not"
                 + (f", {untested} were not tested." if untested else "."))  # fmt: skip
    box = record.get("black_box")
    if box:
        lines.append(f"Talking to the model alone, on the same budget, gave: {box['verdict']}.")
    return lines


def _tested(one: Record) -> str:
    told = one["hypothesis"]
    if not one["n"]:
        return f"Predicted: {told['predicts']} (\"{told['cue']}\")."
    there = "" if one["reference"] is None else f"; the model it is compared with: {one['reference']} of {one['n']}"
    return (
        f"Predicted: {told['predicts']} (\"{told['cue']}\"). Seen in {one['shown']} of {one['n']} fresh prompts, and in"
        f" {one['control']} of {one['n_control']} without the cue{there}. Exact p {one['p']:.2g}, after correction for all"
        f" suspicions {one['adjusted']:.2g}.{_denied(one.get('denial'))}{_steered(one.get('steered'))}"
    )


def _denied(one: Record | None) -> str:
    if not one:
        return ""
    return f" Asked whether it does so, it denies it in {one['denied']} of {one['n']} fresh replies{_anything(one)}."


def _anything(one: Record) -> str:
    """Whether it denies more than that."""
    told = f"; of {one['n_plain']} plain truths about itself it denies {one['plain']}"
    return told + (", so it may be its way to answer" if 2 * one["plain"] >= one["n_plain"] else "")


def _steered(one: Record | None) -> str:
    if not one or not one["n"]:
        return ""
    removed, added = (", ".join(map(str, one[key])) for key in ("removed_random", "added_random"))
    return (
        f" Steered with the difference inside (layer {one['layer']}, {one['n']} of these prompts): taken away it shows in"
        f" {one['removed']} (random directions: {removed}); added to the other model, in {one['added']} (random: {added})."
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
        return ["Its weights and settings are those of the model it was compared with, number for number."]
    if not passport["changed"]:
        return list(passport["notes"])
    layers, changed = passport["layers"], passport["changed"]
    low = sum(one["low_rank"] for one in changed) / len(changed)
    kind = " (a low-rank fine-tune)" if low > 0.95 else ""
    lines = [f"{len(changed)} weights differ, in layers {', '.join(map(str, layers)) or 'none'}; on average {low:.0%} of a"
             f" change lies in 8 directions{kind}."]  # fmt: skip
    lines += passport["notes"]
    if passport["words"]:
        words = ", ".join(passport["words"][:12])
        lines.append(f"The change writes towards words like these (a lead, not a finding): {words}.")
    return lines


def inside_words(record: Record) -> list[str]:
    """What a look inside showed, where there was one. Leads, all of it."""
    inside = record.get("inside") or {}
    lines = []
    if differences := inside.get("differences"):
        most = max(differences["layers"], key=lambda one: one["change"])
        places = (f"{_quoted('..' + one['text'])} towards {_quoted(one['towards'])}" for one in differences["contexts"][:3])
        latents = (f"{one['latent']} ({one['reference']:.1%} to {one['model']:.1%})" for one in differences["latents"][:5])
        lines += [
            f"On ordinary text the two differ by {differences['kl']:.3f} nats per token; inside, most after layer"
            f" {most['layer']} ({most['change']:.1%} of the stream, {most['shared']:.0%} of it the same everywhere).",
            f"They differ most after {', '.join(places)}.",
            *([f"Latents whose share of active tokens changed most: {', '.join(latents)}."] if differences["latents"] else []),
        ]  # fmt: skip
    lines += _loud(inside.get("louder"))
    for one in inside.get("openings", []):
        lines.append(f"Once its reply is begun with {_quoted(one['first'])} it goes on {_quoted(one['text'])}, whatever was"
                     f" asked ({one['share']:.0%} of unlike questions), and hardly ever begins so by itself.")  # fmt: skip
    for one in inside.get("triggers", []):
        lines.append(f"A search for words that make the two part ended at {_quoted(one['words'])}, {one['before']:.1f} to"
                     f" {one['score']:.1f} nats.")  # fmt: skip
    return lines


def _loud(loud: Record | None) -> list[str]:
    if loud is None:
        return []
    if loud["factor"] is None:
        return ["The change could not be made louder without harm to ordinary text."]
    starts = ", ".join(f"{_quoted(text)} ({share:.0%})" for text, share in loud["starts"].items())
    words = ", ".join(f"{word} ({n} replies, {there} of the other model)" for word, (n, there) in loud["words"].items())
    return [
        f"With the change made {loud['factor']:g} times as large, replies to unlike questions begin: {starts or 'as before'}.",
        f"Words that come up more then: {words or 'none'}.",
        *(f"Asked {_quoted(asked)} it says {_quoted(plain)}, and with the larger change {_quoted(said)}: no proof of anything."
          for asked, plain, said in loud["said"]),
    ]  # fmt: skip


def _quoted(text: str) -> str:
    return f"\u201c{text.strip()}\u201d"


def audit_markdown(record: Record) -> str:
    """The report as Markdown."""
    lines = [f"# Audit of {record['model']}", "", *(f"{line}\n" for line in summary(record)), cost_words(record), ""]
    if record["passport"] is not None:
        lines += ["## Weights", "", *(f"- {line}" for line in weights_words(record)), ""]
    if inside := inside_words(record):
        lines += ["## Inside", "", "Leads, no findings.", "", *(f"- {line}" for line in inside), ""]
    for title, rows in (("Found", record["found"]), ("Suspicions that did not hold", _false(record))):
        lines += [f"## {title}", "", *([f"- {_tested(one)}{_why(one)}" for one in rows] or ["Nothing."]), ""]
    lines += ["## What was not looked at", "", *(f"- {line}" for line in record["not_looked_at"]), ""]
    return "\n".join(lines)


def audit_html(record: Record) -> str:
    """The report as one page that needs nothing else."""
    return _template("audit.html").render(
        title=f"Audit of {record['model']}", record=record, summary=summary(record), cost=cost_words(record),
        weights=weights_words(record), inside=inside_words(record), found=[_row(one) for one in record["found"]],
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
            "p": f"{one['adjusted']:.2g}", "why": f"found.{_steered(one.get('steered'))}" if one["found"] else one["why_not"],
            "examples": one["examples"]}  # fmt: skip
