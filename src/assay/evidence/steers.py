"""*steers*: adding this direction changes this behaviour.

1. A claim names a direction at a site and a grid of strengths, negative ones included: multiples of the unit
   direction that are added to the activation. Both are part of the claim, so no strength is chosen later.
2. Behaviour: log-odds of answer against foil after the clean prompts of a task. Every strength is measured on
   every pair; effects are in units of the task's own contrast (clean minus corrupted).
3. At the largest strength: the same norm along random directions from three pools (at least 99 while the units
   last), on a subset of pairs; the change of tokens that were as likely as answer and foil, which a change of
   temperature would move alike; KL on ordinary texts; other tasks, where they are named; and what a few solved prompts
   or a plain instruction do instead.
4. Where the options name what steered texts should match (`generation`): what is written after corrupted prompts.
5. Adding nothing, and adding the difference to the corrupted run, go the same way as instrument checks.

A direction that steers is a handle. It does not show that the model itself uses the direction (*uses*), that
there is no better handle, or what happens in long generations. (Tan et al. 2024; AxBench, Wu et al. 2025.)
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.metrics import Metric
from assay.data.prepare import PreparedTask, prepare
from assay.errors import bad_argument
from assay.evidence.effects import (
    Damage,
    Elsewhere,
    control_rows,
    deal,
    other_tasks,
    per_pool,
    record_of,
    site_features,
    spread_over,
)  # fmt: skip
from assay.evidence.features import feature_of
from assay.evidence.gates.base import get_gate
from assay.evidence.kinds import KINDS, Columns, Progress, made_of
from assay.evidence.neutral import TEXTS
from assay.model.edits import Edit, add
from assay.model.model import Model
from assay.probe.variants import (
    Place,
    place_of,
    pushed,
    random_subspaces,
    run_variants,
    swapped,
    tune_tokens,
    unchanged,
)  # fmt: skip
from assay.records import GatePlan, Pair, Plan

Column = list[float | None]
LEAST_PER_POOL = 33  # 99 in all
SHOTS = 4
MATCHED = 4  # control tokens on each side
PROMPTS_AT_ONCE = 64
GENERATED, GENERATED_CONTROLS, NEW_TOKENS = 2, 9, 16  # texts per template, random directions, tokens


@dataclass(frozen=True, eq=False)
class SteerSetup:
    """What is fixed before sealed data are read. `instruction`: a plain text to compare with, or none; `shots`: tune prompts
    with their answers, as token ids; `said`: a regular expression that steered texts should match."""

    place: Place
    vector: Float[Tensor, " d"]
    strengths: tuple[float, ...]
    random: Mapping[str, Float[Tensor, " d"]]
    damage: Damage
    metric: str
    control_pairs: int
    instruction: str = ""
    shots: Sequence[int] = ()
    elsewhere: Elsewhere | None = None
    said: str = ""

    @property
    def top(self) -> float:
        """The largest strength."""
        return max(self.strengths)


class SteerInstrument:
    """Measures pairs of one split; scores are kept, so gates may ask for the same thing twice."""

    def __init__(self, model: Model, task: PreparedTask, setup: SteerSetup) -> None:
        self.model, self.task, self.setup = model, task, setup
        self._kept: dict[str, Columns] = {}

    @property
    def clean(self) -> Column:
        """The log-odds after clean prompts."""
        return self._once("clean", lambda: {"clean": self._score(self.task.clean)})["clean"]

    @property
    def corrupted(self) -> Column:
        """The log-odds after corrupted prompts."""
        return self._once("corrupted", lambda: {"corrupted": self._score(self.task.corrupted)})["corrupted"]

    def grid(self) -> Columns:
        """Log-odds at every strength, named `steered.<strength>`."""
        return self._once("grid", self._grid)

    def matched(self) -> Columns:
        """Log-odds of tokens that were as likely as answer and foil, before and at the largest strength."""
        return self._once("matched", self._matched)

    def controls(self) -> Columns:
        """Random directions at the largest strength, on the first few pairs of every template."""
        return self._once("controls", self._controls)

    def damage(self) -> Columns:
        """KL on ordinary texts at the largest strengths of both signs, the larger of the two per text."""
        return self._once("damage", self._damage)

    def prompted(self) -> Columns:
        """Log-odds when a plain instruction stands before the prompt; nothing without one."""
        told = self.model.tokens(self.setup.instruction)[0] if self.setup.instruction else []
        return self._once("prompted", lambda: self._behind("prompted", told))

    def shown(self) -> Columns:
        """Log-odds when solved prompts of tune stand before the prompt; nothing where they do not fit the model."""
        return self._once("few_shot", lambda: self._behind("few_shot", self.setup.shots))

    def generated(self) -> Columns:
        """Scores of what is written after corrupted prompts: steered, plain, behind the instruction, and pushed along a few
        random directions; nothing where no expression was named."""
        return self._once("generated", self._generated) if self.setup.said else {}

    def elsewhere(self) -> Columns:
        """The grid, and at the largest strengths of both signs the change of every other task that was named."""
        found = {} if self.setup.elsewhere is None else self.setup.elsewhere.of(self.model)
        return {**self.grid(), **{f"off.{name}": deal(values, self.task.templates) for name, values in found.items()}}

    def added(self, everything: bool) -> Columns:
        """Log-odds when nothing is added, or the whole difference to the corrupted run."""
        name = "everything" if everything else "nothing"
        variant = swapped if everything else unchanged
        others = self.task.corrupted if everything else None
        return self._once(name, lambda: {f"added.{name}": self._variants([variant], self._metric, others)[0]})

    # how each is measured ------------------------------------------------------------------------

    @property
    def _metric(self) -> Metric:
        return self.task.metric(self.setup.metric)

    def _once(self, name: str, measure: Any) -> Columns:
        if name not in self._kept:
            self._kept[name] = measure()
        return self._kept[name]

    def _score(self, prompts: Sequence[list[int]], metric: Metric | None = None) -> Column:
        return self.model.score(list(prompts), metric or self._metric).tolist()

    def _variants(self, variants: Sequence[Any], metric: Metric, others: Any = None) -> list[Column]:
        return run_variants(self.model, self.task.clean, metric, self.setup.place, variants, others).tolist()

    def _grid(self) -> Columns:
        found = self._variants([pushed(s * self.setup.vector) for s in self.setup.strengths], self._metric)
        return {column_of(s): values for s, values in zip(self.setup.strengths, found, strict=True)}

    def _matched(self) -> Columns:
        answers, foils = matched_tokens(self.model, self.task)
        metric = Metric("logit_diff", answers, foils)
        steered = self._variants([pushed(self.setup.top * self.setup.vector)], metric)[0]
        return {"matched": self._score(self.task.clean, metric), "matched.steered": steered}

    def _controls(self) -> Columns:
        rows = control_rows(self.task.templates, self.setup.control_pairs)
        task = self.task.select(rows)
        variants = [pushed(self.setup.top * towards) for towards in self.setup.random.values()]
        scores = run_variants(self.model, task.clean, task.metric(self.setup.metric), self.setup.place, variants)
        return {f"random.steered.{name}": spread_over(rows, values, len(self.task))
                for name, values in zip(self.setup.random, scores.tolist(), strict=True)}  # fmt: skip

    def _damage(self) -> Columns:
        return {"neutral.kl": deal(self.setup.damage.of(self.model), self.task.templates)}

    def _generated(self) -> Columns:
        rows = control_rows(self.task.templates, GENERATED)
        prompts, setup, model = [self.task.corrupted[row] for row in rows], self.setup, self.model
        told = model.tokens(setup.instruction)[0] if setup.instruction else []
        pushes = {"steered": setup.vector, **{f"random.{name}": row for name, row in few(setup.random).items()}}
        plain = continued(model, prompts)
        floor = fluency(model, prompts, plain)
        written = {"plain": plain, **{name: continued(model, prompts, [add(setup.place.site, setup.top * row)])
                                      for name, row in pushes.items()}}  # fmt: skip
        if told:
            written["instructed"] = continued(model, [[*told, *ids[begins(model) :]] for ids in prompts])
        scores = {name: generation_scores(model, setup.said, prompts, texts, floor) for name, texts in written.items()}
        return {f"generated.{name}": spread_over(rows, values, len(self.task)) for name, values in scores.items()}

    def _behind(self, name: str, first: Sequence[int]) -> Columns:
        prompts = [[*first, *ids[begins(self.model) :]] for ids in self.task.clean]
        longest = getattr(getattr(self.model.hf, "config", None), "max_position_embeddings", None)
        fits = longest is None or max(map(len, prompts)) <= longest
        return {name: self._score(prompts)} if first and fits else {}


def column_of(strength: float) -> str:
    """The column that holds the log-odds at a strength."""
    return f"steered.{strength:+g}"


def begins(model: Model) -> int:
    """How many tokens begin every prompt."""
    return int(model.prepend_bos and model.bos_id is not None)


def few(random: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first random directions of every pool, `GENERATED_CONTROLS` in all: writing is slow."""
    order = sorted(random, key=lambda name: (name.rpartition(".")[2], name))
    return {name: random[name] for name in order[:GENERATED_CONTROLS]}


