"""Blocks: the parts a document is made of. Each has a `type`, an `id` that is its own on the page, and content of a fixed form.

The classes are the form (their JSON schema is in the OpenAPI description), the functions make them. Text from models and users
is only ever text: what shows a block never reads markup in it. Links inside the app are `#/PAGE?name=value`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypeAlias, Unpack
from urllib.parse import urlencode

from typing_extensions import TypedDict  # pydantic reads this one on Python 3.11

Tone: TypeAlias = Literal["good", "bad", "warn"]
Number: TypeAlias = float | None


# text ----------------------------------------------------------------------------------------------


class Span(TypedDict):
    """A stretch of text: a link, a glossary word, or set off."""

    text: str
    href: NotRequired[str]
    term: NotRequired[str]
    strong: NotRequired[bool]


Inline: TypeAlias = list[str | Span]


def words(*parts: str | Span) -> Inline:
    """A line of text from its stretches."""
    return list(parts)


def href(name: str, **arguments: Any) -> str:
    """The address of a page inside the app. Arguments that are None or "" are left out."""
    given = {key: _plain(value) for key, value in arguments.items() if value is not None and value != ""}
    return f"#/{name}" + (f"?{urlencode(given)}" if given else "")


def link(text: str, name: str, **arguments: Any) -> Span:
    """A link to a page of the app."""
    return {"text": text, "href": href(name, **arguments)}


def term(word: str, text: str = "") -> Span:
    """A glossary word, said in other words where `text` is given."""
    return {"text": text or word, "term": word}


def strong(text: str) -> Span:
    """Text that is set off."""
    return {"text": text, "strong": True}


def _plain(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


# blocks --------------------------------------------------------------------------------------------


class Block(TypedDict):
    """What every block has. `help`: a glossary word; `width`: half where two such blocks may stand side by side."""

    id: str
    title: NotRequired[str]
    help: NotRequired[str]
    note: NotRequired[str]
    width: NotRequired[Literal["half", "full"]]


class TextBlock(Block):
    """Paragraphs."""

    type: Literal["text"]
    paragraphs: list[Inline]


class Fact(TypedDict):
    """One labelled value."""

    label: str
    value: str | float | None
    note: NotRequired[str]
    help: NotRequired[str]
    href: NotRequired[str]
    tone: NotRequired[Tone]


class FactsBlock(Block):
    """Labelled values, most important first."""

    type: Literal["facts"]
    items: list[Fact]


class Column(TypedDict):
    """A column of a table."""

    key: str
    label: str
    kind: Literal["text", "number", "percent", "verdict", "link", "bar", "tokens", "interval"]
    help: NotRequired[str]


class Cell(TypedDict):
    """A value with a link or an interval."""

    value: str | float | list[str] | None
    href: NotRequired[str]
    low: NotRequired[Number]
    high: NotRequired[Number]


class TableBlock(Block):
    """Rows. Of a page of a longer table: how many there are in `total`, and the argument that names the first, in `param`."""

    type: Literal["table"]
    columns: list[Column]
    rows: list[dict[str, Cell | str | float | list[str] | None]]
    total: NotRequired[int]
    offset: NotRequired[int]
    limit: NotRequired[int]
    param: NotRequired[str]
    sort: NotRequired[str]


class WindowRecord(TypedDict):
    """A stretch of a document with a value at each token; `at`: the token it was chosen by."""

    pieces: list[str]
    values: list[float]
    at: int
    document: str
    position: int
    note: NotRequired[str]


class WindowGroup(TypedDict):
    """Windows of one kind: highest, of a quantile, near misses."""

    label: str
    windows: list[WindowRecord]


class ContextsBlock(Block):
    """Windows by group; `largest`: the value that gets the strongest tint."""

    type: Literal["contexts"]
    groups: list[WindowGroup]
    largest: float


class Axis(TypedDict):
    """An axis."""

    label: str
    log: NotRequired[bool]


class Counts(TypedDict):
    """Counts of one series, one per bin."""

    label: str
    counts: list[float]


class HistogramBlock(Block):
    """Counts between edges (one more edge than counts)."""

    type: Literal["histogram"]
    edges: list[float]
    series: list[Counts]
    x: Axis
    y: Axis


class LinePoint(TypedDict):
    """A point of a line, with its interval."""

    x: float
    y: Number
    low: NotRequired[Number]
    high: NotRequired[Number]


class Line(TypedDict):
    """A line."""

    label: str
    points: list[LinePoint]


class Mark(TypedDict):
    """A place worth a word: a vertical line at x, a horizontal one at y."""

    label: str
    x: NotRequired[float]
    y: NotRequired[float]


class LineBlock(Block):
    """Lines with intervals."""

    type: Literal["line"]
    series: list[Line]
    x: Axis
    y: Axis
    marks: NotRequired[list[Mark]]


class HeatmapBlock(Block):
    """A grid; `low` and `high`: intervals of the same shape. `href`: a link with {row} and {column} in it."""

    type: Literal["heatmap"]
    rows: list[str]
    columns: list[str]
    values: list[list[Number]]
    low: NotRequired[list[list[Number]]]
    high: NotRequired[list[list[Number]]]
    scale: Literal["diverging", "sequential"]
    row_label: str
    column_label: str
    unit: str
    href: NotRequired[str]


class Bar(TypedDict):
    """A bar with its interval."""

    label: str
    value: Number
    low: NotRequired[Number]
    high: NotRequired[Number]
    href: NotRequired[str]


class BarsBlock(Block):
    """Bars."""

    type: Literal["bars"]
    items: list[Bar]
    unit: str


class Node(TypedDict):
    """A node of a layered graph, at its layer and position."""

    id: str
    label: str
    layer: float
    position: float
    value: float
    kind: str
    href: NotRequired[str]
    group: NotRequired[str]
    text: NotRequired[str]


Edge = TypedDict("Edge", {"from": str, "to": str, "weight": float})


class Action(TypedDict):
    """A verb with the arguments that are known."""

    verb: str
    arguments: dict[str, Any]


class GraphBlock(Block):
    """A layered graph: x is the position, y the layer. `intervene`: the verb that edits a node."""

    type: Literal["graph"]
    nodes: list[Node]
    edges: list[Edge]
    layers: list[str]
    positions: list[str]
    intervene: NotRequired[Action]


class Point(TypedDict):
    """A point."""

    x: float
    y: float
    label: str
    href: NotRequired[str]
    group: NotRequired[str]
    size: NotRequired[float]


class ScatterBlock(Block):
    """Points."""

    type: Literal["scatter"]
    points: list[Point]
    x: Axis
    y: Axis


class Field(TypedDict):
    """A field of a form; `name`: the argument of the verb."""

    name: str
    label: str
    kind: Literal["text", "area", "number", "choice", "slider", "flag"]
    value: NotRequired[str | float | bool | None]
    choices: NotRequired[list[str]]
    min: NotRequired[float]
    max: NotRequired[float]
    step: NotRequired[float]
    help: NotRequired[str]
    required: NotRequired[bool]


class FormBlock(Block):
    """Asks for arguments of a verb and runs it. `fixed`: arguments that are given; `auto`: run once when the page opens.

    `page`: instead of running the verb, open this page with the fields as its arguments, so that the address holds them.
    """

    type: Literal["form"]
    verb: str
    role: str
    fields: list[Field]
    submit: str
    stream: NotRequired[bool]
    fixed: NotRequired[dict[str, Any]]
    auto: NotRequired[bool]
    page: NotRequired[str]


class Gate(TypedDict):
    """A gate of a claim."""

    name: str
    split: str
    estimate: Number
    low: Number
    high: Number
    sesoi: Number
    p: Number
    passed: bool
    required: bool


class Counter(TypedDict):
    """An item that goes against a claim."""

    score: Number
    status: str
    text: NotRequired[str]
    pieces: NotRequired[list[str]]


class Card(TypedDict):
    """A claim with its verdict."""

    id: str
    statement: str
    kind: str
    verdict: str
    sentence: str
    reasons: list[str]
    qualifiers: list[str]
    gates: list[Gate]
    counterexamples: list[Counter]
    href: str
    shows_not: NotRequired[list[str]]
    rerun: NotRequired[Action]


class ClaimsBlock(Block):
    """Claims as cards."""

    type: Literal["claims"]
    cards: list[Card]


class PatternsBlock(Block):
    """Attention patterns, (head, query, key)."""

    type: Literal["patterns"]
    pieces: list[str]
    heads: list[str]
    values: list[list[list[float]]]


class Side(TypedDict):
    """One of several texts that stand side by side."""

    label: str
    pieces: list[str]
    values: NotRequired[list[float]]
    note: NotRequired[str]


class TextsBlock(Block):
    """Texts side by side."""

    type: Literal["texts"]
    columns: list[Side]


class LinkItem(TypedDict):
    """A link with a word about it."""

    label: str
    href: str
    note: NotRequired[str]


class LinksBlock(Block):
    """Links."""

    type: Literal["links"]
    items: list[LinkItem]


class Share(TypedDict):
    """A share that is not explained."""

    what: str
    share: Number
    low: NotRequired[Number]
    high: NotRequired[Number]
    note: NotRequired[str]


class UnexplainedBlock(Block):
    """What the map does not account for, largest first."""

    type: Literal["unexplained"]
    items: list[Share]


class Firing(TypedDict):
    """A feature's values along a text."""

    name: str
    label: str
    href: str
    values: list[float]


