"""Pictures of attribution graphs: tokens across, layers upwards, still or as a page to explore.

1. A column is a token of the prompt, a row a layer; embeddings are at the bottom, logits at the top. Round marks are
   latents, diamonds what dictionaries leave over (errors), boxes tokens. Marks of one cell stand side by side.
2. A line is a direct effect: width |effect|, colour the sign, and lines of negative effects are broken, so that the sign can
   be read without colour. Only the strongest are drawn; how many are not is said in the picture.
3. The page shows, for a node that is clicked, all its effects in and out, strongest first. It holds the numbers as tables as
   well and asks the network for nothing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Curve

from assay.circuits.trace_graph import AttributionGraph, TraceNode
from assay.errors import bad_argument
from assay.report.cells import RAMP, visible
from assay.report.figures import ACCENT, INK, MUTED, RULE, _drawable, figure_svg
from assay.report.html import _template, script_json

UP, DOWN = ACCENT, RAMP[7]
SIGN_WORDS = {1: "positive: raises what it reaches", -1: "negative: lowers it"}
LEFT, RIGHT, STEP, PAD, GAP, MARK = 74.0, 20.0, 15.0, 13.0, 20.0, 5.2  # of the drawing, in hundredths of an inch
LEAST_WIDTH, LEAST_COLUMN, ABOVE, BELOW = 960.0, 58.0, 104.0, 92.0
IN_A_ROW = 8  # marks of one cell, before another line of them begins
THIN, THICK = 0.5, 4.5
MOST, PAGE_MOST, TABLE_MOST, OWN = 80, 3000, 400, 12  # OWN: effects of every node, in and out, that its page has


@dataclass(frozen=True)
class Dot:
    """A node and where its middle is."""

    name: str
    kind: str
    label: str
    words: str
    x: float
    y: float
    influence: float
    group: str


@dataclass(frozen=True)
class Line:
    """A direct effect: a cubic curve of four points."""

    source: int
    target: int
    effect: float
    width: float
    points: tuple[tuple[float, float], ...]

    @property
    def sign(self) -> int:
        return 1 if self.effect >= 0 else -1

    @property
    def svg(self) -> str:
        """Path data of SVG."""
        (ax, ay), *rest = self.points
        return f"M{ax:.1f} {ay:.1f}C" + " ".join(f"{x:.1f} {y:.1f}" for x, y in rest)


@dataclass(frozen=True)
class TraceDrawing:
    """Everything in place. `lines` strongest first; `columns`: (token, left, right); `bands`: (words, top, bottom)."""

    dots: tuple[Dot, ...]
    lines: tuple[Line, ...]
    columns: tuple[tuple[str, float, float], ...]
    bands: tuple[tuple[str, float, float], ...]
    width: float
    height: float
    n_edges: int

    def words(self, shown: int) -> str:
        """How much is drawn."""
        if shown >= self.n_edges:
            return f"{len(self.dots)} nodes and all {self.n_edges} direct effects between them."
        return f"{len(self.dots)} nodes and the {shown} strongest of {self.n_edges} direct effects between them."


def drawing(graph: AttributionGraph, most: int = MOST, own: bool = False) -> TraceDrawing:
    """Places of all nodes and the `most` strongest effects; with `own` the strongest further ones of every node.

    Raises UsageError for a graph too large to draw: prune it first.
    """
    if most < 1:
        raise bad_argument("most", most, "1 or more")
    if len(graph.nodes) > PAGE_MOST:
        raise bad_argument("graph", f"{len(graph.nodes)} nodes", f"up to {PAGE_MOST}", "Prune it first: graph.prune().")
    rows = sorted({_row(graph, node) for node in graph.nodes})
    cells: dict[tuple[int, int], list[int]] = {}
    for place, node in enumerate(graph.nodes):
        cells.setdefault((_row(graph, node), node.position), []).append(place)
    columns, width = _columns(graph, cells)
    tiers = {row: max(_tiers(found) for (r, _), found in cells.items() if r == row) for row in rows}
    tall = {row: PAD + STEP * tiers[row] for row in rows}
    height = GAP + sum(tall.values())
    bottom, at = {}, height - GAP / 2
    for row in rows:
        bottom[row] = at
        at -= tall[row]
    where: dict[int, tuple[float, float]] = {}
    for (row, position), places in cells.items():
        _, left, right = columns[position]
        order = sorted(places, key=lambda n: (graph.nodes[n].kind == "error", -float(graph.influence[n])))
        middle = bottom[row] - tall[row] / 2 + STEP * (_tiers(order) - 1) / 2
        for number, place in enumerate(order):
            tier, across = divmod(number, IN_A_ROW)
            wide = min(IN_A_ROW, len(order) - tier * IN_A_ROW)
            where[place] = (left + right) / 2 + STEP * (across - (wide - 1) / 2), middle - STEP * tier
    groups = {name: label for label, members in graph.supernodes for name in members}
    dots = tuple(Dot(node.name, node.kind, label_of(graph, node), about(graph, node), *where[place],
                     float(graph.influence[place]), groups.get(node.name, ""))
                 for place, node in enumerate(graph.nodes))  # fmt: skip
    edges = graph.edges()
    largest = max((abs(effect) for *_, effect in edges), default=1.0) or 1.0
    lines = tuple(Line(s, t, effect, THIN + (THICK - THIN) * abs(effect) / largest, _curve(where[s], where[t]))
                  for s, t, effect in [*edges[:most], *_own(edges[most:] if own else [])])  # fmt: skip
    bands = tuple((_row_name(graph, row), bottom[row] - tall[row], bottom[row]) for row in rows)
    return TraceDrawing(dots, lines, tuple(columns), bands, width, height, len(edges))


def _own(edges: Sequence[tuple[int, int, float]]) -> Iterator[tuple[int, int, float]]:
    """The first effects into and out of every node, of effects that are in order of size."""
    into, onto = Counter[int](), Counter[int]()
    for source, target, effect in edges:
        if into[target] < OWN or onto[source] < OWN:
            into[target] += 1
            onto[source] += 1
            yield source, target, effect


def _tiers(found: Sequence[int]) -> int:
    """How many lines the marks of a cell are in."""
    return -(-len(found) // IN_A_ROW)


def _row(graph: AttributionGraph, node: TraceNode) -> int:
    return {"embed": -1, "logit": graph.n_layers}.get(node.kind, node.layer or 0)


def _row_name(graph: AttributionGraph, row: int) -> str:
    return "tokens" if row < 0 else "logits" if row == graph.n_layers else f"layer {row}"


def _columns(
    graph: AttributionGraph, cells: Mapping[tuple[int, int], Sequence[int]]
) -> tuple[list[tuple[str, float, float]], float]:
    """Left and right of every token's column, as wide as its fullest cell asks for."""
    n = max(len(graph.texts), 1 + max((node.position for node in graph.nodes), default=0))
    most = [max((len(found) for (_, p), found in cells.items() if p == position), default=0) for position in range(n)]
    most = [min(count, IN_A_ROW) for count in most]
    wish = [max(LEAST_COLUMN, STEP * (count + 1)) for count in most]
    spare = max(0.0, LEAST_WIDTH - LEFT - RIGHT - sum(wish)) / n
    out, at = [], LEFT
    for position, size in enumerate(wish):
        text = graph.texts[position] if position < len(graph.texts) else str(position)
        out.append((visible(text, 14), at, at + size + spare))
        at += size + spare
    return out, at + RIGHT


