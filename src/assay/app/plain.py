"""Documents as plain HTML: every number of a page without a script. All text is escaped.

One function per type of block; a type that has none is shown as JSON.
"""

import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from assay.app.blocks import DocumentRecord

MOST = 400  # rows of a table
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}
table{border-collapse:collapse;margin:.5rem 0}td,th{border-bottom:1px solid #8886;padding:.15rem .6rem;text-align:left}
caption{text-align:left;font-weight:600}pre{white-space:pre-wrap}mark{background:#fc67}small{opacity:.75}"""
Block = Mapping[str, Any]


def body_html(document: DocumentRecord) -> str:
    """The page: title, introduction, blocks, the ledger's counts."""
    counts = ", ".join(f"{name} {count}" for name, count in document["counts"].items())
    parts = [f"<h1>{_esc(document['title'])}</h1>", f"<p>{_inline(document['intro'])}</p>",
             *(block_html(block) for block in document["blocks"]),
             f"<p><small>{_esc(document['made'])}. Ledger: {_esc(counts)}.</small></p>"]  # fmt: skip
    return "\n".join(parts)


def block_html(block: Block) -> str:
    """One block under its title."""
    title = f"<h2>{_esc(block['title'])}</h2>" if block.get("title") else ""
    note = f"<p><small>{_esc(block['note'])}</small></p>" if block.get("note") else ""
    return f"<section>{title}{BLOCKS.get(block['type'], _as_json)(block)}{note}</section>"


def _text(block: Block) -> str:
    return "".join(f"<p>{_inline(each)}</p>" for each in block["paragraphs"])


def _facts(block: Block) -> str:
    return _rows(["what", "value", ""], [[item["label"], item["value"], item.get("note", "")] for item in block["items"]])


def _table(block: Block) -> str:
    keys = [column["key"] for column in block["columns"]]
    rows = [[row.get(key) for key in keys] for row in block["rows"]]
    total = block.get("total", len(rows))
    more = f"<p><small>{len(rows)} of {total}.</small></p>" if total > len(rows) else ""
    return _rows([column["label"] for column in block["columns"]], rows) + more


def _contexts(block: Block) -> str:
    found = []
    for group in block["groups"]:
        found.append(f"<h3>{_esc(group['label'])}</h3>")
        for window in group["windows"]:
            marked = _marked(window["pieces"], window["values"])
            found.append(f"<p>{marked} <small>{_esc(window['document'])}, {_esc(window['position'])}</small></p>")
    return "".join(found)


def _histogram(block: Block) -> str:
    edges = block["edges"]
    heads = ["from", "to", *(series["label"] for series in block["series"])]
    rows = [[low, high, *(series["counts"][i] for series in block["series"])]
            for i, (low, high) in enumerate(zip(edges, edges[1:], strict=False))]  # fmt: skip
    return _rows(heads, rows)


def _line(block: Block) -> str:
    rows = [[series["label"], point["x"], point["y"], point.get("low"), point.get("high")]
            for series in block["series"] for point in series["points"]]  # fmt: skip
    return _rows(["", block["x"]["label"], block["y"]["label"], "low", "high"], rows)


def _heatmap(block: Block) -> str:
    rows = [[label, *values] for label, values in zip(block["rows"], block["values"], strict=True)]
    return _rows([f"{block['row_label']} / {block['column_label']}", *block["columns"]], rows)


def _bars(block: Block) -> str:
    rows = [[item["label"], item["value"], item.get("low"), item.get("high")] for item in block["items"]]
    return _rows(["", block["unit"], "low", "high"], rows)


def _graph(block: Block) -> str:
    nodes = [[node["label"], node["kind"], node["layer"], node["position"], node["value"]] for node in block["nodes"]]
    edges = [[edge["from"], edge["to"], edge["weight"]] for edge in block["edges"]]
    return _rows(["node", "kind", "layer", "position", "value"], nodes) + _rows(["from", "to", "weight"], edges)


def _scatter(block: Block) -> str:
    rows = [[point["label"], point["x"], point["y"], point.get("group", "")] for point in block["points"]]
    return _rows(["", block["x"]["label"], block["y"]["label"], ""], rows)


def _form(block: Block) -> str:
    return f"<p><small>In the app: {_esc(block['submit'])} ({_esc(block['verb'])}).</small></p>"


def _claims(block: Block) -> str:
    found = []
    for card in block["cards"]:
        found.append(f"<h3>{_esc(card['verdict'])}: {_esc(card['statement'])}</h3><p>{_esc(card['sentence'])}</p>")
        rows = [[gate["name"], gate["split"], gate["estimate"], gate["low"], gate["high"], gate["sesoi"], gate["p"],
                 "passed" if gate["passed"] else "not passed", "decides" if gate["required"] else "informs"]
                for gate in card["gates"]]  # fmt: skip
        found.append(_rows(["gate", "split", "estimate", "low", "high", "bar", "p", "", ""], rows) if rows else "")
        found += [f"<p><small>Does not show: {_esc(each)}</small></p>" for each in card.get("shows_not", ())]
    return "".join(found)


def _patterns(block: Block) -> str:
    labels = [f"{i} {piece}" for i, piece in enumerate(block["pieces"])]
    return "".join(f"<h3>{_esc(head)}</h3>" + _rows(["query / key", *labels], [[a, *row] for a, row in zip(labels, grid)])
                   for head, grid in zip(block["heads"], block["values"]))  # fmt: skip


def _texts(block: Block) -> str:
    return _rows(["", "text"], [[side["label"], "".join(side["pieces"])] for side in block["columns"]])


def _links(block: Block) -> str:
    return _rows(["", ""], [[item["label"], item.get("note", "")] for item in block["items"]])


def _unexplained(block: Block) -> str:
    rows = [[item["what"], item["share"], item.get("low"), item.get("high"), item.get("note", "")] for item in block["items"]]
    return _rows(["not explained", "share", "low", "high", ""], rows)


def _tokens(block: Block) -> str:
    return "".join(f"<p>{_marked(block['pieces'], each['values'])} <small>{_esc(each['label'])}</small></p>"
                   for each in block["features"][:MOST])  # fmt: skip


def _terms(block: Block) -> str:
    rows = (f"<dt>{_esc(item['word'])}</dt><dd>{_esc(item['meaning'])}</dd>" for item in block["items"])
    return f"<dl>{''.join(rows)}</dl>"


def _as_json(block: Block) -> str:
    return f"<pre>{_esc(json.dumps(block, indent=1)[:20_000])}</pre>"


BLOCKS: dict[str, Callable[[Block], str]] = {
    "text": _text, "facts": _facts, "table": _table, "contexts": _contexts, "histogram": _histogram, "line": _line,
    "heatmap": _heatmap, "bars": _bars, "graph": _graph, "scatter": _scatter, "form": _form, "claims": _claims,
    "patterns": _patterns, "texts": _texts, "links": _links, "unexplained": _unexplained, "tokens": _tokens, "terms": _terms,
}  # fmt: skip


def _rows(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{_esc(each)}</th>" for each in heads)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows[:MOST])
    more = f"<p><small>The first {MOST} of {len(rows)} rows.</small></p>" if len(rows) > MOST else ""
    return f"<table><tr>{head}</tr>{body}</table>{more}"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        bounds = f" ({_number(value['low'])} to {_number(value['high'])})" if value.get("low") is not None else ""
        return _cell(value.get("value")) + bounds
    if isinstance(value, list):
        return _esc(" ".join(map(str, value)))
    return _number(value)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return _esc(f"{value:.4g}" if isinstance(value, float) else value)


def _marked(pieces: Iterable[str], values: Iterable[float]) -> str:
    pairs = zip(pieces, values, strict=False)
    return "".join(f"<mark>{_esc(piece)}</mark>" if value else _esc(piece) for piece, value in pairs)


def _inline(parts: Iterable[Any]) -> str:
    return "".join(_esc(part if isinstance(part, str) else part["text"]) for part in parts)


def _esc(value: Any) -> str:
    return html.escape(str(value))