class TokensBlock(Block):
    """A text with the features that fire in it."""

    type: Literal["tokens"]
    pieces: list[str]
    features: list[Firing]


class Term(TypedDict):
    """A word and what it means."""

    word: str
    meaning: str


class TermsBlock(Block):
    """Words and what they mean."""

    type: Literal["terms"]
    items: list[Term]


AnyBlock: TypeAlias = (
    TextBlock | FactsBlock | TableBlock | ContextsBlock | HistogramBlock | LineBlock | HeatmapBlock | BarsBlock | GraphBlock
    | ScatterBlock | FormBlock | ClaimsBlock | PatternsBlock | TextsBlock | LinksBlock | UnexplainedBlock | TokensBlock
    | TermsBlock
)  # fmt: skip
TYPES = ("text", "facts", "table", "contexts", "histogram", "line", "heatmap", "bars", "graph", "scatter", "form", "claims",
         "patterns", "texts", "links", "unexplained", "tokens", "terms")  # fmt: skip


class DocumentRecord(TypedDict):
    """A page. `counts`: the ledger's tally; `empty`: nothing was measured yet, and the page says what to run."""

    page: str
    title: str
    intro: Inline
    params: dict[str, Any]
    blocks: list[AnyBlock]
    counts: dict[str, int]
    made: str
    empty: bool


