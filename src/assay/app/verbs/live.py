"""`live`: a text, and what happens in the model as it reads it: features that fire, patterns of heads, what would come next."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assay.app import explore
from assay.app.arguments import integer, string, strings
from assay.app.blocks import Bar, Firing, bars, facts, href, patterns, text, tokens
from assay.app.results import keep_result
from assay.app.verbs import Report, Result, verb
from assay.errors import StoreError, UsageError, bad_argument

if TYPE_CHECKING:
    import numpy as np

    from assay.app.workspace import Workspace
    from assay.model.model import Model

LONGEST = 512  # tokens
MOST_HEADS = 16


@verb("live", "read", "Read a text with the model: features that fire at each token, patterns of heads, likely next tokens.",
      required=("text",), model=explore.model_name(), text=string("The text.", longest=4000),
      dictionary=string("Whose latents are shown, by name. Default: one that reads the residual stream, else none."),
      site=string("Neurons instead: mlp_act.L, or the dimensions of another site with one axis."),
      features=integer("How many features are shown, strongest first.", 12, 1, 60),
      heads=strings("Heads whose patterns are shown, as 3.1 (layer.head).", MOST_HEADS))  # fmt: skip
def live(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    if "dictionary" in arguments and "site" in arguments:
        raise bad_argument("dictionary, site", "both", "one of them")
    report("loading the model", 0, 2)
    with workspace.using(arguments.get("model")) as model:
        (ids,) = model.tokens([arguments["text"]])
        if not 1 <= len(ids) <= LONGEST:
            raise bad_argument("text", f"{len(ids)} tokens", f"1 to {LONGEST} tokens")
        explore.look_at_texts(workspace, model, "live", [arguments["text"]])
        from assay.explain.pieces import Pieces

        pieces = Pieces(model).of(ids, begins=True)
        report("reading", 1, 2)
        what, names, values = _features(workspace, model, ids, arguments)
        firing = [_firing(workspace, name, row) for name, row in zip(names, values, strict=True)]
        shown = _patterns(model, ids, arguments.get("heads") or ())
        following = _next(model, ids)
    record = {"model": model.name, "tokens": pieces, "of": what, "next": following,
              "features": [{"feature": name, "said": each["label"], "peak": max(each["values"]),
                            "at": [place for place, value in enumerate(each["values"]) if value > 0]}
                           for name, each in zip(names, firing, strict=True)],
              "heads": [{"head": head, "looks_at": [max(range(len(row)), key=row.__getitem__) for row in grid]}
                        for head, grid in shown.items()]}  # fmt: skip
    return keep_result(workspace.atlas, "live", arguments, model.digest, f"“{arguments['text'][:60]}”",
                       {"record": record, "blocks": _blocks(pieces, what, firing, shown, following)})  # fmt: skip


# features ------------------------------------------------------------------------------------------


def _features(
    workspace: "Workspace", model: "Model", ids: Sequence[int], arguments: Mapping[str, Any]
) -> tuple[str, list[str], list[list[float]]]:
    """What is read, names of the strongest features, and their values at every token. Strongest: by their largest value."""
    from assay.features.contexts import latent_units, site_units

    if "site" in arguments:
        units, what = site_units(model, arguments["site"]), f"{arguments['site']}"
    else:
        name = arguments.get("dictionary") or default_dictionary(workspace, model.name)
        if name is None:
            return "no dictionary is kept or shipped for this model", [], []
        found = workspace.dictionary(name)
        units, what = latent_units(model, found), f"latents of {found.name}"
    import numpy as np

    values = np.zeros((len(units.names), len(ids)), dtype=np.float32)
    (firings,) = units.firings([list(ids)])
    values[firings.units, firings.positions] = np.maximum(firings.values, 0)
    return what, *_strongest(units.names, values, arguments["features"])


def _strongest(names: Sequence[str], values: "np.ndarray", n: int) -> tuple[list[str], list[list[float]]]:
    peaks = values.max(1)
    order = [int(unit) for unit in (-peaks).argsort(kind="stable")[:n] if peaks[unit] > 0]
    return [names[unit] for unit in order], [values[unit].tolist() for unit in order]


def default_dictionary(workspace: "Workspace", model: str) -> str | None:
    """The digest of the first kept or shipped dictionary of a model that reconstructs what it reads."""
    for row in explore.own_dictionaries(workspace, model):
        spec = row["spec"]
        if spec.get("inputs") and list(spec["inputs"]) == list(spec.get("outputs") or ()):
            return row["digest"]
    return None


def _firing(workspace: "Workspace", name: str, values: list[float]) -> Firing:
    """A feature with what the map says of it; one that is not mapped leads to steering along it."""
    from assay.app.pages.feature import find_feature

    short = f"latent {name.rpartition('.')[2]}" if name.startswith("latent.") else name
    try:
        found = None if workspace.is_empty else find_feature(workspace, "", name)
    except (StoreError, UsageError):
        found = None
    if found is None:
        return {"name": short, "label": name, "href": href("steer", feature=name), "values": values}
    said = [each.text for each in found.record.explanations[:1]]
    return {"name": short, "label": (said or [found.record.why_not or name])[0], "values": values,
            "href": href("feature", feature=name, set=found.set.id)}  # fmt: skip


# heads and logits ----------------------------------------------------------------------------------


def _patterns(model: "Model", ids: Sequence[int], heads: Sequence[str]) -> dict[str, list[list[float]]]:
    """Head -> attention from every token to every earlier one."""
    if not heads:
        return {}
    sites = [f"pattern.{head.removeprefix('pattern.')}" for head in heads]
    for site, found in zip(sites, model.sites(sites), strict=True):
        if found.index is None:
            raise bad_argument("heads", site, "heads as layer.head, such as 3.1")
    acts = model.capture([list(ids)], sites)
    return {site.removeprefix("pattern."): acts[site][0].float().tolist() for site in sites}


def _next(model: "Model", ids: Sequence[int], n: int = 10) -> list[dict[str, Any]]:
    """The likeliest next tokens."""
    chances = model.logits([list(ids)])[0].float().softmax(-1)
    best = chances.topk(min(n, len(chances)))
    return [{"token": model.piece(token), "probability": value}
            for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)]  # fmt: skip


def _blocks(
    pieces: Sequence[str], what: str, firing: Sequence[Firing], shown: Mapping[str, list[list[float]]],
    following: Sequence[Mapping[str, Any]],
) -> list[Any]:  # fmt: skip
    items: list[Bar] = [{"label": f"“{row['token']}”", "value": row["probability"]} for row in following]
    none = text("live-none", f"No feature to show: {what}. Train a dictionary, or choose a site such as mlp_act.0.")
    return [
        tokens("live-tokens", pieces, firing, title=f"What fires ({what})", help="feature") if firing else none,
        *([patterns("live-patterns", pieces, list(shown), list(shown.values()), title="Where heads look",
                    help="pattern")] if shown else []),
        bars("live-next", items, "probability", title="What would come next"),
        facts("live-facts", [{"label": "tokens", "value": len(pieces)}]),
    ]  # fmt: skip
