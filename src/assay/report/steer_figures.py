"""Pictures of a steering run: dose against effect, text and damage with the cliff marked; every item; and the page.

A report goes in, a matplotlib Figure or a page comes out; see `figures.py` for what all figures keep to. The numbers are those
of confirm pairs; the strength was chosen on tune.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from assay.report.cells import visible
from assay.report.figures import ACCENT, BAD, GOOD, INK, MUTED, RULE, _drawable, _figure, _plain, figure_svg
from assay.report.html import _template
from assay.steer.dose import Curve, Point
from assay.steer.run import SteerReport
from assay.steer.text_only import TextReport

WORDS = {"hit": "It steers, and text stays intact.", "no effect": "No effect beyond chance.",
         "incoherent": "It moves the behaviour, but text breaks."}  # fmt: skip


def dose_figure(report: SteerReport) -> Figure:
    """Effect with its band, perplexity and variety, KL: three panels over one axis of doses. Shaded: text is broken."""
    figure = _figure(7.2, 7.4)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=[2.2, 1, 1])
    points = report.confirm.points
    x = [point.strength for point in points]
    for axes in panels:
        shade(axes, report.confirm.cliffs, x)
        axes.axvline(report.strength, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.axvline(0, color=RULE, linewidth=0.8)
        _plain(axes)
    effect, text, damage = panels
    mean, low, high = zip(*(_band(point) for point in points), strict=True)
    effect.fill_between(x, low, high, color=ACCENT, alpha=0.16, linewidth=0)
    effect.plot(x, mean, color=ACCENT, linewidth=2, marker="o", markersize=4, label="effect on confirm")
    effect.plot([point.strength for point in report.tune.points], [point.effect.mean for point in report.tune.points],
                color=MUTED, linewidth=1, linestyle=":", label="on tune")  # fmt: skip
    random = list(report.controls.random.values())
    effect.plot([report.strength] * len(random), random, "_", color=MUTED, markersize=9, alpha=0.5, label="random directions")
    effect.axhline(0, color=RULE, linewidth=0.8)
    effect.set_ylabel("effect (1 = the task's own contrast)", color=INK, fontsize=9)
    effect.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    draw_text(text, damage, x, points)
    damage.set_xlabel("strength (fraction of the residual norm); dashed: chosen on tune; red: broken from the cliff on",
                      color=INK, fontsize=9)  # fmt: skip
    title = f"{visible(report.direction['name'], 60)} on {visible(report.behaviour, 40)}, {report.model}: {report.outcome}"
    effect.set_title(_drawable(title), loc="left", fontsize=9.5, color=INK, parse_math=False)
    return figure


def draw_text(text: Any, damage: Any, x: Sequence[float], points: Sequence[Any]) -> None:
    """Perplexity and variety in one panel, KL in the other."""
    text.plot(x, [_drawn(point.perplexity) for point in points], color=BAD, marker="s", markersize=3.5,
              label="perplexity ratio")  # fmt: skip
    text.plot(x, [_drawn(point.distinct) for point in points], color=GOOD, marker="^", markersize=3.5, linestyle="--",
              label="distinct-2 ratio")  # fmt: skip
    text.set_yscale("log", base=2)
    text.yaxis.set_major_formatter("{x:g}")
    text.minorticks_off()
    text.set_ylabel("text, against\nunsteered", color=INK, fontsize=9)
    text.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    damage.plot(x, [_drawn(point.kl) for point in points], color=INK, marker="D", markersize=3.5)
    damage.set_yscale("symlog", linthresh=0.01)
    damage.set_ylabel("KL on ordinary text\n(nats per token)", color=INK, fontsize=9)


def shade(axes: Any, cliffs: Mapping[str, float | None], x: Sequence[float]) -> None:
    """The cliff of each sign as a line, and shade from halfway to the last intact dose outwards."""
    for sign, end in ((1, cliffs["+"]), (-1, cliffs["-"])):
        if end is not None:
            inner = [dose for dose in x if dose * sign >= 0 and abs(dose) < abs(end)]
            edge = (end + max(inner, key=abs)) / 2
            axes.axvspan(edge, max(x) if sign > 0 else min(x), color=BAD, alpha=0.08, linewidth=0)
            axes.axvline(end, color=BAD, linewidth=0.9)


def items_figure(report: SteerReport) -> Figure:
    """The effect of the chosen strength on every item, sorted; those that moved the other way are crosses."""
    effects = np.sort(np.array(report.effect.items))
    figure = _figure(7.2, 3.4)
    axes = figure.subplots()
    place = np.arange(len(effects))
    back = effects < 0
    axes.axhline(0, color=RULE, linewidth=1)
    axes.plot(place[~back], effects[~back], "o", color=ACCENT, markersize=4, label="towards the answer")
    axes.plot(place[back], effects[back], "x", color=BAD, markersize=5, label="the other way")
    axes.axhline(report.effect.mean, color=INK, linewidth=1, linestyle=(0, (4, 2)), label="mean over templates")
    _plain(axes)
    axes.set_xlabel(f"{len(effects)} prompts, sorted", color=INK, fontsize=9)
    axes.set_ylabel("effect", color=INK)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    words = f"strength {report.strength:+g}: {back.mean():.0%} of prompts moved the other way"
    axes.set_title(_drawable(words), loc="left", fontsize=9.5, color=INK, parse_math=False)
    return figure


def _band(point: Point) -> tuple[float, float, float]:
    effect = point.effect
    low, high = (effect.mean if end is None else end for end in (effect.low, effect.high))
    return effect.mean, low, high


def _drawn(value: float) -> float:
    return value if math.isfinite(value) else math.nan


# the page ----------------------------------------------------------------------------------------


def steer_page(report: SteerReport, record: Mapping[str, Any]) -> str:
    """All of it as one HTML page that needs nothing else. `record` is the report's JSON twin with the claim."""
    pictures = (("dose", "Dose and response", dose_figure(report)), ("items", "Every prompt", items_figure(report)))
    claim = record.get("claim") or {}
    return _template("steer.html").render(
        title=f"Does {report.direction['name']} steer {report.behaviour}?", report=report, sentence=sentence(report),
        verdict=claim.get("verdict"), said=claim.get("sentence") or "; ".join(claim.get("reasons", ())),
        not_shown=claim.get("does_not_show", ()), notes=record.get("notes", ()), rows=dose_rows(report.confirm),
        pictures=[(title, Markup(figure_svg(figure, themed=True, name=name))) for name, title, figure in pictures],
        turns=turn_rows(report), tasks=task_rows(report), refusal=refusal_rows(report), facts=facts(report, record),
    )  # fmt: skip


