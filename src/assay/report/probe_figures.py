"""Pictures of a probe run: where a property is readable beyond the best baseline, how AUROC runs over the layers, whether
probabilities mean what they say, and the page that holds them.

A report goes in, a matplotlib Figure or a page comes out; see `figures.py` for what all figures keep to. Numbers are those of
confirm; sites that were not chosen are a map, not findings, and the pictures say so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from assay.probe.records import ProbeReport, SiteScore
from assay.probe.scores import Estimate
from assay.report.cells import RAMP, visible
from assay.report.figures import ACCENT, COLOURS, GOOD, INK, MUTED, RULE, _drawable, _figure, _plain, _ticks, figure_svg
from assay.report.html import _template

INKS, STYLES, MARKS = (ACCENT, RAMP[7], GOOD, INK, MUTED), ("-", "--", "-.", ":", (0, (5, 1))), "os^Dv"
LEAST_LIMIT, MOST_WORDS = 0.1, 600


def probe_map(report: ProbeReport) -> Figure:
    """Sites down, positions across: AUROC minus that of the best baseline. A dot: the interval is above 0; a frame: chosen."""
    sites, places = _axis(report, "site"), _axis(report, "position")
    values, sure = np.full((len(sites), len(places)), np.nan), np.zeros((len(sites), len(places)), bool)
    for score in report.scores:
        cell = sites.index(score.site), places.index(score.position)
        values[cell], sure[cell] = score.margin.value, score.margin.low is not None and score.margin.low > 0
    limit = max(LEAST_LIMIT, float(np.nanmax(np.abs(values))))
    figure = _figure(min(14.0, 4.2 + 0.9 * len(places)), min(14.0, 1.9 + 0.24 * len(sites)))
    axes = figure.subplots()
    image = axes.imshow(values, cmap=COLOURS, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    _ticks(axes, places, sites, rotate=False)
    if values.size <= MOST_WORDS and len(sites) <= 48:
        for row, column in np.ndindex(values.shape):
            if np.isfinite(values[row, column]):
                dark = abs(values[row, column]) > 0.68 * limit
                axes.annotate(f"{values[row, column]:+.2f}{' •' if sure[row, column] else ''}", (column, row), ha="center",
                              va="center", fontsize=7.5, color="white" if dark else INK)  # fmt: skip
    chosen = (places.index(report.position), sites.index(report.best))
    axes.plot([chosen[0] - 0.48, chosen[0] + 0.48, chosen[0] + 0.48, chosen[0] - 0.48, chosen[0] - 0.48],
              [chosen[1] - 0.48, chosen[1] - 0.48, chosen[1] + 0.48, chosen[1] + 0.48, chosen[1] - 0.48],
              color=INK, linewidth=1.8)  # fmt: skip
    axes.set_xlabel("position", color=INK)
    words = f"{visible(report.concept, 60)}: AUROC on confirm minus {report.best_baseline}"
    axes.set_title(_drawable(f"{words}\nframe: chosen on tune; dot: 95% interval above 0"), loc="left", fontsize=9, color=INK,
                   parse_math=False)  # fmt: skip
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.06, aspect=28)
    bar.ax.tick_params(colors=INK, labelsize=8.5, length=3)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def layer_curve(report: ProbeReport) -> Figure:
    """AUROC on confirm over the sites, a line per position with its 95% band; baselines as level lines."""
    sites = _axis(report, "site")
    figure = _figure(max(6.8, min(14.0, 2.4 + 0.26 * len(sites))), 4.2)
    axes = figure.subplots()
    for number, place in enumerate(_axis(report, "position")):
        ink, style = INKS[number % len(INKS)], STYLES[number % len(STYLES)]
        there = [score for score in report.scores if score.position == place]
        x = [sites.index(score.site) for score in there]
        axes.plot(x, [score.confirm.value for score in there], color=ink, linestyle=style, linewidth=2, label=place,
                  marker=MARKS[number % len(MARKS)], markersize=3.5)  # fmt: skip
        low, high = zip(*(_bounds(score.confirm) for score in there), strict=True)
        axes.fill_between(x, low, high, color=ink, alpha=0.13, linewidth=0)
    for number, name in enumerate(dict.fromkeys((report.best_baseline, "bag_of_words", "untrained"))):
        found = next((each for each in report.baselines if each.name == name and each.confirm is not None), None)
        if found is not None and found.confirm is not None:
            axes.axhline(found.confirm.value, color=MUTED, linewidth=1, linestyle=":")
            axes.annotate(name.replace("_", " "), (0.02 + 0.33 * number, found.confirm.value), xytext=(2, 2), fontsize=8,
                          xycoords=axes.get_yaxis_transform(), textcoords="offset points", color=MUTED)  # fmt: skip
    axes.axhline(0.5, color=RULE, linewidth=1)
    axes.plot([sites.index(report.best)], [report.chosen.confirm.value], "o", color=INK, markersize=9, fillstyle="none")
    _plain(axes)
    step = max(1, -(-len(sites) // 40))
    axes.set_xticks(range(0, len(sites), step), sites[::step], rotation=90, fontsize=8)
    axes.set_ylabel("AUROC on confirm (ring: chosen on tune)", color=INK)
    axes.set_title(_drawable(visible(f"{report.concept}, {report.probe} probe", 100)), loc="left", fontsize=10, color=INK,
                   parse_math=False)  # fmt: skip
    if len(_axis(report, "position")) > 1:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def reliability_plot(report: ProbeReport) -> Figure:
    """Share of members against the mean probability of a bin, with exact 95% intervals; the size of a dot is its rows."""
    calibration = report.calibration
    figure = _figure(4.6, 4.2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=RULE, linewidth=1.2)
    most = max((one.n for one in calibration.bins), default=1)
    for one in calibration.bins:
        axes.plot([one.mean, one.mean], [one.share_low, one.share_high], color=ACCENT, linewidth=1.4)
        axes.plot([one.mean], [one.share], "o", color=ACCENT, markersize=3 + 7 * (one.n / most) ** 0.5)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _plain(axes)
    axes.set_xlabel("probability that the probe gives", color=INK)
    axes.set_ylabel("share of members", color=INK)
    answered = calibration.abstention.get("answered")
    said = "" if answered is None else f"; answers {answered:.0%} at {1 - calibration.alpha:.0%} coverage"
    axes.set_title(f"calibration error {calibration.ece:.2f}, Brier {calibration.brier:.2f}{said}", loc="left", fontsize=9,
                   color=INK)  # fmt: skip
    return figure


def probe_page(report: ProbeReport, sentence: str, not_shown: Sequence[str], facts: Mapping[str, Any]) -> str:
    """All of it as one HTML page that needs nothing else."""
    pictures = (("margin", "Sites and positions, the best baseline subtracted", probe_map(report)),
                ("curve", "AUROC over the sites", layer_curve(report)),
                ("reliability", "Do probabilities mean what they say?", reliability_plot(report)))  # fmt: skip
    return _template("probe.html").render(
        title=f"Where is {report.concept} readable?", report=report, sentence=sentence, not_shown=not_shown,
        pictures=[(title, Markup(figure_svg(figure, themed=True, name=name))) for name, title, figure in pictures],
        sites=[_site_row(score) for score in report.scores],
        baselines=[(each.name.replace("_", " "), *map(said, (each.confirm, each.near, each.ood)), each.note)
                   for each in report.baselines],
        facts=[(name, str(value)) for name, value in facts.items()],
    )  # fmt: skip


def said(estimate: Estimate | None, sign: bool = False) -> str:
    """A number with its interval, in words."""
    if estimate is None:
        return "not measured"
    mark = "+" if sign else ""
    value = f"{estimate.value:{mark}.2f}"
    return value if estimate.low is None or estimate.high is None else f"{value} ({estimate.low:.2f} to {estimate.high:.2f})"


def _site_row(score: SiteScore) -> dict[str, str]:
    return {"site": score.site, "position": score.position, "tune": said(score.tune), "confirm": said(score.confirm),
            "near": said(score.near), "ood": said(score.ood), "margin": said(score.margin, sign=True)}  # fmt: skip


def _axis(report: ProbeReport, name: str) -> list[str]:
    return list(dict.fromkeys(getattr(score, name) for score in report.scores))


def _bounds(estimate: Estimate) -> tuple[float, float]:
    value = estimate.value
    return (value if estimate.low is None else estimate.low), (value if estimate.high is None else estimate.high)
