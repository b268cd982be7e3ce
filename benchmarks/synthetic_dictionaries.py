"""Dictionaries on planted features: how much of a known truth each architecture finds, beside peers on the same batches.

    python benchmarks/synthetic_dictionaries.py [--seeds 3] [--worlds plain,offset] [--methods topk,batchtopk]
        [--peer SAELens=PYTHON] [--peer dictionary_learning=PYTHON] [--peer sparsify=PYTHON] [--json FILE] [--update-docs]

1. A world is drawn (`assay.testing.planted_features`), its batches are written to a file once: everyone is trained on the
   same ones in the same order, for the same steps, from another seed.
2. Peers run in interpreters of their own (`synthetic_peer.py`), with learning rate 3e-3 (their defaults are for long runs)
   and a dead window of 20 steps. Scores are made here, from directions, codes and reconstructions of 20,000 other tokens.
3. Each line of results is appended to the JSON file as it is made; a run that was stopped goes on there.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from environment import prepare

prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from assay.features.dictionary import Spec, make_dictionary  # noqa: E402
from assay.features.train import TrainPlan, train  # noqa: E402
from assay.testing.planted_features import SITE, PlantedFeatures, World, compared, recovery  # noqa: E402

BATCH, STEPS, HELD, HELD_SEED = 1024, 2000, 20_000, 999
WORLDS: dict[str, tuple[World, int, int]] = {  # world, width, k
    "plain": (World(), 256, 5),
    "offset": (World(offset=6.0), 256, 5),
    "zipf": (World(n_features=1024, width=128, mean_l0=8, zipf=1.0), 1024, 8),
    "correlated": (World(rank=8, correlation=0.3), 256, 5),
    "hierarchy": (World(n_features=40, width=64, mean_l0=1.5, parents=10, child_rate=0.75, orthogonal=True), 40, 2),
}
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("topk", {}), "topk free": ("topk", {"decoder": "free"}), "batchtopk": ("batchtopk", {}),
    "matryoshka": ("matryoshka", {}), "jumprelu": ("jumprelu", {}), "relu": ("relu", {}), "gated": ("gated", {}),
    "frozen decoder": ("topk", {}), "untrained": ("topk", {}),
}  # fmt: skip
PEERS = {
    "SAELens": ("topk", "batchtopk", "matryoshka", "jumprelu", "topk default", "batchtopk default"),
    "dictionary_learning": ("topk", "batchtopk", "matryoshka", "jumprelu"), "sparsify": ("topk adam", "topk signum"),
}  # fmt: skip
SHOWN = ("mmcs", "mcc", "found", "f1", "unique", "false", "fvu", "l0", "dead", "absorbed", "leaked")
DOCS = Path(__file__).resolve().parents[1] / "docs" / "dictionaries.md"
BEGIN = "<!-- synthetic: begin, written by benchmarks/synthetic_dictionaries.py --update-docs -->"
END = "<!-- synthetic: end -->"


class Filed:
    """A world whose batches are in a file."""

    def __init__(self, planted: PlantedFeatures, path: Path, steps: int) -> None:
        self.planted, self.sites, self.sizes = planted, planted.sites, planted.sizes
        self.n_tokens, self.norm_limits, self.skip_first = steps * BATCH, planted.norm_limits, 0
        self.record = planted.record
        shape = (steps, BATCH, planted.world.width)
        self.values = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        for step, batch in zip(range(steps), planted.batches(BATCH), strict=False):
            self.values[step] = batch[SITE].numpy()
        self.values.flush()

    def batches(self, size: int, seed: int = 0, start: int = 0) -> Iterator[Mapping[str, torch.Tensor]]:
        """The same for everyone, whatever the seed."""
        step = start
        while True:
            yield {SITE: torch.tensor(self.values[step % len(self.values)])}
            step += 1


def ours(stream: Filed, method: str, width: int, k: int, seed: int) -> dict[str, Any]:
    """One of our own architectures."""
    architecture, options = OURS[method]
    d = stream.planted.world.width
    spec = Spec(architecture, width, d, d, k=k, inputs=(SITE,), outputs=(SITE,), options=options)
    if method == "untrained":
        made = make_dictionary(spec)
        first = next(stream.batches(BATCH))[SITE]
        made.start(first, first, torch.Generator().manual_seed(seed))
        made.requires_grad_(False)
        return recovery(made, stream.planted, HELD, HELD_SEED).json()
    plan = TrainPlan(tokens=stream.n_tokens, batch=BATCH, seed=seed, frozen=("W_dec",) if method == "frozen decoder" else ())
    return recovery(train(stream, [spec], plan)[0].dictionary, stream.planted, HELD, HELD_SEED).json()


def peer(stream: Filed, folder: Path, python: str, library: str, method: str, width: int, k: int, seed: int) -> dict[str, Any]:
    """One of a peer's, in its own interpreter."""
    sample = stream.planted.sample(HELD, HELD_SEED)
    np.save(folder / "held.npy", sample.acts.numpy())
    out = folder / "out.npz"
    script = Path(__file__).with_name("synthetic_peer.py")
    words = [python, str(script), library, method, *(str(folder / name) for name in ("stream.npy", "held.npy", "out.npz")),
             str(width), str(k), str(seed)]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{library} {method}: {done.stderr.strip().splitlines()[-1:]}")
    with np.load(out) as file:
        parts = [torch.tensor(file[name]) for name in ("directions", "codes", "found")]
    out.unlink()
    return compared(stream.planted, sample, *parts).json()


