"""`assay claim state|test|list|show|verify`."""

import json
import sys
from typing import Any

import click

from assay.cli.common import check_json_target, json_option, model_options, write_json
from assay.errors import UsageError
from assay.records import Claim, Plan, Verdict

EXIT_NOT_AS_REQUIRED = 1
EXIT_TAMPERED = 3


def atlas_option(command: Any) -> Any:
    """--atlas DIR."""
    return click.option("--atlas", default="./atlas", show_default=True, metavar="DIR")(command)


@click.group()
def claim() -> None:
    """State claims about a model, test them on sealed data, and check what was recorded."""


@claim.command()
@click.argument("name", metavar="MODEL")
@click.argument("task", metavar="TASK")
@click.argument("sites", metavar="SITES")
@click.option("--quantifier", default="tends", show_default=True, help="tends, usually or always")
@click.option("--statement", "text", default="", help="The claim in your words.")
@click.option("--parent", default=None, metavar="CLAIM", help="The claim this one narrows.")
@click.option("--corruption", default="swap", show_default=True, help="Of a bundled task.")
@click.option("--sesoi", multiple=True, metavar="GATE=X", help="Smallest effect of interest, e.g. necessity=0.3.")
@click.option("--set", "settings", multiple=True, metavar="NAME=X",
              help="tune, confirm, ood, alpha, positions, draws, control_pairs")  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@atlas_option
@model_options
@json_option
def state(
    name: str, task: str, sites: str, atlas: str, json_to: str | None, sesoi: tuple[str, ...], **options: Any
) -> None:
    """State that SITES of MODEL carry TASK, and lock the plan. TASK: a bundled name or a file.

    SITES, comma-separated: heads z.L.H, mlp_out.L, attn_out.L or resid_post.L.
    """
    from assay.atlas.store import Atlas
    from assay.evidence.claims import warnings_of
    from assay.evidence.run import Statement, state_claim
    from assay.evidence.source import Source
    from assay.model.load import load_model

    check_json_target(json_to)
    words = Statement(quantifier=options.pop("quantifier"), text=options.pop("text"), parent=options.pop("parent"))
    bars = {key: _number("--sesoi", key, value) for key, value in _pairs("--sesoi", sesoi)}
    given = {key: _setting(key, value) for key, value in _pairs("--set", options.pop("settings"))}
    source, seed = Source(task, options.pop("corruption")), options.pop("seed")
    source.recipe("tune", 1, 0)  # refuses an unknown task before the model is loaded
    model = load_model(name, **options)
    stated, plan = state_claim(
        Atlas(atlas), model, source, sites.split(","), statement=words, sesoi=bars, seed=seed, **given
    )
    for warning in warnings_of(plan):
        click.echo(f"warning: {warning}", err=True)
    _emit({"claim": stated.id, "statement": stated.statement, "lock": plan.lock, "warnings": warnings_of(plan),
           "plan": _plain(plan), "record": _plain(stated)}, json_to, stated_text(stated, plan))  # fmt: skip


@claim.command()
@click.argument("claim_id", metavar="CLAIM")
@click.option("--model", "name", default=None, metavar="MODEL", help="Where the model is now, if it moved.")
@click.option("--require", type=click.Choice(["supported"]), help="Exit 1 unless the verdict is this.")
@click.option("--quiet", is_flag=True, help="No progress.")
@atlas_option
@model_options
@json_option
def test(
    claim_id: str, name: str | None, require: str | None, quiet: bool, atlas: str, json_to: str | None, **options: Any
) -> None:
    """Read the sealed splits of CLAIM, once, and decide."""
    from assay.atlas.store import Atlas
    from assay.evidence.run import test_claim
    from assay.model.load import load_model

    check_json_target(json_to)
    store = Atlas(atlas)
    stated = store.claim(claim_id)
    model = load_model(name or model_of(stated), **options)
    verdict = test_claim(store, claim_id, model, None if quiet else _report)
    _emit(verdict.to_json(), json_to, verdict_text(stated, verdict))
    if require and verdict.verdict != require:
        sys.exit(EXIT_NOT_AS_REQUIRED)


@claim.command("list")
@atlas_option
@json_option
def list_(atlas: str, json_to: str | None) -> None:
    """All claims with their verdicts, refuted ones included, and the counts."""
    from assay.atlas.store import Atlas
    from assay.evidence.ledger import tally

    check_json_target(json_to)
    store = Atlas(atlas)
    rows = [(stated, store.verdict(stated.id)) for stated in store.claims()]
    counts = tally(store.entries())
    record = {"claims": [{"claim": c.id, "version": c.version, "kind": c.kind, "statement": c.statement,
                          "verdict": v.verdict if v else "not tested", "reasons": list(v.reasons) if v else []}
                         for c, v in rows], "counts": counts}  # fmt: skip
    lines = [f"{item['claim']}  {item['verdict']:<12}  {item['statement']}" for item in record["claims"]]
    _emit(record, json_to, "\n".join([*lines, counts_text(counts)]))


