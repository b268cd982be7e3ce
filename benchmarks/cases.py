"""The cases: Assay, a base run and the peers doing one job each, checked before they are timed.

The base run is what a ratio divides by: the least work the job needs (capture, sweep), what one would
write without a tool (heads, generation), or one plain forward pass (attribution).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from inputs import HeadsInput, SweepInput, generation_input, heads_input, random_ids, sampled, sweep_input
from limits import SweepFloor, truncated
from peers import Peer, PlainHooks, plain_generate
from timing import Ratio, interleaved
from torch import Tensor

from assay import Model, PatchPlan, add, patch_sweep
from assay.records import PatchResult

TOLERANCE = 1e-4  # of the largest value compared, wherever bit-equality is not asked for
Run = Callable[[], Any]
Variant = tuple[str, str]  # peer, and which of its ways


@dataclass(frozen=True, eq=False)
class Case:
    """Runs to compare. `check` raises AssertionError where their numbers differ."""

    name: str
    base_name: str
    target: float
    base: Run
    ours: Run
    peers: dict[Variant, Run]
    check: Callable[[], None]
    rounds: int


@dataclass(frozen=True)
class Row:
    """A measured case. `base_seconds` is CPU time."""

    case: str
    base: str
    target: float
    rounds: int
    base_seconds: float
    ours: Ratio
    peers: dict[Variant, Ratio]


def measure(case: Case) -> Row:
    """Check the case, then time it."""
    case.check()
    runs: dict[Variant, Run] = {("base", ""): case.base, ("Assay", ""): case.ours, **case.peers}
    found = interleaved(runs, ("base", ""), case.rounds)
    peers = {key: found[key] for key in case.peers}
    return Row(case.name, case.base_name, case.target, case.rounds,
               found["base", ""].seconds, found["Assay", ""], peers)  # fmt: skip


def require_close(what: str, got: Tensor, want: Tensor) -> None:
    """Raises AssertionError, saying by how much, where two tools do not give the same numbers."""
    if got.shape != want.shape:
        raise AssertionError(f"{what}: shape {tuple(got.shape)} instead of {tuple(want.shape)}")
    error = float((got - want).abs().max() / want.abs().max())
    if not error <= TOLERANCE:
        raise AssertionError(f"{what}: numbers differ by {error:.2g} of the largest; allowed: {TOLERANCE:g}")


def capture(model: Model, peers: list[Peer], quick: bool) -> Case:
    """A middle layer's residual stream of 8 x 128 tokens."""
    layer, ids = model.n_layers // 2, random_ids(model, 8, min(128, model.hf.config.max_position_embeddings))
    site = f"resid_post.{layer}"
    runs = _runs(peers, "capture", ids, layer)

    def check() -> None:
        want = truncated(model.hf, layer + 1, ids)
        if not torch.equal(model.capture(ids, site)[site], want):
            raise AssertionError(f"capture of {site} is not bit-equal to the model's own tensor")
        for name, run in runs.items():
            require_close(f"capture, {name}", run(), want)

    return Case(
        f"capture {site}, 8 x {ids.shape[1]} tokens", "bare model cut after that block", 1 / 0.95,
        lambda: truncated(model.hf, layer + 1, ids), lambda: model.capture(ids, site)[site],
        runs, check, 3 if quick else 15,
    )  # fmt: skip


def sweep(model: Model, peers: list[Peer], quick: bool) -> Case:
    """Layer x position residual patching on one pair; every cell has to be run. Quick: fewer layers."""
    some = sampled(model.n_layers)
    pair = sweep_input(model, some if quick else tuple(range(model.n_layers)))
    n = len(pair.clean)

    def ours(pair: SweepInput = pair) -> PatchResult:
        return patch_sweep(model, pair.task(), PatchPlan(layers=pair.layers, n_bootstrap=10))

    def check() -> None:
        sample = replace(pair, layers=some)
        grid = patched_values(ours(sample))
        cells = [(row, (7 * row + 3 * half) % n) for row in range(len(some)) for half in (0, 1)]
        one_by_one = PlainHooks(model.hf).cells_one_by_one(pair, [(some[row], at) for row, at in cells])
        require_close("sweep, cells one at a time", torch.stack([grid[cell] for cell in cells]), one_by_one)
        require_close("sweep, floor", SweepFloor(model, sample)(), grid)
        for name, run in _runs(peers, "sweep", sample).items():
            require_close(f"sweep, {name}", run(), grid)

    return Case(
        f"residual sweep, {len(pair.layers)} layers x {n} positions, one pair", "cached residuals, later blocks only",
        1.5, SweepFloor(model, pair), ours, _runs(peers, "sweep", pair), check, 1 if quick else 3,
    )  # fmt: skip


