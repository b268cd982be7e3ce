"""Signed cards: who vouches for a direction, a monitor, a repaired model or a claim, and whether it is still what they saw.

1. A signature is a JSON file of its own: of a file, `NAME.sig.json` beside it; of a folder, `assay.sig.json` inside it. It
   holds a statement {format, kind, card, files, signed, expires, key} and Ed25519 (RFC 8032) over
   "assay signature 1\\n" + the statement's canonical JSON. `card` is the SHA-256 of the card's canonical JSON, `files` that
   of every file (hidden ones and locks apart).
2. Keys lie in the user's configuration folder (environment: ASSAY_CONFIG): `key.pem`, readable by its owner alone, and
   `trusted.json`, the public keys one takes signatures of. A key's id is the start of the SHA-256 of its public part.
3. Revocations are statements of the same form, signed by the key they revoke, by the key whose signature they revoke, or
   by a trusted key that has not revoked itself (whoever stole it cannot revoke others). They are kept in an append-only log
   like the audit log's, and can be handed on as a file.
4. Status: altered (bytes, card or statement) > revoked > expired > signed by a trusted key | signed by an unknown key;
   without a signature: unsigned. Altered and revoked are refused on load; all else but trusted is said, and refused where
   signatures are required (--require-signature, or ASSAY_REQUIRE_SIGNATURE=1).

A signature shows that the bytes are those that the holder of a key signed: integrity. It does not show who holds the key
(authorship), when it was signed (the time is the signer's word), or that what the card says is so.
"""

import base64
import binascii
import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay import permissions
from assay.errors import AssayError, StoreError, TamperedError, UsageError, bad_argument
from assay.files import write_file
from assay.permissions import Grant
from assay.records import canonical, digest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT, ALGORITHM = 1, "Ed25519"
PURPOSE = {"signature": b"assay signature 1\n", "revocation": b"assay revocation 1\n"}
SUFFIX, INSIDE = ".sig.json", "assay.sig.json"
KEY, TRUSTED_KEYS, REVOCATIONS = "key.pem", "trusted.json", "revocations"
CONFIG, REQUIRE = "ASSAY_CONFIG", "ASSAY_REQUIRE_SIGNATURE"
TRUSTED, UNKNOWN, UNSIGNED = "signed by a trusted key", "signed by an unknown key", "unsigned"
REVOKED, EXPIRED, ALTERED = "revoked", "expired", "altered"
STATUSES = (TRUSTED, UNKNOWN, UNSIGNED, REVOKED, EXPIRED, ALTERED)
REFUSED = (ALTERED, REVOKED)
LARGEST, HEADER, MOST = 64 << 20, 100 << 20, 10_000  # bytes of a JSON file, of a tensor file's header; files
REPAIRED = "repair.json"
FOLDER_CARDS = {REPAIRED: "model"}
TENSOR_CARDS = {"assay.direction": "direction", "assay.monitor": "monitor"}
STATEMENT: dict[str, type | tuple[type, ...]] = {
    "format": int, "kind": str, "card": (str, type(None)), "files": dict, "signed": str, "expires": (str, type(None)),
    "key": str,
}  # fmt: skip
said = logging.getLogger("assay.signing")


@dataclass(frozen=True)
class Checked:
    """What a signature is worth here. `key`: id of the key; `name`: what this user calls it, "" for an unknown one.

    `why`: what does not fit, in words; `digest`: SHA-256 of the signed statement, by which it can be revoked.
    """

    path: str
    status: str
    kind: str = ""
    key: str = ""
    name: str = ""
    signed: str = ""
    expires: str | None = None
    digest: str = ""
    why: str = ""

    @property
    def sentence(self) -> str:
        """For people: what it is, and what is wrong with it."""
        by = f" {self.name or self.key}" if self.key else ""
        return f"{self.path}: {self.status}{by if self.status in (TRUSTED, UNKNOWN) else ''}" + (
            f" ({self.why})" if self.why else "")  # fmt: skip


