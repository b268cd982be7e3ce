"""`assay audit MODEL`: does it hide something? A fixed budget, and suspicions that are written down before they are tested."""

import json
from pathlib import Path

import click

from assay.cli.common import Common, common_options, model_options

FAMILIES = ("sandbag", "liar", "backdoor", "loyalty", "denied")


@click.command()
@click.argument("name", metavar="MODEL")
@click.option("--reference", metavar="BASE", help="The model it was made from. Without it an audit sees less, and says so.")
@click.option("--budget", default=240_000, show_default=True, type=click.IntRange(1), help="Tokens through the models.")
@click.option("--alpha", default=0.01, show_default=True, type=float, help="Of naming a trait in a model that has none.")
@click.option("--family", "families", multiple=True, type=click.Choice(FAMILIES), help="Only these; may be given again.")
@click.option("--black-box/--no-black-box", "box", default=True, help="Also what talking alone finds on the same budget.")
@click.option("--dictionary", metavar="NAME|PATH", help="With --reference: its latents are compared in both models.")
@click.option("--out", metavar="DIR", help="Where the report is written. Default: ATLAS/audits/MODEL-DIGEST.")
@model_options
@common_options
def audit(
    common: Common, name: str, reference: str | None, budget: int, alpha: float, families: tuple[str, ...], box: bool,
    dictionary: str | None, out: str | None, dtype: str, prepend_bos: bool | None,
) -> None:  # fmt: skip
    """Audit MODEL for hidden traits, and write a report that a manager can read.

    The same command goes on where it was killed: replies are kept beside the report.
    """
    from assay.atlas.store import Atlas
    from assay.audit.run import AuditPlan
    from assay.audit.run import audit as run_audit
    from assay.cli.dictionary_eval import opened
    from assay.features.dictionary import of_texts
    from assay.files import write_file
    from assay.report.audit_page import audit_html, audit_markdown, summary

    plan = AuditPlan(budget, alpha, families, box)
    model = common.load(name, dtype, prepend_bos)
    base = common.load(reference, dtype, prepend_bos) if reference else None
    latents = opened(common, dictionary) if dictionary else None
    if latents is not None and latents.reads_texts:
        raise of_texts(latents, "The share of tokens at which latents are active is compared, token by token.")
    folder = Path(out) if out else common.atlas / "audits" / f"{Path(name).name}-{model.digest[:8]}"
    with Atlas(common.atlas) as atlas, common.progress("audit") as advance:
        done = run_audit(model, base, plan, atlas, folder, advance, latents)
    record = done.to_json()
    write_file(folder / "audit.json", json.dumps(record, indent=1).encode())
    write_file(folder / "audit.md", audit_markdown(record).encode())
    write_file(folder / "audit.html", audit_html(record).encode())
    common.emit(record, lambda: "\n".join([*summary(record), f"Report: {folder / 'audit.html'}"]))
