"""One feature: where it is on, what it does, what is said of it, and how well that predicts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assay.app.arguments import string
from assay.app.blocks import (
    Bar,
    Fact,
    LinkItem,
    WindowGroup,
    WindowRecord,
    bars,
    claims,
    column,
    contexts,
    facts,
    histogram,
    href,
    links,
    table,
)
from assay.app.cards import card_of
from assay.app.documents import Made, page
from assay.app.sets import name_of, short
from assay.errors import UsageError

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.atlas.mapped_records import FeaturePage
    from assay.explain.records import Window

GROUPS = {
    "top": "Highest", "quantile": "Across its range", "random": "At random", "coactive": "Near miss: where its companions fire",
    "neighbour": "Near miss: where its neighbours fire", "similar": "Near miss: similar text", "other": "Elsewhere",
}  # fmt: skip
SHOWN, CARDS, TOKENS = 12, 5, 12


@page("feature", "A feature", "Everything known about one feature.", listed=False, required=("feature",),
      feature=string("Its name, or its row in the set.", longest=400),
      set=string("The set it is in: an id or the beginning of one. Default: the newest that has it.", default="",
                 longest=200))  # fmt: skip
def feature(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """What is said of it and how well that does, then its contexts, its numbers, what is near it, and claims about it."""
    found = find_feature(workspace, arguments["set"], arguments["feature"])
    record = found.record
    said = record.explanations[0].text if record.explanations else ""
    blocks = [
        facts("summary", _summary(found), title="In short"),
        *_explanations(found), *_scores(found),
        contexts("contexts", groups_of(record.contexts), max(record.largest, 0.0), title="Where it is on", help="context"),
        *_histogram(found), *_quantiles(found), *_output(found), *_tokens(found), *_near(found), *_effects(found),
        *_claims(workspace, found), *_circuits(found), _turn(found),
    ]  # fmt: skip
    return Made(blocks, title=record.name, intro=said or f"No explanation: {record.why_not or 'none was looked for'}.")


def find_feature(workspace: "Workspace", set_name: str, name: str) -> "FeaturePage":
    """The feature, in the named set or the newest that has it. Raises UsageError."""
    mapped = workspace.mapped
    wanted = int(name) if name.isdecimal() and len(name) < 10 else name
    if set_name or isinstance(wanted, int):
        return mapped.page(set_name, wanted)
    problem: UsageError | None = None
    for record in mapped.sets():
        try:
            return mapped.page(record.id, wanted)
        except UsageError as error:
            problem = problem or error
    if problem is not None:
        raise problem
    return mapped.page("", wanted)


def _summary(found: "FeaturePage") -> list[Fact]:
    record, about = found.record, found.set
    said = [each for each in record.scores if each.untrained is not None or each.shuffled is not None]
    items: list[Fact] = [
        {"label": "is on at", "value": f"{record.density:.3%} of tokens", "help": "density", "note": f"{record.fired:,} times"},
        {"label": "largest value", "value": record.largest, "help": "activation"},
        {"label": "is one of the", "value": name_of(about), "href": href("search", set=about.id)},
        *({"label": f"spread over {basis}", "value": round(value, 1), "help": "spread"}
          for basis, value in record.spread.items()),
        {"label": "explanations", "value": len(record.explanations), "help": "explanation"},
        {"label": "claims", "value": len(found.claims), "help": "claim"},
    ]  # fmt: skip
    if not said and record.scores:
        items.append({"label": "scores", "value": "without a baseline", "tone": "warn", "help": "shuffled"})
    return items


def _explanations(found: "FeaturePage") -> list[Any]:
    rows = [{"text": each.text or "(none found)", "explainer": each.explainer, "bits": _saved(each.bits),
             "rule": "yes" if each.rule else "no"} for each in found.record.explanations]  # fmt: skip
    columns = [column("text", "explanation", help="explanation"), column("explainer", "by"),
               column("rule", "a machine can check it", help="rule"),
               column("bits", "bits it saves", "number")]  # fmt: skip
    return [table("explanations", columns, rows, title="What is said of it", help="explanation")] if rows else []


def _saved(bits: Mapping[str, float] | None) -> float | None:
    """Bits without the explanation less bits with it, the explanation's own length included, where these were counted."""
    if not bits:
        return None
    parts = [bits.get(name) for name in ("without", "with", "rule")]
    return None if parts[0] is None or parts[1] is None else parts[0] - parts[1] - (parts[2] or 0.0)


def _scores(found: "FeaturePage") -> list[Any]:
    rows = [{"scorer": each.scorer, "explainer": each.explainer,
             "value": {"value": each.value, "low": each.low, "high": each.high}, "chance": each.chance,
             "shuffled": each.shuffled, "untrained": each.untrained, "n": each.n, "failed": each.failed}
            for each in found.record.scores]  # fmt: skip
    columns = [column("scorer", "score", help="score"), column("value", "value", "interval"),
               column("chance", "guessing", "number", "chance"), column("shuffled", "other explanations", "number", "shuffled"),
               column("untrained", "untrained model", "number", "untrained"), column("n", "windows", "number"),
               column("failed", "no answer", "number"), column("explainer", "explanation by")]  # fmt: skip
    note = "Windows that are scored are of other documents than those shown to the explainer. No answer counts as wrong."
    return [table("scores", columns, rows, title="How well that predicts", help="score", note=note)] if rows else []


