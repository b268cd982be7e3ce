"""`assay probe MODEL CONCEPT`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from assay.cli.common import Common, check_place, common_options, model_options
from assay.errors import TaskError, bad_argument

EXIT_NOT_AS_REQUIRED = 1
CLAIMED = {"linear": "linear", "mean_difference": "mean", "mlp": "mlp"}  # probes that claims are about; others: linear
NO_DIRECTION = ("mlp", "attention")
USES_SIZES = {"tune": 24, "confirm": 80, "ood": 40}
USES_DRAWS = 19  # random directions that the claim is compared with


@click.command()
@click.argument("name", metavar="MODEL")
@click.argument("concept", metavar="CONCEPT", required=False)
@click.option("--file", "concept_file", metavar="FILE", help="Your own concept, JSONL or CSV.")
@click.option("--site", "sites", multiple=True, metavar="SITE", help="May be given again. Default: embed and all resid_post.")
@click.option("--position", "positions", multiple=True, metavar="POSITION",
              help="concept (its own, else last), last, -2, -3, .., mean, max or attention; may be given again."
                   " Default: concept.")  # fmt: skip
@click.option("--probe", "kind", default=None, metavar="PROBE",
              help="linear, mean_difference, lda, pca, k_sparse, mlp or attention. Default: linear; of latents k_sparse.")
@click.option("--k", default=5, show_default=True, help="Features that k_sparse may use.")
@click.option("--dictionary", "path", default=None, metavar="PATH", help="Read its latents instead of the site.")
@click.option("--n", default=400, show_default=True, type=click.IntRange(1), help="Examples of every split at most.")
@click.option("--encoder", default="minilm", show_default=True, help="Of the sentence baseline: minilm, or none.")
@click.option("--untrained/--no-untrained", default=True, show_default=True, help="Read an untrained twin as a baseline.")
@click.option("--claim/--no-claim", "claimed", default=True, show_default=True,
              help="State that the chosen site decodes the concept, and test it on confirm before the map is read there.")
@click.option("--causal", default=None, metavar="TASK", help="Does the model use the direction for this task? Follow it up.")
@click.option("--require", type=click.Choice(["supported"]), help="Exit 1 unless the verdict is this, and not exploratory.")
@click.option("--out", metavar="DIR", help="Pictures go here instead of ATLAS/figures.")
@model_options
@common_options
def probe(
    common: Common, name: str, concept: str | None, concept_file: str | None, dtype: str, prepend_bos: bool | None, **given: Any
) -> None:
    """Where in MODEL is CONCEPT readable, better than by chance or by words alone?

    Probes are fitted on discover and tune, in folds of groups; site, position and penalty are chosen on tune. The claim that
    it can be read there is locked and tested before the map is measured on confirm. Activations are kept in the atlas: an
    interrupted run goes on where it was.
    """
    from assay.atlas.probes import KeptActivations
    from assay.atlas.store import Atlas
    from assay.evidence.claims import record_look
    from assay.evidence.source import ConceptSource
    from assay.probe.measure import check_sealed
    from assay.probe.run import choose, measure

    _check_asked(common, given)
    source = ConceptSource(_one_source(concept, concept_file))
    plan, splits = _plan(common, given), _splits(common, source, given["n"])
    task = None if given["causal"] is None else _task(given["causal"], common.seed)
    model = common.load(name, dtype, prepend_bos)
    plan = replace(plan, sites=_sites(given["sites"], given["path"], model))
    if task is not None:
        _check_causal(model, plan, task, splits["tune"])
    seen, sealed = ({split: splits[split] for split in half if split in splits}
                    for half in (("discover", "tune"), ("confirm", "ood")))  # fmt: skip
    keep = lambda key: KeptActivations(common.atlas, key)  # noqa: E731
    with common.progress("probe") as advance:
        chosen = choose(model, seen, plan, source.name, advance, keep)
    store = Atlas(common.atlas)
    record_look(store, model.digest, f"probe {source.name} {plan.probe}", [each for part in seen.values() for each in part])
    check_sealed(model, chosen, sealed)
    claim = _claim(common, store, model, source, chosen, sealed, given["claimed"])
    looked = f"probe map {source.name} {plan.probe}"
    record_look(store, model.digest, looked, [each for part in sealed.values() for each in part])
    with common.progress("probe") as advance:
        report = measure(model, chosen, sealed, advance, keep)
    causal = None if task is None else _follow_up(common, store, model, task, report, splits)
    record = _record(model, report, claim, causal)
    record["files"], record["direction"] = _files(common, model, report, record, name, given["out"])
    common.emit(record, lambda: _shown(record, report))
    if given["require"] and (claim.get("verdict") != given["require"] or "exploratory" in claim.get("qualifiers", ())):
        sys.exit(EXIT_NOT_AS_REQUIRED)


# what is asked for -------------------------------------------------------------------------------


def _check_asked(common: Common, given: Mapping[str, Any]) -> None:
    """Refuse before any work what could only be refused at its end."""
    if given["require"] and not given["claimed"]:
        raise bad_argument("--require", "with --no-claim", "a run that states a claim")
    kind = given["kind"] or "linear"
    if given["causal"] is not None and (given["path"] or kind in NO_DIRECTION):
        got = "with --dictionary" if given["path"] else f"with --probe {kind}"
        raise bad_argument("--causal", got, "a probe that reads one direction of a site of the model, such as linear")
    check_place("--atlas", common.atlas, folder=True)


def _check_causal(model: Any, plan: Any, task: Any, texts: Sequence[Any]) -> None:
    """--causal changes whole vectors, on pairs that the model can read, and trains anew on tune texts alone. Raises UsageError
    for other sites, or too few groups; TaskError."""
    from assay.data.prepare import prepare
    from assay.data.prepare_concept import prepare_concept
    from assay.probe.baselines import groups_of
    from assay.probe.path import folds_of
    from assay.probe.variants import place_of

    for split in ("tune", "confirm"):
        prepare(task.items(split, USES_SIZES[split], plan.seed), model)
    usable = prepare_concept(texts, model)
    folds_of(usable.labels, groups_of(usable.examples))
    for site in model.sites(plan.sites) if plan.sites else ():
        place_of(model, str(site), "all")


def _one_source(concept: str | None, concept_file: str | None) -> str:
    if (concept is None) == (concept_file is None):
        got = "neither" if concept is None else "both"
        raise bad_argument("CONCEPT, --file", got, "one of them: a concept by name, or --file FILE", "See: assay concepts")
    return concept or concept_file or ""


def _plan(common: Common, given: Mapping[str, Any]) -> Any:
    """The plan, checked before anything is loaded."""
    from assay.probe.run import ProbePlan

    kind = given["kind"] or ("k_sparse" if given["path"] else "linear")
    positions = tuple(given["positions"]) or (("attention",) if kind == "attention" else ("concept",))
    plan = ProbePlan(positions=positions, probe=kind, n=given["n"], seed=common.seed, k=given["k"], encoder=given["encoder"],
                     untrained=given["untrained"])  # fmt: skip
    plan.check()
    return plan


def _splits(common: Common, source: Any, n: int) -> dict[str, list[Any]]:
    """Examples of every split, as claims draw them. Discover and ood may be missing, tune and confirm not."""
    from assay.data.concepts import all_examples

    found = {}
    whole = all_examples(source.data).splits if source.bundled else {}
    for split in ("discover", "tune", "confirm", "ood"):
        most = min(n, len(whole[split])) if source.bundled else n
        try:
            found[split] = source.items(split, most, common.seed)
        except TaskError as error:
            if split in ("tune", "confirm"):
                raise
            common.note(f"note: {error}")
    return found


def _sites(sites: Sequence[str], path: str | None, model: Any) -> Any:
    """The sites of the plan: those given, or the latents of a dictionary; None for the default."""
    if path is None:
        return ",".join(sites) if sites else None
    from assay.features.formats import load_dictionary
    from assay.features.opened import open_latents

    if sites:
        raise bad_argument("--site, --dictionary", "both", "one of them: a dictionary says itself which site it reads")
    dictionary = load_dictionary(path)
    latents = open_latents(dictionary)
    model.sites(list(dictionary.spec.inputs))  # refuses one of another model, by name
    return latents


def _task(name: str, seed: int) -> Any:
    """The behaviour of --causal, found before the model is loaded."""
    from assay.evidence.source import ConceptSource, find_source

    source = find_source(name)
    if isinstance(source, ConceptSource):
        raise bad_argument("--causal", name, "a task (pairs of prompts); this is a concept", "See: assay tasks")
    for split in ("tune", "confirm"):
        source.items(split, USES_SIZES[split], seed)
    return source


# claims ------------------------------------------------------------------------------------------


def _claim(
    common: Common, store: Any, model: Any, source: Any, chosen: Any, sealed: Mapping[str, Sequence[Any]], wanted: bool
) -> dict[str, Any]:
    """State that the chosen site decodes the concept and test it, once; the verdict's JSON, or {"note": why there is none}."""
    from assay.evidence.run import Settings

    if why := _unclaimable(chosen, sealed, wanted):
        return {"note": why}
    subject = {"site": chosen.best.site, "probe": CLAIMED.get(chosen.plan.probe, "linear")}
    settings = Settings(tune=len(chosen.seen["tune"]), confirm=len(sealed["confirm"]), ood=len(sealed["ood"]), seed=common.seed)
    found = _verdict(common, store, model, source, subject, "decodes", settings)
    about = "" if subject["probe"] == CLAIMED.get(chosen.plan.probe) else "The claim is about a linear probe at that site."
    return {**found, "note": about}


