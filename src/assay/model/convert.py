"""Turn foreign weight files into an ordinary Hugging Face directory (fp32 safetensors).

GGUF (llama.cpp):
1. The file is read once with the `gguf` package, which notices a cut or garbled one.
2. `transformers` rebuilds config and tokenizer, and dequantises every tensor to fp32.
3. Byte-level vocabularies that split digits singly get that rule back: `transformers` drops it, and
   "\\n\\n1" would otherwise become other tokens than the model was trained on.

Glass (`glassllm`, a decoder written in NumPy) -> `LlamaForCausalLM`:
1. It computes x @ W, Hugging Face W @ x: every W_* is transposed.
2. Its RoPE rotates neighbours (0,1), (2,3), ..; Llama's rotates (i, i + d/2). Rows of Q and K are
   reordered so that both give the same scores.
3. Its tokenizer is rebuilt as a `tokenizers` BPE: NFC, space -> "▁", chunks that no merge crosses.

Quantised weights are not the published ones: compare with published results only in kind.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from assay.errors import ModelError
from assay.model.cache import require_space, say

# llama.cpp names of byte-level split rules: digits singly, then GPT-2's rule; or GPT-2's rule alone
DIGITS_SINGLY = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
GPT2_RULE = {None, "default", "gpt-2", "gpt2", "olmo", "mpt", "jais", "phi-2", "roberta-bpe"}
UNREADABLE = (ValueError, IndexError, KeyError, TypeError, OverflowError, RuntimeError, EOFError)
GLASS_SPECIALS = ["<pad>", "<unk>", "<bos>", "<eos>"]
GLASS_CHUNK = r"\n|▁*[^▁\n]+|▁+"


def convert_gguf(files: list[Path], folder: Path) -> int:
    """Write the model in a GGUF file to `folder`; returns its number of parameters.

    Raises ModelError for a corrupt file, an architecture `transformers` cannot read, a full disk.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (path,) = files
    split_rule, n_weights = _read_gguf(path)
    require_space(folder, 4 * n_weights, f"Converting {path.name} to fp32")
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        read: Any = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, output_loading_info=True
        )
        model, info = read
    except (*UNREADABLE, OSError, ImportError) as error:
        raise ModelError(f"transformers cannot read {path}: {error}") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))[:5]
        raise ModelError(
            f"{path} lacks weights of its architecture ({', '.join(wrong)}). "
            f"If it is one part of a split model, join the parts first (llama-gguf-split --merge)."
        )
    _restore_split(tokenizer.backend_tokenizer, split_rule, path)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False  # type: ignore[assignment]
    return _save(model, tokenizer, folder)


def convert_glass(files: list[Path], folder: Path) -> int:
    """Write a glassllm model (weights.npz, tokenizer.json) to `folder`; returns its parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    weights_file, tokenizer_file = files
    with np.load(weights_file, allow_pickle=False) as archive:
        facts = json.loads(str(archive["__config__"]))
        arrays = {name: archive[name] for name in archive.files if name != "__config__"}
    config = LlamaConfig(
        vocab_size=facts["vocab_size"],
        hidden_size=facts["d_model"],
        intermediate_size=arrays["blocks.0.ffn.W1"].shape[1],
        num_hidden_layers=facts["n_layers"],
        num_attention_heads=facts["n_heads"],
        num_key_value_heads=facts["n_kv_heads"],
        max_position_embeddings=facts["max_len"],
        rms_norm_eps=facts["eps"],
        rope_parameters={"rope_type": "default", "rope_theta": facts["rope_base"]},
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(
        _glass_state(arrays, facts["n_layers"], facts["d_model"] // facts["n_heads"])
    )
    return _save(model, _glass_tokenizer(tokenizer_file, facts["max_len"]), folder)


CONVERTERS: dict[str, Callable[[list[Path], Path], int]] = {
    "gguf": convert_gguf,
    "glass": convert_glass,
}


def halves_from_pairs(
    weight: Float[Tensor, "d_model rows"], d_head: int
) -> Float[Tensor, "rows d_model"]:
    """Q or K for RoPE that rotates (0,1), (2,3), .. -> for RoPE that rotates (i, i + d/2)."""
    pairs = weight.T.unflatten(0, (-1, d_head // 2, 2))  # (head, pair, which, d_model)
    return pairs.transpose(1, 2).flatten(0, 2).contiguous()


def _glass_state(arrays: dict[str, np.ndarray], n_layers: int, d_head: int) -> dict[str, Tensor]:
    """Llama names and layouts for the arrays of a glassllm model, in fp32."""
    source = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    state = {"model.embed_tokens.weight": source["E"], "model.norm.weight": source["norm_f.gamma"]}
    state["lm_head.weight"] = source["E"]
    for layer in range(n_layers):
        old, new = f"blocks.{layer}.", f"model.layers.{layer}."
        state[f"{new}input_layernorm.weight"] = source[f"{old}norm1.gamma"]
        state[f"{new}post_attention_layernorm.weight"] = source[f"{old}norm2.gamma"]
        for letter in "qk":
            rows = halves_from_pairs(source[f"{old}attn.W_{letter.upper()}"], d_head)
            state[f"{new}self_attn.{letter}_proj.weight"] = rows
        for letter in "vo":
            state[f"{new}self_attn.{letter}_proj.weight"] = source[
                f"{old}attn.W_{letter.upper()}"
            ].T
        for ours, theirs in (("gate", "W1"), ("up", "W3"), ("down", "W2")):
            state[f"{new}mlp.{ours}_proj.weight"] = source[f"{old}ffn.{theirs}"].T
    return state


def _glass_tokenizer(path: Path, max_len: int) -> Any:
    """The glassllm tokenizer as a fast tokenizer: same ids, plus character offsets."""
    from transformers import PreTrainedTokenizerFast

    saved = json.loads(path.read_text(encoding="utf-8"))
    merges = [(left, right) for left, right in saved["merges"]]
    tokens = [*GLASS_SPECIALS, *saved["alphabet"], *(left + right for left, right in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=False))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(GLASS_CHUNK), behavior="isolated")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    names = {f"{token.strip('<>')}_token": token for token in GLASS_SPECIALS}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, model_max_length=max_len, clean_up_tokenization_spaces=False, **names
    )


def _read_gguf(path: Path) -> tuple[str | None, int]:
    """Name of the byte-level split rule (None when not byte-level), and number of weights."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        n_weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
        fields = [reader.get_field(f"tokenizer.ggml.{key}") for key in ("model", "pre")]
        model, rule = (None if field is None else field.contents() for field in fields)
    except UNREADABLE as error:
        raise ModelError(
            f"{path} is not a whole GGUF file ({type(error).__name__}: {error}). "
            f"It may be cut short: compare its size and checksum with the source."
        ) from error
    if n_weights == 0:
        raise ModelError(f"{path} is a GGUF file without weights (a vocabulary only?).")
    return (rule if model == "gpt2" else None), n_weights


def _restore_split(backend: Tokenizer, rule: str | None, path: Path) -> None:
    """Give a byte-level tokenizer the split rule its file names, or say that it is unknown."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if rule in DIGITS_SINGLY:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    elif rule not in GPT2_RULE and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        say(
            f"{path.name}: its tokenizer splits text by a rule ({rule}) that is not known here; "
            f"GPT-2's is used, so some token boundaries may differ from the original model's"
        )


def _save(model: Any, tokenizer: Any, folder: Path) -> int:
    """Write model and tokenizer; returns the number of parameters (tied ones once)."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
