"""Circuits: what attribution, circuit evaluation and an exact head sweep cost beside the passes they cannot do without.

    python benchmarks/circuits.py                  smollm2-135m, 32 pairs of one length, one thread
    python benchmarks/circuits.py --only sweep     one part: attribution, evaluation, sweep, memory, peer
    python benchmarks/circuits.py --quick          four pairs, one round, no 1B model: a look, not a result
    python benchmarks/circuits.py --peer PYTHON    also circuitkit, installed for that interpreter (`circuits_peer.py`)

1. F is one forward pass of all pairs' clean prompts with logits at the last position; FB the same with gradients of the
   summed metric at the embeddings, weights frozen. Both written straight onto the Hugging Face module.
2. What the estimates cannot do without:  EAP = F + FB (corrupted, clean);  EAP-IG with 5 steps = 2 F + 5 FB.
3. Before anything is timed: metrics of clean and corrupted prompts are those of F; the score of the embedding is its
   gradient in FB times its change; all edges kept is the clean run, none the corrupted run.
4. Runs take turns in one process; a ratio divides CPU times of one round; medians over rounds. Circuits are evaluated with
   the corrupted run kept from a call before; per circuit, in F. The head sweep runs whole, once.
5. Memory: each job in a process of its own, with the system's usual allocator. `peak`: largest resident size while the job
   ran; `over weights`: how far that is above the loaded model after a pass of two tokens. Random models of one size and
   different numbers of heads say what a node costs: weights and stream are the same, only nodes and edges grow.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import environment

PARTS = ("attribution", "evaluation", "sweep", "memory", "peer")
PEER_PAIRS = 8
IG_STEPS = 5
TOLERANCE = 1e-4
MB = 1e6
TARGETS = {"EAP": 1.5, "EAP-IG, 5 steps": 1.25, "9 circuits": 2.5, "1 circuit": 2.5, "sweep": 120.0, "peak": 2500.0}
JOBS = ("forward and backward", "EAP", "EAP-IG, 5 steps", "9 circuits")
HEADS = (8, 32, 64)  # of the random 1B model
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Size:
    """What is measured."""

    model: str
    pairs: int
    rounds: int
    jobs: tuple[tuple[str, str], ...]  # (model, job) in processes of their own


FULL = Size("smollm2-135m", 32, 3, (*(("smollm2-135m", job) for job in JOBS),
            *((f"random-1b-{n}", job) for job in JOBS[:2] for n in HEADS),
            *(("random-1b-32", job) for job in JOBS[2:])))  # fmt: skip
QUICK = Size("smollm2-135m", 4, 1, tuple(("smollm2-135m", job) for job in JOBS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 when numbers differ."""
    options = _options(arguments)
    environment.prepare()
    if options.in_process:
        sys.stdout.write(json.dumps(memory_of(*options.in_process)))
        return 0
    import torch

    torch.set_num_threads(options.threads)
    size, wanted = QUICK if options.quick else FULL, options.only or PARTS
    results: dict[str, Any] = {"versions": environment.versions(), "threads": options.threads, "model": size.model}
    try:
        _measure(size, wanted, options.peer, results)
    except AssertionError as error:
        _say(str(error))
        return 1
    sys.stdout.write(markdown(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cost of circuit discovery and evaluation.")
    parser.add_argument("--quick", action="store_true", help="few pairs, one round: a look, not a result")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure this part only; repeat for more")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has circuitkit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured here")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--in-process", nargs=2, metavar=("MODEL", "JOB"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _measure(size: Size, wanted: Sequence[str], peer: str | None, results: dict[str, Any]) -> None:
    if set(wanted) - {"memory"}:
        job = Job.load(size)
        results["pairs"], results["tokens"] = len(job.task), job.ids.shape[1]
        job.check()
        for name, part in (("attribution", attribution), ("evaluation", evaluation), ("sweep", sweep)):
            if name in wanted:
                results[name] = part(job, size.rounds)
                _say(json.dumps(results[name]))
        if peer and "peer" in wanted:
            results["peer"] = compare_with(peer, job)
            _say(json.dumps(results["peer"]))
    if "memory" in wanted:
        results["memory"] = []
        for model, what in size.jobs:
            results["memory"].append(in_own_process(model, what))
            _say(json.dumps(results["memory"][-1]))


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


# the job -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Job:
    """A model, pairs of one length, and the passes everything is compared with."""

    model: Any
    task: Any
    ids: Any
    corrupted: Any
    metric: Any

    @classmethod
    def of(cls, model: Any, task: Any) -> "Job":
        """All weights frozen."""
        import torch

        for parameter in model.hf.parameters():
            parameter.requires_grad_(False)
        return cls(model, task, torch.tensor(task.clean), torch.tensor(task.corrupted), task.metric("logit_diff"))

    @classmethod
    def load(cls, size: Size) -> "Job":
        """Pairs of the bundled IOI task of the length that most have."""
        from assay import load_model, prepare
        from assay.evidence.source import Source

        model = load_model(size.model)
        task = prepare(Source("ioi", None).explore("discover", 300, 0), model)
        lengths = [len(ids) for ids in task.clean]
        common = statistics.mode(lengths)
        rows = [row for row, length in enumerate(lengths) if length == common][: size.pairs]
        assert len(rows) == size.pairs, f"only {len(rows)} pairs of {common} tokens; wanted: {size.pairs}"
        return cls.of(model, task.select(rows))

    def forward(self, ids: Any = None) -> Any:
        """F: the metric of every pair."""
        import torch

        with torch.no_grad():
            hidden = self.model.hf.model(input_ids=self.ids if ids is None else ids, use_cache=False).last_hidden_state
            return self._metric(hidden)

    def backward(self) -> Any:
        """FB: the slope of the summed metric at the clean embeddings."""
        import torch

        with torch.enable_grad():
            start = self.embed(self.ids).requires_grad_(True)
            hidden = self.model.hf.model(inputs_embeds=start, use_cache=False).last_hidden_state
            return torch.autograd.grad(self._metric(hidden).sum(), start)[0]

    def embed(self, ids: Any) -> Any:
        """Embeddings of token ids."""
        return self.model.hf.model.embed_tokens(ids).detach()

    def _metric(self, hidden: Any) -> Any:
        import torch

        return self.metric(self.model.hf.lm_head(hidden[:, -1]), torch.arange(len(self.task)))

    def attribute(self, method: str = "eap", level: str = "edge", steps: int | None = None) -> Any:
        """One plan of Assay."""
        from assay.circuits.attribute import AttributionPlan, attribute

        return attribute(self.model, self.task, AttributionPlan(method, level, steps=steps))

    def bench(self) -> Any:
        """A bench whose corrupted run is kept: it has run one circuit."""
        from assay.circuits.subgraph import Bench

        bench = Bench(self.model, self.task)
        bench.scores([bench.graph.exists])
        return bench

    def check(self) -> None:
        """Metrics, the embedding's score, and both ends of circuit evaluation. AssertionError where they differ."""
        import torch

        clean, corrupted = self.forward().numpy(), self.forward(self.corrupted).numpy()
        found, bench = self.attribute(level="node"), self.bench()
        change = self.embed(self.ids) - self.embed(self.corrupted)
        all_edges, none = bench.graph.exists, torch.zeros_like(bench.graph.exists)
        _same("clean metric", found.clean, clean)
        _same("corrupted metric", found.corrupted, corrupted)
        _same("score of the embedding", found.values[:, 0].numpy(), (self.backward() * change).sum((1, 2)).numpy())
        _same("all edges kept", bench.scores([all_edges])[0], clean)
        _same("all edges cut", bench.scores([none])[0], corrupted)


def _same(what: str, got: Any, want: Any) -> None:
    error = float(abs(got - want).max() / abs(want).max())
    assert error <= TOLERANCE, f"{what}: numbers differ by {error:.2g} of the largest; allowed: {TOLERANCE:g}"


def by_share(graph: Any, scores: Any) -> list[Any]:
    """The best edges by |score|, in the nine shares of MIB."""
    from assay.circuits.select import GRID, at_share

    return [at_share(graph, scores, share) for share in GRID if share < 1]


# speed -------------------------------------------------------------------------------------------


def turns(runs: Mapping[str, Callable[[], Any]], rounds: int) -> Times:
    """CPU seconds of every run in every round; the order rotates."""
    from timing import timed

    names, times = list(runs), {name: [] for name in runs}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(timed(runs[name])[0])
    return times


def ratio(mine: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Round by round: median with the smallest and the largest; median CPU seconds."""
    each = [a / b for a, b in zip(mine, base, strict=True)]
    return {"ratio": statistics.median(each), "low": min(each), "high": max(each), "seconds": statistics.median(mine)}


def attribution(job: Job, rounds: int) -> dict[str, Any]:
    """EAP and EAP-IG of edges and of nodes against the passes they need; adaptive EAP-IG once."""
    ig = f"EAP-IG, {IG_STEPS} steps"
    plans = {"EAP": ("eap", "edge", None), "EAP, nodes": ("eap", "node", None),
             ig: ("eap-ig", "edge", IG_STEPS), f"{ig}, nodes": ("eap-ig", "node", IG_STEPS)}  # fmt: skip
    runs = {name: partial(job.attribute, *plan) for name, plan in plans.items()}
    times = turns({"F": job.forward, "FB": job.backward, **runs}, rounds)
    floors = {name: [(2 if n else 1) * f + (n or 1) * fb for f, fb in zip(times["F"], times["FB"], strict=True)]
              for name, (_, _, n) in plans.items()}  # fmt: skip
    out: dict[str, Any] = {name: statistics.median(times[name]) for name in ("F", "FB")}
    return out | {name: ratio(times[name], floors[name]) for name in plans} | {"adaptive": adaptive(job)}


def adaptive(job: Job) -> dict[str, Any]:
    """Once, with the forward and backward passes before and after it: as many of them as steps."""
    kept: list[Any] = []
    runs = {"FB": job.backward, "run": lambda: kept.append(job.attribute("eap-ig")), "FB again": job.backward}
    times = turns(runs, 1)
    steps = [int(n) for n in kept[0].steps]
    floor = statistics.mean(steps) * (times["FB"][0] + times["FB again"][0]) / 2
    return ratio(times["run"], [floor]) | {"mean": statistics.mean(steps), "fewest": min(steps), "most": max(steps),
                                           "residual": float(statistics.median(kept[0].residual))}  # fmt: skip


def evaluation(job: Job, rounds: int) -> dict[str, Any]:
    """Nine circuits in one call, and one alone, per circuit in forward passes."""
    bench = job.bench()
    masks = by_share(bench.graph, job.attribute().matrix())
    runs = {"F": job.forward, "9 circuits": lambda: bench.scores(masks), "1 circuit": lambda: bench.scores(masks[3:4])}
    times = turns(runs, rounds)
    each = {"9 circuits": len(masks), "1 circuit": 1}
    return {name: ratio([t / n for t in times[name]], times["F"]) for name, n in each.items()}


def sweep(job: Job, _: int) -> dict[str, Any]:
    """All heads exactly, whole, once; the forward pass before and after it."""
    from assay.circuits.patch import PatchPlan, patch_sweep

    plan = PatchPlan(site="z", direction="noise", method="exact")
    runs = {"F": job.forward, "run": lambda: patch_sweep(job.model, job.task, plan), "F again": job.forward}
    times = turns(runs, 1)
    heads = job.model.n_layers * job.model.dims.n_heads
    return ratio(times["run"], [(times["F"][0] + times["F again"][0]) / 2]) | {"heads": heads}


# memory ------------------------------------------------------------------------------------------


def in_own_process(model: str, what: str) -> dict[str, Any]:
    """Peak of one job in a fresh interpreter."""
    command = [sys.executable, str(Path(__file__).resolve()), "--in-process", model, what]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def memory_of(name: str, what: str) -> dict[str, Any]:
    """Run one job and see how far the process grew, in MB."""
    import torch
    from memory import _peak, _restart_peak

    from assay.circuits.graph import graph_of

    torch.set_num_threads(1)
    job = random_job(int(name.rsplit("-", 1)[1])) if name.startswith("random") else Job.load(FULL)
    job.model.logits([job.task.clean[0][:2]])
    graph, whole = graph_of(job.model), _peak()
    _restart_peak()
    loaded = _resident()
    run_job(job, what)
    weights = sum(p.numel() * p.element_size() for p in job.model.hf.parameters())
    return {"model": name, "job": what, "pairs": len(job.task), "tokens": job.ids.shape[1], "nodes": len(graph.writers),
            "edges": graph.n_edges, "weights": weights / MB, "loaded": loaded / MB, "peak": _peak() / MB,
            "over": (_peak() - loaded) / MB, "loading": whole / MB}  # fmt: skip


def run_job(job: Job, what: str) -> None:
    """One of `JOBS`."""
    import torch

    if what == "forward and backward":
        job.backward()
    elif what == "9 circuits":
        bench = job.bench()
        bench.scores(by_share(bench.graph, torch.rand(bench.graph.exists.shape) * bench.graph.exists))
    else:
        job.attribute("eap" if what == "EAP" else "eap-ig", steps=None if what == "EAP" else IG_STEPS)


def _resident() -> float:
    """Resident size now, in bytes (Linux; elsewhere the peak so far, which can hide what stays below it)."""
    from memory import _peak

    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return _peak()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def random_job(n_heads: int) -> Job:
    """A random Llama of the 1B class, and 8 pairs of 15 random tokens that differ in the last 5."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from assay import Model
    from assay.data.prepare import PreparedTask
    from assay.records import Pair

    config = LlamaConfig(hidden_size=2048, num_hidden_layers=16, num_attention_heads=n_heads, head_dim=2048 // n_heads,
                         num_key_value_heads=n_heads // 4, intermediate_size=8192, vocab_size=32_000)  # fmt: skip
    torch.manual_seed(0)
    hf = LlamaForCausalLM(config).eval()
    model = Model(hf=hf, tokenizer=None, name=f"random-1b-{n_heads}", source="random", prepend_bos=False, bos_id=None)
    clean = torch.randint(20, 32_000, (8, 15))
    corrupted = clean.clone()
    corrupted[:, 10:] = torch.randint(20, 32_000, (8, 5))
    with torch.no_grad():
        a, b = (hf(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1] for ids in (clean, corrupted))
    answers, foils = ([(int(token),) for token in best] for best in ((a - b).argmax(-1), (a - b).argmin(-1)))
    pairs = [Pair(f"{n}", f"{n}'", ("a",), ("b",), template="random") for n in range(8)]
    return Job.of(model, PreparedTask(pairs, clean.tolist(), corrupted.tolist(), answers, foils, {}, {}))


# peer --------------------------------------------------------------------------------------------


def compare_with(python: str, job: Job) -> dict[str, Any]:
    """The same token ids in circuitkit; its times over passes of its own, and its scores beside ours; fewer pairs, once."""
    import numpy as np
    from timing import timed

    from assay.circuits.select import at_share

    job = Job.of(job.model, job.task.select(range(min(PEER_PAIRS, len(job.task)))))
    bench, scores, seconds = job.bench(), {}, {}
    plans = {"EAP": partial(job.attribute), "EAP-IG": partial(job.attribute, "eap-ig", steps=IG_STEPS)}
    for name, plan in plans.items():
        seconds[name] = timed(lambda name=name, plan=plan: scores.update({name: plan().matrix()}))[0]
    seconds["evaluation"] = timed(partial(bench.scores, [at_share(bench.graph, scores["EAP"], 0.01)]))[0]
    with tempfile.TemporaryDirectory() as folder:
        given, kept = Path(folder, "pairs.json"), Path(folder, "scores.npz")
        given.write_text(json.dumps({
            "model": str(job.model.hf.config.name_or_path), "clean": job.task.clean, "corrupted": job.task.corrupted,
            "answers": [ids[0] for ids in job.task.answers], "foils": [ids[0] for ids in job.task.foils],
            "steps": IG_STEPS, "scores": str(kept)}), encoding="utf-8")  # fmt: skip
        script = str(Path(__file__).with_name("circuits_peer.py"))
        settings = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([python, script, str(given)], stdout=subprocess.PIPE, text=True, env=settings)
        assert done.returncode == 0, f"the peer ended with {done.returncode}"
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        _same("clean metric of the peer", np.array(found["clean"]), job.forward().numpy())
        with np.load(kept) as theirs:
            for name, matrix in scores.items():
                found[name] |= agreement(job, matrix, theirs[name])
    for name, own in seconds.items():
        found[name]["ours"] = own
    return found


def agreement(job: Job, ours: Any, theirs: Any) -> dict[str, float]:
    """Theirs with key and value edges summed over each group: correlation over all edges, and shared top 200 by size."""
    import torch

    from assay.circuits.graph import graph_of

    graph, group = graph_of(job.model), job.model.dims.n_heads // job.model.dims.n_kv_heads
    parts: list[torch.Tensor] = []
    left = torch.from_numpy(theirs)
    for _ in range(graph.n_layers):
        h = graph.n_heads
        q, k, v, mlp, left = left.split([h, h, h, 1, left.shape[1] - 3 * h - 1], 1)
        parts += [q, *(x.unflatten(1, (-1, group)).sum(2) for x in (k, v)), mlp]
    a, b = ours[graph.exists], torch.cat([*parts, left], 1)[graph.exists]
    top = [set(x.abs().topk(200).indices.tolist()) for x in (a, b)]
    correlation = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
    sign = 1 if correlation > 0 else -1
    error = float((a - sign * b).abs().max() / a.abs().max())
    return {"correlation": correlation, "top_200": len(top[0] & top[1]), "difference": error}


# tables ------------------------------------------------------------------------------------------


def markdown(results: dict[str, Any]) -> str:
    """Tables of what was measured."""
    lines = [f"{results['model']}, {results.get('pairs', '-')} pairs of {results.get('tokens', '-')} tokens,"
             f" {results['threads']} thread; " + ", ".join(f"{k} {v}" for k, v in results["versions"].items())]  # fmt: skip
    if found := results.get("attribution"):
        lines += ["", f"F = {found['F']:.2f} CPU s, FB = {found['FB']:.2f} CPU s."]
    rows = [row for part in ("attribution", "evaluation", "sweep") for row in _speed_rows(part, results.get(part, {}))]
    if rows:
        lines += ["", "| run | base = 1 | CPU s | ratio | target |", "| --- | --- | --- | --- | --- |", *rows]
    if found := results.get("memory"):
        lines += ["", "| model | nodes | edges | job | peak RSS, MB | over weights, MB | target |",
                  "| --- | --- | --- | --- | --- | --- | --- |", *map(_memory_row, found)]  # fmt: skip
    if found := results.get("peer"):
        head = f"circuitkit {found['version']}, {PEER_PAIRS} pairs"
        base = f"Its F = {found['F']:.2f} CPU s, FB = {found['FB']:.2f} CPU s; peak RSS {found['peak']:,.0f} MB."
        lines += ["", f"| {head} | its base = 1 | CPU s | ratio | Assay, CPU s | slower | correlation | shared top 200 |",
                  "| --- | --- | --- | --- | --- | --- | --- | --- |", *_peer_rows(found), "", base]  # fmt: skip
    return "\n".join(lines) + "\n"


def _speed_rows(part: str, found: dict[str, Any]) -> list[str]:
    bases = {"adaptive": "mean steps x FB", "9 circuits": "F, per circuit", "1 circuit": "F, per circuit"}
    if not found:
        return []
    if part == "sweep":
        return [_speed_row(f"exact sweep of {found['heads']} heads", "F", found, TARGETS["sweep"])]
    out = []
    for name, row in found.items():
        if not isinstance(row, dict):
            continue
        base = bases.get(name, f"2 F + {IG_STEPS} FB" if "IG" in name else "F + FB")
        label = name
        if name == "adaptive":
            label = f"EAP-IG, adaptive: {row['fewest']} to {row['most']} steps, mean {row['mean']:.1f}"
        out.append(_speed_row(label, base, row, TARGETS.get(name)))
    return out


def _speed_row(label: str, base: str, row: dict[str, float], target: float | None) -> str:
    spread = f" ({row['low']:.2f} to {row['high']:.2f})" if row["low"] != row["high"] else ""
    return f"| {label} | {base} | {row['seconds']:.1f} | {row['ratio']:.2f}{spread} | {_verdict(row['ratio'], target)} |"


def _verdict(got: float, target: float | None) -> str:
    return "-" if target is None else f"{target:g}, {'met' if got <= target else 'missed'}"


def _memory_row(row: dict[str, Any]) -> str:
    judged = row["model"] == FULL.model and row["job"] != JOBS[0]
    target = _verdict(row["peak"], TARGETS["peak"]) if judged else "-"
    return (f"| {row['model']} | {row['nodes']} | {row['edges']:,} | {row['job']} | {row['peak']:,.0f} |"
            f" {row['over']:,.0f} | {target} |")  # fmt: skip


def _peer_rows(found: dict[str, Any]) -> list[str]:
    out = []
    for name, base in (("EAP", "F + FB"), ("EAP-IG", f"2 F + {IG_STEPS} FB"), ("evaluation", "F, one circuit")):
        row = found[name]
        beside = f"{row['correlation']:.5f} | {row['top_200']}" if "correlation" in row else "- | -"
        out.append(f"| {name} | {base} | {row['seconds']:.1f} | {row['ratio']:.1f} | {row['ours']:.1f} |"
                   f" {row['seconds'] / row['ours']:.1f} | {beside} |")  # fmt: skip
    return out


if __name__ == "__main__":
    sys.exit(main())
