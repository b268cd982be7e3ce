"""Neurons: how single units compare with learned features, and how many things they respond to."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from assay.app.blocks import Field, column, form, histogram, href, table, text
from assay.app.cards import first_steps
from assay.app.documents import Made, page
from assay.app.found import set_name
from assay.app.results import kept_result, results
from assay.app.sets import UNITS, name_of, score_label, sets_of, share_words

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.atlas.mapped_records import SetRecord

SETS, MOST, BINS = 20, 5000, 24
SPREAD = "spread_"
BASES = {"spread_residual": "coordinates of the residual stream", "spread_neurons": "neurons of its layer"}


@page("neurons", "Neurons", "A neuron often responds to several unrelated things. How do neurons and learned features compare"
      " here?", group="Features", set=set_name())  # fmt: skip
def neurons(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """Sets side by side, what was measured of them, how far latents are spread, and a form to measure."""
    sets = sets_of(workspace)[:SETS]
    if not sets and not arguments["set"]:
        return Made([text("start", *first_steps(
            ("assay map MODEL --site mlp_act.L", "neurons of a layer, what they respond to"),
            ("assay map MODEL", "features of a dictionary, to compare them with"),
        ))], empty=True)  # fmt: skip
    chosen = [workspace.mapped.set(arguments["set"])] if arguments["set"] else sets
    measured = {head["arguments"]["set"]: head["id"] for head in reversed(results(workspace.atlas, "polysemy"))}
    blocks: list[Any] = [_compared(workspace, chosen)]
    for one in chosen:
        if one.id in measured:
            held = kept_result(workspace.atlas, measured[one.id])["blocks"]
            blocks += [{**block, "id": f"{block['id']}-{number}"} for number, block in enumerate(held)]
        blocks += _spread(workspace, one)
    unmeasured = [one for one in sets if one.id not in measured]
    return Made([*blocks, _form(unmeasured or sets), *_hints(sets)])


def _compared(workspace: "Workspace", sets: "Sequence[SetRecord]") -> Any:
    """One row for each set: how much is explained, and how well explanations predict."""
    summaries = [workspace.mapped.summary(one.id) for one in sets]
    scorers = list(dict.fromkeys(name for summary in summaries for name in (summary.get("scores") or {})))
    rows = []
    for one, summary in zip(sets, summaries, strict=True):
        found, scores = summary["features"], summary.get("scores") or {}
        rows.append({
            "set": {"value": name_of(one), "href": href("search", set=one.id)}, "units": found["all"],
            "explained": share_words(found["explained"], found["active"]),
            "supported": share_words(found["supported"], found["active"]),
            **{name: _value(scores[name]) for name in scorers if name in scores},
        })  # fmt: skip
    columns = [column("set", "set", "link"), column("units", "units", "number"),
               column("explained", "with an explanation", help="explanation"),
               column("supported", "supported", help="supported"),
               *(column(name, name, "number", score_label(name)) for name in scorers)]  # fmt: skip
    return table("sets", columns, rows, title="Sets side by side", help="feature")


def _value(score: Any) -> Any:
    return score.get("value") if isinstance(score, Mapping) else score


def _spread(workspace: "Workspace", one: "SetRecord") -> list[Any]:
    """Over how many neurons or coordinates the units of a set are spread."""
    rows, total = workspace.mapped.rows(one.id, "row", 0, MOST)
    made = []
    for key in dict.fromkeys(key for row in rows[:1] for key in row if key.startswith(SPREAD)):
        values = np.array([row[key] for row in rows if row.get(key)], dtype=float)
        if len(values) > 1 and values.max() > values.min():
            counts, edges = np.histogram(values, np.geomspace(values.min(), values.max(), BINS + 1))
            note = f"The first {len(rows)} of {total}." if total > len(rows) else ""
            made.append(histogram(
                f"spread-{one.id}-{key}", edges.tolist(), [{"label": UNITS[one.unit], "counts": counts.astype(float).tolist()}],
                {"label": f"{BASES.get(key, key.removeprefix(SPREAD))} it is spread over", "log": True},
                {"label": UNITS[one.unit]},
                title=f"Spread over {key.removeprefix(SPREAD)}: {name_of(one)}", help="spread", note=note,
            ))  # fmt: skip
    return made


def _form(sets: "Sequence[SetRecord]") -> Any:
    fields: list[Field] = [
        {"name": "set", "label": "set", "kind": "choice", "value": sets[0].id, "choices": [one.id for one in sets]},
        {"name": "units", "label": "units", "kind": "number", "value": 40, "min": 4, "max": 400, "step": 1},
        {"name": "encoder", "label": "alike by", "kind": "choice", "value": "minilm", "choices": ["minilm", "tfidf"]},
    ]  # fmt: skip
    return form("measure", "polysemy", "read", fields, "Count concepts", title="How many things does a unit respond to?",
                help="polysemantic")  # fmt: skip


def _hints(sets: "Sequence[SetRecord]") -> list[Any]:
    """What to run where only one kind of unit was mapped."""
    kinds, model = {one.unit for one in sets}, sets[0].model
    lines = [] if "neuron" in kinds else [f"assay map {model} --site mlp_act.L maps the neurons of a layer, to compare with."]
    lines += [] if "latent" in kinds else [f"assay map {model} maps the features of a dictionary, to compare with."]
    return [text("hints", *lines)] if lines else []
