"""Pictures of circuits: the graph, still or as a page to explore, and how faithful circuits of every size are.

1. The graph runs upwards: embedding, then layer by layer, then logits. A line is an edge; its width is |score|, its
   colour the sign, and lines of negative edges are broken, so that the sign can be read without colour.
2. An edge enters a head at the left for its query, in the middle for its key, at the right for its value. Keys and values
   that heads share are a box of their own below the heads (`kv`, key left, value right), joined to the heads of their
   group that are drawn: one edge is one line.
3. Only the strongest edges are drawn; how many are not is said in the picture.
4. Nodes at classes of positions stand in a column for each class.
5. The page holds the same geometry, its numbers and its table; it asks the network for nothing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Curve
from matplotlib.ticker import FuncFormatter

from assay.circuits.faithfulness import Faithfulness
from assay.circuits.formats import Circuit
from assay.circuits.graph import AT, LOGITS
from assay.circuits.graph import Node as Placed
from assay.errors import bad_argument
from assay.report.cells import RAMP, visible
from assay.report.figures import ACCENT, GOOD, INK, MUTED, RULE, _drawable, _figure, _plain, figure_svg
from assay.report.html import _template, script_json
from assay.sites import Site

UP, DOWN = ACCENT, RAMP[7]
SIGN_WORDS = {1: "positive: carries the behaviour", -1: "negative: works against it", 0: "no score"}
WIDTH, LEFT, HEADS_END, MLP_AT = 1000.0, 90.0, 800.0, 910.0  # of the drawing, in hundredths of an inch
BOX, TALL, ROW, ABOVE, PAD = 52.0, 18.0, 36.0, 28.0, 14.0
TIER = 26.0
APART = BOX * 1.22  # middles of neighbours
MOST_WIDE, EMPTY = 5, 0.8  # of a column of classes: boxes side by side that it is made wide for; one without boxes
LETTER = 6.5
HEADING = 8.0  # middles of a column's headings: below the top of the drawing, and below its bottom
THIN, THICK = 0.7, 5.0
MOST, PAGE_MOST = 60, 200
ASIDES = (0, 30, -30, 60, -60, 100, -100, 150, -150)
SAMPLES = np.linspace(0.03, 0.97, 40)[:, None]
ALONG = np.concatenate([(1 - SAMPLES) ** 3, 3 * SAMPLES * (1 - SAMPLES) ** 2, 3 * SAMPLES**2 * (1 - SAMPLES), SAMPLES**3], 1)
Columns = Mapping[str, tuple[float, float]]  # the first and the last middle of a box, by class of positions
PORTS = {"q": -0.3, "k": 0.0, "v": 0.3}
INKS, STYLES, MARKS = (ACCENT, RAMP[7], GOOD, INK), ("-", "--", "-.", ":"), ("o", "s", "^", "D")


# geometry ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A box: its name as a site (`kv.L.G` for shared keys and values), and where its middle is."""

    name: str
    label: str
    kind: str
    layer: int | None
    x: float
    y: float
    score: float | None = None


@dataclass(frozen=True)
class Link:
    """A line between two nodes, a cubic curve of four points. `edge` is empty for the inside of a head."""

    source: str
    target: str
    edge: str
    writer: str
    reader: str
    score: float | None
    width: float
    points: tuple[tuple[float, float], ...]

    @property
    def sign(self) -> int:
        return 0 if self.score is None else 1 if self.score >= 0 else -1

    @property
    def svg(self) -> str:
        """Path data of SVG."""
        (ax, ay), *rest = self.points
        return f"M{ax:.1f} {ay:.1f}C" + " ".join(f"{x:.1f} {y:.1f}" for x, y in rest)


@dataclass(frozen=True)
class Drawing:
    """Everything in place. `links` strongest first, `inside` joins shared keys and values to heads; `columns` of classes of
    positions: (name, middle, right end)."""

    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    inside: tuple[Link, ...]
    bands: tuple[tuple[int, float, float], ...]
    height: float
    n_edges: int
    next_size: float | None
    columns: tuple[tuple[str, float, float], ...] = ()

    @property
    def words(self) -> str:
        """How much of the circuit is drawn."""
        left = self.n_edges - len(self.links)
        if not left:
            return f"All {self.n_edges} edges of the circuit."
        rest = "without a score" if self.next_size is None else f"with |score| up to {self.next_size:.3g}"
        return f"The {len(self.links)} strongest of {self.n_edges} edges; {left} {rest} are not shown."


