"""Attribution graphs: what one costs, and that its numbers are right, with transcoders at every layer of smollm2-135m.

    python benchmarks/trace.py                    10 tokens, 30 transcoders of 400 latents, 16 and 32 of them active
    python benchmarks/trace.py --tokens 10 30     longer prompts
    python benchmarks/trace.py --quick            one size

1. Transcoders are random (of the size and sparsity of trained ones): what is measured is time, not what they explain.
2. Before a time counts: for every target, effects and biases add up to what the model computed (`completeness_error`).
3. CPU seconds of this process and wall seconds; `flops`: of the products that the way down cannot do without (value and
   output projections for every target at every token before it), and what that is per CPU second.
Target: a graph of 10 tokens under 60 s on two cores; judged by CPU seconds, which other programs hardly change.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environment

MODEL, WIDTH, ACTIVE, MOST = "smollm2-135m", 400, (16, 32), 60.0
TEXT = "The capital of the state that contains Dallas is a city whose name is known to everybody who has been there"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 when a graph is wrong or 10 tokens took too long."""
    parser = argparse.ArgumentParser(description="Cost of attribution graphs.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[10], help="lengths of the prompt")
    parser.add_argument("--quick", action="store_true", help="one size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured here")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    options = parser.parse_args(arguments)
    environment.prepare()
    import torch

    from assay import load_model

    torch.set_num_threads(options.threads)
    model = load_model(MODEL)
    model.passport()  # its digest: what a first call makes and later ones keep
    rows = []
    for active in ACTIVE[: 1 if options.quick else None]:
        dictionaries = made(model, active)
        for tokens in options.tokens:
            rows.append(measured(model, dictionaries, active, tokens))
            sys.stderr.write(json.dumps(rows[-1]) + "\n")
    found = {"versions": environment.versions(), "threads": options.threads, "model": MODEL, "width": WIDTH, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    sys.stdout.write(markdown(found))
    slow = [row for row in rows if row["tokens"] <= 10 and row["cpu"] > MOST]
    return 1 if slow or any(row["completeness_error"] > 1e-4 for row in rows) else 0


def made(model: Any, active: int) -> list[Any]:
    """A random transcoder for each layer."""
    import torch

    from assay.features.dictionary import Spec, make_dictionary

    out, d = [], model.dims.d_model
    for layer in range(model.n_layers):
        spec = Spec("topk", WIDTH, d, d, k=active, inputs=(f"mlp_in.{layer}",), outputs=(f"mlp_out.{layer}",), centred=False)
        dictionary = make_dictionary(spec, f"random-{layer}")
        generator = torch.Generator().manual_seed(layer)
        x = torch.randn(512, d, generator=generator)
        dictionary.start(x, x, generator)
        out.append(dictionary.requires_grad_(False))
    return out


def measured(model: Any, dictionaries: list[Any], active: int, tokens: int) -> dict[str, Any]:
    """One graph and its pruning."""
    from assay.circuits.trace import trace

    ids = (model.tokens(TEXT)[0] * 20)[:tokens]
    cpu, wall = time.process_time(), time.perf_counter()
    graph = trace(model, ids, dictionaries)
    spent, took = time.process_time() - cpu, time.perf_counter() - wall
    small = graph.prune()
    dims, flops = model.dims, 0.0
    each = 2 * dims.d_model * (dims.n_heads + dims.n_kv_heads) * dims.d_head
    for node in graph.nodes:
        if node.kind in ("latent", "logit"):
            flops += each * (node.position + 1) * (dims.n_layers if node.layer is None else node.layer + 1)
    scores = graph.scores
    return {"active": active, "tokens": tokens, "latents": scores["traced_latents"], "active_latents": scores["active_latents"],
            "nodes": len(graph.nodes), "kept_nodes": len(small.nodes), "kept_edges": small.n_edges, "cpu": round(spent, 2),
            "wall": round(took, 2), "gflops": round(flops / 1e9, 1), "gflops_per_cpu_s": round(flops / 1e9 / spent, 1),
            "completeness_error": scores["completeness_error"]}  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    """A table."""
    head = ["active", "tokens", "latents", "nodes", "cpu", "wall", "gflops", "gflops_per_cpu_s", "completeness_error"]
    lines = [f"{found['model']}, transcoders of {found['width']} latents at every layer, {found['threads']} threads", "",
             "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]  # fmt: skip
    lines += ["| " + " | ".join(f"{row[key]:.3g}" if isinstance(row[key], float) else str(row[key]) for key in head) + " |"
              for row in found["rows"]]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
