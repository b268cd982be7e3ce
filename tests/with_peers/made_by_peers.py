"""Dictionaries made by the peers' own code: (name of the case, write it into a folder, what the peer makes of inputs).

Runs in the peers' environment (`make peers`): SAELens, dictionary_learning, sparsify. Numbers are random but fixed.
"""

import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

D, WIDTH, K, OUT, TOKENS = 6, 12, 3, 5, 16
Made = tuple[torch.Tensor, torch.Tensor]  # latents, reconstruction
Case = tuple[str, Callable[[Path], None], Callable[[Path, torch.Tensor], Made]]


def inputs(d: int = D) -> torch.Tensor:
    """A batch of tokens off the origin."""
    return torch.randn(TOKENS, d, generator=torch.Generator().manual_seed(7)) * 2 + 0.5


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Numbers for all parameters: biases and thresholds differ from latent to latent, decoder rows have norms of their own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * (0.3 if value.dim() == 1 else 0.7))
            if "threshold" in name:
                value.abs_()


# SAELens -----------------------------------------------------------------------------------------


def saelens_cases() -> Iterator[Case]:
    from sae_lens import SAE

    def peer(folder: Path, x: torch.Tensor) -> Made:
        sae = SAE.load_from_disk(folder)
        with torch.no_grad():
            latents, rebuilt = sae.encode(x).flatten(0, -2), sae(x)
        return latents, rebuilt.reshape(len(latents), -1)

    def halves(folder: Path, x: torch.Tensor) -> Made:
        latents, rebuilt = peer(folder, x)
        return torch.cat([latents.relu(), (-latents).relu()], 1), rebuilt

    def one_text(folder: Path, x: torch.Tensor) -> Made:
        return peer(folder, x[None])

    about = {"model_name": "tiny", "hook_name": "blocks.3.hook_resid_post"}
    small = {"n_heads": 2, "bottleneck_factor": 3}
    for number, (kind, changes) in enumerate({
        "temporal": {"kval_topk": K}, "temporal-raw-input": {"kval_topk": K, "apply_b_dec_to_input": False},
        "temporal-untied": {"sae_diff_type": "relu", "tied_weights": False, "n_attn_layers": 2},
        "temporal-rescaled": {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 0.3},
        "temporal-layer-norm": {"kval_topk": K, "tied_weights": False, "normalize_activations": "layer_norm"},
    }.items()):  # fmt: skip
        yield kind, lambda to, number=number, more=changes: save("temporal", to, 30 + number, about, **small, **more), one_text
    yield "standard", lambda to: save("standard", to, 1, about), peer
    yield "standard-raw-input", lambda to: save("standard", to, 2, about, apply_b_dec_to_input=False), peer
    yield "standard-square", lambda to: save("standard", to, 3, about, d_sae=D), peer
    yield "standard-layer-norm", lambda to: save("standard", to, 4, about, normalize_activations="layer_norm"), peer
    yield "topk-constant-norm", lambda to: save("topk", to, 5, about, k=K, normalize_activations="constant_norm_rescale"), peer
    yield "gated", lambda to: save("gated", to, 6, about), peer
    yield "gated-raw-input", lambda to: save("gated", to, 26, about, apply_b_dec_to_input=False), peer
    yield "topk", lambda to: save("topk", to, 7, about, k=K), peer
    yield "topk-rescaled", lambda to: save("topk", to, 8, about, k=K, rescale_acts_by_decoder_norm=True), peer
    yield "abstopk", lambda to: save("abstopk", to, 27, about, k=K), halves
    yield "abstopk-rescaled", lambda to: save("abstopk", to, 28, about, k=K, rescale_acts_by_decoder_norm=True), halves
    yield "jumprelu", lambda to: save("jumprelu", to, 9, about), peer
    yield "matching-pursuit", lambda to: save("matching_pursuit", to, 10, about), peer
    yield (
        "matching-pursuit-short",
        lambda to: save(
            "matching_pursuit",
            to,
            11,
            about,
            max_iterations=4,
            residual_threshold=1.0,
            stop_on_duplicate_support=False,
            apply_b_dec_to_input=False,
        ),
        peer,
    )
    across = {"model_name": "tiny", "hook_name": "blocks.3.ln2.hook_normalized", "hook_name_out": "blocks.3.hook_mlp_out"}
    for number, kind in enumerate(("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")):
        yield kind, lambda to, kind=kind, number=number: save(kind, to, 12 + number, across, d_out=OUT,
                                                              apply_b_dec_to_input=False), peer  # fmt: skip
    yield "batchtopk", lambda to: trained("batchtopk", to, 16), peer
    yield "matryoshka", lambda to: trained("matryoshka_batchtopk", to, 17, matryoshka_widths=[4, WIDTH]), peer
    yield "flat-topk", lambda to: flat(to, 18, "topk", activation_fn_str="topk", activation_fn_kwargs={"k": K}), peer
    yield "flat-heads", lambda to: flat(to, 19, "standard", hook_point="blocks.3.attn.hook_z"), heads
    yield "checkpoint", lambda to: checkpoint(to, 20), folded


