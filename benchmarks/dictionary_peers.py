"""One peer's training of a TopK dictionary, in the interpreter that has it: `dictionaries.py --peers` calls this.

    PYTHON dictionary_peers.py PEER acts.safetensors WIDTH K BATCH STEPS [time]

Prints JSON: CPU milliseconds of a step, held-out FVU, L0 and dead latents, with the peer's defaults and, of SAELens, with
its learning rate times ten; with `time` the milliseconds alone, of the last rate. Batches are rows drawn by the same seed
for all; `assay`, which takes turns with the peers, draws its own, and the time for that is in its steps.
"""

import importlib.util
import json
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import load_file


def batches(train: torch.Tensor, batch: int) -> Iterator[torch.Tensor]:
    """Rows in random order, epoch after epoch."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(train), generator=generator)
        for start in range(0, len(order) - batch + 1, batch):
            yield train[order[start : start + batch]]


def saelens(train: torch.Tensor, width: int, k: int, batch: int, steps: int, lr: float) -> tuple[Any, Callable, Callable]:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    scale = train.shape[1] ** 0.5 / float(train.norm(dim=1).mean())  # its `expected_average_only_in`
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=train.shape[1], d_sae=width, k=k, use_sparse_activations=False))
    trainer = SAETrainer(SAETrainerConfig(steps * batch, batch, lr=lr, lr_end=lr), sae, iter(()))

    def step(x: torch.Tensor) -> None:
        trainer.step(x * scale)
        trainer.n_training_steps += 1

    return step, lambda x: sae.encode(x * scale), lambda x: sae.decode(sae.encode(x * scale)) / scale


def dictionary_learning(
    train: torch.Tensor, width: int, k: int, batch: int, steps: int, lr: float
) -> tuple[Any, Callable, Callable]:
    _without_nnsight()
    from dictionary_learning.trainers.top_k import TopKTrainer

    scale = 1 / float(train.square().sum(1).mean().sqrt())  # its `normalize_activations`
    trainer = TopKTrainer(steps=steps, activation_dim=train.shape[1], dict_size=width, k=k, layer=15, lm_name="none",
                          device="cpu", seed=0, warmup_steps=max(1, steps // 50), decay_start=round(0.7 * steps))  # fmt: skip
    count = iter(range(10**9))
    return (lambda x: trainer.update(next(count), x * scale), lambda x: trainer.ae.encode(x * scale, use_threshold=False),
            lambda x: trainer.ae.decode(trainer.ae.encode(x * scale, use_threshold=False)) / scale)  # fmt: skip


def _without_nnsight() -> None:
    """Its trainers do not use nnsight, which it imports and which old versions pin: an empty module where it is missing."""
    if importlib.util.find_spec("nnsight") is None:
        stub = types.ModuleType("nnsight")
        stub.LanguageModel = object  # type: ignore[attr-defined]
        sys.modules["nnsight"] = stub


def sparsify(train: torch.Tensor, width: int, k: int, batch: int, steps: int, lr: float) -> tuple[Any, Callable, Callable]:
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    torch.manual_seed(0)
    coder = SparseCoder(train.shape[1], SparseCoderConfig(num_latents=width, k=k), "cpu", dtype=torch.float32)
    coder.b_dec.data = train[:batch].mean(0)
    optimiser = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=lr / (width / 2**14) ** 0.5), momentum=0.95)
    optimiser.train()

    def step(x: torch.Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()

    def encode(x: torch.Tensor) -> torch.Tensor:
        found = coder.encode(x)
        return torch.zeros(len(x), width).scatter(1, found.top_indices, found.top_acts)

    return step, encode, lambda x: coder(x).sae_out


def assay(train: torch.Tensor, width: int, k: int, batch: int, steps: int, lr: float) -> tuple[Any, Callable, Callable]:
    from assay.features.dictionary import Spec
    from assay.features.stream import TensorStream
    from assay.features.train import Training, TrainPlan

    spec = Spec("topk", width, train.shape[1], train.shape[1], k, ("acts",), ("acts",))
    training = Training(TensorStream({"acts": train}), [spec], TrainPlan(tokens=steps * batch, batch=batch))
    made: list[Any] = []

    def finished() -> Any:
        if not made:
            made.append(training.finish()[0].dictionary)
        return made[0]

    return lambda x: training.step(), lambda x: finished().encode(x), lambda x: finished().reconstruct(x)


TRAINERS = {"assay": (assay, (0.0,)), "saelens": (saelens, (3e-4, 3e-3)), "dictionary_learning": (dictionary_learning, (0.0,)),
            "sparsify": (sparsify, (5e-3,))}  # fmt: skip


def main() -> None:
    peer, file, *numbers = sys.argv[1:7]
    width, k, batch, steps = map(int, numbers)
    only_time = sys.argv[7:] == ["time"]
    torch.set_num_threads(1)
    data = load_file(file)
    train, held = data["train"], data["held"]
    make, rates = TRAINERS[peer]
    rows: list[dict[str, Any]] = []
    for lr in rates[-1:] if only_time else rates:
        step, encode, rebuild = make(train, width, k, batch, steps, lr)
        source = batches(train, batch)
        spent = 0.0
        for _ in range(steps):
            x = next(source)
            began = time.process_time()
            step(x)
            spent += time.process_time() - began
        name = f"{peer} {lr:g}" if lr else peer
        rows.append({"trainer": name, "ms": 1000 * spent / steps})
        if only_time:
            continue
        with torch.no_grad():
            fired = torch.zeros(width, dtype=torch.bool)
            for part in train[:51_200].split(2048):
                fired |= (encode(part) != 0).any(0)
            error = float((held - rebuild(held)).square().sum() / (held - held.mean(0)).square().sum())
            l0 = float((encode(held) != 0).float().sum(1).mean())
        rows[-1] |= {"fvu": error, "l0": l0, "dead": 1 - float(fired.float().mean())}
    print(json.dumps(rows))  # noqa: T201


if __name__ == "__main__":
    main()