def groups_of(windows: "Sequence[Window]") -> list[WindowGroup]:
    """Windows by why they were chosen, strongest first."""
    groups: list[WindowGroup] = []
    for why, label in GROUPS.items():
        chosen = sorted((window for window in windows if window.why == why), key=lambda window: -window.value)[:SHOWN]
        if chosen:
            groups.append({"label": label, "windows": [window_of(window) for window in chosen]})
    return groups


def window_of(window: "Window") -> WindowRecord:
    """A window as a page shows it."""
    return {"pieces": list(window.pieces), "values": list(window.values), "at": window.at, "document": window.document,
            "position": window.position}  # fmt: skip


def _histogram(found: "FeaturePage") -> list[Any]:
    held = found.record.histogram
    if not held.counts:
        return []
    counts = [float(n) for n in held.counts]
    return [histogram("histogram", held.edges, [{"label": "tokens", "counts": counts}], {"label": "value", "log": True},
                      {"label": "tokens"}, title="Values where it is on", help="density")]  # fmt: skip


def _quantiles(found: "FeaturePage") -> list[Any]:
    rows = [{"share": share, "value": value} for share, value in found.record.quantiles]
    columns = [column("share", "share of values below", "percent", "quantile"), column("value", "value", "number")]
    return [table("quantiles", columns, rows, title="Quantiles", help="quantile")] if rows else []


def _output(found: "FeaturePage") -> list[Any]:
    """What it does to the next token."""
    made = []
    for name, pairs in (("promoted", found.record.promoted), ("suppressed", found.record.suppressed)):
        items: list[Bar] = [{"label": token, "value": value, "href": href("search", query=token, how=name, set=found.set.id)}
                            for token, value in pairs[:TOKENS]]  # fmt: skip
        if items:
            made.append(bars(name, items, "change of the token's score", title=name.capitalize(), help=name, width="half"))
    return made


def _tokens(found: "FeaturePage") -> list[Any]:
    items: list[Bar] = [{"label": token, "value": share, "href": href("search", query=token, how="fires", set=found.set.id)}
                        for token, share in found.record.top_tokens[:TOKENS]]  # fmt: skip
    return [bars("tokens", items, "share of the times it is on", title="Tokens it is on at", help="token")] if items else []


def _near(found: "FeaturePage") -> list[Any]:
    made = []
    kinds = (("neighbours", found.neighbours, "Neighbours", "neighbour", "cosine"),
             ("coactive", found.coactive, "On at the same tokens", "coactive", "correlation"))  # fmt: skip
    for name, nears, title, word, label in kinds:
        rows = [{"feature": {"value": short(near.feature), "href": href("feature", set=found.set.id, feature=near.feature)},
                 "value": near.value, "text": near.text or "–"} for near in nears]  # fmt: skip
        columns = [column("feature", "feature", "link"), column("value", label, "number"), column("text", "explanation")]
        if rows:
            made.append(table(name, columns, rows, title=title, help=word))
    return made


def _effects(found: "FeaturePage") -> list[Any]:
    items: list[Bar] = [{"label": f"{each.task} ({each.metric})" if each.metric else each.task, "value": each.value,
                         "low": each.low, "high": each.high} for each in found.effects]  # fmt: skip
    return [bars("effects", items, "effect on the task", title="Tasks", help="effect")] if items else []


def _claims(workspace: "Workspace", found: "FeaturePage") -> list[Any]:
    """The cards of the first few claims about it, and links to the rest."""
    here = [each for each in found.claims if each.verdict != "not here"]
    made: list[Any] = []
    if here:
        cards = [card_of(workspace, each.id) for each in here[:CARDS]]
        made.append(claims("claims", cards, title="Claims about it", help="claim"))
    others = [*here[CARDS:], *(each for each in found.claims if each.verdict == "not here")]
    rest: list[LinkItem] = [{"label": each.statement or each.id, "href": href("claim", claim=each.id), "note": each.verdict}
                            for each in others]  # fmt: skip
    return [*made, links("more-claims", rest, title="More claims")] if rest else made


def _circuits(found: "FeaturePage") -> list[Any]:
    items: list[LinkItem] = [{"label": name, "href": href("circuit", circuit=name)} for name in found.circuits]
    return [links("circuits", items, title="Circuits it is in")] if items else []


def _turn(found: "FeaturePage") -> Any:
    """To the features before and after it."""
    rows = [(found.row - 1, "Before"), (found.row + 1, "Next")]
    items: list[LinkItem] = [{"label": label, "href": href("feature", set=found.set.id, feature=row)}
                             for row, label in rows if 0 <= row < found.set.features]  # fmt: skip
    return links("turn", items)