class More(TypedDict, total=False):
    """What any block may have besides."""

    title: str
    help: str
    note: str
    width: Literal["half", "full"]


class TableMore(More, total=False):
    """What a table may have besides."""

    total: int
    offset: int
    limit: int
    param: str
    sort: str


class LineMore(More, total=False):
    """What a line may have besides."""

    marks: list[Mark]


class HeatmapMore(More, total=False):
    """What a heatmap may have besides."""

    low: list[list[Number]]
    high: list[list[Number]]
    href: str


class GraphMore(More, total=False):
    """What a graph may have besides."""

    intervene: Action


class FormMore(More, total=False):
    """What a form may have besides."""

    stream: bool
    fixed: dict[str, Any]
    auto: bool
    page: str


def text(id: str, *paragraphs: str | Inline, **more: Unpack[More]) -> TextBlock:
    """Paragraphs: strings, or lines made by `words`. `more`: title, help, note (as in every block)."""
    return {"type": "text", "id": id, "paragraphs": [[each] if isinstance(each, str) else each for each in paragraphs], **more}


def facts(id: str, items: Sequence[Fact], **more: Unpack[More]) -> FactsBlock:
    """Labelled values."""
    return {"type": "facts", "id": id, "items": list(items), **more}


def column(key: str, label: str, kind: Any = "text", help: str = "") -> Column:
    """A column of a table."""
    found: Column = {"key": key, "label": label, "kind": kind}
    return {**found, "help": help} if help else found


def table(id: str, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], **more: Unpack[TableMore]) -> TableBlock:
    """Rows; of each only what has a column. `more`: also total, offset, limit, param, sort."""
    keys = [each["key"] for each in columns]
    shown = [{key: row[key] for key in keys if key in row} for row in rows]
    return {"type": "table", "id": id, "columns": list(columns), "rows": shown, **more}


