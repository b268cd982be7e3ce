"""The main job, told to a newcomer: from a model to a tested claim, with pictures.

1. What can the model do? Every bundled task is measured on its discover split.
2. Where is the answer of one task carried? A layer x position sweep on pairs of one sentence pattern.
3. Which heads move it? A layer x head sweep on discover pairs; the fast estimate is compared with it.
4. A set of heads: the strongest ones, as few as carry the task with a margin on *tune*.
5. The claim about them is stated and tested on confirm and ood. So is a claim that is wrong on purpose:
   as many heads, picked at random in the same layers.
6. What stays unexplained is the share of the effect that the claimed heads do not bring back.
7. Where a dictionary comes with the model, some of its latents are mapped: explained by rules, scored and tested, into the
   atlas that `assay app` shows.

Finished parts are kept in the atlas. A second run takes them from there and says so; a claim that was
tested is shown with its verdict, never tested again on the same data.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assay.atlas.store import Atlas
from assay.atlas.sweeps import SweepRows
from assay.circuits.patch import PatchPlan, patch_sweep, sweep_key
from assay.data.measure import measure_task
from assay.data.prepare import PreparedTask, prepare
from assay.data.tasks import TASKS, load_task
from assay.errors import CorpusError, TaskError
from assay.evidence.claims import record_look
from assay.evidence.mediates import set_effects
from assay.evidence.run import Settings, Statement, drafted, record_draft, test_claim
from assay.evidence.source import Source
from assay.features.kept import is_shipped
from assay.files import write_file
from assay.model.model import Model
from assay.passport import run_passport
from assay.records import PatchResult, TaskSummary, Verdict, digest, plain
from assay.report.context import DemoReport

SET_SIZES = (2, 3, 4, 6, 8, 12, 16, 24)
PLAN = Settings(tune=40, confirm=40, ood=20, draws=19, control_pairs=2)  # two pairs a sentence pattern: more narrow little
MARGIN = 0.3  # on tune, one and a half times the bar of the gates: what is chosen by looking shrinks later
MAP_TOKENS, MAP_LATENTS = 24_000, 256
Bar = Callable[[str, int | None], AbstractContextManager[Callable[..., None]]]


@dataclass
class DemoRun:
    """One run of the demo: the model, where results are kept, and what took how long."""

    model: Model
    atlas: Path
    task: str
    seed: int
    bar: Bar
    timings: dict[str, float] = field(default_factory=dict)
    cached: dict[str, bool] = field(default_factory=dict)

    @property
    def store(self) -> Atlas:
        return Atlas(self.atlas)

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """One part: a progress bar, and how long it took."""
        start = time.perf_counter()
        with self.bar(name, total) as advance:
            yield advance
        self.timings[name] = time.perf_counter() - start

    def look(self, what: str, task: PreparedTask) -> None:
        """Every look counts."""
        record_look(self.store, self.model.digest, f"demo: {what}", task.pairs)

    def once(self, step: str, what: str, task: PreparedTask, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `measure` finds on these pairs; kept in the atlas, so that it is measured, and looked at, once."""
        kept = self.atlas / "kept" / f"demo-{digest([self.model.passport(), what, task.pairs])[:32]}.json"
        try:
            found = dict(json.loads(kept.read_text()))
            self.cached.setdefault(step, True)
            return found
        except (OSError, ValueError, TypeError):
            self.cached[step] = False
        found = measure()
        self.look(what, task)
        write_file(kept, json.dumps(found).encode())
        return found


def run_demo(run: DemoRun) -> DemoReport:
    """All steps. Raises TaskError when no pair of the task fits the model's tokenizer."""
    summaries = tasks(run)
    positions, tokens = position_map(run)
    heads, correlation = head_map(run)
    chosen = choose_heads(run, heads)
    verdicts = [claim(run, chosen, "the claim"), claim(run, wrong_heads(run, chosen), "the wrong claim")]
    mapped = feature_map(run)
    return DemoReport(
        model={**run.model.passport(), "name": run.model.name}, date=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        tasks=summaries, positions=positions, heads=heads, claims=[verdict.to_json() for verdict in verdicts],
        tokens=tokens, attribution_correlation=correlation, unexplained=unexplained(verdicts[0]),
        ledger=run.store.tally(),
        run={"timings": run.timings, "cached": run.cached, "commands": commands(run, verdicts), "map": mapped,
             "passport": run_passport({"task": run.task, "seed": run.seed, "plan": PLAN})},
    )  # fmt: skip


