"""Signatures: every status, what is signed, who may revoke, loaders that refuse; the key stays its owner's."""

import base64
import json
import os
import stat
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from safetensors.numpy import save_file

from assay import signing
from assay.cli.given import subject_of
from assay.cli.main import cli
from assay.errors import StoreError, TamperedError, UsageError
from assay.evidence.card import read_card
from assay.mapping.units import find_units
from assay.model.load import load_model
from assay.records import canonical
from assay.signing import ALTERED, EXPIRED, REVOKED, TRUSTED, UNKNOWN, UNSIGNED
from assay.steer.directions import from_vector
from assay.steer.files import load_direction, read_direction, save_direction
from assay.testing.compiler import tokenizer_of
from conftest import tiny_hf


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("ASSAY_REQUIRE_SIGNATURE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mine():
    """A key that is trusted here."""
    key = signing.load_key(signing.make_key())
    signing.trust(signing.public_of(key), "Ada")
    return key


@pytest.fixture
def note(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("as it was")
    return path


@pytest.fixture(scope="module")
def direction_bytes(tmp_path_factory):
    from assay.testing.effect_models import planted_effects

    model = planted_effects()
    numbers = torch.randn(64, generator=torch.Generator().manual_seed(0)).tolist()
    path = tmp_path_factory.mktemp("d") / "mood.safetensors"
    save_direction(from_vector(model, numbers, "resid_post.1", {"concept": "mood"}), path)
    return path.read_bytes()


@pytest.fixture
def direction(direction_bytes, tmp_path):
    path = tmp_path / "mood.safetensors"
    path.write_bytes(direction_bytes)
    return path


def rewrite(path, change):
    place = signing.signature_path(path)
    found = json.loads(place.read_text())
    change(found)
    place.write_text(json.dumps(found))


def resign(found, key):
    """A signature over a statement that was changed by hand, by somebody who has the key."""
    content = b"assay signature 1\n" + canonical(found["statement"]).encode()
    found["signature"] = base64.b64encode(key.sign(content)).decode()


def test_the_statuses(mine, note):
    assert signing.look(note).status == UNSIGNED
    signing.sign(note, mine)
    found = signing.look(note)
    assert (found.status, found.name, found.kind) == (TRUSTED, "Ada", "file")
    signing.distrust(found.key)
    assert signing.look(note).status == UNKNOWN
    signing.trust(signing.public_of(mine), "Ada")
    note.write_text("as it is now")
    assert signing.look(note).status == ALTERED
    note.write_text("as it was")
    signing.revoke(found.digest, mine, "it was a draft")
    assert signing.look(note).status == REVOKED and "draft" in signing.look(note).why


def test_the_signature_is_ed25519_over_the_statement_by_any_other_program(mine, note):
    """Checked here with the library alone, from the format as the module describes it."""
    found = json.loads(signing.sign(note, mine).read_text())
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(found["public_key"]))
    text = json.dumps(found["statement"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    public.verify(base64.b64decode(found["signature"]), b"assay signature 1\n" + text.encode())
    import hashlib

    assert found["statement"]["files"] == {".": hashlib.sha256(b"as it was").hexdigest()}
    assert found["algorithm"] == "Ed25519"


def test_expiry(mine, note):
    signing.sign(note, mine, days=1)
    assert signing.look(note).status == TRUSTED
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    rewrite(note, lambda found: found["statement"].update(expires=past))
    assert signing.look(note).status == ALTERED  # an end that was put in by hand
    rewrite(note, lambda found: resign(found, mine))
    assert signing.look(note).status == EXPIRED
    with pytest.raises(UsageError, match="required"):
        signing.check_signature(note, require=True)
    assert signing.check_signature(note).status == EXPIRED
    for days in (0, -1, float("nan"), 1e9):
        with pytest.raises(UsageError, match="--days"):
            signing.sign(note, mine, days=days)


@pytest.mark.parametrize("change", [
    lambda found: found["statement"].update(kind="monitor"),
    lambda found: found["statement"].update(files={}),
    lambda found: found["statement"].update(format=2),
    lambda found: found["statement"].pop("card"),
    lambda found: found["statement"].update(signed="yesterday"),
    lambda found: found.update(signature=base64.b64encode(bytes(64)).decode()),
    lambda found: found.update(signature="%%%"),
    lambda found: found.update(signature=7),
    lambda found: found.update(public_key=signing.public_of(Ed25519PrivateKey.generate())),
    lambda found: found.update(public_key=None),
    lambda found: found.update(algorithm="none"),
    lambda found: found.update(statement=[]),
    lambda found: found["statement"].update(more=1),
    lambda found: found["statement"]["files"].update({".": [[]]}),
])  # fmt: skip
def test_whatever_is_changed_in_a_signature_shows(mine, note, change):
    signing.sign(note, mine)
    rewrite(note, change)
    assert signing.look(note).status == ALTERED
    with pytest.raises(TamperedError):
        signing.check_signature(note)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"a": NaN}', b"[" * 100_000, b"\xff\xfe"])
def test_a_signature_file_that_is_none(note, content):
    signing.signature_path(note).write_bytes(content)
    assert signing.look(note).status == ALTERED


def test_another_key_cannot_sign_in_the_name_of_a_trusted_one(mine, note):
    other = Ed25519PrivateKey.generate()
    signing.sign(note, other)
    assert signing.look(note).status == UNKNOWN
    rewrite(note, lambda found: found["statement"].update(key=signing.key_id(signing.public_of(mine))))
    rewrite(note, lambda found: resign(found, other))
    assert signing.look(note).status == ALTERED
    rewrite(note, lambda found: found.update(public_key=signing.public_of(mine)))
    assert signing.look(note).status == ALTERED


def test_a_signature_of_one_purpose_or_kind_is_none_of_another(mine, note):
    signing.sign(note, mine)
    assert signing.look(note, "direction").status == ALTERED
    statement = {"revokes": signing.look(note).digest, "reason": "no reason", "time": "2026-01-01T00:00:00+00:00"}
    content = b"assay signature 1\n" + canonical(statement).encode()
    row = {"statement": statement, "public_key": signing.public_of(mine),
           "signature": base64.b64encode(mine.sign(content)).decode()}  # fmt: skip
    with pytest.raises(UsageError, match="revocations"):
        signing.take_revocations([row])


def test_a_folder_is_signed_with_all_its_files(mine, tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"1")
    (folder / "sub" / "b.bin").write_bytes(b"2")
    assert signing.sign(folder, mine) == folder / "assay.sig.json"
    assert signing.look(folder).status == TRUSTED
    (folder / ".half.tmp").write_bytes(b"of a killed program")
    (folder / "x.lock").touch()
    assert signing.look(folder).status == TRUSTED
    folder.rename(tmp_path / "moved")
    folder = tmp_path / "moved"
    assert signing.look(folder).status == TRUSTED
    (folder / "modeling.py").write_text("added")
    assert signing.look(folder).status == ALTERED and "modeling.py" in signing.look(folder).why
    (folder / "modeling.py").unlink()
    (folder / "sub" / "b.bin").unlink()
    assert "sub/b.bin" in signing.look(folder).why


def test_who_may_revoke(mine, note):
    """The signer, and whom this user trusts. A stranger's revocation is kept and does not count."""
    other, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    signing.sign(note, other)
    found = signing.look(note)
    signing.revoke(found.digest, stranger, "out of spite")
    signing.revoke(found.key, stranger, "out of spite")
    assert signing.look(note).status == UNKNOWN
    signing.revoke(found.key, mine, "the key was lost")
    assert signing.look(note).status == REVOKED
    signing.sign(note, mine)
    assert signing.look(note).status == TRUSTED
    signing.revoke(signing.look(note).key, mine, "this one too")
    assert signing.look(note).status == REVOKED


def test_revocations_are_handed_on_and_cannot_be_edited_or_cut(mine, note, tmp_path, monkeypatch):
    signing.sign(note, mine)
    signing.revoke(signing.look(note).digest, mine, "wrong")
    rows = json.loads(json.dumps(signing.revocations()))
    monkeypatch.setenv("ASSAY_CONFIG", str(tmp_path / "colleague"))
    assert signing.look(note).status == UNKNOWN
    assert (signing.take_revocations(rows), signing.take_revocations(rows)) == (1, 0)
    assert signing.look(note).status == REVOKED
    forged = json.loads(json.dumps(rows))
    forged[0]["statement"]["reason"] = "another"
    for bad in (forged, {}, [1], "x", [{"statement": rows[0]["statement"]}]):
        with pytest.raises(UsageError, match="revocations"):
            signing.take_revocations(bad)
    log = tmp_path / "colleague" / "revocations" / "audit.jsonl"
    whole = log.read_text()
    for content in (whole.replace("wrong", "right"), ""):
        log.write_text(content)
        with pytest.raises(TamperedError):
            signing.look(note)
    log.write_text(whole)
    assert signing.look(note).status == REVOKED


def test_the_key_is_its_owners_alone(mine, tmp_path):
    place = tmp_path / "config" / "key.pem"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="There is one already"):
        signing.make_key()
    place.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        signing.load_key()
    place.chmod(0o600)
    place.write_text("no key")
    with pytest.raises(UsageError, match="PEM"):
        signing.load_key()
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    place.write_bytes(generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(UsageError, match="Ed25519"):
        signing.load_key()
    with pytest.raises(UsageError, match="assay sign key"):
        signing.load_key(tmp_path / "nowhere.pem")


@pytest.mark.parametrize("public", ["", "abc", base64.b64encode(bytes(31)).decode(), "ä", "==="])
def test_what_is_no_public_key_is_not_trusted(public):
    with pytest.raises(UsageError, match="public key"):
        signing.trust(public, "Eve")


def test_a_damaged_list_of_keys_is_said(note, mine, tmp_path):
    signing.sign(note, mine)
    for content in ("[]", "{", '{"a": 1}'):
        (tmp_path / "config" / "trusted.json").write_text(content)
        with pytest.raises(StoreError):
            signing.look(note)


@pytest.mark.parametrize("word", ["perhaps", "2"])
def test_an_unknown_word_in_the_environment_is_no_silent_no(note, monkeypatch, word):
    monkeypatch.setenv("ASSAY_REQUIRE_SIGNATURE", word)
    with pytest.raises(UsageError, match="ASSAY_REQUIRE_SIGNATURE"):
        signing.check_signature(note)


# loaders -----------------------------------------------------------------------------------------


def test_a_direction_is_checked_when_it_is_loaded(mine, direction, monkeypatch, caplog):
    caplog.set_level("INFO", "assay.signing")
    load_direction(direction)
    assert [record.getMessage() for record in caplog.records] == [f"{direction}: unsigned"]
    monkeypatch.setenv("ASSAY_REQUIRE_SIGNATURE", "1")
    with pytest.raises(UsageError, match="unsigned.*required"):
        load_direction(direction)
    signing.sign(direction, mine)
    assert signing.look(direction).kind == "direction"
    caplog.clear()
    back = load_direction(direction)
    assert not caplog.records
    signing.revoke(signing.look(direction).digest, mine, "it broke answers")
    monkeypatch.delenv("ASSAY_REQUIRE_SIGNATURE")
    with pytest.raises(TamperedError, match="it broke answers"):
        load_direction(direction)
    save_direction(back, direction)  # written anew: the old signature is not its own
    assert signing.look(direction).status == UNSIGNED


def test_a_direction_with_a_whole_hash_of_its_own_but_other_numbers_is_altered(mine, direction):
    """Who edits a file can make its own hash fit again; the signature they cannot."""
    signing.sign(direction, mine)
    kept = signing.signature_path(direction).read_bytes()
    from assay.testing.effect_models import planted_effects

    other = from_vector(planted_effects(), torch.ones(64).tolist(), "resid_post.1", {})
    save_direction(other, direction)
    load_direction(direction)
    signing.signature_path(direction).write_bytes(kept)
    with pytest.raises(TamperedError, match="altered"):
        load_direction(direction)


def write_vector(path, numbers):
    """A direction without a card."""
    if path.suffix == ".npy":
        np.save(path, numbers)
    elif path.suffix == ".json":
        path.write_text(json.dumps(numbers.tolist()))
    else:
        save_file({"a": numbers, "b": -numbers}, path)


@pytest.mark.parametrize("name", ["v.npy", "v.json", "v.safetensors"])
def test_a_plain_vector_is_checked_as_a_saved_direction_is(mine, tmp_path, monkeypatch, caplog, name):
    from assay.testing.effect_models import planted_effects

    caplog.set_level("INFO", "assay.signing")
    model, path = planted_effects(), tmp_path / name
    numbers = np.random.default_rng(0).normal(size=model.dims.d_model).astype(np.float32)
    source = f"{path}:b" if name.endswith(".safetensors") else str(path)
    ways = [lambda: read_direction(source, model, site="resid_post.1"), lambda: subject_of("resid_post.1", [source], {})]
    if not name.endswith(".json"):
        ways.append(lambda: find_units(model, directions=str(path), at="resid_post.1"))
    for load in ways:
        caplog.clear()
        write_vector(path, numbers)
        load()
        assert f"{path}: unsigned" in [record.getMessage() for record in caplog.records]
        with monkeypatch.context() as patch:
            patch.setenv("ASSAY_REQUIRE_SIGNATURE", "1")
            with pytest.raises(UsageError, match="unsigned.*required"):
                load()
            signing.sign(path, mine)
            load()
        write_vector(path, -numbers)
        with pytest.raises(TamperedError, match="altered"):
            load()
        signing.sign(path, mine)
        signing.revoke(signing.look(path).digest, mine, "it broke answers")
        with pytest.raises(TamperedError, match="it broke answers"):
            load()
        signing.forget_signature(path)


def test_a_repaired_model_is_checked_when_it_is_loaded(mine, tmp_path, monkeypatch):
    folder = tmp_path / "fixed"
    tiny_hf("gpt2").save_pretrained(folder)
    tokenizer_of(tuple(f"w{n}" for n in range(199))).save_pretrained(folder)
    (folder / "repair.json").write_text('{"verdict": "repaired"}')
    load = lambda: load_model(folder, check=False)  # noqa: E731
    load()
    monkeypatch.setenv("ASSAY_REQUIRE_SIGNATURE", "1")
    with pytest.raises(UsageError, match="required"):
        load()
    signing.sign(folder, mine)
    assert signing.look(folder).kind == "model"
    load()
    (folder / "repair.json").write_text('{"verdict": "repaired at no price"}')
    monkeypatch.delenv("ASSAY_REQUIRE_SIGNATURE")
    with pytest.raises(TamperedError, match=r"repair\.json"):
        load()


def test_a_claim_card_is_checked_before_it_is_imported(mine, tmp_path):
    path = tmp_path / "claim.json"
    path.write_text(json.dumps({"format": "x", "claim": {}, "plan": {}, "verdict": None}))
    signing.sign(path, mine)
    assert signing.look(path).kind == "claim"
    path.write_text(json.dumps({"format": "x", "claim": {"id": "c-1"}, "plan": {}, "verdict": None}))
    with pytest.raises(TamperedError, match="altered"):
        read_card(path)


def test_a_monitor_is_checked_when_it_is_loaded(mine, tmp_path):
    import numpy as np

    from assay.monitor.files import load_monitor, save_monitor
    from assay.monitor.records import Head, Monitor
    from assay.monitor.units import Pooling

    bound = {"model": "m", "created": "2026-01-01T00:00:00+00:00", "expires": "2126-01-01T00:00:00+00:00"}
    made = Monitor("m", "lies", (Head("resid_post.1", np.ones(8), 0.0),), Pooling(), bound)
    path = save_monitor(made, tmp_path / "m.safetensors")
    signing.sign(path, mine)
    assert signing.look(path).kind == "monitor"
    load_monitor(path)
    kept = signing.signature_path(path).read_bytes()
    save_monitor(Monitor("m", "lies", (Head("resid_post.1", np.zeros(8), 0.0),), Pooling(), bound), path)
    load_monitor(path)
    signing.signature_path(path).write_bytes(kept)
    with pytest.raises(TamperedError, match="altered"):
        load_monitor(path)


# the command line --------------------------------------------------------------------------------


def assay(*words):
    found = CliRunner().invoke(cli, list(words))
    return found if found.exception is None or isinstance(found.exception, SystemExit) else found.exception


def test_the_whole_way_on_the_command_line(note, tmp_path, monkeypatch):
    made = json.loads(assay("sign", "key", "--name", "Ada", "--json", "-").output)
    assert made["made"] and not json.loads(assay("sign", "key", "--json", "-").output)["made"]
    assert assay("sign", "verify", "note.txt").exit_code == 0
    assert assay("sign", "verify", "note.txt", "--require-signature").exit_code == 1
    assert "ASSAY_REQUIRE_SIGNATURE" not in os.environ
    assert assay("sign", "card", "note.txt", "--days", "30").exit_code == 0
    checked = json.loads(assay("sign", "verify", "note.txt", "--require-signature", "--json", "-").output)
    assert checked["files"][0]["status"] == TRUSTED and "what the card says" in checked["does_not_show"][2]
    signing.make_key(tmp_path / "other.pem")
    by = ("--reason", "spite", "--key", str(tmp_path / "other.pem"))
    vain = assay("sign", "revoke", "note.txt", *by)
    assert vain.exit_code == 1 and "does not count here" in vain.output and "revoked:" not in vain.output
    assert assay("sign", "revoke", "0123456789abcdef", *by).exit_code == 1
    assert assay("sign", "verify", "note.txt").exit_code == 0
    assert assay("sign", "revoke", "note.txt", "--reason", "wrong").exit_code == 0
    assert assay("sign", "verify", "note.txt").exit_code == 3
    assert assay("sign", "revoke", "--export", "gone.json").exit_code == 0
    listed = json.loads(assay("sign", "list", "--below", ".", "--json", "-").output)
    assert listed["keys"][made["key"]]["name"] == "Ada" and len(listed["revocations"]) == 3
    assert [row["status"] for row in listed["files"]] == [REVOKED]
    monkeypatch.setenv("ASSAY_CONFIG", str(tmp_path / "colleague"))
    assert assay("sign", "trust", made["public_key"], "--name", "Ada's").exit_code == 0
    assert assay("sign", "verify", "note.txt").exit_code == 0
    assert assay("sign", "revoke", "--import", "gone.json").exit_code == 0
    assert assay("sign", "verify", "note.txt").exit_code == 3
    assert assay("sign", "trust", made["key"], "--remove").exit_code == 0
    for words in (("sign", "trust", "x", "--name", "Eve"), ("sign", "trust", made["public_key"]), ("sign", "card", "nothing"),
                  ("sign", "revoke"), ("sign", "revoke", "note.txt", "--export", "x"),
                  ("sign", "revoke", "abc", "--reason", "x"), ("sign", "revoke", "--import", "nothing"),
                  ("sign", "trust", made["key"], "--remove"),
                  ("sign", "card", "note.txt", "--key", "nothing.pem")):  # fmt: skip
        assert isinstance(assay(*words), UsageError), words


def test_what_is_unsigned_is_said_once_on_stderr(direction, tmp_path):
    import click

    from assay.cli.common import signatures_told

    @click.command()
    @click.option("--quiet", is_flag=True)
    def twice(quiet):
        with signatures_told(quiet, False):
            load_direction(direction)
            load_direction(direction)

    assert CliRunner().invoke(twice).stderr == f"note: {direction}: unsigned\n"
    assert CliRunner().invoke(twice, ["--quiet"]).stderr == ""


def test_a_key_is_trusted_by_its_whole_public_part_not_by_its_id(mine, note, tmp_path):
    """Ids are 64 bits: two keys with one id could be found by somebody with means."""
    signing.sign(note, mine)
    place = tmp_path / "config" / "trusted.json"
    rows = json.loads(place.read_text())
    for row in rows.values():
        row["public_key"] = signing.public_of(Ed25519PrivateKey.generate())
    place.write_text(json.dumps(rows))
    assert signing.look(note).status == UNKNOWN


def test_links_to_folders_are_not_signed_and_no_way_around_a_signature(tmp_path, mine):
    folder, real = tmp_path / "m", tmp_path / "real"
    folder.mkdir()
    real.mkdir()
    (folder / "repair.json").write_text("{}")
    (real / "w.bin").write_text("1")
    signing.sign(folder, mine)
    assert signing.look(folder).status == TRUSTED
    (folder / "sub").symlink_to(real)
    assert signing.look(folder).status == ALTERED
    with pytest.raises(StoreError, match="link to a folder"):
        signing.sign(folder, mine)


def test_a_key_that_revoked_itself_revokes_nobody_else(tmp_path, note, mine):
    signing.sign(note, mine)
    bob = signing.load_key(signing.make_key(tmp_path / "bob.pem"))
    signing.trust(signing.public_of(bob), "Bob")
    own = signing.revoke(signing.key_id(signing.public_of(bob)), bob, "stolen")
    assert signing.counts_here(own)
    other = signing.revoke(signing.key_id(signing.public_of(mine)), bob, "says the thief")
    assert signing.look(note).status == TRUSTED and not signing.counts_here(other)
    carol = signing.load_key(signing.make_key(tmp_path / "carol.pem"))
    signing.trust(signing.public_of(carol), "Carol")
    signing.revoke(signing.key_id(signing.public_of(mine)), carol, "she may")
    assert signing.look(note).status == REVOKED


def test_another_spelling_of_a_revoked_key_is_no_key(mine, note):
    """Base64 of 32 bytes leaves two bits unused: they are not the signer's to change, nor anybody's."""
    place = signing.sign(note, mine)
    signing.revoke(signing.look(note).key, mine, "stolen")
    assert signing.look(note).status == REVOKED
    found = json.loads(place.read_text())
    public = found["public_key"]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    found["public_key"] = public[:-2] + letters[letters.index(public[-2]) ^ 1] + "="
    assert base64.b64decode(found["public_key"], validate=True) == base64.b64decode(public)
    place.write_text(json.dumps(found))
    assert signing.look(note).status == ALTERED
    with pytest.raises(UsageError, match="public key"):
        signing.trust(found["public_key"], "another")


def test_a_statement_that_is_no_text_is_no_signature(note, mine):
    place = signing.sign(note, mine)
    found = json.loads(place.read_text())
    found["statement"]["kind"] = "\ud800"
    place.write_text(json.dumps(found))
    assert signing.look(note).status == ALTERED
