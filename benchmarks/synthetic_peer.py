"""One peer, one method, in the peer's own interpreter: trained on batches from a file, its latents written to another.

    python benchmarks/synthetic_peer.py LIBRARY METHOD STREAM.npy HELD.npy OUT.npz WIDTH K SEED

STREAM.npy (steps, batch, d), HELD.npy (tokens, d). The libraries' own trainers take the steps; what is set here is said
in the benchmark's page: learning rate and windows that suit so short a run, where their defaults are for long ones.
"""

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator

import numpy as np
import torch

Codes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # directions (latent, d), codes (token, latent), reconstruction
LR, WINDOW = 3e-3, 20  # of steps without firing


def saelens(method: str, stream: np.ndarray, held: torch.Tensor, width: int, k: int) -> Codes:
    """SAELens' SAETrainer; `METHOD default`: with its own learning rate and window."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes import batchtopk_sae, jumprelu_sae, matryoshka_batchtopk_sae, topk_sae
    from sae_lens.training.sae_trainer import SAETrainer

    name, _, own = method.partition(" ")
    steps, batch, d = stream.shape
    common = {"d_in": d, "d_sae": width}
    scaled = {**common, "normalize_activations": "expected_average_only_in"}
    made = {
        "topk": lambda: topk_sae.TopKTrainingSAE(topk_sae.TopKTrainingSAEConfig(**scaled, k=k)),
        "batchtopk": lambda: batchtopk_sae.BatchTopKTrainingSAE(
            batchtopk_sae.BatchTopKTrainingSAEConfig(**scaled, k=k)),
        "matryoshka": lambda: matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAE(
            matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAEConfig(
                **scaled, k=k, matryoshka_widths=prefixes(width))),
        "jumprelu": lambda: jumprelu_sae.JumpReLUTrainingSAE(jumprelu_sae.JumpReLUTrainingSAEConfig(
            **scaled, jumprelu_sparsity_loss_mode="quadratic", target_l0=float(k), l0_coefficient=1.0,
            l0_warm_up_steps=steps // 20, jumprelu_init_threshold=0.1, jumprelu_bandwidth=1.0, jumprelu_ste_to_input=True,
            pre_act_loss_coefficient=3e-6)),
    }[name]()  # fmt: skip
    settings = {"lr_end": 3e-5} if own else {"lr": LR, "lr_end": LR / 10, "dead_feature_window": WINDOW,
                                             "lr_warm_up_steps": steps // 50, "lr_decay_steps": 3 * steps // 10}  # fmt: skip
    cfg = SAETrainerConfig(total_training_samples=steps * batch, train_batch_size_samples=batch,
                           n_batches_for_norm_estimate=10, **settings)  # fmt: skip
    trainer = SAETrainer(cfg, made, batches(stream))
    sae = trainer.fit()
    scale = getattr(trainer.activation_scaler, "scaling_factor", None) or 1.0
    x = held * scale
    sae.eval()
    codes = sae.encode(x)
    return sae.W_dec.detach(), codes, sae.decode(codes) / scale


def dictionary_learning(method: str, stream: np.ndarray, held: torch.Tensor, width: int, k: int) -> Codes:
    """dictionary_learning's trainers, one `update` a step; inputs at unit mean square, as its `trainSAE` scales them."""
    without("nnsight", "LanguageModel")
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    steps, _, d = stream.shape
    common = {"steps": steps, "activation_dim": d, "dict_size": width, "layer": 0, "lm_name": "none", "lr": LR,
              "warmup_steps": steps // 50, "decay_start": 7 * steps // 10, "device": "cpu",
              "seed": torch.initial_seed()}  # fmt: skip
    sizes = np.diff([0, *prefixes(width)])
    start = {"k": k, "threshold_start_step": steps // 10}
    trainer = {
        "topk": lambda: TopKTrainer(**common, **start),
        "batchtopk": lambda: BatchTopKTrainer(**common, **start),
        "matryoshka": lambda: MatryoshkaBatchTopKTrainer(**common, **start, group_fractions=[s / width for s in sizes]),
        "jumprelu": lambda: JumpReluTrainer(**common, target_l0=float(k), sparsity_warmup_steps=steps // 10),
    }[method]()
    trainer.dead_feature_threshold = WINDOW * stream.shape[1]
    scale = float(np.sqrt(np.mean(np.asarray(stream[:10]) ** 2) * d)) / d**0.5
    for step, x in enumerate(batches(stream)):
        trainer.update(step, x / scale)
        if step + 1 == steps:
            break
    ae = trainer.ae
    codes = ae.encode(held / scale)
    codes = codes[0] if isinstance(codes, tuple) else codes
    directions = ae.W_dec if hasattr(ae, "W_dec") else ae.decoder.weight.T
    return directions.detach(), codes, ae.decode(codes) * scale


def sparsify(method: str, stream: np.ndarray, held: torch.Tensor, width: int, k: int) -> Codes:
    """sparsify's SparseCoder; the loop of its trainer, which only takes language models, and its two optimisers."""
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    steps, batch, d = stream.shape
    sae = SparseCoder(d, SparseCoderConfig(num_latents=width, k=k))
    if method == "topk signum":
        from schedulefree import ScheduleFreeWrapper

        optimiser = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=LR), momentum=0.95)
        optimiser.train()
    else:
        optimiser = torch.optim.Adam(sae.parameters(), lr=LR)
    silent = torch.zeros(width)
    for step, x in enumerate(batches(stream)):
        if step == 0:
            sae.b_dec.data.copy_(x.mean(0))
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x, dead_mask=silent > WINDOW * batch)
        (out.fvu + out.auxk_loss / 32).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        silent += batch
        silent[out.latent_indices.flatten()] = 0
        if step + 1 == steps:
            break
    if method == "topk signum":
        optimiser.eval()
    sae.set_decoder_norm_to_unit_norm()
    encoded = sae.encode(held)
    codes = torch.zeros(len(held), width).scatter(1, encoded.top_indices, encoded.top_acts)
    return sae.W_dec.detach(), codes, sae.decode(encoded.top_acts, encoded.top_indices)


LIBRARIES: dict[str, Callable[..., Codes]] = {
    "SAELens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}  # fmt: skip


def without(package: str, *names: str) -> None:
    """An empty stand-in for a package that a peer imports for reading models, which nothing here does."""
    if importlib.util.find_spec(package) is None:
        module = types.ModuleType(package)
        for name in names:
            setattr(module, name, object)
        sys.modules[package] = module


def prefixes(width: int) -> list[int]:
    """Nested sizes of Matryoshka dictionaries, the same for all."""
    return [width // 32, width // 16, width // 8, width // 4, width // 2, width]


def batches(stream: np.ndarray) -> Iterator[torch.Tensor]:
    """Endless, in order."""
    while True:
        for batch in stream:
            yield torch.tensor(batch)


def main(library: str, method: str, stream: str, held: str, out: str, width: str, k: str, seed: str) -> None:
    """Train, read, write."""
    torch.set_num_threads(1)
    torch.manual_seed(int(seed))
    directions, codes, found = LIBRARIES[library](
        method, np.load(stream, mmap_mode="r"), torch.tensor(np.load(held)), int(width), int(k))  # fmt: skip
    np.savez(out, directions=directions.numpy(), codes=codes.detach().numpy(), found=found.detach().numpy())


if __name__ == "__main__":
    with torch.autograd.set_grad_enabled(True):
        main(*sys.argv[1:])