def sentence(report: SteerReport) -> str:
    """What was found, in plain words."""
    point, controls = report.confirm.at(report.strength), report.controls
    reach = "" if report.effect.low is None else f" ({report.effect.low:+.2f} to {report.effect.high:+.2f})"
    back = sum(value < 0 for value in report.effect.items) / len(report.effect.items)
    smaller = sum(abs(value) < abs(controls.effect) for value in controls.random.values())
    found = [
        f"{WORDS[report.outcome]} At strength {report.strength:+g} of the residual norm it moves the log-odds by"
        f" {report.effect.mean:+.2f}{reach} of the task's own contrast on {report.confirm.n_items} pairs of"
        f" {report.confirm.n_templates} templates; {back:.0%} of the pairs move the other way.",
        f"{smaller} of {len(controls.random)} random directions of equal size have a smaller effect (p = {controls.p:.3f});"
        f" with the opposite sign it is {controls.flipped:+.2f}.",
        f"Written text: perplexity x {point.perplexity:.2f}, distinct-2 x {point.distinct:.2f}; KL on ordinary text"
        f" {point.kl:.3f} nats per token.",
    ]  # fmt: skip
    return " ".join([*found, *(f"A miss: {reason}." for reason in report.reasons)])


def dose_rows(curve: Curve) -> list[dict[str, str]]:
    """Every strength as text."""
    return [{
        "strength": f"{point.strength:+g}", "effect": f"{point.effect.mean:+.2f}",
        "interval": "" if point.effect.low is None else f"{point.effect.low:+.2f} to {point.effect.high:+.2f}",
        "perplexity": number(point.perplexity), "distinct": number(point.distinct), "kl": number(point.kl, 3),
        "judged": "" if point.judged is None else f"{point.judged:.2f}", "broken": "; ".join(point.broken),
    } for point in curve.points]  # fmt: skip


