"""`assay sign key|trust|card|verify|revoke|list`."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from assay.cli.common import Common, common_options
from assay.errors import UsageError, bad_argument

EXIT_NOT_TRUSTED, EXIT_REFUSED = 1, 3
KEY = click.option("--key", metavar="FILE", help="The private key. Default: the one in the configuration folder.")


@click.group()
def sign() -> None:
    """Vouch for directions, monitors, repaired models and claims; check what others vouch for.

    A signature shows that bytes are those that the holder of a key signed. It does not show who that is, nor that what a
    card says is so.
    """


@sign.command("key")
@KEY
@click.option("--name", default="me", show_default=True, help="What your own key is called in your list of trusted keys.")
@common_options
def key(common: Common, key: str | None, name: str) -> None:
    """Make a key, or show the public part of the one that is there. Hand the public part to whom should trust it."""
    from assay import signing

    place = Path(key) if key else signing.config() / signing.KEY
    made = not place.exists()
    if made:
        signing.make_key(place)
    public = signing.public_of(signing.load_key(place))
    if made:
        signing.trust(public, name)
    record = {"file": str(place), "made": made, "public_key": public, "key": signing.key_id(public)}
    what = "made, and trusted here" if made else "there already"
    common.emit(record, lambda: f"key {record['key']} ({what}): {place}\npublic part: {public}")


@sign.command("trust")
@click.argument("public", metavar="PUBLIC_KEY|ID")
@click.option("--name", help="What you call this key. Needed, except with --remove.")
@click.option("--remove", is_flag=True, help="Take a key, by its id, off the list.")
@common_options
def trust(common: Common, public: str, name: str | None, remove: bool) -> None:
    """Take signatures of a public key from now on. Compare its id with its owner first, by another way."""
    from assay import signing

    if remove:
        signing.distrust(public)
        common.emit({"key": public, "trusted": False}, lambda: f"key {public} is not trusted any more")
        return
    known = signing.trust(public, name or "")
    common.emit({"key": known, "name": name, "trusted": True}, lambda: f"key {known} is trusted as {name}")


@sign.command("card")
@click.argument("path", metavar="PATH", type=click.Path(path_type=Path))
@KEY
@click.option("--days", type=float, help="Until the signature expires. Default: never.")
@common_options
def card(common: Common, path: Path, key: str | None, days: float | None) -> None:
    """Sign a direction, a monitor, a repaired model's folder, a claim's card (JSON), or any other file or folder, as it is."""
    from assay import signing

    place = signing.sign(path, signing.load_key(key), days)
    record = {**_record(signing.look(path)), "signature": str(place)}
    common.emit(record, lambda: f"{place}: {record['kind']}, {record['status']}, signature {record['digest'][:12]}")


@sign.command("verify")
@click.argument("paths", metavar="PATH..", nargs=-1, required=True, type=click.Path(path_type=Path))
@common_options
def verify(common: Common, paths: tuple[Path, ...]) -> None:
    """What the signatures of files and folders are worth here.

    Exit 3 where one is altered or revoked; with --require-signature 1 where one is not by a trusted key.
    """
    from assay import signing

    found = [signing.look(path) for path in paths]
    record = {"files": [_record(each) for each in found], "shows": "the bytes are those that the holder of the key signed",
              "does_not_show": ["who holds the key", "when it was signed", "that what the card says is so"]}  # fmt: skip
    common.emit(record, lambda: "\n".join([*(each.sentence for each in found), f"A signature shows: {record['shows']}; not "
                                           + ", ".join(record["does_not_show"]) + "."]))  # fmt: skip
    if any(each.status in signing.REFUSED for each in found):
        sys.exit(EXIT_REFUSED)
    if signing.required() and any(each.status != signing.TRUSTED for each in found):
        sys.exit(EXIT_NOT_TRUSTED)


@sign.command("revoke")
@click.argument("what", metavar="[PATH|KEY]", required=False)
@KEY
@click.option("--reason", help="Why, in words. Kept in the revocation.")
@click.option("--export", "out", metavar="FILE", help="Write all revocations here, to hand on.")
@click.option("--import", "given", metavar="FILE", help="Take revocations that others handed on.")
@common_options
def revoke(common: Common, what: str | None, key: str | None, reason: str | None, out: str | None, given: str | None) -> None:
    """Revoke the signature of PATH, or all of a key by its id. A revocation cannot be taken back; sign anew instead.

    It counts where it was signed by the revoked key, by the key of the signature, or by one that is trusted there.
    """
    from assay import signing
    from assay.files import write_file

    if sum(each is not None for each in (what, out, given)) != 1:
        raise bad_argument("PATH|KEY, --export, --import", "none or several", "one of them")
    if given is not None:
        taken = signing.take_revocations(_read(given))
        common.emit({"new": taken}, lambda: f"{taken} new revocations")
        return
    if out is not None:
        rows = signing.revocations()
        write_file(Path(out), json.dumps(rows, indent=1).encode())
        common.emit({"written": len(rows), "out": out}, lambda: f"{out}: {len(rows)} revocations")
        return
    target = _signature_of(Path(str(what))) if Path(str(what)).exists() else str(what)
    made = signing.revoke(target, signing.load_key(key), reason or "")
    path = Path(str(what))
    counts = signing.look(path).status == signing.REVOKED if path.exists() else signing.counts_here(made)
    record = {**made["statement"], "counts_here": counts}
    common.emit(record, lambda: f"revoked: {target}" if counts else f"kept, and handed on with --export: {target}. It does not"
                " count here: the key is neither that of the signature nor one that is trusted.")  # fmt: skip
    if not counts:
        sys.exit(EXIT_NOT_TRUSTED)


@sign.command("list")
@click.option("--below", metavar="DIR", type=click.Path(path_type=Path), help="Also everything signed below a folder.")
@common_options
def list_(common: Common, below: Path | None) -> None:
    """Trusted keys and revocations; with --below also signed files."""
    from assay import signing

    found = [] if below is None else [_record(each) for each in signing.signed_below(below)]
    gone = [row["statement"] for row in signing.revocations()]
    record = {"folder": str(signing.config()), "keys": signing.trusted_keys(), "revocations": gone, "files": found}
    common.emit(record, lambda: _listed(record))


# parts -------------------------------------------------------------------------------------------


def _record(found: Any) -> dict[str, Any]:
    from assay.records import plain

    return {**plain(found), "sentence": found.sentence}


def _listed(record: dict[str, Any]) -> str:
    from assay.report.cells import visible

    keys = [f"trusted  {known}  {visible(row['name'], 60)}" for known, row in record["keys"].items()]
    gone = [f"revoked  {row['revokes'][:16]}  {row['time'][:19]}  {visible(row['reason'], 80)}"
            for row in record["revocations"]]  # fmt: skip
    files = [visible(row["sentence"], 200) for row in record["files"]]
    return "\n".join([*keys, *gone, *files] or ["no key is trusted here, and nothing is revoked"])


def _signature_of(path: Path) -> str:
    from assay import signing

    found = signing.look(path)
    if not found.digest:
        raise bad_argument("PATH", str(path), "something that is signed", found.sentence)
    return found.digest


def _read(path: str) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--import: {path!r} cannot be read ({error}); allowed: what --export wrote.") from error