def contexts(id: str, groups: Sequence[WindowGroup], largest: float, **more: Unpack[More]) -> ContextsBlock:
    """Windows by group."""
    return {"type": "contexts", "id": id, "groups": list(groups), "largest": largest, **more}


def histogram(
    id: str, edges: Sequence[float], series: Sequence[Counts], x: Axis, y: Axis, **more: Unpack[More]
) -> HistogramBlock:
    """Counts between edges."""
    return {"type": "histogram", "id": id, "edges": list(edges), "series": list(series), "x": x, "y": y, **more}


def line(id: str, series: Sequence[Line], x: Axis, y: Axis, **more: Unpack[LineMore]) -> LineBlock:
    """Lines. `more`: also marks."""
    return {"type": "line", "id": id, "series": list(series), "x": x, "y": y, **more}


def heatmap(
    id: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[Number]], *, row_label: str,
    column_label: str, unit: str, scale: Any = "diverging", **more: Unpack[HeatmapMore],
) -> HeatmapBlock:  # fmt: skip
    """A grid of values, a row each. `more`: also low, high, href."""
    return {"type": "heatmap", "id": id, "rows": list(rows), "columns": list(columns), "values": [list(row) for row in values],
            "scale": scale, "row_label": row_label, "column_label": column_label, "unit": unit, **more}  # fmt: skip


def bars(id: str, items: Sequence[Bar], unit: str, **more: Unpack[More]) -> BarsBlock:
    """Bars."""
    return {"type": "bars", "id": id, "items": list(items), "unit": unit, **more}


def graph(
    id: str, nodes: Sequence[Node], edges: Sequence[Edge], layers: Sequence[str], positions: Sequence[str],
    **more: Unpack[GraphMore],
) -> GraphBlock:  # fmt: skip
    """A layered graph. `more`: also intervene."""
    return {"type": "graph", "id": id, "nodes": list(nodes), "edges": list(edges), "layers": list(layers),
            "positions": list(positions), **more}  # fmt: skip


def scatter(id: str, points: Sequence[Point], x: Axis, y: Axis, **more: Unpack[More]) -> ScatterBlock:
    """Points."""
    return {"type": "scatter", "id": id, "points": list(points), "x": x, "y": y, **more}


def form(id: str, verb: str, role: str, fields: Sequence[Field], submit: str, **more: Unpack[FormMore]) -> FormBlock:
    """A form for a verb, or for a page. `more`: also stream, fixed, auto, page."""
    return {"type": "form", "id": id, "verb": verb, "role": role, "fields": list(fields), "submit": submit, **more}


def claims(id: str, cards: Sequence[Card], **more: Unpack[More]) -> ClaimsBlock:
    """Claims as cards (`cards.card_of` makes one)."""
    return {"type": "claims", "id": id, "cards": list(cards), **more}


def patterns(id: str, pieces: Sequence[str], heads: Sequence[str], values: Any, **more: Unpack[More]) -> PatternsBlock:
    """Attention patterns, (head, query, key)."""
    return {"type": "patterns", "id": id, "pieces": list(pieces), "heads": list(heads), "values": values, **more}


def texts(id: str, columns: Sequence[Side], **more: Unpack[More]) -> TextsBlock:
    """Texts side by side."""
    return {"type": "texts", "id": id, "columns": list(columns), **more}


def links(id: str, items: Sequence[LinkItem], **more: Unpack[More]) -> LinksBlock:
    """Links."""
    return {"type": "links", "id": id, "items": list(items), **more}


def unexplained(id: str, items: Sequence[Share], **more: Unpack[More]) -> UnexplainedBlock:
    """What is not accounted for."""
    return {"type": "unexplained", "id": id, "items": list(items), **more}


def tokens(id: str, pieces: Sequence[str], features: Sequence[Firing], **more: Unpack[More]) -> TokensBlock:
    """A text with the features that fire in it."""
    return {"type": "tokens", "id": id, "pieces": list(pieces), "features": list(features), **more}


def terms(id: str, items: Sequence[Term], **more: Unpack[More]) -> TermsBlock:
    """Words and what they mean."""
    return {"type": "terms", "id": id, "items": list(items), **more}