def check_signature(path: str | Path, kind: str = "", require: bool | None = None) -> Checked:
    """For loaders, one line before they read a file or folder: its signature's status, said where it is not a trusted one.

    `kind`: what it is loaded as (direction, monitor, model, claim); "": anything. `require`: None: as the environment says.
    Raises TamperedError for one that is altered or revoked; where signatures are required also UsageError for all but one
    by a trusted key.
    """
    found = look(path, kind)
    if found.status in REFUSED:
        raise TamperedError(f"{found.sentence}. It is not used. Get it again from whom you trust, or see: assay sign verify.")
    if found.status != TRUSTED and required(require):
        raise UsageError(f"{found.sentence}; signatures by a trusted key are required here (--require-signature or {REQUIRE})."
                         " See: assay sign verify, assay sign trust.")  # fmt: skip
    if found.status != TRUSTED:
        said.info(found.sentence)
    return found


def required(given: bool | None = None) -> bool:
    """Whether only what a trusted key signed is taken: `given`, else ASSAY_REQUIRE_SIGNATURE. UsageError for another word."""
    if given is not None:
        return given
    word = os.environ.get(REQUIRE, "").lower()
    if word not in ("", "0", "1", "no", "yes", "false", "true"):
        raise bad_argument(REQUIRE, word, "1 or 0")
    return word in ("1", "yes", "true")


def look(path: str | Path, kind: str = "") -> Checked:
    """The status of a file or folder, whatever it is. Raises StoreError for a path that cannot be read."""
    path = Path(path)
    place = signature_path(path)
    if not place.is_file():
        if not path.exists():
            raise StoreError(f"{path}: not there.")
        return Checked(str(path), UNSIGNED)
    try:
        signature = _opened(_read_json(place))
    except (AssayError, ValueError) as error:
        return Checked(str(path), ALTERED, why=f"{place.name} is no signature: {error}")
    return _status(path, kind, signature)


def signature_path(path: str | Path) -> Path:
    """Where the signature of a file or folder lies."""
    path = Path(path)
    return path / INSIDE if path.is_dir() else path.with_name(path.name + SUFFIX)


def sign(path: str | Path, key: "Ed25519PrivateKey", days: float | None = None) -> Path:
    """Sign a file or folder as it is now; an older signature is replaced. `days`: until it expires; None: never.

    Raises UsageError for what cannot be signed, StoreError where the signature cannot be written.
    """
    path, now = Path(path), datetime.now(UTC)
    if not path.exists() or path.name.endswith(SUFFIX):
        raise bad_argument("PATH", str(path), "a file or folder that is there, and no signature itself")
    if days is not None and not 0 < days <= 36_500:
        raise bad_argument("--days", days, "a number of days above 0, at most 36500")
    kind, card = card_of(path)
    until = None if days is None else (now + timedelta(days=days)).isoformat(timespec="seconds")
    statement = {"format": FORMAT, "kind": kind, "card": None if card is None else digest(card), "files": _files(path),
                 "signed": now.isoformat(timespec="seconds"), "expires": until, "key": key_id(public_of(key))}  # fmt: skip
    signed = _signed(statement, key, "signature")
    place = signature_path(path)
    write_file(place, json.dumps({"algorithm": ALGORITHM, **signed}, indent=1, sort_keys=True).encode())
    return place


def forget_signature(path: str | Path) -> None:
    """For writers: what is written anew is not signed any more."""
    signature_path(path).unlink(missing_ok=True)


# what is signed ----------------------------------------------------------------------------------


def card_of(path: Path) -> tuple[str, Any]:
    """Kind and card of a file or folder: direction, monitor, model, claim; (file, None) or (folder, None) for all else."""
    if path.is_dir():
        for name, kind in FOLDER_CARDS.items():
            if (path / name).is_file():
                return kind, _read_json(path / name)
        return "folder", None
    if path.suffix.lower() == ".safetensors":
        return _tensor_card(path)
    if path.suffix.lower() == ".json" and path.stat().st_size <= LARGEST:
        card = _read_json(path)
        if isinstance(card, dict) and {"claim", "plan", "verdict"} <= card.keys():
            return "claim", card
    return "file", None


