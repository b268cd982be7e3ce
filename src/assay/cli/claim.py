"""`assay claim state|test|list|show|verify|replay`."""

import sys
from dataclasses import replace
from typing import Any

import click

from assay.cli.common import Common, common_options, model_options
from assay.errors import UsageError, bad_argument
from assay.records import Claim, Plan

EXIT_NOT_AS_REQUIRED = 1
EXIT_TAMPERED = 3
EXIT_DIFFERS = 10
SETTINGS = ("tune", "confirm", "ood", "alpha", "positions", "draws", "control_pairs")


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
@click.option("--corruption", default=None, help="Of a bundled task. Default: the task's first.")
@click.option("--sesoi", multiple=True, metavar="GATE=X", help="Smallest effect of interest, e.g. necessity=0.3.")
@click.option("--set", "settings", multiple=True, metavar="NAME=X",
              help="tune, confirm, ood (pairs), alpha, positions, draws, control_pairs")  # fmt: skip
@model_options
@common_options
def state(
    common: Common, name: str, task: str, sites: str, dtype: str, prepend_bos: bool | None, **options: Any
) -> None:
    """State that SITES of MODEL carry TASK, and lock the plan. TASK: a bundled name or a file.

    SITES, comma-separated: heads z.L.H, mlp_out.L, attn_out.L or resid_post.L.
    """
    bars = {key: _value("--sesoi", key, value) for key, value in _pairs("--sesoi", options["sesoi"])}
    given = dict(_setting(*pair) for pair in _pairs("--set", options["settings"]))
    from assay.atlas.store import Atlas
    from assay.evidence.claims import warnings_of
    from assay.evidence.run import Settings, Statement, state_claim
    from assay.evidence.source import Source
    from assay.records import plain

    words = Statement(quantifier=options["quantifier"], text=options["text"], parent=options["parent"])
    settings = replace(Settings(seed=common.seed), **given)
    source = Source(task, options["corruption"])
    source.items("tune", 1, 0)  # refuses an unknown task or a bad file before the model is loaded
    model = common.load(name, dtype, prepend_bos)
    stated, plan = state_claim(
        Atlas(common.atlas), model, source, sites, statement=words, sesoi=bars, settings=settings
    )
    for warning in warnings_of(plan):
        common.note(f"warning: {warning}")
    record = {"claim": stated.id, "statement": stated.statement, "lock": plan.lock, "warnings": warnings_of(plan),
              "plan": plain(plan), "record": plain(stated)}  # fmt: skip
    common.emit(record, lambda: f"{stated_text(stated, plan)}\nnext: assay claim test {stated.id}")


@claim.command()
@click.argument("claim_id", metavar="CLAIM")
@click.option("--model", "name", default=None, metavar="MODEL", help="Where the model is now, if it moved.")
@click.option("--require", type=click.Choice(["supported"]), help="Exit 1 unless the verdict is this.")
@model_options
@common_options
def test(
    common: Common, claim_id: str, name: str | None, require: str | None, dtype: str, prepend_bos: bool | None
) -> None:
    """Read the sealed splits of CLAIM, once, and decide."""
    from assay.atlas.store import Atlas
    from assay.evidence.run import test_claim
    from assay.report.terminal import verdict_panel

    store = Atlas(common.atlas)
    stated = store.claim(claim_id)
    model = common.load(name or model_of(stated), dtype, prepend_bos)
    with common.progress("testing") as report:
        verdict = test_claim(store, claim_id, model, report)
    common.emit(verdict.to_json(), lambda: verdict_panel(verdict.to_json()))
    if require and verdict.verdict != require:
        sys.exit(EXIT_NOT_AS_REQUIRED)


@claim.command("list")
@common_options
def list_(common: Common) -> None:
    """All claims with their verdicts, refuted ones included, and the counts."""
    from assay.atlas.store import Atlas
    from assay.evidence.ledger import tally

    store = Atlas(common.atlas)
    rows = [(stated, store.verdict(stated.id)) for stated in store.claims()]
    counts = tally(store.entries())
    record = {"claims": [{"claim": c.id, "version": c.version, "kind": c.kind, "statement": c.statement,
                          "verdict": v.verdict if v else "not tested", "reasons": list(v.reasons) if v else []}
                         for c, v in rows], "counts": counts}  # fmt: skip
    lines = [f"{item['claim']}  {item['verdict']:<12}  {item['statement']}" for item in record["claims"]]
    common.emit(record, lambda: "\n".join([*lines, counts_text(counts)]))


