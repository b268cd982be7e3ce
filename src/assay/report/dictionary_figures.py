"""Pictures of dictionaries: how one compares with its controls, how often its latents are active.

1. Left: each measure a group of rows, the dictionary and its controls as points with their 95% bounds over documents, each
   with its own mark, so that they can be told apart without colour. All are shares: 1 is perfect.
2. Right: latents by firing rate, from never to always; dense ones (above a tenth of tokens) are darker.
"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from assay.features.evaluate import DENSE, FROZEN, OWN, PCA, RAW, UNTRAINED, Column, Evaluation
from assay.features.ratios import Measure
from assay.features.sums import Rates
from assay.report.cells import RAMP, visible
from assay.report.figures import ACCENT, GOOD, INK, MUTED, RULE, _drawable, _figure, _plain

SHARES = ("explained variance", "CE recovered, against mean", "KL recovered, against mean", "CE recovered, against zero")
MARKS: Mapping[str, tuple[str, str]] = {
    OWN: ("o", ACCENT), FROZEN: ("s", RAMP[7]), UNTRAINED: ("^", GOOD), PCA: ("D", MUTED), RAW: ("v", INK)}  # fmt: skip


def evaluation_figure(evaluation: Evaluation) -> Figure:
    """The dictionary beside its controls, and the histogram of firing rates."""
    figure = _figure(10.5, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    shown = [name for name in SHARES if name in evaluation.of()]
    _shares(left, evaluation.columns, shown)
    _rates(right, evaluation.rates, evaluation.typical)
    words = (f"{visible(evaluation.dictionary, 60)}: {evaluation.width} latents, {evaluation.of()['L0'].value:.1f} active per"
             f" token; {evaluation.typical} typical tokens of {evaluation.documents} documents")  # fmt: skip
    figure.suptitle(_drawable(words), color=INK, fontsize=10, x=0.01, ha="left", parse_math=False)
    return figure


def _shares(axes: Axes, columns: Sequence[Column], shown: Sequence[str]) -> None:
    """A row for each column within each measure."""
    places, labels = [], []
    for group, name in enumerate(shown):
        measured = [column for column in columns if name in column.measures]
        for number, column in enumerate(measured):
            row = group * (len(columns) + 1) + number
            _point(axes, column.measures[name], row, *MARKS.get(column.name, ("o", INK)))
            places.append(row)
            labels.append(f"{name}: {column.name}" if not number else column.name)
    axes.axvline(0, color=RULE, linewidth=1)
    axes.axvline(1, color=RULE, linewidth=1)
    axes.set_yticks(places, [_drawable(label) for label in labels], fontsize=8, parse_math=False)
    axes.set_ylim(max(places, default=0) + 0.7, -0.7)
    low = min((column.measures[name].value for column in columns for name in shown if name in column.measures), default=0.0)
    axes.set_xlim(max(-1.0, min(low, 0.0)) - 0.05, 1.05)
    _plain(axes, left=False)
    axes.set_xlabel("share kept: 1 is perfect, 0 no better than the mean or the ablation", color=INK, fontsize=9)


def _point(axes: Axes, measure: Measure, row: float, mark: str, ink: str) -> None:
    if measure.low is not None and measure.high is not None:
        axes.plot([measure.low, measure.high], [row, row], color=ink, linewidth=2, solid_capstyle="round")
    axes.plot([measure.value], [row], mark, color=ink, markersize=6.5, markeredgecolor="none", clip_on=True)
    if measure.value < -1:
        axes.annotate(f"{measure.value:.2f}", (-1, row), color=ink, fontsize=8, va="center")


def _rates(axes: Axes, rates: Rates, n_tokens: int) -> None:
    """Latents in half decades of firing rate."""
    first = next((place for place, count in enumerate(rates.counts) if count), 0)
    edges, counts = rates.edges[first:], rates.counts[first:]
    names = ["never", *(f"{10 ** edge:.1g}" for edge in edges)]
    inks = [RULE, *(RAMP[7] if 10**edge >= DENSE * (1 - 1e-9) else ACCENT for edge in edges)]
    axes.bar(range(len(names)), [rates.never, *counts], color=inks, width=0.85)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    _plain(axes)
    axes.set_xlabel(f"a latent is active at this share of {n_tokens} tokens", color=INK, fontsize=9)
    axes.set_ylabel("latents", color=INK)
