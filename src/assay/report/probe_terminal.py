"""A probe run in the terminal: the sentence, sites beside baselines, what was checked, the verdicts. Nothing here prints."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from assay.probe.records import ProbeReport, SiteScore
from assay.probe.scores import Estimate
from assay.report.cells import visible
from assay.report.probe_figures import said
from assay.report.terminal import _table, verdict_panel

MOST_SITES = 40


def probe_view(report: ProbeReport, record: Mapping[str, Any]) -> RenderableType:
    """Everything that is said about a run. `record` is its JSON twin."""
    parts: list[RenderableType] = [Panel(Text(visible(record["sentence"], 3000)), title="in one sentence", title_align="left")]
    parts += [_sites(report), Text(""), _baselines(report), Text("")]
    parts += [Text(line, style="dim") for line in _checks(report)]
    parts += [Text(f"flag {flag.name}: {visible(flag.message, 400)}", style="yellow") for flag in report.flags]
    parts += [Text(f"note: {visible(note, 300)}", style="dim") for note in report.notes]
    parts += _verdicts(record)
    parts += [Text(f"{name}: {path}") for name, paths in (("picture", record["files"]), ("direction", [record["direction"]]))
              for path in paths if path]  # fmt: skip
    return Group(*parts)


def _sites(report: ProbeReport) -> RenderableType:
    """Sites and positions, the chosen one marked."""
    last = f"minus {report.best_baseline.replace('_', ' ')}"
    table = _table(("", "left"), ("site", "left"), ("position", "left"),
                   *((name, "right") for name in ("tune", "confirm", "near", "ood", last)))  # fmt: skip
    kept = _kept(report)
    for score in kept:
        table.add_row(Text("►" if score is report.chosen else ""), Text(score.site), Text(score.position),
                      Text(_short(score.tune)), Text(said(score.confirm)), Text(_short(score.near)), Text(_short(score.ood)),
                      Text(said(score.margin, sign=True)))  # fmt: skip
    hidden = len(report.scores) - len(kept)
    words = "AUROC (near: members against near misses of confirm); ► was chosen on tune, the others are a map"
    words += f"; {hidden} cells are not shown" if hidden else ""
    return Group(table, Text(words, style="dim"))


def _kept(report: ProbeReport) -> list[SiteScore]:
    """At most 40 cells, in order: the chosen one and those best on tune."""
    best = sorted(report.scores, key=lambda score: (score is not report.chosen, -score.tune.value))[:MOST_SITES]
    return [score for score in report.scores if any(score is each for each in best)]


def _baselines(report: ProbeReport) -> RenderableType:
    table = _table(("baseline", "left"), ("confirm", "right"), ("near", "right"), ("ood", "right"), ("accuracy", "right"),
                   ("", "left"))  # fmt: skip
    for each in report.baselines:
        table.add_row(Text(each.name.replace("_", " ")), Text(said(each.confirm)), Text(_short(each.near)),
                      Text(_short(each.ood)), Text("" if each.accuracy is None else f"{each.accuracy.value:.0%}"),
                      Text(visible(each.note, 70), style="dim"))  # fmt: skip
    return table


def _short(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.2f}"


def _checks(report: ProbeReport) -> list[str]:
    """Counts, accuracy, optimism, calibration, abstention, path, agreement, code length, scarcity."""
    best, calibration, abstention = report.chosen, report.calibration, report.calibration.abstention
    rows = ", ".join(f"{split} {row['rows']} ({row['groups']} groups)" for split, row in report.rows.items())
    found = [f"texts: {rows}", f"accuracy on confirm: {said(best.accuracy)}",
             f"tune minus confirm (how much choosing flattered): {said(report.optimism, sign=True)}",
             f"calibration error {calibration.ece:.3f}; Brier {calibration.brier:.3f}"
             f" ({calibration.brier_rate:.3f} by the share of members alone)"]  # fmt: skip
    answered, right = abstention.get("answered"), abstention.get("accuracy_answered")
    if answered is not None:
        said_right = "" if right is None else f", {right:.0%} of them right"
        found.append(f"abstention at {calibration.alpha:g}: answers {answered:.0%} of the texts{said_right}")
    if report.path:
        found.append("log loss on tune by C: " + ", ".join(f"{one.C:.2g}: {one.log_loss:.2f}" for one in report.path))
    if report.agreement is not None:
        means, stable = report.agreement.mean_difference, report.agreement.stability
        halves = "" if stable is None else f"; cosine {stable:.2f} of directions from halves of the groups"
        found.append(f"difference of means there: {said(means)}, cosine {report.agreement.cosine:.2f} with the probe{halves}")
    if report.selectivity is not None:
        found.append(f"selectivity (AUROC minus that of control tasks): {report.selectivity:+.2f}")
    if report.code_length:
        saved = "; ".join(f"{name.replace('_', ' ')} {one['bits']:.0f} of {one['label_bits']:.0f}"
                          for name, one in report.code_length.items())  # fmt: skip
        found.append(f"bits that labels cost (online code): {saved}")
    if report.scarcity:
        found.append("AUROC by groups used: " + ", ".join(f"{one['groups']}: {one['value']:.2f}" for one in report.scarcity))
    return found


def _verdicts(record: Mapping[str, Any]) -> list[RenderableType]:
    claim, causal = record["claim"] or {}, record["causal"]
    found: list[RenderableType] = []
    if "verdict" in claim:
        found.append(verdict_panel(claim))
    if claim.get("note"):
        found.append(Text(f"claim: {claim['note']}", style="dim"))
    if causal is not None:
        found.append(verdict_panel(causal["verdict"]))
    if "verdict" not in claim:
        found += [Text("This does not show:", style="bold"), *(Text(f"  - {item}") for item in record["not_shown"])]
    return found