def drawing(circuit: Circuit, most: int = MOST) -> Drawing:
    """Places of the strongest edges and their nodes. Raises UsageError for a circuit without edges."""
    if most < 1:
        raise bad_argument("most", most, "1 or more")
    order = circuit.strongest()
    if not order:
        raise bad_argument("circuit", "no edges", "a circuit with one edge or more")
    graph, cells = circuit.graph, order[:most]
    ends = [(graph.writers[w], graph.readers[r]) for w, r in cells]
    scores = [float(circuit.scores[w, r]) for w, r in cells]
    joins = [(str(a), _target(circuit, reader)) for a, reader in ends]
    drawn = {name for pair in joins for name in pair}
    inside, columns = _inside(drawn, circuit), _columns(drawn, circuit)
    placed, bands, height = _placed(drawn, [*joins, *inside], columns, circuit)
    largest = max((abs(s) for s in scores if s == s), default=1.0) or 1.0
    links = []
    for (writer, reader), (a, b), score in zip(ends, joins, scores, strict=True):
        known = score if score == score else None
        width = THIN + (THICK - THIN) * abs(known or 0.0) / largest
        points = _clear(placed[a], placed[b], _port(circuit, reader), placed.values())
        links.append(Link(a, b, f"{writer}->{reader}", str(writer), str(reader), known, width, points))
    wires = tuple(Link(a, b, "", "", "", None, THIN, _curve(placed[a], placed[b], 0.0)) for a, b in inside)
    left = [abs(float(circuit.scores[cell])) for cell in order[most : most + 1]]
    return Drawing(tuple(placed.values()), tuple(links), wires, bands, height, len(order),
                   next((size for size in left if size == size), None), tuple(_headings(columns)))  # fmt: skip


def _headings(columns: Columns) -> Iterator[tuple[str, float, float]]:
    for where, (low, high) in columns.items():
        if where:
            yield visible(f"{AT}{where}", int((high - low + BOX) / LETTER)), (low + high) / 2, high + BOX / 2 + 2


def _target(circuit: Circuit, reader: Site) -> str:
    """The node that an edge into this reader ends at."""
    if reader == LOGITS:
        return "logits"
    nodes = circuit.graph.node_of(reader)
    where = f"{AT}{reader.at}" if isinstance(reader, Placed) else ""
    return str(nodes[0]) if not _shared(circuit, reader) else f"kv.{reader.layer}.{reader.index}{where}"


def _shared(circuit: Circuit, reader: Site) -> bool:
    return reader.name in ("k", "v") and circuit.graph.n_kv_heads != circuit.graph.n_heads


def _port(circuit: Circuit, reader: Site) -> float:
    if circuit.graph.n_kv_heads == circuit.graph.n_heads:
        return PORTS.get(reader.name, 0.0) * BOX
    return {"k": -0.25, "v": 0.25}.get(reader.name, 0.0) * BOX


def _inside(names: set[str], circuit: Circuit) -> list[tuple[str, str]]:
    """From shared keys and values to the heads of their group."""
    graph, out = circuit.graph, []
    for name in sorted(names):
        if name.startswith("kv."):
            base, _, where = name.partition(AT)
            layer, group = map(int, base.split(".")[1:])
            key = Placed("k", layer, group, None, where) if where else Site("k", layer, group)
            heads = [str(head) for head in graph.node_of(key)]
            out += [(name, head) for head in heads if head in names]
    return out