def save(kind: str, to: Path, seed: int, about: dict, d_sae: int = WIDTH, **settings) -> None:
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    made, config = get_sae_class(kind)
    sae = made(config(d_in=D, d_sae=d_sae, metadata=SAEMetadata(**about), **settings))
    randomise(sae, seed)
    if kind == "matching_pursuit":
        with torch.no_grad():
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    sae.save_model(to)


def in_training(kind: str, seed: int, **settings):
    """A training SAE whose threshold was set by a batch."""
    from sae_lens.registry import get_sae_training_class

    made, config = get_sae_training_class(kind)
    sae = made(config(d_in=D, d_sae=WIDTH, k=K, rescale_acts_by_decoder_norm=True, **settings))
    randomise(sae, seed)
    sae.topk_threshold.fill_(0.8)
    return sae


def trained(kind: str, to: Path, seed: int, **settings) -> None:
    in_training(kind, seed, **settings).save_inference_model(to)


FACTOR = 0.37


def checkpoint(to: Path, seed: int) -> None:
    """What SAELens keeps while it trains, on inputs it scales."""
    in_training("batchtopk", seed, normalize_activations="expected_average_only_in").save_model(to)
    (to / "activation_scaler.json").write_text(json.dumps({"scaling_factor": FACTOR}))


def folded(folder: Path, x: torch.Tensor) -> Made:
    """What it makes of that at the end of training."""
    from sae_lens import SAE

    sae = in_training("batchtopk", 20, normalize_activations="expected_average_only_in")
    sae.fold_activation_norm_scaling_factor(FACTOR)
    sae.save_inference_model(folder / "at_the_end")
    made = SAE.load_from_disk(folder / "at_the_end")
    for file in (folder / "at_the_end").iterdir():
        file.unlink()
    (folder / "at_the_end").rmdir()
    with torch.no_grad():
        return made.encode(x), made(x)


def flat(to: Path, seed: int, kind: str, **more) -> None:
    """A folder as before version 6: numbers of today, the config flat."""
    save(kind, to, seed, {}, **({"k": K} if kind == "topk" else {}))
    config = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": WIDTH,
        "activation_fn_str": "relu",
        "dtype": "torch.float32",
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "context_size": 128,
        "model_name": "tiny",
        "hook_point": "blocks.3.hook_resid_pre",
        "hook_point_layer": 3,
        "hook_point_head_index": None,
        "prepend_bos": True,
        "dataset_path": "texts",
        "normalize_activations": "none",
        "device": "cpu",
        "sae_lens_training_version": "3.2.1",
        "l1_coefficient": 5,
        **more,
    }
    config["dtype"] = "float32"
    (to / "cfg.json").write_text(json.dumps(config))


