"""Small real models: tiny random-weight configs of many families, and the packaged ones."""

import dataclasses
import gc
import os
import signal

import pytest
import torch
import transformers as T

import shape_checks

shape_checks.install()

from assay.model.model import Model  # noqa: E402

gc.freeze()  # what is imported by now stays: no garbage is looked for among it, and less often elsewhere
gc.set_threshold(20_000, 20, 20)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background: tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

BASE = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
            vocab_size=199, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
GQA = dict(**BASE, num_key_value_heads=2)
SMALL = dict(vocab_size=199, bos_token_id=1, eos_token_id=2)
FAMILIES = {
    "llama": lambda: T.LlamaConfig(**GQA),
    "gpt2": lambda: T.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64, **SMALL),
    "neox": lambda: T.GPTNeoXConfig(**BASE),
    "neox_sequential": lambda: T.GPTNeoXConfig(**BASE, use_parallel_residual=False),
    "qwen2": lambda: T.Qwen2Config(**GQA),
    "qwen3": lambda: T.Qwen3Config(**GQA, head_dim=16),
    "gemma2": lambda: T.Gemma2Config(**GQA, head_dim=8, sliding_window=4),
    "gemma3": lambda: T.Gemma3TextConfig(**GQA, head_dim=8, sliding_window=4),
    "mistral": lambda: T.MistralConfig(**GQA),
    "phi": lambda: T.PhiConfig(**BASE),
    "phi3": lambda: T.Phi3Config(**GQA),
    "opt": lambda: T.OPTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=64,
                               max_position_embeddings=64, word_embed_proj_dim=32, **SMALL),  # fmt: skip
    "bloom": lambda: T.BloomConfig(hidden_size=32, n_layer=3, n_head=4, **SMALL),
    "falcon": lambda: T.FalconConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                                     num_kv_heads=2, new_decoder_architecture=True, **SMALL),  # fmt: skip
    "falcon_multi_query": lambda: T.FalconConfig(hidden_size=32, num_hidden_layers=3,
                                                 num_attention_heads=4, **SMALL),  # fmt: skip
    "olmo2": lambda: T.Olmo2Config(**GQA),
    "mixtral": lambda: T.MixtralConfig(**GQA, num_local_experts=4),
    "granite": lambda: T.GraniteConfig(**GQA, residual_multiplier=0.3, logits_scaling=2.0),
}


def tiny_hf(family: str, seed: int = 0):
    torch.manual_seed(seed)
    return T.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()


def tiny(family: str, seed: int = 0) -> Model:
    return wrap(tiny_hf(family, seed), family)


def wrap(hf, name: str = "tiny") -> Model:
    return Model(hf=hf, tokenizer=None, name=name, source="test", prepend_bos=False, bos_id=None)


@pytest.fixture(scope="session", autouse=True)
def proofs_folder(tmp_path_factory: pytest.TempPathFactory):
    """Proofs, and where files were seen, are kept in a folder of this run, never in the user's cache."""
    from assay.data import whereabouts
    from assay.model import proofs

    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setattr(proofs, "cache_dir", lambda: folder)
    patch.setattr(whereabouts, "cache_dir", lambda: folder)
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def glass():
    from assay import load_model

    return load_model("glass-en")


@pytest.fixture(scope="session")
def smollm2():
    from assay import load_model

    return load_model("smollm2-135m")


def pytest_configure(config: pytest.Config) -> None:
    """`tests/mutate_gates.py` asks for one gate to be removed or to pass always, before any test is collected."""
    mutation, _, name = os.environ.get("ASSAY_MUTATE_GATE", "").partition(":")
    if not name:
        return
    import assay.evidence  # noqa: F401
    from assay.evidence.gates import GATES, Contrast

    gate = GATES._items.pop(name)
    if mutation == "passes":
        far = lambda table, plan: Contrast([1e3 + 1e-3 * row for row in range(len(table["templates"]))])  # noqa: E731
        GATES._items[name] = dataclasses.replace(gate, contrast=far)
