"""A claim card as one page: HTML, Markdown or JSON, from the card alone.

1. Nothing is measured, looked up or decided here: a page says what the card says.
2. The page is one file without scripts; text from users and models is escaped, control characters are
   shown as marks.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from assay.report import story
from assay.report.card_figures import card_forest
from assay.report.card_view import card_view
from assay.report.figures import figure_svg
from assay.report.html import _template
from assay.report.markdown import code, safe, table

Card = Mapping[str, Any]
AGAINST = (("corrupted", "against"), ("minimal", "shortest form that still fails"))


def card_html(card: Card) -> str:
    """The card as one HTML page that needs nothing else."""
    view, figure = card_view(card), None
    if any(gate.get("estimate") is not None for gate in view["verdict_json"]["gates"]):
        figure = Markup(figure_svg(card_forest(view["verdict_json"]), themed=True, name="forest"))
    return _template("claim_card.html").render(view=view, figure=figure, title=f"Claim {view['id']}: {view['verdict']}")


def card_json(card: Card) -> str:
    """The card itself: this form can be imported."""
    return json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def card_markdown(card: Card) -> str:
    """The same words and numbers as Markdown."""
    view = card_view(card)
    said = "; ".join(safe(item) for item in (*view["reasons"], *view["qualifiers"]))
    lines = [f"# Claim {safe(view['id'])}: {view['verdict']}{f' ({said})' if said else ''}", "", safe(view["sentence"]), ""]
    lines += [f"- {safe(name)}: {safe(value)}" for name, value in view["scope"]] + [""]
    lines += _bullets("Stale", view["stale"])
    lines += _section("Gates", ("gate", "estimate", "95% interval", "bar", "p", "clusters", "result"),
                      [(g["name"], g["estimate"], g["interval"], g["sesoi"], g["p"], g["clusters"] or "–", g["result"])
                       for g in view["gates"]])  # fmt: skip
    lines += _section("Controls", ("gate", "controls", "mean", "strongest"),
                      [(c["name"], c["n"] or "–", c["mean"], c["strongest"]) for c in view["controls"]])  # fmt: skip
    lines += ["## Counterexamples", "", view["counterexample_words"], ""]
    for hit in view["worst"]:
        text = " ".join(f"{token['text']}({token['score']})" for token in hit["tokens"]) or hit["clean"]
        lines.append(f"- score {hit['score']} on {safe(hit['gate'])}, {safe(hit['status'])}: {code(text)}")
        lines += [f"  - {what} {code(hit[key])}" for key, what in AGAINST if hit[key]]
    lines += [""] + _section("What was searched", ("method", "tried", "hits", "passes", "finished", "bound"),
                             [tuple(row.values()) for row in view["search"]])  # fmt: skip
    lines += [*(f"- {safe(item)}" for item in view["searched"]), ""] * bool(view["searched"])
    lines += _bullets("Rivals", view["rivals"])
    lines += _section("Splits", ("split", "items", "clusters", "dropped", "seen before", "hash"),
                      [tuple(row.values()) for row in view["splits"]])  # fmt: skip
    lines += [view["leaks"], ""]
    lines += _bullets("Family and correction", view["family"])
    lines += _section("Power", ("gate", "K", "N", "ICC", "MDE80 planned", "MDE80 found"),
                      [tuple(row.values()) for row in view["power"]])  # fmt: skip
    lines += _bullets("How often this battery errs", view["rates"])
    lines += _bullets("Deviations from the plan", view["deviations"])
    lines += _bullets("Replications", view["replications"])
    lines += _bullets("What this does not show", view["does_not_show"])
    lines += ["## Replay", "", *(f"- {code(item['command'])} {safe(item['what'])}" for item in view["replay"]), ""]
    lines += [f"- {safe(name)}: {safe(value)}" for name, value in view["passport"]]
    counts = ", ".join(f"{count} {safe(name)}" for name, count in story.ledger_rows(view["counts"]))
    return "\n".join([*lines, "", f"Ledger of this atlas: {counts}.", "", f"Card {view['digest']}"]) + "\n"


def _bullets(title: str, items: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {safe(item)}" for item in items), ""] if items else []


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    return [f"## {title}", "", *table(head, rows)] if rows else []


RENDERERS: dict[str, Callable[[Card], str]] = {".html": card_html, ".md": card_markdown, ".json": card_json}