def jobs(arguments: argparse.Namespace) -> Iterator[tuple[str, str, str, int]]:
    """(world, tool, method, seed), worlds together."""
    wanted = arguments.methods.split(",") if arguments.methods else None
    for world in arguments.worlds.split(","):
        for seed in range(arguments.seeds):
            for tool, methods in {"Assay": tuple(OURS), **{name: PEERS[name] for name in arguments.peers}}.items():
                if arguments.tools and tool not in arguments.tools.split(","):
                    continue
                yield from ((world, tool, method, seed) for method in methods if wanted is None or method in wanted)


def main() -> None:
    """All that was asked for; results are kept as they come."""
    arguments = parsed()
    torch.set_num_threads(1)
    kept = Path(arguments.json)
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["world"], row["tool"], row["method"], row["seed"]) for row in rows if row["steps"] == arguments.steps}
    left = [job for job in jobs(arguments) if job not in done]
    for name in dict.fromkeys(job[0] for job in left):
        world, width, k = WORLDS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            stream = Filed(PlantedFeatures(world), folder / "stream.npy", arguments.steps)
            for _, tool, method, seed in (job for job in left if job[0] == name):
                began = time.perf_counter()
                try:
                    scores = (ours(stream, method, width, k, seed) if tool == "Assay" else
                              peer(stream, folder, arguments.peers[tool], tool, method, width, k, seed))  # fmt: skip
                except RuntimeError as error:  # a peer that cannot run here is missing from the table, and said to be
                    sys.stderr.write(f"not measured: {error}\n")
                    continue
                row = {"world": name, "tool": tool, "method": method, "seed": seed, "steps": arguments.steps,
                       "seconds": time.perf_counter() - began, **scores}  # fmt: skip
                rows.append(row)
                with kept.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                sys.stderr.write(line_of(row) + "\n")
    text = tables([row for row in rows if row["steps"] == arguments.steps], arguments)
    sys.stdout.write(text)
    if arguments.update_docs:
        update_docs(text)


def line_of(row: Mapping[str, Any]) -> str:
    """For stderr."""
    scores = " ".join(f"{name} {row[name]:.3f}" for name in SHOWN if row[name] is not None)
    return f"{row['world']} {row['tool']} {row['method']} seed {row['seed']}: {scores} ({row['seconds']:.0f} s)"


def tables(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """One table a world: mean over seeds, with the range where there are several."""
    tools = {row["tool"] for row in rows} - {"Assay"}
    said = f"with `--peer` for {', '.join(sorted(tools))}" if tools else "without peers, which were not measured"
    parts = [f"`python benchmarks/synthetic_dictionaries.py --seeds {arguments.seeds}`, {said}:"
             f" {arguments.steps} steps of {BATCH} tokens; torch {torch.__version__}."]  # fmt: skip
    for name in dict.fromkeys(row["world"] for row in rows):
        world, width, k = WORLDS[name]
        shown = [key for key in SHOWN if any(row[key] is not None for row in rows if row["world"] == name)]
        parts.append(f"**{name}**: {world.n_features} features in {world.width} dimensions, {width} latents, k = {k}.")
        lines = ["| tool, method | seeds | " + " | ".join(shown) + " |", "|---|" + "---|" * (1 + len(shown))]
        own = [row for row in rows if row["world"] == name]
        for tool, method in dict.fromkeys((row["tool"], row["method"]) for row in own):
            same = [row for row in own if (row["tool"], row["method"]) == (tool, method)]
            cells = [_cell([row[key] for row in same if row[key] is not None]) for key in shown]
            lines.append(f"| {tool} {method} | {len(same)} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ±{statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def update_docs(text: str, path: Path = DOCS) -> None:
    """Replace what stands between the markers. Raises ValueError where they are missing."""
    whole = path.read_text()
    if BEGIN not in whole or END not in whole:
        raise ValueError(f"{path}: no markers {BEGIN} and {END}")
    before, after = whole.split(BEGIN)[0], whole.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--methods", default="", help="comma-separated; default: all")
    parser.add_argument("--tools", default="", help="comma-separated: Assay and peers; default: all")
    parser.add_argument("--peer", action="append", default=[], metavar="TOOL=PYTHON", help=", ".join(PEERS))
    parser.add_argument("--json", default="synthetic_dictionaries.jsonl")
    parser.add_argument("--update-docs", action="store_true")
    found = parser.parse_args()
    found.peers = dict(each.split("=", 1) for each in found.peer)
    if unknown := [name for name in found.peers if name not in PEERS] + [w for w in found.worlds.split(",") if w not in WORLDS]:
        parser.error(f"not known: {', '.join(unknown)}; peers: {', '.join(PEERS)}; worlds: {', '.join(WORLDS)}")
    return found


if __name__ == "__main__":
    main()