def _tensor_card(path: Path) -> tuple[str, Any]:
    """Kind and card in a tensor file's header (8 bytes of its length, then JSON); (file, None) where there is none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > HEADER:
                raise ValueError(f"a header of {length} bytes")
            found = json.loads(file.read(length)).get("__metadata__", {})
        return next(((kind, json.loads(found[name])) for name, kind in TENSOR_CARDS.items() if name in found), ("file", None))
    except (OSError, ValueError, AttributeError, TypeError, struct.error, RecursionError) as error:
        raise StoreError(f"{path}: no tensor file that can be read ({error}).") from error


def _files(path: Path) -> dict[str, str]:
    """SHA-256 of every file, by its name inside the folder; of a file itself under ".", so that it may be renamed."""
    try:
        if not path.is_dir():
            return {".": _file_hash(path)}
        every = list(path.rglob("*"))
        if links := [each for each in every if each.is_symlink() and each.is_dir()]:
            raise StoreError(f"{links[0]}: a link to a folder. What it holds would not be signed: put the files there.")
        found = sorted(each for each in every if each.is_file() and not _aside(each.relative_to(path)))
        if len(found) > MOST:
            raise StoreError(f"{path}: {len(found)} files; at most {MOST} are signed together.")
        return {each.relative_to(path).as_posix(): _file_hash(each) for each in found}
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _aside(name: Path) -> bool:
    """Hidden files (half-written ones of killed programs), locks, and the signature itself."""
    return any(part.startswith(".") for part in name.parts) or name.suffix == ".lock" or name.as_posix() == INSIDE


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# checking ----------------------------------------------------------------------------------------


def _status(path: Path, kind: str, signature: Mapping[str, Any]) -> Checked:
    statement, public = signature["statement"], signature["public_key"]
    trusted = trusted_keys()
    known = trusted.get(key_id(public))
    name = known["name"] if known and known["public_key"] == public else None
    facts = {"kind": statement["kind"], "key": key_id(public), "name": name or "", "signed": statement["signed"],
             "expires": statement["expires"], "digest": digest(statement)}  # fmt: skip

    def made(status: str, why: str = "") -> Checked:
        return Checked(str(path), status, **facts, why=why)

    if why := _altered(path, kind, signature):
        return made(ALTERED, why)
    known_revocations = revocations()
    gone = _gone(known_revocations)
    for each in known_revocations:
        if _counts(each, facts, public, trusted, gone):
            return made(REVOKED, each["statement"]["reason"])
    if statement["expires"] and datetime.fromisoformat(statement["expires"]) <= datetime.now(UTC):
        return made(EXPIRED, f"at {statement['expires']}")
    return made(UNKNOWN if name is None else TRUSTED, "" if name is not None else "anybody can make a key; compare its id")


def _altered(path: Path, kind: str, signature: Mapping[str, Any]) -> str:
    """What does not fit its signature, in words; "" where all does."""
    statement = signature["statement"]
    if not _holds(signature, "signature"):
        return "the signature is not one over this statement"
    if kind and statement["kind"] != kind:
        return f"it was signed as {statement['kind']}, not as {kind}"
    try:
        files = _files(path)
        if files != statement["files"]:
            names = sorted(name for name in {*files, *statement["files"]} if files.get(name) != statement["files"].get(name))
            shown = ", ".join("the file itself" if name == "." else name for name in names[:3])
            return f"changed since it was signed: {shown}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        card = card_of(path)[1]
    except StoreError as error:
        return str(error)
    return "" if (None if card is None else digest(card)) == statement["card"] else "its card is not the one that was signed"


def _opened(found: Any) -> dict[str, Any]:
    """A signature with all its parts, each of the kind it must be. Raises ValueError for anything else."""
    if not isinstance(found, dict) or found.get("algorithm") != ALGORITHM:
        raise ValueError(f"its algorithm is not {ALGORITHM}")
    statement = found.get("statement")
    if not isinstance(statement, dict) or any(
        name not in statement or not isinstance(statement[name], kind) for name, kind in STATEMENT.items()
    ):
        raise ValueError("its statement has not the parts of one")
    if statement.keys() != STATEMENT.keys() or not all(isinstance(each, str) for each in statement["files"].values()):
        raise ValueError("its statement has other parts than those of one")
    if statement["format"] != FORMAT:
        raise ValueError(f"format {statement['format']}; allowed: {FORMAT}. Install a newer version")
    for time in (statement["signed"], statement["expires"]):
        if time is not None and datetime.fromisoformat(time).tzinfo is None:
            raise ValueError(f"{time} has no time zone")
    if key_id(str(found.get("public_key"))) != statement["key"]:
        raise ValueError("the key is not the one its statement names")
    digest(statement)  # half of a surrogate pair has no hash: ValueError
    return found


def _signed(statement: Mapping[str, Any], key: "Ed25519PrivateKey", purpose: str) -> dict[str, Any]:
    signature = key.sign(PURPOSE[purpose] + canonical(statement).encode())
    return {"statement": dict(statement), "public_key": public_of(key), "signature": base64.b64encode(signature).decode()}


def _holds(signed: Mapping[str, Any], purpose: str) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key_id(signed["public_key"])
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(signed["public_key"], validate=True))
        content = PURPOSE[purpose] + canonical(signed["statement"]).encode()
        public.verify(base64.b64decode(signed["signature"], validate=True), content)
    except (InvalidSignature, UsageError, ValueError, TypeError, KeyError, RecursionError):
        return False
    return True


# keys --------------------------------------------------------------------------------------------


def config() -> Path:
    """The user's folder of keys: ASSAY_CONFIG, else where this system keeps settings of programs."""
    from platformdirs import user_config_path

    given = os.environ.get(CONFIG)
    return Path(given) if given else user_config_path("assay", appauthor=False)


