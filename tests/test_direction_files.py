"""Saved directions: what comes back, what they are bound to, and what is refused."""

import dataclasses
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from assay.errors import ShapeError, StoreError, UsageError
from assay.model.load import load_model
from assay.steer import files
from assay.steer.directions import Direction, from_vector
from assay.steer.files import KEY, is_direction, load_direction, read_direction, save_direction
from assay.testing.effect_models import planted_effects, written_effects
from conftest import tiny, tiny_hf, wrap


@pytest.fixture(scope="module")
def model():
    return planted_effects()


@pytest.fixture()
def saved(model, tmp_path):
    numbers = torch.randn(64, generator=torch.Generator().manual_seed(0)).tolist()
    direction = from_vector(model, numbers, "resid_post.1", {"concept": "mood", "split": "discover"})
    return direction, save_direction(direction, tmp_path / "mood.safetensors")


def rewritten(path, change, vector=None):
    """The file with its card changed by hand."""
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()[KEY])
        tensor = file.get_tensor("vector") if vector is None else vector
    change(record)
    save_file({"vector": tensor}, path, metadata={KEY: json.dumps(record)})
    return path


def test_what_is_saved_comes_back_bit_for_bit(model, saved):
    direction, path = saved
    back = load_direction(path, model)
    assert torch.equal(back.vector, direction.vector)
    for name in ("site", "scale", "method", "convention", "model_digest", "tokenizer_digest", "source", "card"):
        assert getattr(back, name) == getattr(direction, name)
    assert back.digest == direction.digest and back.tokenizer_digest == model.tokenizer_digest is not None
    assert load_direction(path).site == "resid_post.1"  # without a model, nothing is claimed about one
    assert torch.equal(load_file(path)["vector"], direction.vector)  # anybody can read it
    assert list(path.parent.iterdir()) == [path] and is_direction(path)
    first = path.read_bytes()
    assert save_direction(direction, path).read_bytes() == first


def test_another_revision_is_refused_or_asked_for_by_name(model, saved):
    _, path = saved
    other = written_effects()
    with torch.no_grad():
        other.lm_head.weight[3, 4] += 1e-3
    revision = load_model(other, tokenizer=model.tokenizer)
    revision.name = model.name
    with pytest.raises(UsageError, match="another revision.*allow='model'"):
        load_direction(path, revision)
    assert load_direction(path, revision, allow=("model",)).model_digest == model.digest
    stranger = wrap(tiny_hf("llama"), "stranger")
    with pytest.raises(UsageError, match="not on stranger"):
        load_direction(path, stranger)
    with pytest.raises(UsageError, match=r"64 numbers.*\(32,\)"):  # nothing makes a vector fit
        load_direction(path, stranger, allow=("model", "tokenizer", "site"))


def test_another_tokenizer_is_refused(model, saved):
    direction, path = saved
    save_direction(dataclasses.replace(direction, tokenizer_digest="0" * 64), path)
    with pytest.raises(UsageError, match="tokens otherwise.*allow='tokenizer'"):
        load_direction(path, model)
    assert load_direction(path, model, allow=["tokenizer"]).tokenizer_digest == "0" * 64


def test_another_site_is_refused(model, saved):
    _, path = saved
    with pytest.raises(UsageError, match="made at resid_post.1, not resid_post.0.*allow='site'"):
        load_direction(path, model, site="resid_post.0")
    moved = load_direction(path, model, allow=("site",), site="resid_post.0")
    assert moved.site == "resid_post.0" and moved.source["moved_from"] == "resid_post.1"
    assert load_direction(path, model, site="resid_post.-1").site == "resid_post.1"  # the same site in other words
    with pytest.raises(UsageError, match=r"24|allowed"):
        load_direction(path, model, allow=("site",), site="mlp_act.0")
    with pytest.raises(UsageError, match="allow: got.*model, tokenizer, site"):
        load_direction(path, model, allow=("everything",))


def test_a_direction_without_a_model_must_be_asked_for(model, tmp_path):
    loose = Direction("resid_post.1", torch.eye(64)[0], 1.0, "latent")
    path = save_direction(loose, tmp_path / "loose.safetensors")
    with pytest.raises(UsageError, match="does not say which model"):
        load_direction(path, model)
    assert load_direction(path, model, allow=("model",)).method == "latent"


@pytest.mark.parametrize("change", [
    lambda record: record.update(scale=record["scale"] * 2),
    lambda record: record.update(site="resid_post.0"),
    lambda record: record["convention"].update(sign="- is towards label 1"),
    lambda record: record["card"].update(auroc=1.0),
    lambda record: record["source"].update(concept="truth"),
    lambda record: record.update(model_digest="0" * 64),
    lambda record: record.update(extra="smuggled in"),
])  # fmt: skip
def test_a_changed_card_is_refused(saved, change):
    with pytest.raises(StoreError, match="changed or damaged"):
        load_direction(rewritten(saved[1], change))


