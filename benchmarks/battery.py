"""The battery of one *mediates* claim: how fast the random circuits are, and how long all of it takes.

    python benchmarks/battery.py            smollm2-135m, 99 random circuits, the default battery
    python benchmarks/battery.py --quick    glass-en, few circuits, a small claim: a look, not a result

1. The base run is what one writes by hand: per random circuit one forward pass of all prompts, padded to one
   length, with plain hooks that write the stored values; all layers, logits as the model gives them.
2. Both give the metric of every prompt under every circuit; they must agree before anything is timed.
3. They take turns in one process (`timing.py`); the base runs on fewer circuits, its time is per circuit.
4. The battery: tune, confirm (20 templates x 10 prompts) and ood of one claim, from lock to verdict, in seconds.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Size:
    """What is measured. `by_hand`: circuits that the base run does per turn."""

    model: str
    sites: str
    pairs: int
    draws: int
    by_hand: int
    rounds: int
    confirm: int
    ood: int
    control_pairs: int


FULL = Size("smollm2-135m", "z.9.3,z.12.1,z.14.6,z.16.0,z.18.4,z.20.7", 20, 99, 9, 3, 200, 64, 1)
QUICK = Size("glass-en", "z.1.0,z.2.1", 8, 20, 5, 2, 40, 20, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when the numbers agree."""
    options = _options(arguments)
    environment.prepare()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    size = QUICK if options.quick else FULL
    results: dict[str, Any] = {"versions": environment.versions(), "threads": torch.get_num_threads(), "model": size.model}
    try:
        results["controls"] = controls(size)
        if not options.only_controls:
            results["battery"] = battery(size)
    except AssertionError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(_markdown(size, results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of random-circuit controls and of a whole claim.")
    parser.add_argument("--quick", action="store_true", help="a small model and few circuits: a look, not a result")
    parser.add_argument("--only-controls", action="store_true", help="leave the whole claim out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured here")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own)")
    return parser.parse_args(arguments)


def controls(size: Size) -> dict[str, Any]:
    """Batched random circuits against one forward pass per circuit: restoring, then resample ablation."""
    from timing import interleaved

    from assay import load_model, load_task, prepare
    from assay.evidence.circuits_instrument import Instrument, Setup, site_means
    from assay.evidence.mediates import all_units, random_sets, units_of

    model = load_model(size.model)
    task = prepare(load_task("ioi", "confirm", size.pairs, 0), model)
    units, pool = units_of(model, size.sites), all_units(model, "z")
    sets, _ = random_sets(pool, units, size.draws, 0)
    setup = Setup(units, tuple(unit for unit in pool if unit not in units), tuple(sets),
                  site_means(model, task.clean, units), "logit_diff", "all", size.pairs)  # fmt: skip
    found: dict[str, Any] = {"draws": len(sets), "prompts": len(task), "by_hand": size.by_hand}
    for how in ("restore", "resample"):
        hand = ByHand(model, task, how)
        some = sets[:: -(-len(sets) // size.by_hand)][: size.by_hand]

        def ours(how: str = how) -> list[list[float]]:
            return Instrument(model, task, list(range(len(task))), setup).many(sets, how)  # type: ignore[return-value]

        def theirs(hand: "ByHand" = hand, some: Sequence[Any] = some) -> Any:
            return [hand(units) for units in some]

        got, want = torch_of(ours()), torch_of(theirs())
        error = float((got[[sets.index(one) for one in some]] - want).abs().max() / want.abs().max())
        if error > TOLERANCE:
            raise AssertionError(f"{how}: numbers differ by {error:.2g} of the largest; allowed: {TOLERANCE:g}")
        ratios = interleaved({"by hand": theirs, "batched": ours}, "by hand", size.rounds)
        scale = len(sets) / len(some)  # circuits of ours per circuit of theirs
        mine, base = (ratios[name] for name in ("batched", "by hand"))
        found[how] = {"error": error, "faster_cpu": scale / mine.cpu, "faster_wall": scale / mine.wall,
                      "faster_cpu_range": [scale / mine.cpu_high, scale / mine.cpu_low],
                      "seconds_batched": mine.seconds, "seconds_by_hand": base.seconds * scale}  # fmt: skip
    return found


class ByHand:
    """One circuit: hooks on the output projections of its layers, one padded forward pass of all prompts."""

    def __init__(self, model: Any, task: Any, how: str) -> None:
        import torch

        self.torch, self.hf, self.size = torch, model.hf, model.dims.d_head
        base, source = (task.corrupted, task.clean) if how == "restore" else (task.clean, task.corrupted)
        self.last = torch.tensor([len(ids) - 1 for ids in base])
        self.base, self.mask = _padded(torch, base)
        self.answers, self.foils = (torch.tensor([ids[0] for ids in side]) for side in (task.answers, task.foils))
        self.values: dict[int, Any] = {}
        handles = [block.self_attn.o_proj.register_forward_pre_hook(self._keeper(layer))
                   for layer, block in enumerate(self.hf.model.layers)]  # fmt: skip
        self._forward(_padded(torch, source)[0])
        for handle in handles:
            handle.remove()

    def __call__(self, units: Sequence[Any]) -> Any:
        """The metric (prompt,) with these heads written."""
        layers = sorted({unit.layer for unit in units})
        handles = [self.hf.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(
            self._writer(layer, [unit.index for unit in units if unit.layer == layer])) for layer in layers]  # fmt: skip
        logits = self._forward(self.base)
        for handle in handles:
            handle.remove()
        rows = self.torch.arange(len(self.last))
        at_end = logits[rows, self.last]
        return at_end[rows, self.answers] - at_end[rows, self.foils]

    def _forward(self, ids: Any) -> Any:
        with self.torch.no_grad():
            return self.hf(input_ids=ids, attention_mask=self.mask, use_cache=False).logits

    def _keeper(self, layer: int) -> Callable[..., None]:
        return lambda module, args: self.values.update({layer: args[0].clone()})

    def _writer(self, layer: int, heads: Sequence[int]) -> Callable[..., Any]:
        def hook(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x = args[0].clone()
            for head in heads:
                part = slice(head * self.size, (head + 1) * self.size)
                x[..., part] = self.values[layer][..., part]
            return (x,)

        return hook


def _padded(torch: Any, prompts: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    width = max(map(len, prompts))
    ids = torch.tensor([list(row) + [0] * (width - len(row)) for row in prompts])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in prompts])
    return ids, mask


def torch_of(values: Any) -> Any:
    """Rows of numbers as a tensor."""
    import torch

    return torch.stack([torch.as_tensor(row, dtype=torch.float32) for row in values])


def battery(size: Size) -> dict[str, Any]:
    """One claim from lock to verdict."""
    from assay import load_model
    from assay.evidence.memory import MemoryStore
    from assay.evidence.run import Settings, state_claim, test_claim
    from assay.evidence.source import Source

    model, store, source = load_model(size.model), MemoryStore(), Source("ioi")
    settings = Settings(confirm=size.confirm, ood=size.ood, draws=size.draws, control_pairs=size.control_pairs)
    cpu, wall = time.process_time(), time.perf_counter()
    claim, plan = state_claim(store, model, source, size.sites, settings=settings)
    stated = time.perf_counter()
    verdict = test_claim(store, claim.id, model)
    return {"state_seconds": stated - wall, "test_seconds": time.perf_counter() - stated,
            "cpu_seconds": time.process_time() - cpu, "verdict": verdict.verdict, "reasons": list(verdict.reasons),
            "templates": {split: found["templates"] for split, found in plan.splits.items()},
            "draws": len(plan.settings["controls"]["random"])}  # fmt: skip


def _markdown(size: Size, results: dict[str, Any]) -> str:
    found = results["controls"]
    lines = [f"{found['draws']} random circuits of {len(size.sites.split(','))} heads, {found['prompts']} prompts,"
             f" {size.model}, {results['threads']} threads", "",
             "| controls | one forward a circuit (CPU s) | batched (CPU s) | faster, CPU | faster, wall | largest difference |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for how in ("restore", "resample"):
        row = found[how]
        low, high = row["faster_cpu_range"]
        lines.append(f"| {how} | {row['seconds_by_hand']:.1f} | {row['seconds_batched']:.1f} | {row['faster_cpu']:.1f}"
                     f" ({low:.1f} to {high:.1f}) | {row['faster_wall']:.1f} | {row['error']:.1g} |")  # fmt: skip
    if claim := results.get("battery"):
        lines += ["", f"One claim, {claim['draws']} circuits, confirm {size.confirm}, ood {size.ood}: stated in"
                  f" {claim['state_seconds']:.0f} s, tested in {claim['test_seconds']:.0f} s"
                  f" ({claim['cpu_seconds']:.0f} CPU s; {claim['verdict']})."]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
