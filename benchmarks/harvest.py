"""What harvesting costs beside the passes it cannot do without.

    python benchmarks/harvest.py                    smollm2-135m, 8,192 tokens of the brown corpus, one thread, three rounds
    python benchmarks/harvest.py --quick            glass-en, 8,192 tokens, one round: a look, not a result
    python benchmarks/harvest.py --site resid_post.29 --tokens 4096 --peer .venv-peers/bin/python

1. `forward`: the same rows in the same batches (sorted by length, padded on the right) through the plain Hugging Face
   module, its layers cut off after the one that is read, no logits; each output is copied out of the pass. Nothing else.
2. `harvest`: `assay.features.harvest` from packed rows to finished shards: passes, norms, massive positions, sums, fp16,
   safetensors, SHA-256, manifest. `stream`: `LiveStream` over the same rows, in batches of 2,048 in fp32.
3. Before anything is timed: what the shards hold is what `forward` saw, to the precision of fp16.
4. Runs take turns in one process (`timing.py`); a ratio divides times of one round; medians over rounds. Speed relative to
   `forward` is 1 / (CPU ratio). The limits of norms are measured before, as a resumed harvest finds them in its manifest.
5. `--peer PYTHON`, an interpreter with SAELens: its `ActivationsStore` on the same tokens, cut into rows of one length, beside
   bare passes over them in that interpreter (`harvest_peer.py`); it writes nothing. Without it the table says so.
"""

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environment

