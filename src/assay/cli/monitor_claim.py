"""`assay monitor claim`: a monitor finds what it is for, stated and tested as a claim of kind *detects*."""

import sys
from dataclasses import replace
from typing import Any

import click

from assay.cli.claim import EXIT_NOT_AS_REQUIRED
from assay.cli.common import Common, common_options, model_options
from assay.cli.given import number, options_of, pairs, settings_of
from assay.errors import UsageError

TUNE, CONFIRM, OOD = 240, 800, 600  # a certificate below 1% takes 299 groups of benign texts


@click.command()
@click.argument("file", metavar="MONITOR")
@click.argument("name", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.option("--quantifier", default="tends", show_default=True, help="tends, usually or always")
@click.option("--statement", "text", default="", help="The claim in your words.")
@click.option("--sesoi", multiple=True, metavar="GATE=X", help="Smallest effect of interest, e.g. recall=0.5.")
@click.option("--set", "settings", multiple=True, metavar="NAME=X", help="tune, confirm, ood (texts), alpha, draws")
@click.option("--option", "options", multiple=True, metavar="NAME=X", help="As of claim state: reader_url, second_corpus, ..")
@click.option("--state-only", is_flag=True, help="Lock it, and test it later: assay claim test CLAIM.")
@click.option("--require", type=click.Choice(["supported"]), help="Exit 1 unless the verdict is this, and not exploratory.")
@click.option("--dictionary", "dictionaries", multiple=True, metavar="PATH",
              help="Of latent.NAME; may be given again. Default: where it was last seen.")  # fmt: skip
@model_options
@common_options
def claim(
    common: Common, file: str, name: str, data: str, quantifier: str, text: str, sesoi: tuple[str, ...],
    settings: tuple[str, ...], options: tuple[str, ...], state_only: bool, require: str | None, dictionaries: tuple[str, ...],
    dtype: str, prepend_bos: bool | None,
) -> None:  # fmt: skip
    """State that MONITOR finds what it is for on MODEL, and test it: a claim of kind detects in the ledger.

    DATA: a concept or a file of labelled texts (JSONL, CSV) with groups; it is divided, and confirm and ood are read once. The
    threshold is that of a reply; a monitor without one gets it on tune. Texts that it was fitted or calibrated on are refused.
    """
    from assay.app import stating
    from assay.atlas.linked import link_tested
    from assay.atlas.store import Atlas
    from assay.cli.opened import open_monitor
    from assay.evidence.run import Settings, Statement, test_claim
    from assay.evidence.source import find_source
    from assay.report.terminal import verdict_panel

    bars = {key: number("--sesoi", key, value) for key, value in pairs("--sesoi", sesoi).items()}
    default = Settings(tune=TUNE, confirm=CONFIRM, ood=OOD, seed=common.seed)
    asked = replace(default, **settings_of(pairs("--set", settings), default), options=options_of(pairs("--option", options)))
    source = find_source(data)
    model = common.load(name, dtype, prepend_bos)
    subject = {"monitor": _bound(common, model, open_monitor(file, model, dictionaries))}
    store = Atlas(common.atlas)
    found = stating.state(store, model, source, subject, Statement("detects", quantifier, text), bars, asked)
    for warning in found.warnings:
        common.note(f"warning: {warning}")
    common.note(f"claim {found.claim.id}: {found.claim.statement}")
    if state_only:
        record = {"claim": found.claim.id, "statement": found.claim.statement, "lock": found.plan.lock}
        common.emit(record, lambda: f"{found.claim.id}: locked\nnext: assay claim test {found.claim.id}")
        return
    verdict = store.verdict(found.claim.id) if found.before else None
    if verdict is None:
        with common.progress("testing") as report:
            verdict = test_claim(store, found.claim.id, model, report, source=source)
        link_tested(store, found.claim.id)
    shown = verdict.to_json()
    common.emit(shown, lambda: verdict_panel(shown))
    if require and (verdict.verdict != require or "exploratory" in verdict.qualifiers):
        sys.exit(EXIT_NOT_AS_REQUIRED)


def _bound(common: Common, model: Any, monitor: Any) -> Any:
    """The monitor, if it is bound to this very model. Raises UsageError. What else makes it uncalibrated is said."""
    from assay.monitor.records import bindings

    for what, value in bindings(model).items():
        if monitor.bound.get(what) != value:
            raise UsageError(f"monitor {monitor.name!r} was fitted with another {what} than {model.name} has: nothing that is"
                             " found here would be about it. Fit it on this model.")  # fmt: skip
    if "reply" not in monitor.thresholds:
        common.note("warning: the monitor has no threshold for a reply; one is set on tune.")
    elif (state := monitor.state(model)) != "calibrated":
        common.note(f"warning: the monitor is {state}.")
    return monitor
