"""Dictionaries: what a training step costs beside the encoder product it cannot do without, and what comes of it.

    python benchmarks/dictionaries.py --harvest DIR                   of assay harvest smollm2-135m mixed --site resid_post.15
    python benchmarks/dictionaries.py --harvest DIR --peers PYTHON    also SAELens, dictionary_learning, sparsify, where that
                                                                      interpreter has them (`dictionary_peers.py`)
    python benchmarks/dictionaries.py --only bound                    one part: step, quality, peers, turns, encode, bound

1. Base: the dense encoder product (batch, d) x (d, width). Steps of every architecture, and the base, take turns in one
   process; ratios of CPU times of one round, medians over rounds.
2. Quality: after as many steps on the same batches: FVU of held-out tokens, latents that never fired on 51,200 training
   tokens. Peers run their own training code, with their defaults and with the best of a few learning rates.
3. Encode: a held-out matrix to sparse codes as written, and to a dense fp16 matrix as written, from the same codes and as is
   usual (the whole product, its k largest put into zeros): bytes and CPU time. The three take turns.
4. Turns: TopK here and each peer's take turns, each in a process of its own, for `--turn` steps; ratios of CPU times of one
   round, medians over rounds. A machine whose speed changes within minutes changes the ratio little.
5. Bound: the k largest of a token without the whole fp32 product (`features/screened.py`), against making all of it; how
   many tokens the bound leaves open, which are then done whole. On processors without bf16 products it is not used.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import environment

PARTS = ("step", "quality", "peers", "turns", "encode", "bound")
ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "jumprelu")
WIDTHS, K, BATCH, HELD = (4096, 16384), 32, 2048, 4096
PEERS = ("saelens", "dictionary_learning", "sparsify")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and print Markdown."""
    options = _options(arguments)
    environment.prepare()
    import torch

    torch.set_num_threads(1)
    if options.small_pages:
        from assay import large_pages

        large_pages.ask = bool  # asks for nothing
    train, held = activations(options.harvest, options.tokens)
    found: dict[str, Any] = {"versions": environment.versions(), "tokens": len(train), "held": len(held), "d": train.shape[1]}
    for part in options.only or PARTS:
        if part in ("peers", "turns") and not options.peers:
            continue
        found[part] = globals()[f"measure_{part}"](train, held, options)
    sys.stdout.write(markdown(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))
    return 0