def continued(model: Model, prompts: Sequence[list[int]], edits: Sequence[Edit] = ()) -> list[list[int]]:
    """What the model writes after every prompt, greedily: token ids."""
    return model.generate(list(prompts), max_new_tokens=NEW_TOKENS, edits=list(edits)).tokens


def fluency(model: Model, prompts: Sequence[list[int]], written: Sequence[list[int]]) -> list[float]:
    """Mean log-probability of what was written after every prompt under the model as it is; -inf where nothing was."""
    whole = [[*before, *after] for before, after in zip(prompts, written, strict=True)]
    found = []
    for start in range(0, len(whole), PROMPTS_AT_ONCE):
        part = whole[start : start + PROMPTS_AT_ONCE]
        logits = model.capture(part, "logits")
        for ids, n, rows in zip(part, map(len, written[start:]), logits.rows("logits"), strict=False):
            odds = rows.float().log_softmax(-1)[len(ids) - n - 1 : -1]
            found.append(float(odds.gather(1, torch.tensor(ids[len(ids) - n :])[:, None]).mean()) if n else float("-inf"))
    return found


def generation_scores(
    model: Model, said: str, prompts: Sequence[list[int]], written: Sequence[list[int]], floor: Sequence[float]
) -> list[float]:  # fmt: skip
    """Per prompt the harmonic mean of two scores from 0 to 2, 0 where either is: does the text match (0 or 2); is it as fluent
    as what the model writes by itself (`floor`) within 1 nat per token (2), within 3 (1), or not (0)."""
    found = []
    for text, own, usual in zip(map(model.text, written), fluency(model, prompts, written), floor, strict=True):
        concept = 2.0 * bool(re.search(said, text))
        fluent = 2.0 if own >= usual - 1 else 1.0 if own >= usual - 3 else 0.0
        found.append(2 * concept * fluent / (concept + fluent) if concept and fluent else 0.0)
    return found


