"""`assay claim list|export|import|deviate|anchor`: what is there, handed over, changed openly, pinned down."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from assay.cli.common import Common, common_options
from assay.errors import UsageError, bad_argument
from assay.files import write_file

EXIT_TAMPERED = 3
VERDICTS = ("supported", "refuted", "inconclusive", "not tested")


@click.command("list")
@click.option("--verdict", type=click.Choice(VERDICTS), help="Only claims with this verdict.")
@click.option("--kind", default="", help="Only claims of this kind.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="Claims on one page.")
@click.option("--offset", default=0, show_default=True, type=click.IntRange(0), help="Claims to skip, oldest first.")
@common_options
def list_(common: Common, verdict: str | None, kind: str, limit: int, offset: int) -> None:
    """Claims with their verdicts, refuted ones and failed replications included, and the counts of all."""
    from assay.atlas.store import Atlas

    with Atlas(common.atlas) as store:
        page, total = store.listing(limit, offset, verdict or "", kind)
        rows = [_row(store, item) for item in page]
        counts = store.tally()
    record = {"claims": rows, "counts": counts, "total": total, "offset": offset}
    shown = f"{offset + 1} to {offset + len(rows)} of {total}" if rows else f"none of {total}"
    common.emit(record, lambda: "\n".join([*(_line(row) for row in rows), f"{shown}; {counts_text(counts)}"]))


@click.command("export")
@click.argument("claim_id", metavar="CLAIM")
@click.option("--out", required=True, metavar="FILE", help="FILE.html, FILE.md or FILE.json")
@common_options
def export(common: Common, claim_id: str, out: str) -> None:
    """Write the card of CLAIM, one page made from stored records alone. The JSON form can be imported."""
    from assay.atlas.store import Atlas
    from assay.evidence.card import make_card
    from assay.report.card import RENDERERS

    suffix = Path(out).suffix.lower()
    if suffix not in RENDERERS:
        raise bad_argument("--out", out, ", ".join(f"*{name}" for name in RENDERERS))
    with Atlas(common.atlas) as store:
        card = make_card(store, claim_id)
    write_file(Path(out), RENDERERS[suffix](card).encode())
    record = {"claim": claim_id, "out": out, "digest": card["digest"], "stale": card["stale"]}
    common.emit(record, lambda: f"{out}: the card of claim {claim_id} ({card['digest'][:12]})")


@click.command("import")
@click.argument("file", metavar="FILE.json", type=click.Path(path_type=Path))
@common_options
def import_(common: Common, file: Path) -> None:
    """Take a claim of others from its card, after deriving gates and verdict again. Exit 3 when they do not follow.

    It is listed as imported, and is no read, no test and no verdict of this atlas.
    """
    from assay.atlas.store import Atlas
    from assay.evidence.card import import_card, read_card

    card = read_card(file)
    import_card(Atlas(common.atlas), card)
    claim, verdict = card["claim"], (card["verdict"] or {}).get("verdict", "not tested")
    record = {"claim": claim["id"], "verdict": verdict, "digest": card["digest"]}
    common.emit(record, lambda: f"claim {claim['id']} imported: {verdict}, as its stored measurements give. "
                "That they were made as the card says, only a replication can show.")  # fmt: skip


@click.command("deviate")
@click.argument("claim_id", metavar="CLAIM")
@click.option("--what", required=True, help="What is done otherwise than locked.")
@click.option("--why", required=True, help="Why.")
@click.option("--sesoi", multiple=True, metavar="GATE=X", help="A bar used instead of the locked one.")
@common_options
def deviate(common: Common, claim_id: str, what: str, why: str, sesoi: tuple[str, ...]) -> None:
    """Say openly what is done otherwise than CLAIM was locked. Its result is then exploratory."""
    from assay.atlas.store import Atlas
    from assay.evidence import claims
    from assay.records import plain

    store = Atlas(common.atlas)
    deviation = claims.deviate(store, claim_id, what, why, dict(_bar(item) for item in sesoi))
    verdict = store.verdict(claim_id)
    record = {**plain(deviation), "verdict": verdict and verdict.verdict,
              "qualifiers": list(verdict.qualifiers) if verdict else ["exploratory"]}  # fmt: skip
    common.emit(record, lambda: f"claim {claim_id}: deviation recorded; the result is exploratory"
                                + (f" ({verdict.verdict})" if verdict else ""))  # fmt: skip


@click.command("anchor")
@click.option("--out", default=None, metavar="FILE", help="Write the head here: keep it where the atlas is not.")
@click.option("--check", default=None, metavar="FILE", help="A head kept earlier: it must lie on the ledger.")
@common_options
def anchor(common: Common, out: str | None, check: str | None) -> None:
    """The ledger's head, to keep elsewhere; or check the ledger against one kept. Exit 3 when it does not fit."""
    from assay.atlas.store import Atlas
    from assay.evidence.ledger import now

    store = Atlas(common.atlas)
    problems = store.verify(*([_head(check)] if check else []))
    if problems:
        common.emit({"ok": False, "problems": problems}, lambda: "\n".join(problems))
        sys.exit(EXIT_TAMPERED)
    head = {**(store.heads()[0] or {"count": 0, "hash": ""}), "time": now()}
    if out:
        write_file(Path(out), json.dumps(head).encode())
    text = f"{head['count']} entries, head {head['hash']}" + ("; the kept head lies on this ledger" if check else "")
    common.emit({"ok": True, **head}, lambda: text)