def make_key(path: str | Path | None = None) -> Path:
    """Write a new private key, readable by its owner alone. Raises UsageError where one is already."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    place = Path(path) if path is not None else config() / KEY
    content = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise bad_argument("--key", str(place), "a new file", "There is one already, and it is kept.") from error
    except OSError as error:
        raise StoreError(f"{place}: cannot be written ({error.strerror or error}). Choose another place: --key.") from error
    return place


def load_key(path: str | Path | None = None) -> "Ed25519PrivateKey":
    """The private key to sign with. Raises UsageError where there is none, it is no Ed25519 key, or others can read it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    place = Path(path) if path is not None else config() / KEY
    try:
        if os.name == "posix" and place.stat().st_mode & 0o077:
            raise bad_argument("--key", str(place), "a file that its owner alone can read", f"Do: chmod 600 {place}")
        key = load_pem_private_key(place.read_bytes(), None)
    except FileNotFoundError as error:
        raise bad_argument("--key", str(place), "the file of a private key", "Make one: assay sign key") from error
    except OSError as error:
        raise StoreError(f"{place}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise bad_argument("--key", str(place), "a private key as PEM (PKCS 8) without a password", str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise bad_argument("--key", type(key).__name__, "an Ed25519 key")
    return key


def public_of(key: "Ed25519PrivateKey") -> str:
    """The public part, 32 bytes as base64."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def key_id(public: str) -> str:
    """The first 16 hex digits of the SHA-256 of a public key. Raises UsageError for what is none."""
    try:
        raw = base64.b64decode(public, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_argument("public key", public[:60], "32 bytes as base64, as `assay sign key` prints them") from error
    if base64.b64encode(raw).decode() != public:  # bits that decoding drops: another spelling of a key that was revoked
        raise bad_argument("public key", public[:60], "32 bytes as base64, as `assay sign key` prints them")
    if len(raw) != 32:
        raise bad_argument("public key", f"{len(raw)} bytes", "32 bytes as base64, as `assay sign key` prints them")
    return hashlib.sha256(raw).hexdigest()[:16]


def trusted_keys() -> dict[str, dict[str, str]]:
    """Keys whose signatures are taken: id -> {"public_key", "name", "added"}. StoreError for a list that cannot be read."""
    place = config() / TRUSTED_KEYS
    if not place.is_file():
        return {}
    found = _read_json(place)
    rows = list(found.values()) if isinstance(found, dict) else [None]
    if not all(isinstance(row, dict) and {"public_key", "name"} <= row.keys() for row in rows):
        raise StoreError(f"{place}: not a list of keys. Restore it, or remove it and trust keys again: assay sign trust.")
    return found


def trust(public: str, name: str) -> str:
    """Take signatures of a public key from now on, under a name of one's own; its id."""
    if not name.strip():
        raise bad_argument("--name", name, "a name for this key")
    known = key_id(public)
    row = {"public_key": public, "name": name.strip(), "added": datetime.now(UTC).isoformat(timespec="seconds")}
    _write_trusted({**trusted_keys(), known: row})
    return known


def distrust(known: str) -> None:
    """Take a key off the list. Raises UsageError for one that is not on it."""
    keys = trusted_keys()
    if known not in keys:
        raise bad_argument("KEY", known, ", ".join(keys) or "no key is trusted")
    _write_trusted({name: row for name, row in keys.items() if name != known})


def _write_trusted(keys: Mapping[str, Mapping[str, str]]) -> None:
    write_file(config() / TRUSTED_KEYS, json.dumps(keys, indent=1, sort_keys=True).encode())


# revocations -------------------------------------------------------------------------------------


def revoke(what: str, key: "Ed25519PrivateKey", reason: str) -> dict[str, Any]:
    """Write down that a key (its id) or one signature (the digest of its statement) is not to be taken any more.

    Raises UsageError for another kind of name, or without a reason in words.
    """
    if len(what) not in (16, 64) or any(letter not in "0123456789abcdef" for letter in what):
        raise bad_argument("what", what, "the id of a key (16 hex digits) or the digest of a signature (64)")
    if not reason.strip():
        raise bad_argument("--reason", reason, "why it is revoked, in words")
    statement = {"revokes": what, "reason": reason.strip(), "time": datetime.now(UTC).isoformat(timespec="seconds")}
    made = _signed(statement, key, "revocation")
    _keep(made)
    return made


def counts_here(revocation: Mapping[str, Any]) -> bool:
    """Whether the revocation of a key is by that key, or by one that is trusted and has not revoked itself."""
    by = revocation["public_key"]
    trusted = any(row["public_key"] == by for row in trusted_keys().values()) and by not in _gone(revocations())
    return key_id(by) == revocation["statement"]["revokes"] or trusted


def revocations() -> list[dict[str, Any]]:
    """All kept revocations whose own signatures hold. Raises TamperedError where the log was edited or cut."""
    folder = config() / REVOCATIONS
    if not folder.is_dir():
        return []
    if problems := permissions.verify(folder):
        raise TamperedError(f"revocations in {folder}: {'; '.join(problems[:3])}. Restore them from a copy.")
    return [entry["body"] for entry in permissions.entries(folder) if _is_revocation(entry["body"])]


def take_revocations(rows: Any) -> int:
    """Keep revocations that others handed on; how many were new. Raises UsageError where one does not hold."""
    if not isinstance(rows, list) or not all(_is_revocation(row) for row in rows):
        raise bad_argument("FILE", "something else", "revocations as `assay sign revoke --export` writes them, all whole")
    known = {row["signature"] for row in revocations()}
    fresh = [row for row in rows if row["signature"] not in known]
    for row in fresh:
        _keep(row)
    return len(fresh)


def _keep(row: Mapping[str, Any]) -> None:
    permissions.record(config() / REVOCATIONS, "revoke", row, Grant("read", row["statement"]["reason"]))


def _is_revocation(row: Any) -> bool:
    words = ("revokes", "reason", "time")
    statement = row.get("statement") if isinstance(row, dict) else None
    fits = isinstance(statement, dict) and all(isinstance(statement.get(name), str) for name in words)
    return fits and _holds(row, "revocation")


def _gone(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Public keys that revoked themselves: stolen, perhaps, and nothing that they revoke of others counts."""
    return {row["public_key"] for row in rows if key_id(row["public_key"]) == row["statement"]["revokes"]}


def _counts(
    row: Mapping[str, Any], facts: Mapping[str, Any], public: str, trusted: Mapping[str, Mapping[str, str]], gone: set[str]
) -> bool:  # fmt: skip
    """Whether a revocation is of this signature or its key, and by somebody who may."""
    by = row["public_key"]
    may = by == public or (by not in gone and any(key["public_key"] == by for key in trusted.values()))
    return may and row["statement"]["revokes"] in (facts["key"], facts["digest"])


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST:
            raise StoreError(f"{path}: {path.stat().st_size} bytes; allowed: {LARGEST}.")
        return json.loads(path.read_bytes(), parse_constant=_no_number)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not JSON ({error}).") from error


def _no_number(name: str) -> None:
    raise ValueError(f"{name} in it")


def signed_below(folder: Path) -> Iterator[Checked]:
    """The status of every signed file or folder below a folder."""
    for place in sorted([*folder.rglob(f"*{SUFFIX}")]):
        yield look(place.parent if place.name == INSIDE else place.with_name(place.name.removesuffix(SUFFIX)))