def test_changed_numbers_are_refused(saved):
    direction, path = saved
    with pytest.raises(StoreError, match="changed or damaged"):
        load_direction(rewritten(path, lambda record: None, -direction.vector))
    with pytest.raises(StoreError, match="norm 2"):
        load_direction(rewritten(path, lambda record: None, 2 * direction.vector))
    with pytest.raises(StoreError, match="nan"):
        load_direction(rewritten(path, lambda record: None, direction.vector * float("nan")))
    with pytest.raises(StoreError, match=r"\(8, 8\)"):
        load_direction(rewritten(path, lambda record: None, direction.vector.reshape(8, 8)))


@pytest.mark.parametrize("name", ["site", "scale", "sha256", "convention"])
@pytest.mark.parametrize("value", [None, True, ["list"]])
def test_a_card_of_wrong_types_is_refused(saved, name, value):
    with pytest.raises(StoreError, match=name):
        load_direction(rewritten(saved[1], lambda record: record.update({name: value})))


def test_damaged_files_give_one_sentence(model, saved, tmp_path):
    _, path = saved
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    damaged = {
        "empty": b"", "cut": whole[:-7], "header": whole[:20], "zeros": b"\0" * 200, "text": b"not a tensor file at all",
        "pickle": pickle.dumps({"vector": [1.0]}), "huge header": struct.pack("<Q", 1 << 60) + whole[8:],
        "flipped": whole[: 8 + header] + bytes([whole[8 + header] ^ 1]) + whole[9 + header :],
        "metadata": whole.replace(b"format", b"fOrmat", 1), "broken json": whole.replace(b'{\\"card', b'[\\"card', 1),
    }  # fmt: skip
    for name, content in damaged.items():
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(StoreError, match="bad.safetensors"):
            load_direction(tmp_path / "bad.safetensors", model)
        assert content != whole, name
    with pytest.raises(StoreError, match="No such file"):
        load_direction(tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for place in (tmp_path, tmp_path / "pipe.safetensors", Path("/dev/zero")):
        with pytest.raises(StoreError, match="not a file"):
            load_direction(place)


def test_every_flipped_byte_is_noticed(saved):
    """No single changed byte of the card or the numbers loads as if nothing had happened."""
    _, path = saved
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            load_direction(path)
        except StoreError:
            continue
        same = path.read_bytes()[:place].rstrip() == whole[:place].rstrip() and whole[place : place + 1] in b" \x00"
        assert same, f"byte {place} of {len(whole)}: {whole[max(0, place - 20) : place + 20]!r}"


def test_limits_and_versions(saved, monkeypatch):
    _, path = saved
    with pytest.raises(StoreError, match="format 2"):
        load_direction(rewritten(path, lambda record: record.update(format=2)))
    monkeypatch.setattr(files, "LARGEST", 100)
    with pytest.raises(StoreError, match="allowed for a direction: 100"):
        load_direction(path)
    with pytest.raises(UsageError, match="mood.safetensors"):
        save_direction(saved[0], Path("mood.pt"))


def test_cards_of_other_than_plain_finite_values_are_refused(saved):
    direction, path = saved
    before = path.read_bytes()
    for card in ({"auroc": float("nan")}, {"auroc": torch.ones(2)}):
        with pytest.raises(UsageError, match="finite values"):
            save_direction(dataclasses.replace(direction, card=card), path)
    assert path.read_bytes() == before
    with pytest.raises(StoreError, match="NaN"):
        load_direction(rewritten(path, lambda record: record["card"].update(auroc=float("nan"))))
    path.write_bytes(before)
    deep = "[" * 900 + "]" * 900
    with pytest.raises(StoreError, match="changed or damaged|not a saved direction"):
        load_direction(rewritten(path, lambda record: record["card"].update(deep=json.loads(deep))))


def test_a_write_that_fails_leaves_the_old_file(model, saved, monkeypatch):
    direction, path = saved
    before = path.read_bytes()

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(KeyboardInterrupt):
        save_direction(direction.flipped(), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_plain_vectors_ask_for_their_site(tmp_path):
    model = tiny("llama")
    numbers = torch.randn(32)
    np.save(tmp_path / "v.npy", numbers.numpy())
    save_file({"a": numbers, "b": -numbers}, tmp_path / "two.safetensors")
    with pytest.raises(UsageError, match="no card.*Give its site"):
        read_direction(tmp_path / "v.npy", model)
    found = read_direction(tmp_path / "v.npy", model, site="resid_post.1")
    second = read_direction(f"{tmp_path / 'two.safetensors'}:b", model, site="resid_post.1")
    torch.testing.assert_close(found.vector, -second.vector)
    with pytest.raises(ShapeError, match=r"\(32,\).*\(64,\)"):
        read_direction(tmp_path / "v.npy", model, site="mlp_act.1")
    with pytest.raises(StoreError, match="no card"):
        load_direction(tmp_path / "two.safetensors", model)
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="cannot be read"):
        read_direction(tmp_path / "object.npy", model, site="resid_post.1")
    path = save_direction(found, tmp_path / "kept.safetensors")
    assert torch.equal(read_direction(path, model).vector, found.vector)