def _placed(
    drawn: set[str], joins: list[tuple[str, str]], columns: Columns, circuit: Circuit
) -> tuple[dict[str, Node], tuple[tuple[int, float, float], ...], float]:
    """Boxes by name, the band of every layer drawn (layer, top, bottom), and the height of it all."""
    order = [*map(str, circuit.graph.writers), "logits"]
    every = sorted(drawn, key=lambda name: _key(name, order))
    rows = _rows(every)
    x = _across(rows, joins, columns, circuit)
    levels, bands, height = _levels(every, columns)
    scores: dict[str, float | None] = {}
    if circuit.nodes is not None:
        scores = {str(site): float(v) for site, v in zip(circuit.graph.writers, circuit.nodes.tolist(), strict=True) if v == v}
    y = {name: levels[row] - (place % _tiers(names, columns)) * TIER
         for row, names in rows.items() for place, name in enumerate(sorted(names, key=x.__getitem__))}  # fmt: skip
    placed = {name: Node(name, _label(name), _kind(name), _layer(name), x[name], y[name], scores.get(name)) for name in every}
    return placed, bands, height


def _key(name: str, order: list[str]) -> tuple[int, int]:
    if name.startswith("kv."):
        base, at, where = name.partition(AT)
        _, layer, group = base.split(".")
        return order.index(f"z.{layer}.0{at}{where}"), int(group) - 1000  # before the heads of its layer
    return order.index(name), 0


def _base(name: str) -> list[str]:
    """A node's name without its class of positions, in pieces."""
    return name.partition(AT)[0].split(".")


def _layer(name: str) -> int | None:
    return int(_base(name)[1]) if len(_base(name)) > 1 else None


def _kind(name: str) -> str:
    return {"z": "head", "mlp_out": "mlp"}.get(_base(name)[0], _base(name)[0])


def _label(name: str) -> str:
    kind, *numbers = _base(name)
    return {"z": "{}.{}", "kv": "kv {}.{}", "mlp_out": "mlp {}"}.get(kind, kind).format(*numbers)


def _row(name: str) -> tuple[int | None, str]:
    return _layer(name), _kind(name)


def _rows(names: Iterable[str]) -> dict[tuple[int | None, str], list[str]]:
    rows: dict[tuple[int | None, str], list[str]] = {}
    for name in names:
        rows.setdefault(_row(name), []).append(name)
    return rows


def _levels(
    names: Iterable[str], columns: Columns
) -> tuple[dict[tuple[int | None, str], float], tuple[tuple[int, float, float], ...], float]:
    """y of every row, counted downwards from the top of the picture."""
    rows = _rows(names)
    layers = sorted({layer for layer, _ in rows if layer is not None})
    levels: dict[tuple[int | None, str], float] = {(None, "embed"): TALL}
    up, bands = TALL + PAD, []
    for layer in layers:
        bottom = up
        for kind, room in (("kv", ROW), ("head", ROW), ("mlp", ABOVE)):
            if (layer, kind) in rows:
                levels[layer, kind] = up + TALL / 2 + PAD / 2 + 2
                up += room + TIER * (_tiers(rows[layer, kind], columns) - 1)
        up += PAD
        bands.append((layer, bottom, up))
    levels[None, "logits"] = up + TALL + PAD / 2
    height = up + 2 * TALL + PAD
    return ({row: height - y for row, y in levels.items()},
            tuple((layer, height - top, height - bottom) for layer, bottom, top in bands), height)  # fmt: skip


