"""`assay claim state|test|kinds|list|show|verify|replay`."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from assay.cli.claim_cards import CARD_COMMANDS
from assay.cli.common import Common, common_options, model_options
from assay.cli.given import number, options_of, pairs, rule_of, settings_of, subject_of
from assay.cli.opened import open_for, subject_with
from assay.errors import ModelError, ReproduceError, TamperedError
from assay.records import Claim, Plan

EXIT_NOT_AS_REQUIRED = 1
EXIT_TAMPERED = 3
EXIT_DIFFERS = 10


@click.group()
def claim() -> None:
    """State claims about a model, test them on sealed data, and check what was recorded."""


@claim.command()
@click.argument("name", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.argument("subject", metavar="SUBJECT")
@click.option("--kind", default="mediates", show_default=True, help="What is claimed. See: assay claim kinds")
@click.option("--direction", "directions", multiple=True, metavar="FILE",
              help="Numbers of a direction at the site SUBJECT: .safetensors, .npy or .json; may be given again.")  # fmt: skip
@click.option("--rule", default=None, metavar="TEXT",
              help="When the feature is on (kind explains): concept, /pattern/, words, or JSON.")  # fmt: skip
@click.option("--dictionary", "dictionaries", multiple=True, metavar="PATH",
              help="An SAE in place of the site SUBJECT (reconstructs; again: another), or that of latent.NAME.N.")  # fmt: skip
@click.option("--use", default=None, help="What it is good for: listing features, steering, standing in the loss.")
@click.option("--part", "parts", multiple=True, metavar="NAME=X", help="Another part of the subject: probe, strengths, ..")
@click.option("--quantifier", default="tends", show_default=True, help="tends, usually or always")
@click.option("--statement", "text", default="", help="The claim in your words.")
@click.option("--parent", default=None, metavar="CLAIM", help="The claim this one narrows.")
@click.option("--corruption", default=None, help="Of a bundled task. Default: the task's first.")
@click.option("--sesoi", multiple=True, metavar="GATE=X", help="Smallest effect of interest, e.g. necessity=0.3.")
@click.option("--set", "settings", multiple=True, metavar="NAME=X",
              help="tune, confirm, ood (items), alpha, positions, draws, control_pairs")  # fmt: skip
@click.option("--option", "options", multiple=True, metavar="NAME=X", help="What the kind wants besides.")
@click.option("--search", multiple=True, metavar="METHOD=N", help="Candidates a counterexample search may try.")
@model_options
@common_options
def state(common: Common, name: str, data: str, subject: str, dtype: str, prepend_bos: bool | None, **given: Any) -> None:
    """State a claim about SUBJECT of MODEL on DATA, and lock the plan.

    DATA: a bundled task or concept, or a file of one (JSONL, CSV). SUBJECT, comma-separated where there are several:
    heads and layers (z.L.H, mlp_out.L, attn_out.L, resid_post.L) for mediates; units (mlp_act.L.N), or sites with
    --direction, for represents, uses, steers, explains, detects and connects (source,target); an edge of the graph
    (z.3.1->q.5.2) for connects; a site for decodes.
    """
    from assay.evidence.kinds import KINDS, check_items
    from assay.evidence.run import Settings, Statement
    from assay.evidence.search import SEARCHES
    from assay.evidence.source import find_source

    kind = KINDS.get(given["kind"])
    bars = {key: number("--sesoi", key, value) for key, value in pairs("--sesoi", given["sesoi"]).items()}
    asked = pairs("--search", given["search"])
    budgets = {key: int(number("--search", key, value, whole=True)) for key, value in asked.items()}
    for method in budgets:
        SEARCHES.get(method)
    default = Settings(seed=common.seed)
    settings = replace(default, **settings_of(pairs("--set", given["settings"]), default), search=budgets,
                       options=options_of(pairs("--option", given["options"])))  # fmt: skip
    words = Statement(given["kind"], given["quantifier"], given["text"], given["parent"])
    parts = options_of(pairs("--part", given["parts"])) | ({} if given["rule"] is None else {"rule": rule_of(given["rule"])})
    whole = subject_with(common, given["kind"], subject, given["dictionaries"], given["use"])
    named = whole or subject_of(subject, given["directions"], parts)
    source = find_source(data, given["corruption"])
    check_items(kind, source.items("tune", settings.tune, common.seed), source.name)  # before the model is loaded
    _state(common, common.load(name, dtype, prepend_bos), source, named, words, bars, settings)


def _state(common: Common, model: Any, source: Any, named: Any, words: Any, bars: dict[str, float], settings: Any) -> None:
    """Lock it, and print it with everything that should be known before it is tested."""
    from assay.app import stating
    from assay.atlas.store import Atlas
    from assay.records import plain

    stating.check_subject(model, words.kind, named, "SUBJECT", "Name further parts with --part.")
    store = Atlas(common.atlas)
    found = stating.state(store, model, source, named, words, bars, settings)
    for warning in found.warnings:
        common.note(f"warning: {warning}")
    stated, plan = found.claim, found.plan
    record = {"claim": stated.id, "statement": stated.statement, "lock": plan.lock, "warnings": list(found.warnings),
              "left_out": found.left_out, "stated_before": found.before, "plan": plain(plan),
              "record": plain(stated)}  # fmt: skip
    verdict = store.verdict(stated.id) if found.before else None
    said = f"stated before: {'not tested yet' if verdict is None else verdict.verdict}\n" if found.before else ""
    after = f"assay claim test {stated.id}" if verdict is None else f"assay claim show {stated.id}"
    common.emit(record, lambda: f"{stated_text(stated, plan)}\n{said}next: {after}")


@claim.command()
@click.argument("claim_id", metavar="CLAIM")
@click.option("--model", "name", default=None, metavar="MODEL", help="Where the model is now, if it moved.")
@click.option("--file", "data", default=None, metavar="FILE", help="Where the claim's own data file is now, if it moved.")
@click.option("--dictionary", "dictionaries", multiple=True, metavar="PATH", help="Where the claim's dictionary is now.")
@click.option("--corpus", default=None, metavar="CORPUS",
              help="Ordinary texts to search for counterexamples: packaged, or a file of one a line.")  # fmt: skip
@click.option("--require", type=click.Choice(["supported"]), help="Exit 1 unless the verdict is this, and not exploratory.")
@model_options
@common_options
def test(
    common: Common, claim_id: str, name: str | None, data: str | None, dictionaries: tuple[str, ...], corpus: str | None,
    require: str | None, dtype: str, prepend_bos: bool | None,
) -> None:  # fmt: skip
    """Read the sealed splits of CLAIM, once, and decide."""
    from assay.atlas.linked import link_tested
    from assay.atlas.store import Atlas
    from assay.data.vectors import read_corpus
    from assay.evidence.run import test_claim
    from assay.report.terminal import verdict_panel

    store = Atlas(common.atlas)
    stated = store.claim(claim_id)
    texts = () if corpus is None else read_corpus(corpus)
    source = data_of(stated, data)
    open_for(stated.subject, dictionaries)
    model = load_claimed(common, stated, name, dtype, prepend_bos)
    with common.progress("testing") as report:
        verdict = test_claim(store, claim_id, model, report, source=source, corpus=texts)
    link_tested(store, claim_id)
    common.emit(verdict.to_json(), lambda: verdict_panel(verdict.to_json()))
    if require and (verdict.verdict != require or "exploratory" in verdict.qualifiers):
        sys.exit(EXIT_NOT_AS_REQUIRED)


@claim.command()
@click.argument("kind", metavar="[KIND]", required=False)
@common_options
def kinds(common: Common, kind: str | None) -> None:
    """What can be claimed, and what each kind must pass: gates, their smallest effect of interest, required or not.

    Required gates decide, reported ones are shown; "by claim": required where the claim is one that asks for it.
    """
    from assay.evidence.gates import gates_for
    from assay.evidence.kinds import KINDS
    from assay.evidence.search import searches_for

    rows = []
    for name in [kind] if kind else KINDS.names():
        gates = [{"name": gate.name, "group": gate.group, "sesoi": gate.bars.get(name, gate.sesoi),
                  "required": None if callable(gate.required) or gate.asked else gate.required,
                  "precondition": gate.precondition}
                 for gate in gates_for(name)]  # fmt: skip
        methods = [{"name": method.name, "budget": method.budget, "required": method.required}
                   for method in searches_for(name)]  # fmt: skip
        rows.append({"kind": name, "about": about(KINDS.get(name)), "gates": gates, "search": methods})
    common.emit(rows, lambda: "\n".join(line for row in rows for line in kind_lines(row)))


@claim.command()
@click.argument("claim_id", metavar="CLAIM")
@common_options
def show(common: Common, claim_id: str) -> None:
    """One claim: statement, plan, verdict, gates and counterexamples, and whether it is stale.

    Exit 3, and nothing is shown, when what is stored about it does not hold.
    """
    from assay.atlas.store import Atlas
    from assay.evidence.claims import audit, rederive
    from assay.evidence.ledger import unjudged
    from assay.evidence.stale import stale_reasons, with_stale
    from assay.records import plain
    from assay.report.terminal import verdict_panel

    store = Atlas(common.atlas)
    if (card := store.imported(claim_id)) is not None and card["verdict"] is not None:
        theirs = {**card["verdict"], "qualifiers": [*card["verdict"]["qualifiers"], "imported"], "stale": card["stale"]}
        common.emit({**theirs, "record": card["claim"], "plan": card["plan"], "deviations": card["deviations"],
                     "replications": card["replications"]}, lambda: verdict_panel(theirs, every=True))  # fmt: skip
        return
    stated, plan = store.claim(claim_id), store.plan(claim_id)
    if problems := audit(store, claim_id):
        raise TamperedError("; ".join(problems) + ". See: assay claim verify.")
    verdict = None if unjudged(store.entries_of(claim_id)) else store.verdict(claim_id)
    verdict = verdict or rederive(store, claim_id)
    twin = with_stale(verdict.to_json(), stale_reasons(store, stated))
    record = {**twin, "record": plain(stated), "plan": plain(plan), "deviations": plain(store.deviations(claim_id)),
              "replications": plain(store.replications(claim_id))}  # fmt: skip
    common.note(stated_text(stated, plan))
    for reason in twin["stale"]:
        common.note(f"stale: {reason}")
    evidence = store.evidence(claim_id)
    for split, data in (evidence.data if evidence else {}).items():
        if data.get("looked"):
            common.note(f"seen before its test, {split}: {'; '.join(data['looked'])}")
    for deviation in store.deviations(claim_id):
        common.note(f"deviation: {deviation.what} ({deviation.why})")
    common.emit(record, lambda: verdict_panel(twin, every=True))


@claim.command()
@click.argument("claim_id", metavar="CLAIM", required=False)
@common_options
def verify(common: Common, claim_id: str | None) -> None:
    """Check the ledger and derive every verdict again from stored tables. Exit 3 when something differs."""
    from assay.atlas.store import Atlas
    from assay.evidence.claims import audit

    store = Atlas(common.atlas)
    with store:
        problems, n = store.verify(), store.entry_count()
        chosen = [claim_id] if claim_id else store.claim_ids()
        for name in chosen:
            problems += audit(store, name)
    text = "\n".join(problems) or f"{n} ledger entries and {len(chosen)} claims: all verdicts follow."
    record = {"ok": not problems, "problems": problems, "entries": n, "claims": len(chosen)}
    common.emit(record, lambda: text)
    if problems:
        sys.exit(EXIT_TAMPERED)


@claim.command()
@click.argument("claim_id", metavar="CLAIM")
@click.option("--model", "name", default=None, metavar="MODEL", help="Where the model is now, if it moved.")
@click.option("--file", "data", default=None, metavar="FILE", help="Where the claim's own data file is now, if it moved.")
@click.option("--dictionary", "dictionaries", multiple=True, metavar="PATH", help="Where the claim's dictionary is now.")
@click.option("--corpus", default=None, metavar="CORPUS", help="The ordinary texts that the claim was tested with, if any.")
@click.option("--who", default="", help="Who replicates, for the record.")
@model_options
@common_options
def replay(
    common: Common, claim_id: str, name: str | None, data: str | None, dictionaries: tuple[str, ...], corpus: str | None,
    who: str, dtype: str, prepend_bos: bool | None,
) -> None:  # fmt: skip
    """Measure CLAIM again from its plan and compare.

    Exit 0: the same verdict and numbers. 10: they differ. 3: stored records do not hold. 4: it cannot be
    measured here (another model, other data).
    """
    from assay.atlas.store import Atlas
    from assay.data.vectors import read_corpus
    from assay.evidence.replay import replay_claim

    store = Atlas(common.atlas)
    stated = store.claim(claim_id)
    texts = () if corpus is None else read_corpus(corpus)
    source = data_of(stated, data)
    open_for(stated.subject, dictionaries)
    model = load_claimed(common, stated, name, dtype, prepend_bos)
    with common.progress("replaying") as report:
        found = replay_claim(store, claim_id, model, report, source=source, who=who, corpus=texts)
    said = "the same verdict and numbers" if found.same else "it differs"
    record = {"claim": claim_id, "same": found.same, "before": found.before, "again": found.again.verdict,
              "moved": list(found.moved)}  # fmt: skip
    lines = [f"{claim_id}: {said} ({found.before}, {found.again.verdict} now)", *(f"  {gate}" for gate in found.moved)]
    common.emit(record, lambda: "\n".join(lines))
    if not found.same:
        sys.exit(EXIT_DIFFERS)


for _command in CARD_COMMANDS:
    claim.add_command(_command)


# words -------------------------------------------------------------------------------------------


def stated_text(stated: Claim, plan: Plan) -> str:
    """A claim and its plan, in a few lines."""
    bars = ", ".join(f"{gate.name} > {gate.sesoi:g}" for gate in plan.gates if gate.required)
    sizes = ", ".join(f"{name} {recipe['n']} items of {recipe['templates']} templates"
                      for name, recipe in plan.splits.items())  # fmt: skip
    return (f"claim {stated.id} (version {stated.version}, {stated.kind}): {stated.statement}\n"
            f"required: {bars}\nsplits: {sizes}\nlocked: {plan.lock}")  # fmt: skip


def model_of(stated: Claim) -> str:
    """What to give `load_model` for the model of a claim."""
    from assay.data.whereabouts import LOCAL, last_seen

    source = str(stated.subject.get("source", ""))
    if source.startswith(LOCAL):
        folder = last_seen(stated.subject["digest"]) or Path(source.removeprefix(LOCAL))
        if not folder.is_dir():
            raise ReproduceError(f"model {stated.subject['model']}: it is not where it was last seen. Give it with --model.")
        return str(folder)
    if source.startswith("hub:"):
        return source.removeprefix("hub:").partition("@")[0]
    return stated.subject["model"]


def load_claimed(common: Common, stated: Claim, name: str | None, dtype: str, prepend_bos: bool | None) -> Any:
    """The model of a claim, from `name` where one is given: an image model for a claim about pictures.

    Raises ReproduceError when the claim's own model is not to be had here.
    """
    from assay.evidence.sentence import of_pictures
    from assay.model.image_load import load_image_model

    try:
        if of_pictures(stated):
            return load_image_model(name or model_of(stated), common.device)
        return common.load(name or model_of(stated), dtype, prepend_bos)
    except ModelError as error:
        if name is not None:
            raise
        raise ReproduceError(f"claim {stated.id}: its model cannot be loaded here. Give it with --model. {error}") from error


def data_of(stated: Claim, path: str | None) -> Any:
    """The data of a claim: from `path` where one is given, else where they are found. Said before a model is loaded."""
    from assay.evidence.source import given_again, source_of

    return source_of(stated.task) if path is None else given_again(stated.task, path)


def about(kind: Any) -> str:
    """What claims of a kind say: the first line of its module."""
    text = sys.modules[type(kind).__module__].__doc__ or type(kind).__doc__ or ""
    return text.strip().splitlines()[0].rstrip(".")


def kind_lines(row: dict[str, Any]) -> Sequence[str]:
    """One kind with its gates and searches."""
    width = max((len(gate["name"]) for gate in row["gates"]), default=0)
    lines = [row["about"] if row["kind"] in row["about"] else f"{row['kind']}: {row['about']}"]
    for gate in row["gates"]:
        decides = "by claim" if gate["required"] is None else "required" if gate["required"] else "reported"
        role = "precondition" if gate["precondition"] else decides
        lines.append(f"  {gate['name']:<{width}}  > {gate['sesoi']:<5g}  {role:<12}  {gate['group']}")
    return [*lines, f"  counterexamples: {', '.join(method['name'] for method in row['search']) or 'none'}", ""]