def turn_rows(report: SteerReport) -> list[dict[str, str]]:
    """Every turn of the conversations as text."""
    return [{
        "strength": f"{each.strength:+g}", "earlier": "read unsteered" if each.fresh else "kept", "turn": str(each.turn),
        "perplexity": number(each.perplexity), "distinct": number(each.distinct),
        "judged": "" if each.judged is None else f"{each.judged:.2f}", "broken": "; ".join(each.broken),
    } for each in report.turns]  # fmt: skip


def over_turns(report: SteerReport) -> str:
    """What several turns do to the text at the chosen strength, in words."""
    ends = {fresh: next((each.turn for each in report.turns if each.broken and each.strength == report.strength
                         and each.fresh == fresh), None) for fresh in (False, True)}  # fmt: skip
    if not report.turns:
        return "not measured: the context is too short for two"
    last = max(each.turn for each in report.turns)
    if ends[False] is None:
        return f"text holds for {last}"
    fresh = any(each.fresh for each in report.turns) and ends[True] is None
    return f"text breaks in turn {ends[False]} of {last}" + (", not where earlier turns are read unsteered" if fresh else "")


def task_rows(report: SteerReport | TextReport) -> list[dict[str, str]]:
    """Other tasks as text."""
    return [{
        "task": each.task, "before": f"{each.before:.0%}", "after": f"{each.after:.0%}", "change": f"{each.change:+.2f}",
        "interval": "" if each.low is None else f"{each.low:+.2f} to {each.high:+.2f}", "p": f"{each.p_holm:.3f}",
        "says": "shown small" if each.small else "large" if each.large else "open",
    } for each in report.other_tasks or ()]  # fmt: skip


def refusal_rows(report: SteerReport | TextReport) -> list[dict[str, str]]:
    """Refusal by kind of request, as text."""
    sides = () if report.refusal is None else report.refusal.sides
    return [{
        "requests": side.requests, "n": str(side.n), "before": f"{side.before:+.2f}", "after": f"{side.after:+.2f}",
        "change": f"{side.after - side.before:+.2f}",
        "interval": "" if side.low is None else f"{side.low:+.2f} to {side.high:+.2f}",
        "refused": f"{side.refused_before:.0%} to {side.refused_after:.0%}",
    } for side in sides]  # fmt: skip


def facts(report: SteerReport, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the numbers come from."""
    card = report.direction["card"]
    found = [
        ("model", report.model), ("direction", report.direction["name"]), ("made by", report.direction["method"]),
        ("a dose of 1", f"{report.norm:.4g}, the mean norm at {report.direction['site']}"), ("applied", report.applied["mode"]),
        ("strength chosen on tune", f"{report.strength:+g}: {report.why}"), ("contrast", f"{report.confirm.span:.2f} nats"),
        ("items whose slope is reversed", f"{report.confirm.reversed:.0%}"),
        ("cliff", cliffs_said(report.confirm.cliffs)),
        ("over turns", over_turns(report)),
        ("other layers, same dose", ", ".join(f"{site} {value:+.2f}" for site, value in report.controls.other_layers.items())
         or "none"),
    ]  # fmt: skip
    if "cosine" in card and card["cosine"] is not None:
        found.append(("coherence of the pairs", f"{card['cosine']:.2f} (mean cosine; {card['reversed']:.0%} below 0)"))
    if report.judge is not None:
        auroc = report.judge["auroc"]
        useful = "" if report.judge["useful"] else ": not used"
        found.append(("judge of text", f"{report.judge['name']}, AUROC {'none' if auroc is None else f'{auroc:.2f}'} on"
                      f" {report.judge['held_out']} held-out texts{useful}"))  # fmt: skip
    return [*found, *(("left out", f"{name}: {why}") for name, why in report.left_out.items())]


def cliffs_said(cliffs: Mapping[str, float | None]) -> str:
    """Where text breaks, for both signs."""
    return ", ".join(f"{sign} {'beyond the grid' if end is None else f'{end:+g}'}" for sign, end in cliffs.items())


def number(value: float, digits: int = 2) -> str:
    """A number as cells have it; what is not finite in words."""
    return f"{value:.{digits}f}" if math.isfinite(value) and value < 1000 else "more than 1000" if value > 0 else "none"
