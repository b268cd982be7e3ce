"""`probe`: where is a property readable, better than from the words alone? On free splits; the claim is another step."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.app import directions, explore
from assay.app.arguments import flag, string, strings
from assay.app.blocks import Bar, Line, Mark, bars, column, facts, line, table, text
from assay.app.results import keep_result
from assay.app.verbs import Report, Result, verb

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.model.model import Model
    from assay.probe.choose import Selection

PROBES = ("linear", "mean_difference", "lda", "pca", "k_sparse", "mlp")
CLAIMED = {"mean_difference": "mean", "mlp": "mlp"}  # as claims of kind decodes call them; others: linear


@verb("probe", "read", "Where in the model is a concept readable? Probes at every layer against what words alone give, fitted"
      " and chosen on discover and tune. That it can be read is a claim (kind decodes).", long=True, required=("concept",),
      model=explore.model_name(), concept=explore.data_name("concept"),
      sites=strings("Sites to read. Default: embed and resid_post of every layer.", 400),
      probe=string("Which probe.", "linear", PROBES), n=explore.size(200, 2000),
      untrained=flag("Read an untrained twin as a baseline (slower).", True),
      encoder=string("Sentence baseline.", "none", ("none", "minilm")), seed=explore.seed())  # fmt: skip
def probe(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.atlas.probes import KeptActivations
    from assay.data.concepts import all_examples
    from assay.probe.run import ProbePlan, choose

    source = explore.concept_of(workspace, arguments["concept"])
    whole = all_examples(source.data).splits if source.bundled else {}
    most = {split: min(arguments["n"], len(whole.get(split, ()))) if whole else arguments["n"] for split in explore.FREE}
    seen = {split: source.items(split, most[split], arguments["seed"]) for split in explore.FREE}
    sites = ",".join(arguments.get("sites") or ()) or None
    plan = ProbePlan(sites, ("concept",), arguments["probe"], n=arguments["n"], seed=arguments["seed"],
                     encoder=arguments["encoder"], untrained=arguments["untrained"])  # fmt: skip
    plan.check()
    report("loading the model", 0, 1)
    with workspace.using(arguments.get("model")) as model:
        explore.look(workspace, model, f"probe {source.name} {plan.probe}", [each for part in seen.values() for each in part])
        chosen = choose(model, seen, plan, source.name, lambda label, done, of: report(label, done, of),
                        lambda key: KeptActivations(workspace.atlas, key))  # fmt: skip
        saved = _saved(workspace, model, chosen, source.name)
        record = _record(model, chosen, source.name, saved)
        return keep_result(workspace.atlas, "probe", arguments, model.digest, f"{source.name}: {plan.probe} probe",
                           {"record": record, "blocks": probe_blocks(record)})  # fmt: skip


def _saved(workspace: "Workspace", model: "Model", chosen: "Selection", concept: str) -> str | None:
    """The probe's direction, saved under a name; None for probes that have none."""
    import torch

    from assay.features.opened import is_latent
    from assay.steer.directions import Direction

    fitted, site = chosen.best.fitted, chosen.best.site
    if fitted.direction is None or is_latent(site):
        return None
    raw = torch.tensor(fitted.direction, dtype=torch.float32)
    scale = float(raw.norm())
    if scale == 0:
        return None
    made = Direction(site, raw / scale, scale, fitted.name, {"positions": chosen.best.position, "sign": "+ is towards label 1"},
                     model.digest, model.tokenizer_digest, {"kind": "probe", "concept": concept},
                     {"intercept": fitted.intercept, "tune": chosen.best.tune.json()})  # fmt: skip
    return directions.save(workspace, made, f"probe-{Path(model.name).name}-{Path(concept).stem}-{fitted.name}")


def _record(model: "Model", chosen: "Selection", concept: str, saved: str | None) -> dict[str, Any]:
    best = chosen.best
    probe = CLAIMED.get(chosen.plan.probe, "linear")
    return {
        "model": model.name, "concept": concept, "probe": chosen.plan.probe, "best": best.site, "position": best.position,
        "tune": best.tune.json(), "direction": saved,
        "scores": [{"site": each.site, "position": each.position, **each.tune.json()} for each in chosen.candidates],
        "baselines": [{"name": fitted.name, **estimate.json()} for fitted, estimate in chosen.baselines],
        "missing": [{"name": each.name, "note": each.note} for each in chosen.missing],
        "note": "AUROC on tune, by probes that had not seen the row's group. The best of many looks better than it is.",
        "claim": {"kind": "decodes", "data": concept, "subject": {"site": best.site, "probe": probe}},
    }  # fmt: skip


def probe_blocks(record: dict[str, Any]) -> list[Any]:
    """The curve over sites with what simpler readings reach, the choice, and what it does not show."""
    order = {row["site"]: place for place, row in enumerate(record["scores"])}
    series: list[Line] = [{"label": record["probe"], "points": [
        {"x": order[row["site"]], "y": row["value"], "low": row.get("low"), "high": row.get("high")}
        for row in record["scores"]]}]  # fmt: skip
    simple: list[Bar] = [{"label": row["name"].replace("_", " "), "value": row["value"], "low": row.get("low"),
                          "high": row.get("high")} for row in record["baselines"]]  # fmt: skip
    chosen: Mark = {"x": order[record["best"]], "label": f"chosen: {record['best']}"}
    levels: list[Mark] = [{"y": row["value"], "label": row["name"].replace("_", " ")} for row in record["baselines"]]
    rows = [{"site": row["site"], "auroc": {"value": row["value"], "low": row.get("low"), "high": row.get("high")}}
            for row in record["scores"]]  # fmt: skip
    return [
        facts("probe-facts", [{"label": "best read at", "value": record["best"]},
                              {"label": "AUROC on tune", "value": record["tune"]["value"]},
                              {"label": "direction saved as", "value": record["direction"] or "none: this probe has none"}]),
        line("probe-curve", series, {"label": "site, from the embedding up"}, {"label": "AUROC on tune"},
             marks=[chosen, *levels], title="Where it can be read", help="probe"),
        bars("probe-baselines", simple, "AUROC on tune", title="What simpler readings reach on the same rows"),
        table("probe-sites", [column("site", "site"), column("auroc", "AUROC on tune", "interval")], rows),
        text("probe-next", "Chosen by looking: no finding yet. State the claim (kind decodes) and test it on sealed data.",
             "Readable is not used: whether the model relies on it is another claim (kind uses)."),
    ]  # fmt: skip