def tasks(run: DemoRun) -> list[TaskSummary]:
    """Step 1: every bundled task that fits the tokenizer."""
    found = []
    with run.step("what the model can do", len(TASKS.names())) as advance:
        for name in TASKS.names():
            pairs = load_task(name, "discover", 40, run.seed)
            if summary := _task_summary(run, name, pairs):
                found.append(summary)
            advance(1)
    return found


def _task_summary(run: DemoRun, name: str, pairs: Sequence[Any]) -> TaskSummary | None:
    try:
        prepared = prepare(pairs, run.model)
    except TaskError:
        return None
    found = run.once("what the model can do", f"accuracy on {name}", prepared,
                     lambda: asdict(measure_task(run.model, prepared, name)))  # fmt: skip
    return TaskSummary(**found)


def position_map(run: DemoRun, n: int = 8) -> tuple[PatchResult, list[str]]:
    """Step 2: pairs of one pattern and one length, so that a column is a word."""
    pairs = prepare(load_task(run.task, "discover", 20 * n, run.seed), run.model)
    shape, _ = Counter(zip(pairs.templates, map(len, pairs.clean), strict=True)).most_common(1)[0]
    picked = [i for i, found in enumerate(zip(pairs.templates, map(len, pairs.clean), strict=True)) if found == shape]
    same = prepare([pairs.pairs[i] for i in picked[:n]], run.model)
    result = _sweep(run, same, PatchPlan("resid_post", seed=run.seed), "where the answer is carried")
    pair = same.pairs[0]
    example = {"clean": pair.clean, "corrupted": pair.corrupted,
               "answer": pair.answers[0].strip(), "foil": pair.foils[0].strip()}  # fmt: skip
    result = replace(result, plan={**result.plan, "example": example})
    words = [run.model.piece(ids[0]) if len(set(ids)) == 1 else "(name)" for ids in zip(*same.clean, strict=True)]
    return result, words


def head_map(run: DemoRun, n: int = 12) -> tuple[PatchResult, float | None]:
    """Step 3: every head, exactly; and how well the fast estimate agrees on all of them."""
    import numpy as np

    pairs = prepare(load_task(run.task, "discover", n, run.seed), run.model)
    exact = _sweep(run, pairs, PatchPlan("z", seed=run.seed), "which heads move it")
    step, fast = "the fast estimate", PatchPlan("z", method="attribution", seed=run.seed, layers=None)
    with run.step(step):
        found = run.once(step, step, pairs, lambda: {"effect": plain(patch_sweep(run.model, pairs, fast).effect)})
    pair = np.corrcoef(np.ravel(exact.effect), np.ravel(found["effect"]))
    return exact, float(pair[0, 1]) if np.isfinite(pair[0, 1]) else None


def _sweep(run: DemoRun, pairs: PreparedTask, plan: PatchPlan, name: str) -> PatchResult:
    rows = SweepRows(run.atlas, sweep_key(run.model, pairs, plan))
    with run.step(name, run.model.n_layers) as advance:
        result = patch_sweep(run.model, pairs, plan, progress=advance, rows=rows)
    run.cached[name] = result.checks["layers_reused"] == len(result.layers)
    if not run.cached[name]:
        run.look(name, pairs)
    return replace(result, plan={**result.plan, "task": run.task})


def choose_heads(run: DemoRun, heads: PatchResult) -> list[str]:
    """Step 4: the fewest of the strongest heads that carry the task on tune, with a margin."""
    cells = [(effect, layer, head) for layer, row in zip(heads.layers, heads.effect, strict=True)
             for head, effect in enumerate(row) if effect > 0]  # fmt: skip
    ranked = [f"z.{layer}.{head}" for _, layer, head in sorted(cells, reverse=True)]
    tune = prepare(load_task(run.task, "tune", PLAN.tune, run.seed), run.model)
    chosen = ranked[:2]
    step = "how many heads"
    with run.step(step, len(SET_SIZES)) as advance:
        for size in SET_SIZES:
            chosen = ranked[:size]
            effects = run.once(step, f"the set {', '.join(chosen)} on tune", tune,
                               lambda heads=chosen: set_effects(run.model, tune, heads))  # fmt: skip
            advance(1)
            if min(effects.values()) >= MARGIN:
                break
    return chosen