def heads(model: Model, peers: list[Peer], quick: bool) -> Case:
    """Exact patching of every head's z. Quick: fewer layers."""
    every = tuple(range(model.n_layers))
    pairs = heads_input(model, sampled(model.n_layers) if quick else every)
    plan = PatchPlan(site="z", layers=pairs.layers, n_bootstrap=10)
    plain, *others = peers
    base = plain.heads(pairs)["one forward a head"]
    runs = _runs(others, "heads", pairs)

    def check() -> None:
        sample = heads_input(model, (every[0], every[-1] // 2, every[-1]))
        ours = patch_sweep(model, sample.task, PatchPlan(site="z", layers=sample.layers, n_bootstrap=10))
        for name, run in _runs(peers, "heads", sample).items():
            require_close(f"heads, {name}", run(), patched_values(ours))

    return Case(
        f"exact sweep, {len(pairs.layers)} layers x {pairs.n_heads} heads, 32 pairs", "plain hooks, one forward a head",
        0.5, base, lambda: patch_sweep(model, pairs.task, plan), runs, check, 1,
    )  # fmt: skip


def attribution(model: Model, peers: list[Peer], quick: bool) -> Case:
    """First-order estimate of the same grid, from public calls, in forward passes of the base prompts."""
    pairs = heads_input(model, tuple(range(model.n_layers)))
    runs = _runs(peers, "attribution", pairs)
    plan = PatchPlan(site="z", method="attribution", n_bootstrap=10)
    runs["Assay", "patch_sweep, with its exact check"] = lambda: patch_sweep(model, pairs.task, plan)

    def check() -> None:
        grid = patched_values(patch_sweep(model, pairs.task, plan))
        require_close("attribution, public calls", estimate(model, pairs)[0], grid)
        for name, run in _runs(peers, "attribution", pairs).items():
            require_close(f"attribution, {name}", run(), grid)

    return Case(
        f"attribution of all heads, {model.n_layers} x {model.n_heads}, 32 pairs", "one forward of the 32 base prompts",
        4.0, lambda: forward(model, pairs), lambda: estimate(model, pairs), runs, check, 2 if quick else 7,
    )  # fmt: skip


def estimate(model: Model, pairs: HeadsInput) -> tuple[Tensor, Tensor]:
    """(layer, head): base metric + gradient . (source - base) of each head's z, mean over pairs; and the
    source's metric, by which effects are normalised."""
    metric, sites = pairs.task.metric(), [f"z.{layer}" for layer in pairs.layers]
    slopes, base, values = model.gradients(pairs.task.corrupted, sites, metric)
    source = model.capture(pairs.task.clean, sites)
    change = [(slopes[site] * (source[site] - base[site])).sum((1, 3)) for site in sites]
    return values.mean() + torch.stack(change).mean(1), model.score(pairs.task.clean, metric)


def generation(model: Model, peers: list[Peer], quick: bool) -> Case:
    """32 greedy tokens with a vector added at a middle layer, against generation without it."""
    job = generation_input(model, model.n_layers // 2)
    edit, runs = add(f"resid_post.{job.layer}", job.vector), _runs(peers, "generation", job)

    def ours() -> list[int]:
        return model.generate(job.ids, max_new_tokens=job.n_tokens, edits=[edit]).tokens[0]

    def check() -> None:
        want = PlainHooks(model.hf).generation(job)["one hook"]()
        plain = plain_generate(model.hf, job)
        if not len(want) == len(plain) == job.n_tokens or want == plain:
            raise AssertionError("generation: the prompt or the vector does not suit, both runs must differ and not end")
        for name, run in {("Assay", ""): ours, **runs}.items():
            if run() != want:
                raise AssertionError(f"generation, {name}: other tokens than generate with a plain hook")

    return Case(
        f"generation, {job.n_tokens} tokens, steering edit", "plain generate, no edit", 1.05,
        lambda: plain_generate(model.hf, job), ours, runs, check, 3 if quick else 15,
    )  # fmt: skip


CASES: dict[str, Callable[[Model, list[Peer], bool], Case]] = {
    "capture": capture, "sweep": sweep, "heads": heads, "attribution": attribution, "generation": generation,
}  # fmt: skip


def patched_values(result: PatchResult) -> Tensor:
    """(layer, column) mean metric under the patch, from the normalised effect (denoising)."""
    return result.corrupted + torch.tensor(result.effect) * (result.clean - result.corrupted)


def forward(model: Model, pairs: HeadsInput) -> Tensor:
    """One plain forward pass of the base prompts, logits of all positions as by default."""
    with torch.no_grad():
        return model.hf(input_ids=pairs.corrupted, attention_mask=pairs.mask, use_cache=False).logits


def _runs(peers: list[Peer], job: str, *arguments: Any) -> dict[Variant, Run]:
    return {(peer.label, name): run for peer in peers for name, run in getattr(peer, job)(*arguments).items()}