def _curve(a: tuple[float, float], b: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """From the top of a to the bottom of b."""
    start, end = (a[0], a[1] - MARK), (b[0], b[1] + MARK)
    reach = max(8.0, 0.42 * (start[1] - end[1]))
    return start, (start[0], start[1] - reach), (end[0], end[1] + reach), end


def label_of(graph: AttributionGraph, node: TraceNode) -> str:
    """What a node is called in pictures and lists."""
    token = visible(graph.texts[node.position], 20) if node.position < len(graph.texts) else str(node.position)
    if node.kind == "latent":
        own = f"latent {node.layer}.{node.index}"
        return f"{own} ({visible(node.label, 40)})" if node.label else own
    if node.kind == "error":
        return f"{'error' if node.dictionary is not None or not graph.dictionaries else 'MLP'} of layer {node.layer}"
    return f"“{token}”" if node.kind == "embed" else f"“{visible(node.label or str(node.index), 18)}”"


def about(graph: AttributionGraph, node: TraceNode) -> str:
    """A node in a few words."""
    token = visible(graph.texts[node.position], 20) if node.position < len(graph.texts) else str(node.position)
    if node.kind == "embed":
        return f"token {node.position}"
    words = f"{node.kind} at token {node.position} “{token}”"
    if node.kind == "logit":
        own = "logit" if node.value is None else f"logit {node.value:.3g}"
        return own if node.probability is None else f"{own}, probability {node.probability:.3g}"
    return words + (f", activation {node.value:.4g}" if node.kind == "latent" and node.value is not None else "")


# the still picture -------------------------------------------------------------------------------


def trace_figure(graph: AttributionGraph, most: int = MOST) -> Figure:
    """The graph with its strongest `most` effects. Saved as SVG or PNG with `figures.save_figure`."""
    return _still(drawing(graph, most), graph)


def _still(plan: TraceDrawing, graph: AttributionGraph) -> Figure:
    figure = Figure(figsize=(plan.width / 100, (plan.height + ABOVE + BELOW) / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, plan.width), ylim=(plan.height + BELOW, -ABOVE))
    axes.axis("off")
    for number, (words, top, bottom) in enumerate(plan.bands):
        if number % 2 == 0:
            axes.add_patch(Rectangle((0, top), plan.width, bottom - top, color=RULE, alpha=0.35, linewidth=0, zorder=0))
        axes.text(10, (top + bottom) / 2, words, color=MUTED, fontsize=7.5, va="center")
    for text, left, right in plan.columns:
        axes.add_line(Line2D([right, right], [0, plan.height], color=RULE, linewidth=0.6, zorder=0.5))
        axes.text(
            (left + right) / 2, plan.height + 2, _drawable(text), color=INK, fontsize=8, ha="center", va="top", parse_math=False
        )
    for line in reversed(plan.lines):
        codes = [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
        axes.add_patch(PathPatch(Curve(list(line.points), codes), edgecolor=UP if line.sign > 0 else DOWN, facecolor="none",
                                 linewidth=line.width, linestyle=_dashes(line.sign), alpha=0.75, zorder=2,
                                 capstyle="butt"))  # fmt: skip
    for kind, marker, size in (("latent", "o", 30), ("error", "D", 20), ("embed", "s", 30), ("logit", "s", 30)):
        found = [dot for dot in plan.dots if dot.kind == kind]
        axes.scatter([d.x for d in found], [d.y for d in found], marker=marker, s=size, zorder=3, linewidths=0.9,
                     facecolors="#ffffff" if kind != "error" else "#e4e8ec",
                     edgecolors=MUTED if kind == "error" else INK)  # fmt: skip
    for dot in plan.dots:
        if dot.kind == "logit":
            axes.annotate(_drawable(dot.label), (dot.x, dot.y), xytext=(1, 7), textcoords="offset points", fontsize=7,
                          color=INK, ha="left", va="center", rotation=60, rotation_mode="anchor", parse_math=False)  # fmt: skip
    _say(axes, plan, graph)
    return figure


def _dashes(sign: int) -> Any:
    """Negative lines are broken."""
    return (0, (3.2, 1.6)) if sign < 0 else "-"


def _say(axes: Axes, plan: TraceDrawing, graph: AttributionGraph) -> None:
    """Title above, legend below."""
    axes.text(10, 22 - ABOVE, _drawable(title_of(graph, 70)), fontsize=11, color=INK, va="center", parse_math=False)
    y = plan.height + 34
    for place, sign in enumerate((1, -1)):
        ink, style = (UP if sign > 0 else DOWN), _dashes(sign)
        axes.add_line(Line2D([10, 54], [y + 16 * place] * 2, color=ink, linewidth=2.4, linestyle=style))
        axes.text(62, y + 16 * place, SIGN_WORDS[sign], fontsize=8, color=INK, va="center")
    for place, (marker, words) in enumerate(
        (("o", "latent"), ("D", "error: what dictionaries leave over"), ("s", "token or logit"))
    ):
        x = 300 + (0, 80, 300)[place]
        axes.scatter([x], [y], marker=marker, s=26, facecolors="#ffffff", edgecolors=INK, linewidths=0.9)
        axes.text(x + 10, y, words, fontsize=8, color=INK, va="center")
    axes.text(300, y + 16, scores_words(graph), fontsize=8, color=INK, va="center")
    axes.text(10, y + 40, plan.words(len(plan.lines)), fontsize=8, color=MUTED, va="center")


def title_of(graph: AttributionGraph, most: int = 200) -> str:
    """The prompt, or what there is of it."""
    return visible(graph.prompt or "".join(graph.texts), most)


def scores_words(graph: AttributionGraph) -> str:
    """Replacement and completeness in words."""
    known = {name: value for name in ("replacement", "completeness")
             if isinstance(value := graph.scores.get(name), int | float) and value == value}  # fmt: skip
    words = {
        "replacement": "{:.0%} of the influence comes through latents alone",
        "completeness": "{:.0%} of inputs are no errors",
    }
    return "; ".join(words[name].format(value) for name, value in known.items()) or "No scores in this file."


# the page ----------------------------------------------------------------------------------------


def trace_page(graph: AttributionGraph, most: int = MOST) -> str:
    """A graph to explore, as one HTML page that needs nothing else."""
    plan = drawing(graph, PAGE_MOST, own=True)
    still = drawing(graph, most)
    shown = len(still.lines)
    return _template("trace.html").render(
        title=title_of(graph), graph=graph, words=still.words(shown), scores=scores_words(graph), shown=shown,
        data=script_json(page_data(plan, shown)),
        still=Markup(figure_svg(_still(still, graph), themed=True, name="trace-still")),
        most=min(PAGE_MOST, len(plan.lines)), nodes=node_rows(plan), edges=edge_rows(plan),
        up=SIGN_WORDS[1], down=SIGN_WORDS[-1],
        logits=logit_rows(graph), validation=validation_rows(graph), facts=_facts(graph), table=TABLE_MOST,
    )  # fmt: skip


def page_data(plan: TraceDrawing, shown: int) -> dict[str, Any]:
    """Geometry and numbers for the page's script."""
    return {
        "width": plan.width, "height": plan.height, "start": shown, "bands": plan.bands, "columns": plan.columns, "mark": MARK,
        "n_edges": plan.n_edges,
        "nodes": [{"name": d.name, "label": d.label, "words": d.words, "kind": d.kind, "x": round(d.x, 1), "y": round(d.y, 1),
                   "influence": d.influence, "group": d.group} for d in plan.dots],
        "links": [[k.source, k.target, k.effect, round(k.width, 2)] for k in plan.lines],
    }  # fmt: skip


def node_rows(plan: TraceDrawing) -> list[dict[str, str]]:
    """The most influential nodes."""
    order = sorted(range(len(plan.dots)), key=lambda at: -plan.dots[at].influence)[:TABLE_MOST]
    dots = [plan.dots[at] for at in order]
    return [{"name": dot.name, "label": dot.label, "words": dot.words, "group": dot.group,
             "influence": "–" if dot.kind == "logit" else number(dot.influence)} for dot in dots]  # fmt: skip


def edge_rows(plan: TraceDrawing) -> list[dict[str, str]]:
    """The strongest effects."""
    names = [dot.name for dot in plan.dots]
    return [{"rank": str(rank), "source": names[k.source], "target": names[k.target], "effect": number(k.effect)}
            for rank, k in enumerate(plan.lines[:TABLE_MOST], 1)]  # fmt: skip


def logit_rows(graph: AttributionGraph) -> list[dict[str, str]]:
    """What the model would say."""
    logits = [node for node in graph.nodes if node.kind == "logit"]
    return [{"token": visible(node.label or str(node.index), 40), "value": "–" if node.value is None else number(node.value),
             "probability": "–" if node.probability is None else f"{node.probability:.1%}"} for node in logits]  # fmt: skip


def validation_rows(graph: AttributionGraph) -> list[dict[str, str]]:
    """Agreement of predicted and measured changes, where it was measured."""
    held = graph.validation or {}
    return [{"what": name, "pearson": _with_interval(row, "pearson"), "spearman": _with_interval(row, "spearman"),
             "slope": "–" if row.get("slope") is None else f"{row['slope']:.2f}", "n": str(row.get("n_interventions", "–")),
             "pairs": str(row.get("n_pairs", "–"))} for name, row in held.get("agreement", {}).items()]  # fmt: skip


def _with_interval(row: Mapping[str, Any], key: str) -> str:
    if row.get(key) is None:
        return "–"
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return f"{row[key]:.2f}" + ("" if low is None or high is None else f" ({low:.2f} to {high:.2f})")


def _facts(graph: AttributionGraph) -> list[tuple[str, str]]:
    facts = [("model", graph.model), ("model digest", graph.digest), ("prompt", graph.prompt)]
    facts += [(str(key).replace("_", " "), number(v) if isinstance(v, float) else str(v))
              for key, v in (*graph.scores.items(), *graph.plan.items())]  # fmt: skip
    facts += [("dictionaries", ", ".join(str(about["name"]) for about in graph.dictionaries))]
    return [(name, value) for name, value in facts if value not in ("", "None", "()", "[]")]


def number(value: float) -> str:
    """Four digits, with a real minus sign."""
    return f"{value:.4g}".replace("-", "−")