def wrong_heads(run: DemoRun, chosen: Sequence[str]) -> list[str]:
    """Step 5: as many heads at random, in the layers of the chosen ones and none of them."""
    rng = random.Random(f"wrong-{run.seed}")
    free = [str(site) for site in run.model.sites([f"z.{layer}.*" for layer in sorted({_layer(n) for n in chosen})])]
    free = [name for name in free if name not in chosen]
    if len(free) < len(chosen):
        free = [str(site) for site in run.model.sites("z.*.*") if str(site) not in chosen]
    return sorted(rng.sample(free, min(len(chosen), len(free))))


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def claim(run: DemoRun, sites: Sequence[str], name: str) -> Verdict:
    """State and test, or take the verdict of the same claim from the atlas."""
    store, source = run.store, Source(run.task)
    names = [str(site) for site in run.model.sites(",".join(sites))]
    stated = next((old for old in store.claims() if set(old.subject["sites"]) == set(names)
                   and old.subject["digest"] == run.model.digest and old.task["name"] == run.task), None)  # fmt: skip
    step = f"testing {name}"
    if stated is not None and (verdict := store.verdict(stated.id)) is not None:
        run.timings[step], run.cached[step] = 0.0, True
        return verdict
    run.cached[step] = False
    with run.step(step) as report:
        if stated is None:
            words = Statement(text=f"{', '.join(names)} of {run.model.name} tend to carry the task {run.task}")
            settings = replace(PLAN, seed=run.seed)
            stated, _ = record_draft(store, drafted(store, run.model, source, names, statement=words, settings=settings))
        return test_claim(store, stated.id, run.model, report)


def unexplained(verdict: Verdict) -> dict[str, Any]:
    """Step 6: named for the page, the larger share first."""
    words = {"not_restored": "not brought back by these heads alone",
             "left_when_ablated": "of the preference left when they are switched off"}  # fmt: skip
    named = {f"{words[name]}, {split} sentences": min(1.0, max(0.0, share)) for split, shares in verdict.unexplained.items()
             for name, share in shares.items() if name in words}  # fmt: skip
    return dict(sorted(named.items(), key=lambda item: -item[1]))


def feature_map(run: DemoRun) -> dict[str, Any]:
    """Step 7: a map of some latents. Without a shipped dictionary, or a corpus that can be had here, why there is none."""
    from assay.mapping.run import MapPlan, MapRun, run_map
    from assay.mapping.units import find_units

    if not is_shipped(run.model.name):
        return {"skipped": f"no dictionary comes with {run.model.name}"}
    plan = MapPlan(tokens=MAP_TOKENS, features=MAP_LATENTS, baseline=0, seed=run.seed)
    step = "a map of features"
    with run.step(step) as report:
        mapping = MapRun(run.model, find_units(run.model), run.store, plan, report=report)
        run.cached[step] = "atlas" in mapping.stages.seconds
        try:
            return run_map(mapping)
        except CorpusError as error:
            return {"skipped": str(error)}


def commands(run: DemoRun, verdicts: Sequence[Verdict]) -> list[dict[str, str]]:
    """What to type next."""
    name, atlas = run.model.name, run.atlas
    prompt = "The Eiffel Tower is in the city of"
    traced = [{"command": f'assay trace {name} --prompt "{prompt}"', "what": "Which features make it say the next word."}]
    return [
        {"command": f"assay app --atlas {atlas}", "what": "Read it all in a browser: features, claims, what is unexplained."},
        *(traced if is_shipped(name) else []),
        {"command": "assay demo", "what": "This page again; what is finished is taken from the atlas."},
        {"command": f"assay patch {name} {run.task} --site z --direction noise", "what": "The other direction."},
        {"command": f"assay claim state {name} {run.task} z.9.3,z.10.1", "what": "A claim of your own."},
        {"command": f"assay claim show {verdicts[0].claim} --atlas {atlas}", "what": "Everything behind a verdict."},
        {"command": f"assay claim verify --atlas {atlas}", "what": "Derive every verdict again, check the ledger."},
    ]