def _tiers(row: Sequence[str], columns: Columns) -> int:
    """How many steps the boxes of a row are spread over, one up after the other, so that none covers another."""
    ends = {where: _ends(columns, f"{AT}{where}") for where in columns}
    return max(-(-n // (1 + int((ends[where][1] - ends[where][0]) / APART))) for where, n in _in_columns(row, columns).items())


def _in_columns(names: Iterable[str], columns: Iterable[str]) -> Counter[str]:
    """How many boxes are in each column; those without a class are in the last one."""
    *_, last = columns
    return Counter(name.partition(AT)[2] or last for name in names)


def _across(
    rows: Mapping[tuple[int | None, str], list[str]], joins: Sequence[tuple[str, str]], columns: Columns, circuit: Circuit
) -> dict[str, float]:
    """x of every box: where its number puts it, drawn towards its neighbours, never on one another."""
    graph, x, home = circuit.graph, {}, {}
    for (_, kind), names in rows.items():
        for name in names:
            low, high = _ends(columns, name)
            parts = {"head": graph.n_heads, "kv": graph.n_kv_heads}.get(kind, 1)
            number = int(_base(name)[2]) if kind in ("head", "kv") else 0
            aside = kind == "mlp" and not graph.classes
            x[name] = home[name] = MLP_AT if aside else low + (high - low) * (number + 0.5) / parts
    near: dict[str, list[str]] = {name: [] for name in x}
    for a, b in joins:
        near[a].append(b)
        near[b].append(a)
    for _ in range(4):
        for (_, kind), names in rows.items():
            if kind in ("head", "kv"):
                wish = {n: 0.7 * home[n] + 0.3 * float(np.mean([x[m] for m in near[n]])) for n in names}
                for column in dict.fromkeys(_ends(columns, name) for name in names):
                    x.update(_apart({n: wish[n] for n in names if _ends(columns, n) == column}, *column))
    return x


def _columns(drawn: Iterable[str], circuit: Circuit) -> Columns:
    """Where boxes of each class of positions may stand, as wide as the row with the most of them; the whole width, named "",
    where there are no classes."""
    classes = circuit.graph.classes
    if not classes:
        return {"": (LEFT, HEADS_END)}
    rows = [_in_columns(row, classes) for row in _rows(drawn).values()]
    most = {where: max((row[where] for row in rows), default=0) for where in classes}
    parts = {where: min(n, MOST_WIDE) or EMPTY for where, n in most.items()}
    found, left = {}, LEFT
    for where in classes:
        right = left + (WIDTH - LEFT) * parts[where] / sum(parts.values())
        found[where] = left + BOX / 2, max(left + BOX / 2, right - BOX / 2 - 4)
        left = right
    return found


def _ends(columns: Columns, name: str) -> tuple[float, float]:
    """The column of a box."""
    return columns[name.partition(AT)[2] or list(columns)[-1]]


def _apart(wish: Mapping[str, float], low: float, high: float) -> dict[str, float]:
    """The same order, with a gap of a box where there is room for it."""
    names = sorted(wish, key=lambda name: wish[name])
    gap = min(APART, (high - low) / max(1, len(names) - 1))
    xs = [min(max(wish[name], low + place * gap), high) for place, name in enumerate(names)]
    for place in range(1, len(xs)):
        xs[place] = max(xs[place], xs[place - 1] + gap)
    over = max(0.0, xs[-1] - high)
    for place in range(len(xs) - 1, -1, -1):
        most = high - (len(xs) - 1 - place) * gap
        xs[place] = min(xs[place], most) if over else xs[place]
    return dict(zip(names, xs, strict=True))


def _clear(a: Node, b: Node, port: float, others: Iterable[Node]) -> tuple[tuple[float, float], ...]:
    """The curve that bends the least of those that run behind the fewest other boxes."""
    between = [node for node in others if b.y < node.y < a.y and node not in (a, b)]
    x, y = (np.array([getattr(node, axis) for node in between]) for axis in "xy")
    most = max(30.0, 0.4 * (a.y - b.y))
    curves = (_curve(a, b, port, aside) for aside in ASIDES if abs(aside) <= most)
    return min(curves, key=lambda points: (_outside(points), _behind(points, x, y)))


def _curve(a: Node, b: Node, port: float, aside: float = 0.0) -> tuple[tuple[float, float], ...]:
    """From the top of a to the bottom of b."""
    start, end = (a.x, a.y - TALL / 2), (b.x + port, b.y + TALL / 2)
    rise = start[1] - end[1]
    reach = max(10.0, 0.45 * rise)
    return start, (start[0] + aside, start[1] - reach), (end[0] + aside, end[1] + reach), end


def _outside(points: Sequence[tuple[float, float]]) -> bool:
    """Whether a curve leaves the drawing, or runs over the names of layers."""
    x = (ALONG @ np.array(points))[:, 0]
    return bool(x.max() > WIDTH - THICK or x.min() < LEFT - BOX / 2)


def _behind(points: Sequence[tuple[float, float]], x: np.ndarray, y: np.ndarray) -> int:
    """Boxes with these middles that a curve runs behind."""
    along = ALONG @ np.array(points)
    near = (abs(along[:, :1] - x) < BOX / 2) & (abs(along[:, 1:] - y) < TALL / 2)
    return int(near.any(0).sum())


# the still picture -------------------------------------------------------------------------------


def circuit_figure(circuit: Circuit, most: int = MOST) -> Figure:
    """The strongest `most` edges of a circuit. Saved as SVG or PNG with `figures.save_figure`."""
    return _still(drawing(circuit, most), circuit)


def _still(plan: Drawing, circuit: Circuit) -> Figure:
    below = 84.0 + (HEADING if plan.columns else 0)
    figure = Figure(figsize=(WIDTH / 100, (plan.height + below + 44) / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(plan.height + below, -44))
    axes.axis("off")
    for number, (layer, top, bottom) in enumerate(plan.bands):
        if number % 2 == 0:
            axes.add_patch(Rectangle((0, top), WIDTH, bottom - top, color=RULE, alpha=0.35, linewidth=0, zorder=0))
        axes.text(10, (top + bottom) / 2, f"layer {layer}", color=MUTED, fontsize=8, va="center")
    for name, middle, right in plan.columns:
        axes.add_line(Line2D([right, right], [0, plan.height], color=RULE, linewidth=0.8, zorder=0))
        for y in (HEADING, plan.height + HEADING):
            axes.text(middle, y, _drawable(name), color=MUTED, fontsize=8, ha="center", va="center", parse_math=False)
    for link in plan.inside:
        axes.add_patch(_patch(link, RULE, "-", 1.4, 1.0, 1))
    for link in reversed(plan.links):
        ink = {1: UP, -1: DOWN, 0: MUTED}[link.sign]
        style = (0, (3.2, 1.6)) if link.sign < 0 else "-"
        axes.add_patch(_patch(link, ink, style, link.width, 0.8, 2))
    for node in plan.nodes:
        _box(axes, node)
    _say(axes, plan, circuit)
    return figure


def _patch(link: Link, ink: str, style: Any, width: float, alpha: float, order: int) -> PathPatch:
    codes = [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
    return PathPatch(Curve(list(link.points), codes), edgecolor=ink, facecolor="none", linewidth=width, linestyle=style,
                     alpha=alpha, zorder=order, capstyle="butt")  # fmt: skip


def _box(axes: Axes, node: Node) -> None:
    rounding = {"head": 8.0, "kv": 2.0, "mlp": 2.0}.get(node.kind, 4.0)
    face = {"head": "#ffffff", "mlp": "#f1f0eb", "kv": "#ffffff"}.get(node.kind, "#e4e8ec")
    axes.add_patch(FancyBboxPatch((node.x - BOX / 2, node.y - TALL / 2), BOX, TALL, zorder=3, facecolor=face,
                                  boxstyle=f"round,pad=0,rounding_size={rounding}", edgecolor=MUTED,
                                  linewidth=0.8, linestyle=":" if node.kind == "kv" else "-"))  # fmt: skip
    axes.text(node.x, node.y, node.label, ha="center", va="center_baseline", fontsize=7.5, color=INK, zorder=4)


def _say(axes: Axes, plan: Drawing, circuit: Circuit) -> None:
    """Title above, legend and reading aid below."""
    title = "Circuit" + (f" of {visible(circuit.task, 40)}" if circuit.task else "")
    title += f" in {visible(circuit.model, 40)}" if circuit.model else ""
    axes.text(10, -30, _drawable(title), fontsize=11, color=INK, va="center", parse_math=False)
    axes.text(10, -11, plan.words, fontsize=8.5, color=MUTED, va="center")
    y = plan.height + 16 + (HEADING if plan.columns else 0)
    largest = max((abs(link.score) for link in plan.links if link.score is not None), default=None)
    for place, sign in enumerate(sorted({link.sign for link in plan.links}, reverse=True)):
        ink, style = {1: (UP, "-"), -1: (DOWN, (0, (3.2, 1.6))), 0: (MUTED, "-")}[sign]
        axes.add_line(Line2D([10, 60], [y + 20 * place] * 2, color=ink, linewidth=2.6, linestyle=style))
        axes.text(68, y + 20 * place, SIGN_WORDS[sign], fontsize=8.5, color=INK, va="center")
    if largest is not None:
        for place, share in enumerate((1.0, 0.25)):
            axes.add_line(Line2D([420, 470], [y + 20 * place] * 2, color=MUTED, linewidth=THIN + (THICK - THIN) * share))
            axes.text(478, y + 20 * place, f"|score| {share * largest:.3g}", fontsize=8.5, color=INK, va="center")
    axes.text(10, y + 48, _aid(circuit), fontsize=8, color=MUTED, va="center")


def _aid(circuit: Circuit) -> str:
    if circuit.graph.classes:
        return ("Columns are classes of positions, heads layer.head. A line into a key or value (kv: left, right) begins in the"
                " column that is looked at and ends in the one that looks.")  # fmt: skip
    if circuit.graph.n_kv_heads == circuit.graph.n_heads:
        return "Heads are layer.head. Lines run upwards and enter a head at its query (left), key (middle) or value (right)."
    return ("Heads are layer.head. Lines run upwards and enter a head at its query. Keys (left) and values (right) that heads"
            " share are boxes named kv.")  # fmt: skip


# faithfulness ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomCircuits:
    """Faithfulness of random circuits: shares of edges kept, and f of every draw at each."""

    name: str
    shares: Sequence[float]
    f: Sequence[Sequence[float]]  # of a share, every draw


def faithfulness_figure(curves: Sequence[Faithfulness], random: RandomCircuits | None = None) -> Figure:
    """Faithfulness against the share of edges kept, a line per curve, with intervals; random circuits as a band."""
    if not curves:
        raise bad_argument("curves", "none", "one curve or more")
    figure = _figure(7.6, 4.4)
    axes = figure.subplots()
    for level, name in ((1.0, "1: whole model"), (0.0, "0: all ablated")):
        axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
        axes.annotate(name, (1.01, level), xycoords=("axes fraction", "data"), fontsize=8, color=MUTED, va="center")
    if random is not None:
        _band(axes, random)
    shares = [share for number, curve in enumerate(curves) for share in _line(axes, curve, number)]
    axes.set_xscale("log")
    axes.set_xlim(min(shares) / 1.25, 1.25)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    _plain(axes)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_xlabel("edges kept, share of the whole graph (log axis)", color=INK)
    axes.set_ylabel(f"faithfulness ({visible(curves[0].metric, 30).replace('_', ' ')})", color=INK)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, labelcolor=INK)
    axes.set_title(_curve_words(curves), loc="left", fontsize=9, color=MUTED)
    return figure


def _line(axes: Axes, curve: Faithfulness, number: int) -> list[float]:
    """One curve with its intervals; the shares drawn."""
    points = [p for p in curve.points if p.share > 0]
    if not points:
        raise bad_argument("curves", f"{curve.ablation} without a circuit that has edges", "circuits with edges")
    ink, style, mark = (each[number % len(each)] for each in (INKS, STYLES, MARKS))
    x = [p.share for p in points]
    axes.plot(x, [p.f.value for p in points], color=ink, linestyle=style, marker=mark, markersize=4.5, linewidth=1.8, zorder=4,
              label=f"{curve.ablation} ablation, {curve.selection}")  # fmt: skip
    for place, point in zip(x, points, strict=True):
        if point.f.low is not None and point.f.high is not None:
            axes.plot([place] * 2, [point.f.low, point.f.high], color=ink, linewidth=1.1, alpha=0.8, zorder=3)
    return x


def _band(axes: Axes, random: RandomCircuits) -> None:
    if len(random.shares) != len(random.f) or not all(len(draws) for draws in random.f):
        raise bad_argument("random", f"{len(random.f)} lists of draws", f"one list for each of {len(random.shares)} shares")
    low, middle, high = (np.array([np.quantile(draws, q) for draws in random.f]) for q in (0.05, 0.5, 0.95))
    least = min(map(len, random.f))
    axes.fill_between(random.shares, low, high, color=MUTED, alpha=0.22, linewidth=0, zorder=2,
                      label=_drawable(f"{random.name}, 5% to 95% of {least} draws"))  # fmt: skip
    axes.plot(random.shares, middle, color=MUTED, linewidth=1, linestyle=":", zorder=2)


def _curve_words(curves: Sequence[Faithfulness]) -> str:
    words = "lines upright: 95% intervals over templates"
    if any(p.f.low is None for curve in curves for p in curve.points):
        words = "where there is no upright line, no interval could be made"
    empty = any(p.share == 0 for curve in curves for p in curve.points)
    return words + ("; circuits without edges are not drawn" if empty else "")


# the page ----------------------------------------------------------------------------------------


def circuit_page(
    circuit: Circuit, curves: Sequence[Faithfulness] = (), random: RandomCircuits | None = None, *, most: int = PAGE_MOST
) -> str:
    """A circuit to explore, as one HTML page that needs nothing else."""
    plan = drawing(circuit, most)
    still = drawing(circuit, min(most, MOST))
    curve = Markup(figure_svg(faithfulness_figure(curves, random), themed=True, name="faithfulness")) if curves else None
    return _template("circuit.html").render(
        title="Circuit" + (f" of {circuit.task}" if circuit.task else ""), circuit=circuit, plan=plan, aid=_aid(circuit),
        data=script_json(page_data(plan)), still=Markup(figure_svg(_still(still, circuit), themed=True, name="still")),
        rows=edge_rows(plan), node_rows=node_rows(plan), curve=curve, curve_rows=_curve_rows(curves), width=WIDTH,
        up=SIGN_WORDS[1], down=SIGN_WORDS[-1], facts=_facts(circuit), shown=min(MOST, len(plan.links)),
    )  # fmt: skip


def page_data(plan: Drawing) -> dict[str, Any]:
    """Geometry and numbers for the page's script."""
    return {
        "width": WIDTH, "height": plan.height, "box": [BOX, TALL], "start": min(MOST, len(plan.links)), "bands": plan.bands,
        "columns": [[name, round(middle, 1), round(right, 1)] for name, middle, right in plan.columns],
        "nodes": [{"name": n.name, "label": n.label, "kind": n.kind, "x": round(n.x, 1), "y": round(n.y, 1), "score": n.score}
                  for n in plan.nodes],
        "links": [{"source": k.source, "target": k.target, "edge": k.edge, "score": k.score, "width": round(k.width, 2),
                   "sign": k.sign, "d": k.svg} for k in plan.links],
        "inside": [{"source": k.source, "target": k.target, "d": k.svg} for k in plan.inside],
    }  # fmt: skip


def edge_rows(plan: Drawing) -> list[dict[str, Any]]:
    """The numbers behind the picture."""
    return [{"rank": rank, "writer": link.writer, "reader": link.reader, "score": _figure_of(link.score),
             "words": SIGN_WORDS[link.sign].partition(":")[0]} for rank, link in enumerate(plan.links, 1)]  # fmt: skip


def node_rows(plan: Drawing) -> list[dict[str, Any]]:
    """Nodes with the sum of the edges drawn into and out of them."""
    out = []
    for node in plan.nodes:
        into, onto = ([k.score for k in plan.links if getattr(k, end) == node.name] for end in ("target", "source"))
        out.append({"name": node.name, "kind": node.kind, "score": _figure_of(node.score),
                    "n_in": len(into), "n_out": len(onto), "sum_in": _figure_of(sum(s for s in into if s is not None)),
                    "sum_out": _figure_of(sum(s for s in onto if s is not None))})  # fmt: skip
    return out


def _curve_rows(curves: Sequence[Faithfulness]) -> list[dict[str, str]]:
    return [{"name": f"{c.ablation}, {c.selection}", "edges": str(p.n_edges), "share": f"{100 * p.share:.3g}%",
             "f": f"{p.f.value:.3f}",
             "interval": "–" if p.f.low is None or p.f.high is None else f"{p.f.low:.3f} to {p.f.high:.3f}",
             "kl": "–" if p.kl is None else f"{p.kl.value:.3f}", "agree": "–" if p.agree is None else f"{p.agree.value:.0%}"}
            for c in curves for p in c.points]  # fmt: skip


def _facts(circuit: Circuit) -> list[tuple[str, str]]:
    facts = [("model", circuit.model), ("model digest", circuit.digest), ("task", circuit.task)]
    facts += [(str(key).replace("_", " "), str(value)) for key, value in circuit.plan.items()]
    return [(name, value) for name, value in facts if value not in ("", "None")]


def _figure_of(score: float | None) -> str:
    return "–" if score is None else f"{score:.4g}".replace("-", "−")