def few_shots(model: Model, tune: PreparedTask) -> list[int]:
    """Tune prompts of different templates, each with its answer, one a line: token ids of what stands before a prompt."""
    line = list(model.tokenizer("\n", add_special_tokens=False)["input_ids"])  # nothing, where lines are not read
    rows = list({template: row for row, template in enumerate(tune.templates)}.values())[:SHOTS]
    ids = [token for row in rows for token in (*tune.clean[row][begins(model) :], tune.answers[row][0], *line)]
    return [*tune.clean[rows[0]][: begins(model)], *ids]


def matched_tokens(model: Model, task: PreparedTask) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Per pair, the tokens whose logits after the clean prompt are nearest to the answer's and to the foil's."""
    answers, foils = [], []
    for start in range(0, len(task), PROMPTS_AT_ONCE):
        rows = range(start, min(start + PROMPTS_AT_ONCE, len(task)))
        for row, logits in zip(rows, model.logits([task.clean[row] for row in rows]).float(), strict=True):
            own = torch.tensor([*task.answers[row], *task.foils[row]], device=logits.device)
            side = [logits[list(ids)].max() for ids in (task.answers[row], task.foils[row])]
            near = [(logits - level).abs().index_fill(0, own, float("inf")) for level in side]
            answers.append(tuple(near[0].topk(MATCHED, largest=False).indices.tolist()))
            foils.append(tuple(near[1].topk(MATCHED, largest=False).indices.tolist()))
    return answers, foils


@dataclass(frozen=True)
class Steering:
    """What a *steers* claim is about: a feature (a direction or unit) and the strengths it is added with."""

    feature: Any
    strengths: Sequence[float] = field(default_factory=tuple)


class Steers:
    """The kind *steers*, as the trial uses it."""

    name = "steers"
    score = "clean"

    def subject(self, model: Model, given: Any) -> dict[str, Any]:
        """A `Steering`, or {"feature", "strengths"}. Raises UsageError for anything else."""
        given = made_of(Steering, given)
        if not isinstance(given, Steering):
            raise bad_argument("subject", given, "a Steering, or {'feature': .., 'strengths': [..]}",
                               "The strengths are part of the claim: declare them.")  # fmt: skip
        feature = feature_of(given.feature)
        _, names = site_features(model, [feature])
        return {"sites": names, "feature": feature.record(), "strengths": list(grid_of(given.strengths))}

    def words(self, subject: Mapping[str, Any], quantifier: str, data: str) -> str:
        """The claim as one sentence."""
        verb = {"tends": "tends to steer", "usually": "usually steers", "always": "always steers"}[quantifier]
        grid = ", ".join(f"{strength:g}" for strength in subject["strengths"])
        return f"adding {subject['sites'][0]} (strengths {grid}) {verb} {data}"

    def load(self, model: Model, items: Sequence[Pair]) -> PreparedTask:
        """Pairs, aligned for the model's tokenizer."""
        return prepare(items, model)

    def prepare(
        self, model: Model, plan: Plan, subject: Mapping[str, Any], tune: PreparedTask
    ) -> tuple[SteerSetup, dict[str, Any]]:
        """Direction and random directions, from tune."""
        settings, feature = plan.settings, feature_of(subject["feature"])
        place = place_of(model, feature.site, settings["positions"])
        _, centred = tune_tokens(model, [*tune.clean, *tune.corrupted], place)
        vector = feature.direction(centred.shape[1])
        drawn = random_subspaces(centred, vector[None], max(LEAST_PER_POOL, per_pool(settings["draws"])), settings["seed"])
        options = settings["options"]
        neutral = list(options.get("neutral", TEXTS))
        grid = tuple(subject["strengths"])
        ends = {f"{strength:+g}": pushed(strength * vector) for strength in (max(grid), min(grid))}
        damage = Damage(neutral, place, list(ends.values()))
        tasks = other_tasks(model, options.get("off_target", ()), tune.templates)
        setup = SteerSetup(place, vector, grid, {name: basis[0] for name, basis in drawn.items()}, damage, plan.metric,
                           settings["control_pairs"], str(options.get("instruction", "")), few_shots(model, tune),
                           Elsewhere(tasks, place, ends) if tasks else None, str(options.get("generation", "")))  # fmt: skip
        return setup, {"random": record_of(drawn), "neutral": len(neutral)}

    def measure(
        self, model: Model, data: PreparedTask, setup: SteerSetup, gates: Sequence[GatePlan], report: Progress | None = None
    ) -> Columns:
        """All columns the gates need, over all pairs of a split."""
        instrument = SteerInstrument(model, data, setup)
        columns: Columns = {}
        for number, gate in enumerate(gates):
            columns.update(get_gate(gate.name).measure(instrument, gate))
            if report:
                report("measuring", number + 1, len(gates))
        return columns


def grid_of(strengths: Sequence[float]) -> tuple[float, ...]:
    """Strengths in order, 0 left out (it is always measured). Raises UsageError without two of each sign."""
    numbers = isinstance(strengths, Sequence) and all(isinstance(strength, int | float) for strength in strengths)
    found = sorted({float(strength) for strength in strengths} - {0.0}) if numbers else []
    if min(sum(s > 0 for s in found), sum(s < 0 for s in found)) < 2 or not all(abs(s) < float("inf") for s in found):
        raise bad_argument("strengths", strengths, "at least two positive and two negative numbers",
                           "For example -4, -2, 2, 4.")  # fmt: skip
    return tuple(found)


KINDS.add("steers", Steers())
