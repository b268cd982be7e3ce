"""Feature sets in words and columns: what the pages about mapped features share."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assay.app.blocks import Column, Share, column, href
from assay.app.terms import meanings
from assay.errors import StoreError, UsageError
from assay.report.story import percent

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.atlas.mapped_records import SetRecord

SHARES = {  # what is not accounted for, in words, in the order of the page
    "active_latents": "of active features have no supported explanation",
    "variance": "of the variance at this site is not rebuilt by explained features",
    "tokens": "of corpus tokens are not accounted for by explained features",
}
UNITS = {"latent": "latents", "neuron": "neurons", "head": "heads", "direction": "directions"}
SCORE = "score_"
LATENT = re.compile(r"^latent\..+\.(\d+)$")


def sets_of(workspace: "Workspace") -> "list[SetRecord]":
    """The mapped sets of an atlas, newest first; none where there is no atlas."""
    return [] if workspace.is_empty else workspace.mapped.sets()


def name_of(record: "SetRecord") -> str:
    """A set in words."""
    where = f"dictionary {record.dictionary}" if record.dictionary else record.site
    return f"{UNITS[record.unit]} of {where}, {record.model}"


def short(name: str) -> str:
    """A feature's name without that of its dictionary, for tables in which all are of one."""
    return LATENT.sub(r"latent \1", name)


def unexplained_of(summary: Mapping[str, Any]) -> list[Share]:
    """What a map does not account for, largest first: as it says itself, else what is left of its shares."""
    given, detail = dict(summary.get("unexplained") or {}), _detail(summary)
    if not given:
        given = {name: _rest(value) for name, value in dict(summary.get("shares") or {}).items()}
    found: list[Share] = []
    for name, value in given.items():
        record = value if isinstance(value, Mapping) else {"share": value}
        share = record.get("share", record.get("value"))
        if isinstance(share, int | float) and not isinstance(share, bool):
            item: Share = {"what": SHARES.get(name, str(name).replace("_", " ")), "share": float(share)}
            if record.get("low") is not None and record.get("high") is not None:
                item.update(low=record["low"], high=record["high"])
            if name in detail:
                item.update(detail[name])
            found.append(item)
    return sorted(found, key=lambda item: -(item["share"] or 0.0))


def _detail(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside the shares: the interval of one, and what all features together leave of the others."""
    held = (summary.get("shares") or {}).get("detail") or {}
    found: dict[str, Any] = {}
    if held.get("active_low") is not None:
        found["active_latents"] = {"low": 1 - held["active_high"], "high": 1 - held["active_low"]}
    if held.get("variance_all_latents") is not None:
        found["variance"] = {"note": f"all features together leave {percent(1 - held['variance_all_latents'])}"}
    if held.get("tokens_any") is not None:
        found["tokens"] = {"note": f"at {percent(1 - held['tokens_any'])} none of them is on at all"}
    return found


def _rest(value: Any) -> Any:
    """1 minus a share, its interval turned round."""
    if isinstance(value, Mapping):
        share = value.get("share", value.get("value"))
        ends = {"low": value.get("high"), "high": value.get("low")}
        return {"share": _rest(share), **{name: _rest(end) for name, end in ends.items() if end is not None}}
    return 1 - value if isinstance(value, int | float) else None


def score_label(scorer: str) -> str:
    """The glossary word of a scorer, where there is one."""
    return scorer if scorer in meanings() else "score"


def feature_columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Columns of a table of features: the scores that are there, before the numbers every feature has."""
    scorers = list(dict.fromkeys(key.removeprefix(SCORE) for row in rows for key in row if key.startswith(SCORE)))
    return [
        column("name", "feature", "link", "feature"), column("text", "explanation", "text", "explanation"),
        *(column(SCORE + scorer, scorer, "number", score_label(scorer)) for scorer in scorers[:4]),
        column("density", "density", "percent", "density"), column("fired", "times on", "number"),
        column("largest", "largest", "bar", "activation"),
    ]  # fmt: skip


def feature_rows(set_name: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of that table: names lead to their pages, and where there is no explanation the reason stands."""
    return [{**{key: row[key] for key in row if key.startswith(SCORE) or key in ("density", "fired", "largest")},
             "name": {"value": short(row["name"]), "href": href("feature", set=set_name, feature=row["name"])},
             "text": row["text"] or (f"({row['why_not']})" if row.get("why_not") else "(none)")} for row in rows]  # fmt: skip


def quiet(call: Any, *given: Any) -> Any:
    """What a call returns; None where it has nothing to say (no such set, no index yet)."""
    try:
        return call(*given)
    except (StoreError, UsageError):
        return None


def share_words(part: int, whole: int) -> str:
    """A count with its share."""
    return f"{part:,} ({percent(part / whole)})" if whole else f"{part:,}"