def heads(folder: Path, x: torch.Tensor) -> Made:
    """The same for activations of two heads."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    with torch.no_grad():
        return sae.encode(x.view(len(x), 2, -1)), sae(x.view(len(x), 2, -1)).flatten(1)


# dictionary_learning -----------------------------------------------------------------------------


def without_nnsight() -> None:
    """Its buffers import nnsight; its dictionaries do not use it."""
    for name in ("nnsight", "datasets", "zstandard"):
        if name not in sys.modules:
            try:
                __import__(name)
            except ImportError:
                sys.modules[name] = types.ModuleType(name)
    sys.modules["nnsight"].LanguageModel = getattr(sys.modules["nnsight"], "LanguageModel", object)


def learning_classes() -> dict:
    without_nnsight()
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    found = (
        AutoEncoder,
        AutoEncoderNew,
        GatedAutoEncoder,
        JumpReluAutoEncoder,
        AutoEncoderTopK,
        BatchTopKSAE,
        MatryoshkaBatchTopKSAE,
    )
    return {one.__name__: one for one in found}


def learning_cases() -> Iterator[Case]:
    plain = ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder")
    for number, name in enumerate(plain):
        yield name, lambda to, name=name, number=number: learnt(name, to, 30 + number), learning_peer
    for number, name in enumerate(("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")):
        yield name, lambda to, name=name, number=number: learnt(name, to, 34 + number, 0.9), learning_peer
    yield "BatchTopKSAE-unset", lambda to: learnt("BatchTopKSAE", to, 37), learning_peer


def learning_of(name: str, threshold: float = -1.0):
    made = learning_classes()[name]
    more = {"AutoEncoderTopK": (K,), "BatchTopKSAE": (K,), "MatryoshkaBatchTopKSAE": (K, [3, 4, WIDTH - 7])}.get(name, ())
    ae = made(D, WIDTH, *more)
    if hasattr(ae, "k"):
        ae.threshold.fill_(threshold)
    return ae


def learnt(name: str, to: Path, seed: int, threshold: float = -1.0) -> None:
    ae = learning_of(name, threshold)
    randomise(ae, seed)
    to.mkdir(parents=True, exist_ok=True)
    torch.save(ae.state_dict(), to / "ae.pt")
    trainer = {
        "dict_class": name,
        "trainer_class": "a trainer",
        "activation_dim": D,
        "dict_size": WIDTH,
        "lr": 1e-3,
        "steps": 10,
        "seed": 0,
        "device": "cpu",
        "layer": 3,
        "lm_name": "tiny",
        "wandb_name": name,
        "submodule_name": "resid_post_layer_3",
        "warmup_steps": 1,
        **({"k": K} if hasattr(ae, "k") else {}),
    }
    buffer = {
        "d_submodule": D,
        "io": "out",
        "n_ctxs": 8,
        "ctx_len": 16,
        "refresh_batch_size": 4,
        "out_batch_size": 8,
        "device": "cpu",
    }
    (to / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}, indent=1))


def learning_peer(folder: Path, x: torch.Tensor) -> Made:
    name = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    state = torch.load(folder / "ae.pt", weights_only=True)
    made = learning_classes()[name]
    more = (state["k"].item(),) if "k" in state else ()
    more += (state["group_sizes"].tolist(),) if "group_sizes" in state else ()
    shape = state["W_enc"].shape if "W_enc" in state else tuple(reversed(state["encoder.weight"].shape))
    ae = made(*shape, *more)
    ae.load_state_dict(state)
    with torch.no_grad():
        return ae.encode(x), ae(x)


# sparsify ----------------------------------------------------------------------------------------


def sparsify_cases() -> Iterator[Case]:
    yield "layers.3", lambda to: coder(to, 40, k=K, num_latents=WIDTH), sparsify_peer
    yield "layers.4", lambda to: coder(to, 41, k=K, expansion_factor=2), sparsify_peer
    yield "layers.5.mlp", lambda to: coder(to, 42, k=K, num_latents=WIDTH, activation="groupmax"), sparsify_peer
    yield "layers.6.mlp", lambda to: coder(to, 43, k=K, num_latents=WIDTH, transcode=True), sparsify_peer
    yield "layers.7.mlp", lambda to: coder(to, 44, k=K, num_latents=WIDTH, transcode=True, skip_connection=True), sparsify_peer
    yield "layers.8", lambda to: coder(to, 45, k=K, num_latents=D, normalize_decoder=False), sparsify_peer


def coder(to: Path, seed: int, **settings) -> None:
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    made = SparseCoder(D, SparseCoderConfig(**settings))
    randomise(made, seed)
    made.save_to_disk(to)


def sparsify_peer(folder: Path, x: torch.Tensor) -> Made:
    from sparsify import SparseCoder

    made = SparseCoder.load_from_disk(folder)
    with torch.no_grad():
        found = made.encode(x)
        latents = torch.zeros(len(x), made.num_latents).scatter(1, found.top_indices, found.top_acts)
        return latents, made(x).sae_out


CASES = {"saelens": saelens_cases, "dictionary_learning": learning_cases, "sparsify": sparsify_cases}