def _verdict(common: Common, store: Any, model: Any, source: Any, subject: Any, kind: str, settings: Any) -> dict[str, Any]:
    """State a claim and test it, each of them once; the verdict's JSON with the statement."""
    from assay.evidence.known import state_once
    from assay.evidence.run import Statement, test_claim

    with common.progress(f"stating the claim ({kind})"):
        claim, *_ = state_once(store, model, source, subject, statement=Statement(kind), settings=settings)
    verdict = store.verdict(claim.id)
    if verdict is None:
        with common.progress(f"testing the claim ({kind})") as report:
            verdict = test_claim(store, claim.id, model, report)
    return {**verdict.to_json(), "statement": claim.statement}


def _unclaimable(chosen: Any, sealed: Mapping[str, Sequence[Any]], wanted: bool) -> str:
    """Why no claim can be stated about the choice; "" where one can."""
    from assay.features.opened import is_latent

    if not wanted:
        return "not stated (--no-claim)"
    if not sealed.get("ood"):
        return "not stated: no examples fell to the split ood"
    if is_latent(chosen.best.site):
        return "not stated: claims of this kind are about sites of the model, not about latents"
    own = all(example.position is None for examples in chosen.seen.values() for example in examples)
    if chosen.best.position != "concept" and not (chosen.best.position == "last" and own):
        return f"not stated: claims read texts at the concept's own position, and {chosen.best.position} was chosen"
    return ""