@claim.command()
@click.argument("claim_id", metavar="CLAIM")
@atlas_option
@json_option
def show(claim_id: str, atlas: str, json_to: str | None) -> None:
    """One claim: statement, plan, verdict, gates and counterexamples."""
    from assay.atlas.store import Atlas
    from assay.evidence.claims import rederive

    check_json_target(json_to)
    store = Atlas(atlas)
    stated, plan = store.claim(claim_id), store.plan(claim_id)
    verdict = store.verdict(claim_id) or rederive(store, claim_id)
    record = {**verdict.to_json(), "record": _plain(stated), "plan": _plain(plan)}
    _emit(record, json_to, f"{stated_text(stated, plan)}\n{verdict_text(stated, verdict)}")


@claim.command()
@click.argument("claim_id", metavar="CLAIM", required=False)
@atlas_option
@json_option
def verify(claim_id: str | None, atlas: str, json_to: str | None) -> None:
    """Check the ledger and derive every verdict again from stored tables. Exit 3 when something differs."""
    from assay.atlas.store import Atlas
    from assay.evidence.claims import audit

    check_json_target(json_to)
    store = Atlas(atlas)
    entries = store.entries()
    chosen = [store.claim(claim_id)] if claim_id else store.claims()
    problems = store.verify()
    for stated in chosen:
        problems += audit(store, stated.id, entries)
    text = "\n".join(problems) or f"{len(entries)} ledger entries and {len(chosen)} claims: all verdicts follow."
    _emit({"ok": not problems, "problems": problems, "entries": len(entries), "claims": len(chosen)}, json_to, text)
    if problems:
        sys.exit(EXIT_TAMPERED)


# words -------------------------------------------------------------------------------------------


def stated_text(stated: Claim, plan: Plan) -> str:
    """A claim and its plan, in a few lines."""
    bars = ", ".join(f"{gate.name} > {gate.sesoi:g}" for gate in plan.gates if gate.required)
    sizes = ", ".join(f"{name} {recipe['n']} pairs of {recipe['templates']} templates"
                      for name, recipe in plan.splits.items())  # fmt: skip
    return (f"claim {stated.id} (version {stated.version}, {stated.kind}): {stated.statement}\n"
            f"required: {bars}\nsplits: {sizes}\nlocked: {plan.lock}")  # fmt: skip


def verdict_text(stated: Claim, verdict: Verdict) -> str:
    """A verdict for a person: sentence, gates, counterexamples, limits."""
    lines = [verdict.sentence, f"verdict: {verdict.verdict}" + _brackets(verdict.reasons + verdict.qualifiers)]
    for gate in verdict.gates:
        mark = "passed" if gate["passed"] else "failed"
        bound = " ".join(f"{gate[key]:+.3f}" if gate[key] is not None else "-" for key in ("low", "high"))
        value = "-" if gate["estimate"] is None else f"{gate['estimate']:+.3f}"
        role = mark if gate["required"] or gate["group"] == "behaviour" else "reported"
        lines.append(f"  {gate['name']:<24} {value} [{bound}]  bar {gate['sesoi']:g}  p {gate['p']:.4f}"
                     f"  K {gate['K']}  {role}")  # fmt: skip
    if hits := verdict.counterexamples:
        lines.append(f"counterexamples: {hits['hits']} of {hits['candidates']} pairs have the wrong sign")
    if left := verdict.unexplained.get("confirm"):
        lines.append(f"unexplained: {left['share']:.0%} of the effect")
    lines += [f"note: {note}" for note in verdict.decision.get("notes", [])]
    if more := verdict.decision.get("more_clusters"):
        lines.append(f"about {more} more templates would settle it")
    return "\n".join([*lines, "does not show:", *(f"  - {limit}" for limit in verdict.does_not_show)])


def counts_text(counts: dict[str, int]) -> str:
    """The denominator, in one line."""
    states = ", ".join(f"{counts[key]} {key}" for key in ("supported", "refuted", "inconclusive", "not tested"))
    return f"{counts['stated']} stated, {counts['tried']} tried: {states}; {counts['looks']} looks"


def model_of(stated: Claim) -> str:
    """What to give `load_model` for the model of a claim."""
    source = str(stated.subject.get("source", ""))
    if source.startswith("local:"):
        return source.removeprefix("local:")
    if source.startswith("hub:"):
        return source.removeprefix("hub:").partition("@")[0]
    return stated.subject["model"]


def _brackets(codes: tuple[str, ...]) -> str:
    return f" ({', '.join(codes)})" if codes else ""


def _emit(record: Any, json_to: str | None, text: str) -> None:
    if json_to:
        write_json(record, json_to)
    if json_to != "-":
        click.echo(text)


def _report(label: str, done: int, total: int) -> None:
    click.echo(f"{label} {done}/{total}", err=True)


def _plain(record: Any) -> Any:
    from assay.evidence.ledger import plain

    return plain(record)


def _pairs(option: str, items: tuple[str, ...]) -> list[tuple[str, str]]:
    for item in items:
        if "=" not in item:
            raise UsageError(f"{option}: got {item!r}; allowed: NAME=VALUE.")
    return [(item.partition("=")[0], item.partition("=")[2]) for item in items]


def _number(option: str, key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{option} {key}: got {text!r}; allowed: a number.") from error


def _setting(key: str, text: str) -> Any:
    if key in ("positions", "metric"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"--set {key}: got {text!r}; allowed: a number.") from error