CARD_COMMANDS = (list_, export, import_, deviate, anchor)


# parts -------------------------------------------------------------------------------------------


def counts_text(counts: dict[str, int]) -> str:
    """The denominator, in one line."""
    states = ", ".join(f"{counts[key]} {key}" for key in VERDICTS)
    more = "".join(f"; {counts[key]} {key}" for key in ("deviations", "imported") if counts.get(key))
    again = f"; {counts['replications']} replications, {counts['failed replications']} failed" if counts["replications"] else ""
    return f"{counts['stated']} stated, {counts['tried']} tried: {states}; {counts['looks']} looks{again}{more}"


def _row(store: Any, item: Any) -> dict[str, Any]:
    """One claim of the list; own ones with reasons, qualifiers (stale by gates and rule) and replications."""
    from assay.evidence.stale import changed_code

    base = {"claim": item.claim, "version": item.version, "kind": item.kind, "statement": item.statement,
            "verdict": item.verdict, "reasons": [], "qualifiers": [], "imported": item.imported}  # fmt: skip
    if item.imported:
        return {**base, "qualifiers": ["imported"], "replications": 0, "failed_replications": 0}
    verdict, again = store.verdict(item.claim), store.replications(item.claim)
    qualifiers = list(verdict.qualifiers) if verdict else []
    if changed_code(store.plan(item.claim), verdict):
        qualifiers.append("stale")
    return {**base, "reasons": list(verdict.reasons) if verdict else [], "qualifiers": qualifiers,
            "replications": len(again), "failed_replications": sum(not found.same for found in again)}  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    from assay.report.cells import visible

    said = [*row["reasons"], *row["qualifiers"]]
    if row["replications"]:
        said.append(f"replicated {row['replications'] - row['failed_replications']} of {row['replications']} times")
    more = f"  [{'; '.join(said)}]" if said else ""
    return f"{row['claim']}  {row['verdict']:<12}  {visible(row['statement'], 400)}{more}"


def _bar(item: str) -> tuple[str, float]:
    name, _, value = item.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise UsageError(f"--sesoi: got {item!r}; allowed: GATE=NUMBER.") from error


def _head(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text())
        return {"count": int(found["count"]), "hash": str(found["hash"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--check: {path!r} is not a head that `assay claim anchor --out` wrote ({error}).") from error