def _options(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--harvest", required=True, help="a folder that assay harvest made")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=200, help="of quality and peers")
    parser.add_argument("--turn", type=int, default=40, help="steps of one turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--widths", type=lambda text: tuple(map(int, text.split(","))), default=WIDTHS)
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--small-pages", action="store_true", help="step and quality in pages of 4 kB, for comparison")
    parser.add_argument("--json")
    return parser.parse_args(arguments)


def activations(folder: str, tokens: int) -> tuple[Any, Any]:
    """Typical tokens of the one site of a harvest, the last texts held out."""
    import torch

    from assay.features.shards import Shards

    shards = Shards(folder)
    site = shards.sites[0]
    rows, count = [], 0
    for text in shards.rows():
        rows.append(text.values[site][text.typical].float())
        count += len(rows[-1])
        if count >= tokens + HELD:
            break
    values = torch.cat(rows)
    return values[:-HELD], values[-HELD:]


def measure_step(train: Any, held: Any, options: Any) -> list[dict[str, Any]]:
    """CPU time of a step over that of the product."""
    import torch

    rows = []
    for width in options.widths:
        weights = torch.randn(width, train.shape[1])
        steps = {name: stepper(name, width, train) for name in ARCHITECTURES}
        runs = {"product": lambda x=train[:BATCH], w=weights: x @ w.T, **steps}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for name in runs:
            runs[name]()
        for _ in range(options.rounds):
            for name, run in runs.items():
                began = time.process_time()
                run()
                times[name].append(time.process_time() - began)
        for name in ARCHITECTURES:
            ratios = [a / b for a, b in zip(times[name], times["product"], strict=True)]
            rows.append({"width": width, "architecture": name, "ms": 1000 * statistics.median(times[name]),
                         "product_ms": 1000 * statistics.median(times["product"]), "ratio": statistics.median(ratios),
                         "low": min(ratios), "high": max(ratios)})  # fmt: skip
    return rows


def stepper(architecture: str, width: int, train: Any) -> Any:
    """One training step after another."""
    from assay.features.dictionary import Spec
    from assay.features.stream import TensorStream
    from assay.features.train import Training, TrainPlan

    spec = Spec(architecture, width, train.shape[1], train.shape[1], K, ("acts",), ("acts",))
    return Training(TensorStream({"acts": train}), [spec], TrainPlan(tokens=1000 * BATCH, batch=BATCH)).step


def measure_quality(train: Any, held: Any, options: Any) -> list[dict[str, Any]]:
    """Held-out FVU and dead latents of every architecture, and the time of its steps, as the peers' are timed."""
    from assay.features.dictionary import Spec
    from assay.features.stream import TensorStream
    from assay.features.train import Training, TrainPlan

    rows = []
    for width in options.widths[:1]:
        for name in ARCHITECTURES:
            spec = Spec(name, width, train.shape[1], train.shape[1], K, ("acts",), ("acts",))
            training = Training(TensorStream({"acts": train}), [spec], TrainPlan(tokens=options.steps * BATCH, batch=BATCH))
            began = time.process_time()
            for _ in range(options.steps):
                training.step()
            spent = time.process_time() - began
            made = training.finish()[0]
            rows.append({"width": width, "trainer": f"Assay {name}", "ms": 1000 * spent / options.steps,
                         **quality(made.dictionary.codes, made.dictionary.reconstruct, train, held, width)})  # fmt: skip
    return rows


def quality(codes: Any, reconstruct: Any, train: Any, held: Any, width: int) -> dict[str, float]:
    """FVU and L0 on held-out tokens, share of latents silent on 51,200 training tokens."""
    error = float((held - reconstruct(held)).square().sum() / (held - held.mean(0)).square().sum())
    fired = len(codes(train[:51_200]).latents.unique())
    return {"fvu": error, "l0": float(codes(held).l0.mean()), "dead": 1 - fired / width}


def measure_peers(train: Any, held: Any, options: Any) -> list[dict[str, Any]]:
    """What `dictionary_peers.py` measures in the other interpreter, on the same activations."""
    rows = []
    with _filed(train, held) as file:
        for width in options.widths:
            steps = options.steps if width == options.widths[0] else 10
            for peer in PEERS:
                rows += [{**row, "width": width, "steps": steps} for row in _trained(options.peers, peer, file, width, steps)]
    return rows


def measure_turns(train: Any, held: Any, options: Any) -> list[dict[str, Any]]:
    """CPU time of a step of each trainer, over that of the one here in the same round."""
    rows = []
    with _filed(train, held) as file:
        for width in options.widths:
            rounds: list[dict[str, float]] = []
            for _ in range(options.rounds):
                rounds.append({})
                for name in ("assay", *PEERS):
                    python = sys.executable if name == "assay" else options.peers
                    for row in _trained(python, name, file, width, options.turn, "time"):
                        rounds[-1][name] = row["ms"]
            for name in ("assay", *PEERS):
                both = [found for found in rounds if {name, "assay"} <= set(found)]
                if ratios := [found[name] / found["assay"] for found in both]:
                    rows.append({"width": width, "trainer": name, "ms": statistics.median(found[name] for found in both),
                                 "low": min(ratios), "ratio": statistics.median(ratios), "high": max(ratios)})  # fmt: skip
    return rows


@contextmanager
def _filed(train: Any, held: Any) -> Iterator[Path]:
    """Activations in a file that other interpreters read."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "acts.safetensors"
        save_file({"train": train.contiguous(), "held": held.contiguous()}, file)
        yield file


def _trained(python: str, trainer: str, file: Path, width: int, steps: int, *words: str) -> list[dict[str, Any]]:
    """What one trainer says of itself in an interpreter; nothing, and why, where it failed."""
    numbers = map(str, (width, K, BATCH, steps))
    command = [python, str(Path(__file__).with_name("dictionary_peers.py")), trainer, str(file), *numbers, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(f"{trainer}: {done.stderr.strip().splitlines()[-1] if done.stderr else 'failed'}\n")
        return []
    return list(json.loads(done.stdout.splitlines()[-1]))


def measure_encode(train: Any, held: Any, options: Any) -> list[dict[str, Any]]:
    """Sparse codes against a dense matrix, in bytes and CPU time, both as written to memory."""
    import torch
    from safetensors.numpy import save

    from assay.features.codes import to_arrays

    def sparse(dictionary: Any) -> bytes:
        return save(to_arrays(dictionary.codes(held)))

    def dense(dictionary: Any) -> bytes:
        return save({"latents": dictionary.encode(held).to(torch.float16).numpy()})

    def usual(dictionary: Any) -> bytes:
        best = torch.nn.functional.linear(held - dictionary.b_dec, dictionary.W_enc, dictionary.b_enc).topk(K, dim=1)
        found = torch.zeros(len(held), dictionary.width).scatter_(1, best.indices, best.values.relu())
        return save({"latents": found.to(torch.float16).numpy()})

    runs = {"sparse": sparse, "the same codes, dense": dense, "whole product, k largest, dense": usual}
    rows = []
    for width in options.widths:
        dictionary = _small_dictionary(train, width)
        sizes = {name: len(run(dictionary)) for name, run in runs.items()}  # and warm
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                began = time.process_time()
                run(dictionary)
                times[name].append(time.process_time() - began)
        rows += [{"width": width, "kind": name, "bytes_per_token": sizes[name] / len(held),
                  "us_per_token": 1e6 * statistics.median(times[name]) / len(held)} for name in runs]  # fmt: skip
    return rows


def measure_bound(train: Any, held: Any, options: Any) -> list[dict[str, float]]:
    """The whole product and its k largest, against bf16 first; how many tokens need all their pre-activations in fp32."""
    import torch

    from assay.features.codes import contenders, top_k
    from assay.features.screened import Screened, multiplies_bf16

    rows = []
    for width in options.widths:
        dictionary = _small_dictionary(train, width)
        weights, bias = dictionary.W_enc.detach(), dictionary.b_enc.detach()
        x = held[:BATCH] - dictionary.b_dec
        first = partial(Screened, x, weights, bias)
        whole = partial(torch.nn.functional.linear, x, weights, bias)
        values, _, ceiling = first().largest(contenders(K))
        runs = {"product": whole, "largest": lambda f=whole: top_k(f(), K), "screened": lambda f=first: top_k(f(), K)}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                began = time.process_time()
                run()
                times[name].append(1000 * (time.process_time() - began))
        one, other = (top_k(pre, K).latents.view(-1, K).sort(1).values for pre in (first(), whole()))
        left = float((values.topk(K).values[:, -1] <= ceiling).float().mean())
        rows.append({"width": width, **{name: statistics.median(of) for name, of in times.items()}, "open": left,
                     "same": torch.equal(one, other), "bf16": multiplies_bf16()})  # fmt: skip
    return rows


def _small_dictionary(train: Any, width: int) -> Any:
    from assay.features.dictionary import Spec
    from assay.features.stream import TensorStream
    from assay.features.train import TrainPlan
    from assay.features.train import train as fit

    spec = Spec("topk", width, train.shape[1], train.shape[1], K, ("acts",), ("acts",))
    return fit(TensorStream({"acts": train}), [spec], TrainPlan(tokens=60 * BATCH, batch=BATCH))[0].dictionary


def markdown(found: dict[str, Any]) -> str:
    """The tables."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [f"{found['tokens']:,} tokens of d {found['d']}, {found['held']:,} held out, batch {BATCH:,}, k {K}, one thread;"
             f" {versions}."]  # fmt: skip
    if rows := found.get("step"):
        lines += ["", "| latents | architecture | step, CPU ms | product, ms | ratio (range) |", "|---|---|---|---|---|"]
        lines += [f"| {r['width']:,} | {r['architecture']} | {r['ms']:.0f} | {r['product_ms']:.0f} | {r['ratio']:.2f}"
                  f" ({r['low']:.2f} to {r['high']:.2f}) |" for r in rows]  # fmt: skip
    if rows := [*found.get("quality", []), *found.get("peers", [])]:
        lines += ["", "| latents | trainer | CPU ms a step | held-out FVU | L0 | dead |", "|---|---|---|---|---|---|"]
        lines += [f"| {r['width']:,} | {r['trainer']} | {r['ms']:.0f} | {r['fvu']:.3f} | {r['l0']:.1f} | {r['dead']:.1%} |"
                  for r in rows]  # fmt: skip
    if rows := found.get("turns"):
        lines += ["", "| latents | trainer, in turns | step, CPU ms | times Assay's (range) |", "|---|---|---|---|"]
        lines += [f"| {r['width']:,} | {r['trainer']} | {r['ms']:.0f} | {r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f}) |"
                  for r in rows]  # fmt: skip
    if rows := found.get("encode"):
        lines += ["", "| latents | of held-out tokens | bytes a token | CPU us a token |", "|---|---|---|---|"]
        lines += [f"| {r['width']:,} | {r['kind']} | {r['bytes_per_token']:,.0f} | {r['us_per_token']:.0f} |" for r in rows]
    if rows := found.get("bound"):
        lines += ["", "| latents | product, ms | with the k largest, ms | bf16 first, ms | tokens done whole | same latents |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        lines += [f"| {r['width']:,} | {r['product']:.0f} | {r['largest']:.0f} | {r['screened']:.0f} | {r['open']:.2%} |"
                  f" {'yes' if r['same'] else 'NO'} |" for r in rows]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
