"""Engine speed against the physical limit, interleaved in one process; ratios of CPU and wall time.

Prints a Markdown table (docs/benchmarks.md is its output). Run: .venv/bin/python benchmarks/engine.py
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch

from assay import PatchPlan, add, load_model, load_task, patch_sweep, prepare
from assay.data.prepare import PreparedTask
from assay.records import Pair

ROUNDS = 5


def ratio(ours: Callable[[], object], limit: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Median ratio ours / limit in CPU time and in wall time; the two alternate."""
    ours(), limit()
    cpu, wall = [], []
    for _ in range(rounds):
        times = []
        for run in (ours, limit):
            start = time.process_time(), time.perf_counter()
            run()
            times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
        cpu.append(times[0][0] / times[1][0])
        wall.append(times[0][1] / times[1][1])
    return statistics.median(cpu), statistics.median(wall)


def capture(model) -> tuple[float, float]:
    """resid_post.15 of 8 x 128 tokens against the bare HF module cut after layer 15."""
    ids = torch.randint(20, 40000, (8, 128), generator=torch.Generator().manual_seed(0))
    trunk, layers = model.hf.model, model.hf.model.layers

    def limit():
        trunk.layers, norm = layers[:16], trunk.norm
        trunk.norm, trunk.config.num_hidden_layers = torch.nn.Identity(), 16
        try:
            with torch.no_grad():
                return trunk(input_ids=ids, use_cache=False).last_hidden_state
        finally:
            trunk.layers, trunk.norm, trunk.config.num_hidden_layers = layers, norm, len(layers)

    def ours():
        return model.capture(ids, "resid_post.15")["resid_post.15"]

    assert torch.equal(ours(), limit()), "capture is not bit-equal to the model's own tensor"
    return ratio(ours, limit)


def sweep(model) -> tuple[float, float]:
    """Layer x position on one pair that differs from the first token on, so no cell is skipped."""
    pair = prepare(load_task("ioi", n=1), model)
    clean, corrupted = pair.clean[0][:16], [21] + pair.corrupted[0][1:16]
    task = PreparedTask([Pair("", "", (), (), "")], [clean], [corrupted], pair.answers, pair.foils, {}, {}, {})
    metric = task.metric()
    residuals = model.capture([corrupted], "resid_post.*")
    trunk, head = model.hf.model, model.hf.lm_head
    n = len(clean)

    def limit():
        with torch.no_grad():
            rows = torch.tensor([corrupted] * n)
            positions = trunk.rotary_emb(residuals["resid_post.0"], torch.arange(n)[None])
            for layer in range(model.n_layers):
                x = residuals[f"resid_post.{layer}"].expand(n, -1, -1).clone()
                for block in trunk.layers[layer + 1 :]:
                    x = block(x, position_embeddings=positions)
                metric(head(trunk.norm(x[:, -1])), torch.zeros(len(rows), dtype=torch.long))

    return ratio(lambda: patch_sweep(model, task, PatchPlan(n_bootstrap=10)), limit, rounds=2)


def generation(model) -> tuple[float, float]:
    """32 greedy tokens with a vector added at resid_post.15, against plain HF generate."""
    ids = torch.tensor(model.tokens("Once upon a time there was a small village by the sea"))
    edit = add("resid_post.15", torch.full((model.dims.d_model,), 1e-3))
    eos = model.hf.generation_config.eos_token_id

    def limit():
        return model.hf.generate(ids, max_new_tokens=32, do_sample=False, pad_token_id=0, eos_token_id=eos)

    return ratio(lambda: model.generate(ids, max_new_tokens=32, edits=[edit]), limit)


def main() -> None:
    model = load_model("smollm2-135m")
    lines = ["| case | CPU ratio to the limit | wall ratio | target |", "|---|---|---|---|"]
    for name, run, target in (
        ("capture resid_post.15, 8 x 128 tokens", capture, "1.05"),
        ("layer x position sweep, one pair, every cell run", sweep, "1.5"),
        ("generation, 32 tokens, steering edit", generation, "1.05"),
    ):
        cpu, wall = run(model)
        lines.append(f"| {name} | {cpu:.2f} | {wall:.2f} | {target} |")
        sys.stderr.write(lines[-1] + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
