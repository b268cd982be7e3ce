"""Measured runs for `assay plan`: CPU time of one thread for harvest, training and encoding, small to a random 1B.

    OMP_NUM_THREADS=1 python benchmarks/scale.py            # all runs, kept one by one; goes on where it was stopped

Writes src/assay/scale/measured.json. Runs marked `held` are not fitted: the largest models and widths, and one inside.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from assay.features.dictionary import Spec
from assay.features.harvest import read_rows
from assay.features.massive import Limits
from assay.features.stream import TensorStream
from assay.features.train import Training, TrainPlan
from assay.files import write_file
from assay.model.model import Model
from assay.scale.sizing import MEASURED, Job, Shape, work

MODELS = {  # d, layers, heads, heads of keys, inner
    "4M": (256, 6, 4, 4, 688), "12M": (384, 8, 6, 2, 1024), "30M": (448, 16, 7, 7, 1216), "60M": (512, 22, 8, 4, 1408),
    "135M": (576, 30, 9, 3, 1536), "360M": (960, 32, 15, 5, 2560), "1B": (2048, 18, 32, 8, 8192),
}  # fmt: skip
HELD_MODELS = ("30M", "135M", "1B")
TRAININGS = [(256, 2048, 16, 1024), (256, 8192, 32, 2048), (576, 4096, 32, 2048), (576, 16384, 32, 2048),
             (1024, 8192, 64, 1024), (2048, 4096, 32, 512), (576, 8192, 32, 1024), (2048, 16384, 32, 2048)]  # fmt: skip
HELD_WIDTHS = ((576, 8192, 32, 1024), (2048, 16384, 32, 2048))


def config_of(name: str) -> Any:
    d, layers, heads, shared, inner = MODELS[name]
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": shared}
    return transformers.LlamaConfig(hidden_size=d, num_hidden_layers=layers, intermediate_size=inner, vocab_size=4096,
                                    max_position_embeddings=512, **heads_of)  # fmt: skip


def harvests() -> Iterator[dict[str, Any]]:
    for name in MODELS:
        yield {"stage": "harvest", "model": name, "held": name in HELD_MODELS}


def harvest(run: dict[str, Any]) -> tuple[float, tuple[float, ...]]:
    torch.manual_seed(0)
    config = config_of(run["model"])
    hf = transformers.AutoModelForCausalLM.from_config(config).eval()
    model = Model(hf=hf, tokenizer=None, name=run["model"], source="random", prepend_bos=False, bos_id=None)
    context, layer = 256, config.num_hidden_layers - 1
    tokens = 256 if run["model"] == "1B" else 1024
    site = model.sites([f"resid_post.{layer}"])
    limits = Limits(1, 10.0, {str(site[0]): 1e9}, {str(site[0]): str(site[0])}, {str(site[0]): config.hidden_size}, 0)
    rows = [np.random.default_rng(row).integers(1, 4000, context).astype(np.uint32) for row in range(tokens // context)]
    read_rows(model, rows[:1], site, limits, "fp16")
    began, took = time.process_time(), []
    while len(took) < 2 or (len(took) < 5 and time.process_time() - began < 5):
        start = time.process_time()
        read_rows(model, rows, site, limits, "fp16")
        took.append(time.process_time() - start)
    job = Job(Shape.of(config.to_dict(), run["model"]), tokens, 1, context=context)
    return min(took) / tokens, work("harvest", job)


def trainings(stage: str) -> Iterator[dict[str, Any]]:
    for sizes in TRAININGS:
        yield {"stage": stage, "sizes": list(sizes), "held": sizes in HELD_WIDTHS}


def learning(run: dict[str, Any]) -> tuple[float, tuple[float, ...]]:
    d, latents, k, batch = run["sizes"]
    torch.manual_seed(0)
    stream = TensorStream({"acts": torch.randn(4 * batch, d)})
    training = Training(stream, [Spec("topk", latents, d, d, k)], TrainPlan(tokens=batch * 100, batch=batch))
    job = Job(Shape("", d, 1, d, 1, 1, 1), batch, latents, k, batch=batch)
    dictionary = training.members[0].dictionary
    took = []
    for _ in range(4):
        start = time.process_time()
        if run["stage"] == "train":
            training.step()
        else:
            dictionary.codes(stream.values["acts"][:batch])
        took.append(time.process_time() - start)
    return min(took[1:]) / batch, work(run["stage"], job)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=MEASURED)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    head = {"machine": f"{_processor()}, one thread", "dtype": "float32", "torch": str(torch.__version__)}
    record = json.loads(out.read_text()) if out.exists() else {**head, "runs": []}
    if {name: record.get(name) for name in head} != head:
        record = {**head, "runs": []}
    done = [{name: run.get(name) for name in ("stage", "model", "sizes")} for run in record["runs"]]
    for run in [*harvests(), *trainings("train"), *trainings("encode")]:
        if {name: run.get(name) for name in ("stage", "model", "sizes")} in done:
            continue
        seconds, amounts = (harvest if run["stage"] == "harvest" else learning)(run)
        record["runs"].append({**run, "seconds": seconds, "work": list(amounts)})
        write_file(out, (json.dumps(record, indent=1) + "\n").encode())
        print(run, f"{seconds * 1e3:.3f} ms a token", flush=True)  # noqa: T201


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
