"""Steering: what it costs to generate under a direction, and sixteen strengths in one batch against sixteen runs.

    python benchmarks/steering.py
    python benchmarks/steering.py --model DIR --rounds 9 --only generate

1. Generate: greedy continuations of a few ragged prompts with the KV cache, unsteered (base), by the model's own `generate`,
   and steered in every way. The dose is so small that the tokens stay what they are, so all runs do the same work: what is
   measured is the edit. Runs take turns in one process; ratios of CPU times of one round, medians over rounds.
2. Strengths: one prompt at sixteen strengths as one batch of sixteen rows, against sixteen runs of one row.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environment
from timing import interleaved

PARTS = ("generate", "strengths")
PROMPTS = (
    "The weather in the north of the country has been", "My sister told me that the new restaurant near the station is",
    "Scientists have found", "When the committee met again in the spring, most of its members thought that the plan",
)  # fmt: skip
DOSE = 1e-6
STRENGTHS = tuple(round(-0.4 + 0.05 * n, 2) for n in range(16))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and print Markdown."""
    options = _options(arguments)
    environment.prepare()
    import torch

    from assay import load_model

    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    direction = random_direction(model, options.layer)
    found: dict[str, Any] = {"versions": environment.versions(), "model": options.model, "threads": options.threads,
                             "new": options.new, "site": direction.site, "rounds": options.rounds}  # fmt: skip
    for part in options.only or PARTS:
        found[part] = globals()[f"measure_{part}"](model, direction, options)
    sys.stdout.write(markdown(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))
    return 0


def _options(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layer", type=int, help="default: the middle one")
    parser.add_argument("--new", type=int, default=24, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--json")
    return parser.parse_args(arguments)


def random_direction(model: Any, layer: int | None) -> Any:
    """A direction at the end of a layer."""
    import torch

    from assay.steer.directions import from_vector

    numbers = torch.randn(model.dims.d_model, generator=torch.Generator().manual_seed(0))
    return from_vector(model, numbers, f"resid_post.{model.n_layers // 2 if layer is None else layer}")


def measure_generate(model: Any, direction: Any, options: Any) -> list[dict[str, Any]]:
    """CPU and wall time of every way to steer over that of no steering."""
    from assay.steer.apply import Steering, edits, residual_norm

    norm = residual_norm(model, direction.site, list(PROMPTS))
    tokens = model.tokens(list(PROMPTS))
    ways = {
        "add": Steering(direction, "add", DOSE),
        "add, a strength per row": Steering(direction, "add", [DOSE, -DOSE, 2 * DOSE, -2 * DOSE]),
        "add, generated only": Steering(direction, "add", DOSE, phase="generated"),
        "project out": Steering(direction, "project_out", DOSE),
        "cap": Steering(direction, "cap", 10.0),
        "add, on a condition": Steering(direction, "add", DOSE, condition=direction, threshold=0.0),
    }
    chosen: dict[str, list[Any]] = {"unsteered": []} | {name: edits(way, norm) for name, way in ways.items()}

    def run(name: str) -> Any:
        return model.generate(tokens, max_new_tokens=options.new, edits=chosen[name])

    plain = run("unsteered")
    for name in chosen:
        if run(name).tokens != plain.tokens:
            raise SystemExit(f"{name}: the tokens differ from unsteered ones, so the work is not the same. Take another layer.")
    own = own_generate(model, tokens, options)
    own()
    runs = {name: lambda name=name: run(name) for name in chosen} | {"the model's own generate": own}
    made = sum(map(len, plain.tokens))
    return [{"way": name, "tokens_per_second": made / ratio.seconds, **vars(ratio)}
            for name, ratio in interleaved(runs, "unsteered", options.rounds).items()]  # fmt: skip


def own_generate(model: Any, tokens: list[list[int]], options: Any) -> Any:
    """The same batch through `transformers` alone."""
    import torch

    width = max(map(len, tokens))
    ids = torch.tensor([[model.pad_id] * (width - len(row)) + row for row in tokens])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in tokens])

    def run() -> Any:
        with torch.no_grad():
            return model.hf.generate(ids, attention_mask=mask, max_new_tokens=options.new, do_sample=False,
                                     pad_token_id=model.pad_id, temperature=None, top_p=None, top_k=None)  # fmt: skip

    return run


def measure_strengths(model: Any, direction: Any, options: Any) -> list[dict[str, Any]]:
    """Sixteen strengths as one batch, and one by one."""
    from assay.steer.apply import Steering, edits, residual_norm, sweep

    norm = residual_norm(model, direction.site, list(PROMPTS))
    prompts, per_row = sweep(model.tokens(PROMPTS[0]), STRENGTHS)
    together = edits(Steering(direction, "add", per_row), norm)
    alone = [edits(Steering(direction, "add", strength), norm) for strength in STRENGTHS]

    def one_batch() -> list[list[int]]:
        return model.generate(prompts, max_new_tokens=options.new, edits=together).tokens

    def one_by_one() -> list[list[int]]:
        return [model.generate(prompts[:1], max_new_tokens=options.new, edits=own).tokens[0] for own in alone]

    same = sum(a == b for a, b in zip(one_batch(), one_by_one(), strict=True))
    ratios = interleaved({"one by one": one_by_one, "one batch": one_batch}, "one by one", options.rounds)
    return [{"way": name, "same_texts": same, **vars(ratio)} for name, ratio in ratios.items()]


def markdown(found: dict[str, Any]) -> str:
    """The tables."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [f"{found['model']}, {found['site']}, {found['new']} new tokens, {found['threads']} thread(s), medians of"
             f" {found['rounds']} rounds; {versions}."]  # fmt: skip
    if rows := found.get("generate"):
        lines += ["", f"| {len(PROMPTS)} prompts | tokens a CPU second | CPU ratio (range) | wall ratio |", "|---|---|---|---|"]
        lines += [f"| {r['way']} | {r['tokens_per_second']:.1f} | {r['cpu']:.3f} ({r['cpu_low']:.3f} to {r['cpu_high']:.3f})"
                  f" | {r['wall']:.3f} |" for r in rows]  # fmt: skip
    if rows := found.get("strengths"):
        lines += ["", f"| {len(STRENGTHS)} strengths | CPU s | CPU ratio (range) | wall ratio |", "|---|---|---|---|"]
        lines += [f"| {r['way']} | {r['seconds']:.2f} | {r['cpu']:.3f} ({r['cpu_low']:.3f} to {r['cpu_high']:.3f})"
                  f" | {r['wall']:.3f} |" for r in rows]  # fmt: skip
        lines += ["", f"{rows[0]['same_texts']} of {len(STRENGTHS)} texts are the same token by token in both."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