def _follow_up(
    common: Common, store: Any, model: Any, task: Any, report: Any, splits: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """State and test that the model uses the direction for the task; then what erasing and pushing do, with controls."""
    from assay.data.prepare import prepare
    from assay.data.prepare_concept import prepare_concept
    from assay.evidence.claims import record_look
    from assay.evidence.features import direction
    from assay.evidence.run import Settings
    from assay.probe.causal import CausalPlan, follow_up

    reading = report.reading
    if reading.direction is None:
        raise bad_argument("--causal", f"with --probe {reading.probe}", "a probe that reads one direction, such as linear")
    settings = replace(Settings(seed=common.seed, draws=USES_DRAWS), **USES_SIZES)
    verdict = _verdict(common, store, model, task, direction(reading.site, reading.direction), "uses", settings)
    pairs = {split: task.items(split, USES_SIZES[split], common.seed) for split in ("tune", "confirm")}
    record_look(store, model.digest, f"probe follow-up {task.name}", [each for part in pairs.values() for each in part])
    with common.progress("following the direction up") as advance:
        found = follow_up(
            model, (reading.site, reading.direction), {split: prepare(items, model) for split, items in pairs.items()},
            {split: prepare_concept(splits[split], model) for split in ("tune", "confirm")},
            CausalPlan(position=reading.position, seed=common.seed), advance,
        )  # fmt: skip
    return {"task": task.name, "verdict": verdict, "statement": verdict.pop("statement"), "follow_up": found.json()}


# what comes out ----------------------------------------------------------------------------------


def _record(model: Any, report: Any, claim: Mapping[str, Any], causal: Mapping[str, Any] | None) -> dict[str, Any]:
    from assay.probe.words import not_shown, sentence

    return {**report.json(), "claim": dict(claim) or None, "causal": causal, "sentence": sentence(report, claim, causal),
            "not_shown": not_shown(claim, causal), "passport": model.passport()}  # fmt: skip


def _files(
    common: Common, model: Any, report: Any, record: Mapping[str, Any], name: str, out: str | None
) -> tuple[list[str], str | None]:
    """Pictures and page, and the direction of the probe as a file; where they are."""
    from assay.files import write_file
    from assay.report.figures import save_figure
    from assay.report.probe_figures import layer_curve, probe_map, probe_page, reliability_plot

    folder = Path(out) if out else common.atlas / "figures"
    stem = f"probe-{Path(name).name}-{Path(report.concept).stem}-{report.probe}"
    pictures = {"": probe_map(report), "-layers": layer_curve(report), "-reliability": reliability_plot(report)}
    paths = [save_figure(figure, folder / f"{stem}{part}{suffix}")
             for part, figure in pictures.items() for suffix in (".png", ".svg")]  # fmt: skip
    page = folder / f"{stem}.html"
    facts = {"model digest": model.digest, "claim": (record["claim"] or {}).get("claim", "none"),
             **{split: f"{row['rows']} texts, {row['groups']} groups" for split, row in report.rows.items()}}  # fmt: skip
    write_file(page, probe_page(report, record["sentence"], record["not_shown"], facts).encode())
    saved = _saved_direction(common.atlas / "directions" / stem, model, report, record)
    return [str(path) for path in (*paths, page)], None if saved is None else str(saved)


def _saved_direction(stem: Path, model: Any, report: Any, record: Mapping[str, Any]) -> Path | None:
    """The probe's direction as a file that steering reads; None for probes without one, and for latents."""
    import torch

    from assay.features.opened import is_latent
    from assay.steer.directions import Direction
    from assay.steer.files import save_direction

    reading = report.reading
    if reading.direction is None or is_latent(reading.site):
        return None
    raw = torch.tensor(reading.direction, dtype=torch.float32)
    scale = float(raw.norm())
    if scale == 0:
        return None
    card = {"intercept": reading.intercept, "confirm": report.chosen.confirm.json(), "margin": report.chosen.margin.json(),
            "claim": (record["claim"] or {}).get("claim")}  # fmt: skip
    made = Direction(reading.site, raw / scale, scale, reading.probe,
                     {"positions": reading.position, "sign": "+ is towards label 1"}, model.digest, model.tokenizer_digest,
                     {"kind": "probe", "concept": report.concept, "rows": dict(report.rows)}, card)  # fmt: skip
    return save_direction(made, stem.with_name(f"{stem.name}-{made.digest[:8]}.safetensors"))


def _shown(record: Mapping[str, Any], report: Any) -> Any:
    from assay.report.probe_terminal import probe_view

    return probe_view(report, record)