@claim.command()
@click.argument("claim_id", metavar="CLAIM")
@common_options
def show(common: Common, claim_id: str) -> None:
    """One claim: statement, plan, verdict, gates and counterexamples."""
    from assay.atlas.store import Atlas
    from assay.evidence.claims import rederive
    from assay.records import plain
    from assay.report.terminal import verdict_panel

    store = Atlas(common.atlas)
    stated, plan = store.claim(claim_id), store.plan(claim_id)
    verdict = store.verdict(claim_id) or rederive(store, claim_id)
    record = {**verdict.to_json(), "record": plain(stated), "plan": plain(plan)}
    common.note(stated_text(stated, plan))
    common.emit(record, lambda: verdict_panel(verdict.to_json()))


@claim.command()
@click.argument("claim_id", metavar="CLAIM", required=False)
@common_options
def verify(common: Common, claim_id: str | None) -> None:
    """Check the ledger and derive every verdict again from stored tables. Exit 3 when something differs."""
    from assay.atlas.store import Atlas
    from assay.evidence.claims import audit

    store = Atlas(common.atlas)
    entries = store.entries()
    chosen = [store.claim(claim_id)] if claim_id else store.claims()
    problems = store.verify()
    for stated in chosen:
        problems += audit(store, stated.id, entries)
    text = "\n".join(problems) or f"{len(entries)} ledger entries and {len(chosen)} claims: all verdicts follow."
    record = {"ok": not problems, "problems": problems, "entries": len(entries), "claims": len(chosen)}
    common.emit(record, lambda: text)
    if problems:
        sys.exit(EXIT_TAMPERED)


@claim.command()
@click.argument("claim_id", metavar="CLAIM")
@click.option("--model", "name", default=None, metavar="MODEL", help="Where the model is now, if it moved.")
@model_options
@common_options
def replay(common: Common, claim_id: str, name: str | None, dtype: str, prepend_bos: bool | None) -> None:
    """Measure CLAIM again from its plan and compare.

    Exit 0: the same verdict and numbers. 10: they differ. 3: stored records do not hold. 4: it cannot be
    measured here (another model, other data).
    """
    from assay.atlas.store import Atlas
    from assay.evidence.replay import replay_claim

    store = Atlas(common.atlas)
    model = common.load(name or model_of(store.claim(claim_id)), dtype, prepend_bos)
    with common.progress("replaying") as report:
        found = replay_claim(store, claim_id, model, report)
    said = "the same verdict and numbers" if found.same else "it differs"
    record = {"claim": claim_id, "same": found.same, "before": found.before, "again": found.again.verdict,
              "moved": list(found.moved)}  # fmt: skip
    lines = [f"{claim_id}: {said} ({found.before}, {found.again.verdict} now)", *(f"  {gate}" for gate in found.moved)]
    common.emit(record, lambda: "\n".join(lines))
    if not found.same:
        sys.exit(EXIT_DIFFERS)


# words -------------------------------------------------------------------------------------------


def stated_text(stated: Claim, plan: Plan) -> str:
    """A claim and its plan, in a few lines."""
    bars = ", ".join(f"{gate.name} > {gate.sesoi:g}" for gate in plan.gates if gate.required)
    sizes = ", ".join(f"{name} {recipe['n']} pairs of {recipe['templates']} templates"
                      for name, recipe in plan.splits.items())  # fmt: skip
    return (f"claim {stated.id} (version {stated.version}, {stated.kind}): {stated.statement}\n"
            f"required: {bars}\nsplits: {sizes}\nlocked: {plan.lock}")  # fmt: skip


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


def _pairs(option: str, items: tuple[str, ...]) -> list[tuple[str, str]]:
    for item in items:
        if "=" not in item:
            raise UsageError(f"{option}: got {item!r}; allowed: NAME=VALUE.")
    return [(item.partition("=")[0], item.partition("=")[2]) for item in items]


def _value(option: str, key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{option} {key}: got {text!r}; allowed: a number.") from error


def _setting(key: str, text: str) -> tuple[str, Any]:
    if key not in SETTINGS:
        raise bad_argument("--set", key, ", ".join(SETTINGS))
    if key == "positions":
        return key, text
    try:
        return key, float(text) if key == "alpha" else int(text)
    except ValueError as error:
        raise UsageError(f"--set {key}: got {text!r}; allowed: a number.") from error