TARGET = 0.9  # of the speed of the bare passes
CONTEXT = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where numbers differ or the target is missed."""
    options = _options(arguments)
    environment.prepare()
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as work:
        record = measure(options, Path(work))
    sys.stdout.write(_table(record))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return 0 if record["runs"]["harvest"]["speed"] >= TARGET else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Harvest speed beside bare truncated passes.")
    parser.add_argument("--model", help="default: smollm2-135m, with --quick glass-en")
    parser.add_argument("--corpus", default="brown")
    parser.add_argument("--site", default=None, help="a resid_post site; default: of the middle layer")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the small model, one round")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has SAELens")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured here")
    options = parser.parse_args(arguments)
    options.model = options.model or ("glass-en" if options.quick else "smollm2-135m")
    options.rounds = 1 if options.quick else options.rounds
    return options


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All runs, checked and timed."""
    from timing import interleaved

    from assay import load_model
    from assay.features.harvest import HarvestPlan, LiveStream, harvest, training_part
    from assay.features.massive import measure_limits
    from assay.features.passes import _groups, storable
    from assay.features.shards import Shards

    model = load_model(options.model)
    site = options.site or f"resid_post.{model.n_layers // 2}"
    context = min(CONTEXT, model.hf.config.max_position_embeddings)
    corpus = training_part(options.corpus, 0.05)
    stream = LiveStream(model, corpus, site, options.tokens, context)
    rows = [stream.rows.tokens(row).copy() for row in range(len(stream.rows))]
    groups = _groups(model, rows, storable(model, site), [len(row) for row in rows])
    limits = measure_limits(model, stream.rows, storable(model, site))
    plan = HarvestPlan(tokens=options.tokens, context=context)
    bare = Bare(model, rows, groups, int(site.split(".")[1]))

    def write() -> None:
        shutil.rmtree(work / "out", ignore_errors=True)
        (work / "out").mkdir()
        (work / "out" / "manifest.json").write_text(begun)
        harvest(model, corpus, site, work / "out", plan)

    def read() -> None:
        for _ in itertools.islice(stream.batches(2048), max(1, stream.n_tokens // 2048)):
            pass

    first = harvest(model, corpus, site, work / "first", plan).manifest
    begun = json.dumps({**first, "status": "running", "shards": [], "limits": limits.json()})
    error = compare(bare(), {text.number: text.values[site] for text in Shards(work / "first").rows()})
    write()
    ratios = interleaved({"forward": bare, "harvest": write, "stream": read}, "forward", options.rounds)
    tokens = stream.rows.n_tokens
    runs = {name: {"speed": 1 / ratio.cpu, "low": 1 / ratio.cpu_high, "high": 1 / ratio.cpu_low, "wall": 1 / ratio.wall,
                   "tokens_per_cpu_second": tokens / ratio.seconds} for name, ratio in ratios.items()}  # fmt: skip
    there = peer(options, model, rows, context, int(site.split(".")[1]), work) if options.peer else None
    if there:
        runs[f"SAELens {there['version']}, ActivationsStore"] = there["run"]
    return {"model": options.model, "corpus": options.corpus, "site": site, "tokens": tokens, "rows": len(rows),
            "rounds": options.rounds, "threads": options.threads, "relative_error": error, "target": TARGET, "runs": runs,
            "peer": there}  # fmt: skip


class Bare:
    """The passes, on the plain module with the layers after `layer` taken out while it runs."""

    def __init__(self, model: Any, rows: list[Any], groups: list[list[int]], layer: int) -> None:
        import torch

        self.base, self.layer = model.hf.model, layer
        self.batches = []
        for group in groups:
            width = max(len(rows[row]) for row in group)
            ids = torch.full((len(group), width), model.pad_id)
            for place, row in enumerate(group):
                ids[place, : len(rows[row])] = torch.from_numpy(rows[row].astype("int64"))
            lengths = torch.tensor([len(rows[row]) for row in group])
            self.batches.append((group, ids, (torch.arange(width) < lengths[:, None]).long()))

    def __call__(self) -> dict[int, Any]:
        import torch

        layers, kept = self.base.layers, {}
        handle = layers[self.layer].register_forward_hook(lambda m, a, out: kept.update(now=out))
        try:
            self.base.layers = layers[: self.layer + 1]
            found = {}
            for group, ids, mask in self.batches:
                with torch.no_grad():
                    self.base(input_ids=ids, attention_mask=mask, use_cache=False)
                out = kept["now"][0] if isinstance(kept["now"], tuple) else kept["now"]
                for place, row in enumerate(group):
                    found[row] = out[place, : int(mask[place].sum())].clone()
            return found
        finally:
            self.base.layers = layers
            handle.remove()


def compare(wanted: dict[int, Any], found: dict[int, Any]) -> float:
    """Largest difference in units of each token's largest value; ends the run where it is no rounding of fp16."""
    if sorted(wanted) != sorted(found):
        raise SystemExit("the shards hold other rows than were run")
    error = max(float(((found[row].float() - x).abs().amax(1) / x.abs().amax(1)).max()) for row, x in wanted.items())
    if error > 2e-3:
        raise SystemExit(f"what the shards hold differs from the passes by {error:.1e}")
    return error


def peer(options: argparse.Namespace, model: Any, rows: list[Any], context: int, layer: int, work: Path) -> dict[str, Any]:
    """What `harvest_peer.py` says in another interpreter, with its speed against the bare passes there."""
    import numpy as np

    ids = np.concatenate(rows)
    np.save(work / "rows.npy", ids[: len(ids) // context * context].reshape(-1, context))
    model.hf.save_pretrained(work / "model")
    model.tokenizer.save_pretrained(work / "model")
    command = [options.peer, str(Path(__file__).with_name("harvest_peer.py")), work / "model", work / "rows.npy", layer,
               options.rounds, options.threads]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"harvest_peer.py ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["relative_error"] > 1e-4:
        raise SystemExit(f"the store differs from the passes by {found['relative_error']:.1e}")
    cpu, wall = ([a[at] / b[at] for a, b in zip(found["bare"], found["store"], strict=True)] for at in range(2))
    each = statistics.median(1 / store[0] for store in found["store"])
    found["run"] = {"speed": statistics.median(cpu), "low": min(cpu), "high": max(cpu), "wall": statistics.median(wall),
                    "tokens_per_cpu_second": each}  # fmt: skip
    return found


def _table(record: dict[str, Any]) -> str:
    where = f"{record['model']}, {record['site']}, {record['tokens']:,} tokens of {record['corpus']} in {record['rows']} rows"
    how = f"{record['threads']} thread, {record['rounds']} rounds"
    head = f"{where}, {how}; shards equal the passes to {record['relative_error']:.0e}\n\n"
    lines = ["| run | speed of the bare passes, CPU | lowest to highest | wall | tokens per CPU second |"]
    lines.append("|---|---|---|---|---|")
    for name, run in record["runs"].items():
        lines.append(f"| {name} | {run['speed']:.2f} | {run['low']:.2f} to {run['high']:.2f} | {run['wall']:.2f} |"
                     f" {run['tokens_per_cpu_second']:,.0f} |")  # fmt: skip
    missing = "" if record["peer"] else " SAELens was not run beside it (--peer)."
    return head + "\n".join(lines) + f"\n\nTarget: harvest at {record['target']} or more.{missing}\n"


if __name__ == "__main__":
    sys.exit(main())
