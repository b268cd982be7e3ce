"""Repair: change weights so that a fault goes away, and measure what else changed.

1. The fault is a task: after the clean prompts the model should prefer the answer, and prefers the foil. *discover* is what
   an edit is made from, *tune* what layer, strength or factor are chosen on, *confirm* and *ood* what it is judged on.
2. Candidates are tried on tune: the one that meets most of three bars (more right answers, other prompts unchanged, KL on
   ordinary text), then with the largest share right, then with the least KL.
3. The chosen one is judged before and after, on sealed splits and on what should stay (`repair_checks`): *repaired*,
   *repaired at a price* or *not repaired*, by bars that are fixed before anything is measured.

What was not measured may have changed too: longer texts, other languages, chat, anything that no given task asks for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from assay.data.prepare import PreparedTask, longest_of, prepare
from assay.errors import TaskError, bad_argument
from assay.model.model import Model
from assay.records import Pair, canonical, digest, plain
from assay.registry import Registry
from assay.steer import rank_one, weights
from assay.steer.kept import Kept, Nowhere
from assay.steer.repair_checks import Bars, Check, Fault, Progress, decide, judge, said_in_full, shares, text_change
from assay.steer.weights import Changed

__all__ = ["METHODS", "Bars", "Candidate", "Check", "Fault", "RepairPlan", "RepairReport", "Trial", "check_plan", "choose",
           "examples", "repair", "require_shared_subjects", "require_usable"]  # fmt: skip
TRIAL_TEXTS, TRIAL_TOKENS = 16, 48  # of ordinary text, for choosing
PREFIXES, PREFIX_TOKENS = 2, 8  # ordinary text before prompts where keys are read
LAYER_SHARES = (0.15, 0.3, 0.45)  # of the depth: where facts are written unless layers are named


@dataclass(frozen=True, eq=False)
class RepairPlan:
    """What is tried. `units`: heads or neurons; `factors` times them; `layers`: None is all of them, or a few for rank-one.

    `direction`: for project-out. `subject`, `strengths`: for rank-one (see `rank_one`).
    """

    method: str
    units: tuple[str, ...] = ()
    factors: tuple[float, ...] = ()
    layers: tuple[int, ...] | None = None
    direction: torch.Tensor | None = None
    subject: str | None = None
    strengths: tuple[float, ...] = (0.5, 1.0)
    values: rank_one.ValuePlan = field(default_factory=rank_one.ValuePlan)
    bars: Bars = field(default_factory=Bars)
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """The plan as plain data; a direction by its norm."""
        shown = {name: value for name, value in vars(self).items() if name != "direction"}
        return plain({**shown, "direction": None if self.direction is None else float(self.direction.norm())})


@dataclass(frozen=True, eq=False)
class Candidate:
    """One edit that may be tried: its settings, and what makes it."""

    settings: Mapping[str, Any]
    make: Callable[[], Changed]


@dataclass(frozen=True)
class Trial:
    """One candidate on tune. Shares of prompts; KL in nats per token of ordinary text; `met`: how many of three bars."""

    settings: dict[str, Any]
    right_before: float
    right: float
    other_before: float
    other: float
    kl: float | None
    met: int


@dataclass(frozen=True, eq=False)
class RepairReport:
    """What was done and found. `changed` holds the new model; `said`: share of confirm prompts after which greedy decoding
    says the answer whole, before and after."""

    fault: str
    plan: RepairPlan
    changed: Changed
    settings: dict[str, Any]
    trials: tuple[Trial, ...]
    checks: tuple[Check, ...]
    verdict: str
    reasons: tuple[str, ...]
    sentence: str
    examples: tuple[dict[str, Any], ...] = ()
    said: tuple[float | None, float | None] = (None, None)

    def json(self) -> dict[str, Any]:
        """The machine-readable twin."""
        return plain({
            "fault": self.fault, "method": self.plan.method, "verdict": self.verdict, "sentence": self.sentence,
            "reasons": self.reasons, "settings": self.settings, "checks": self.checks, "trials": self.trials,
            "weights": self.changed.changes, "notes": self.changed.notes, "plan": self.plan.record(),
            "examples": self.examples, "said_in_full": {"before": self.said[0], "after": self.said[1]},
        })  # fmt: skip


# methods -----------------------------------------------------------------------------------------

Ordinary = Callable[[], Sequence[Sequence[int]]]
Maker = Callable[[Model, RepairPlan, Sequence[Pair], Ordinary, Progress, Kept], list[Candidate]]
METHODS: Registry[Maker] = Registry("repair method")


def _project_out(
    model: Model, plan: RepairPlan, pairs: Sequence[Pair], ordinary: Ordinary, report: Progress, kept: Kept
) -> list[Candidate]:
    direction = plan.direction
    assert direction is not None  # check_plan
    shown = "all" if plan.layers is None else list(plan.layers)
    return [Candidate({"layers": shown}, lambda: weights.project_out(model, direction, plan.layers))]


def _scaled(
    model: Model, plan: RepairPlan, pairs: Sequence[Pair], ordinary: Ordinary, report: Progress, kept: Kept
) -> list[Candidate]:
    def candidate(factor: float) -> Candidate:
        return Candidate({"factor": factor}, lambda: weights.scale_units(model, plan.units, factor))

    return [candidate(factor) for factor in plan.factors or (0.0, 0.5, 1.5, 2.0)]


def _ablated(
    model: Model, plan: RepairPlan, pairs: Sequence[Pair], ordinary: Ordinary, report: Progress, kept: Kept
) -> list[Candidate]:
    def make() -> Changed:
        return weights.ablate_units(model, plan.units, weights.unit_means(model, plan.units, ordinary()))

    return [Candidate({"value": "mean over ordinary text"}, make)]


def _written(
    model: Model, plan: RepairPlan, pairs: Sequence[Pair], ordinary: Ordinary, report: Progress, kept: Kept
) -> list[Candidate]:
    layers = plan.layers or tuple(sorted({int(share * model.n_layers) for share in LAYER_SHARES}))
    texts = list(ordinary())
    prefixes = [model.text(list(ids[1 : 1 + PREFIX_TOKENS])).strip() for ids in texts[:PREFIXES]]
    facts = rank_one.facts_of(model, pairs, plan.subject, [text for text in prefixes if text])

    @cache
    def moments() -> Mapping[int, torch.Tensor]:
        done = [0]

        def told(n: int) -> None:
            done[0] += n
            report("ordinary text", done[0], len(texts))

        return rank_one.key_moments(model, layers, texts, told)

    def values(layer: int) -> dict[str, Any]:
        done = [0]

        def told(n: int) -> None:
            done[0] += n
            report(f"values at layer {layer}", done[0], plan.values.steps)

        found = rank_one.find_values(model, layer, facts, moments()[layer], plan.values, told)
        return {"keys": found.keys.tolist(), "deltas": found.deltas.tolist(), "loss": list(found.loss)}

    @cache
    def written(layer: int) -> rank_one.Written:
        found = kept.once(f"values {layer} {digest(texts)}", lambda: values(layer))
        keys, deltas = torch.tensor(found["keys"], dtype=torch.float64), torch.tensor(found["deltas"])
        first, last = found["loss"]
        return rank_one.Written(layer, keys, deltas, moments()[layer], (first, last))

    def candidate(layer: int, strength: float) -> Candidate:
        settings = {"layer": layer, "strength": strength, "facts": len(facts)}
        return Candidate(settings, lambda: rank_one.write_facts(model, written(layer), strength))

    return [candidate(layer, strength) for layer in layers for strength in plan.strengths]


METHODS.add("project-out", _project_out)
METHODS.add("scale-heads", _scaled)
METHODS.add("scale-neurons", _scaled)
METHODS.add("mean-ablate-heads", _ablated)
METHODS.add("mean-ablate-neurons", _ablated)
METHODS.add("rank-one", _written)
UNIT_SITES = {"heads": "z", "neurons": "mlp_act"}


def check_plan(model: Model, plan: RepairPlan) -> None:
    """Raises UsageError or SiteError for a plan that this model cannot follow, before anything is measured."""
    METHODS.get(plan.method)
    kind = UNIT_SITES.get(plan.method.rpartition("-")[2])
    if kind is None and plan.units:
        raise bad_argument("--units", ", ".join(plan.units), f"none for --method {plan.method}")
    if kind is not None:
        sites = model.sites(list(plan.units)) if plan.units else []
        if not sites or any(site.name != kind or site.index is None for site in sites):
            got = ", ".join(plan.units) or None
            raise bad_argument("--units", got, f"{kind}.LAYER.NUMBER, one or more, for --method {plan.method}")
    if plan.factors and not plan.method.startswith("scale"):
        raise bad_argument("--factor", list(plan.factors), f"none for --method {plan.method}")
    if plan.layers is not None and kind is not None:
        raise bad_argument("--layer", list(plan.layers), f"none for --method {plan.method}", "Units name their layer.")
    if plan.method == "project-out" and plan.direction is None:
        raise bad_argument("--direction", None, "a saved direction", "Make one with: assay steer MODEL .. --save FILE")
    if not all(map(math.isfinite, plan.factors)):
        raise bad_argument("--factor", list(plan.factors), "finite numbers")
    if not plan.strengths or not all(0 < strength < math.inf for strength in plan.strengths):
        raise bad_argument("--strength", list(plan.strengths), "positive numbers")
    for layer in plan.layers or ():
        if not 0 <= layer < model.n_layers:
            raise bad_argument("--layer", layer, f"0 to {model.n_layers - 1}")


# choosing ----------------------------------------------------------------------------------------


def choose(
    model: Model, candidates: Sequence[Candidate], tune: PreparedTask, texts: Sequence[Sequence[int]], bars: Bars,
    report: Progress | None = None, kept: Kept | None = None,
) -> tuple[int, tuple[Trial, ...]]:  # fmt: skip
    """The best candidate on tune (its number), and all trials. Texts are token ids; without any, KL plays no part."""
    kept, before = kept or Nowhere(), shares(model, tune)
    trials: list[Trial] = []
    ranks: list[tuple[float, ...]] = []
    for number, candidate in enumerate(candidates):
        name = f"trial {canonical(dict(candidate.settings))} {digest(texts)}"
        found = kept.once(name, lambda candidate=candidate: _tried(model, candidate, before, tune, texts, bars))
        trials.append(Trial(**found["trial"]))
        ranks.append((found["whole"], found["changes"], trials[-1].met, round(trials[-1].right, 6),
                      -round(trials[-1].kl or 0.0, 4)))  # fmt: skip
        if report:
            report("trying on tune", number + 1, len(candidates))
    return ranks.index(max(ranks)), tuple(trials)


def _tried(
    model: Model, candidate: Candidate, before: tuple[float, float], tune: PreparedTask, texts: Sequence[Sequence[int]],
    bars: Bars,
) -> dict[str, Any]:  # fmt: skip
    """One candidate on tune: its trial, whether its numbers are finite, and whether it changes anything."""
    made, (right, other) = candidate.make(), before
    now, now_other = shares(made.model, tune)
    lost = text_change(model, made.model, texts)[0] if len(texts) else []
    mean = sum(lost) / len(lost) if lost else None
    whole = mean is None or math.isfinite(mean)
    met = (now - right > bars.gain) + (abs(now_other - other) <= bars.same) + (mean is not None and mean <= bars.kl)
    trial = Trial(dict(candidate.settings), right, now, other, now_other, mean if whole else math.inf,
                  met if made.changes and whole else 0)  # fmt: skip
    return {"trial": plain(trial), "whole": whole, "changes": bool(made.changes)}


# the whole ---------------------------------------------------------------------------------------


def repair(
    model: Model, fault: Fault, plan: RepairPlan, ordinary: Ordinary, progress: Progress | None = None, kept: Kept | None = None
) -> RepairReport:
    """Make candidates from discover, choose on tune, judge on confirm and ood. The model itself stays as it is.

    `ordinary`: token ids of ordinary text, read only where something needs them; not those of `fault.texts`. `kept`: finished
    parts of a run with the same model, fault and plan.
    Raises UsageError, SiteError or TaskError, before sealed data are read, for what cannot be done.
    """
    report: Progress = progress or (lambda words, done, total: None)
    kept = kept or Nowhere()
    check_plan(model, plan)
    require_usable(model, fault, plan)
    candidates = METHODS.get(plan.method)(model, plan, fault.splits["discover"], ordinary, report, kept)
    best, trials = 0, ()
    if len(candidates) > 1:
        short = [list(ids[:TRIAL_TOKENS]) for ids in list(ordinary())[-TRIAL_TEXTS:]]
        best, trials = choose(model, candidates, prepare(fault.splits["tune"], model), short, plan.bars, report, kept)
    changed = candidates[best].make()
    if not changed.changes:
        raise bad_argument("the edit", dict(candidates[best].settings), "one that changes weights",
                           "In the last layer only the last token matters (--subject end); a factor of 1 is none.")  # fmt: skip
    checks = judge(model, changed.model, fault, plan.bars, plan.seed, report, kept)
    verdict, reasons, sentence = decide(checks, plan.bars)
    shown = examples(model, changed.model, fault.splits["confirm"])
    said = (said_in_full(model, fault.splits["confirm"]), said_in_full(changed.model, fault.splits["confirm"]))
    settings = dict(candidates[best].settings)
    return RepairReport(fault.name, plan, changed, settings, trials, checks, verdict, reasons, sentence, shown, said)


def require_usable(model: Model, fault: Fault, plan: RepairPlan) -> None:
    """TaskError for a fault that this model cannot be asked about, or about whose subjects nothing could be shown."""
    for split in ("tune", "confirm"):
        prepare(fault.splits[split], model)  # cuts prompts into tokens, and says why where none can be used
    if plan.method == "rank-one":
        require_shared_subjects(fault, plan)


def require_shared_subjects(fault: Fault, plan: RepairPlan) -> None:
    """TaskError where no subject that is written occurs in confirm: a rank-one edit is about the subjects it names."""
    label = plan.subject or rank_one.subject_label(fault.splits["discover"])
    if label == rank_one.END:
        return
    made, sealed = ({rank_one.subject_of(pair, label, 0)[0] for pair in fault.splits[split]}
                    for split in ("discover", "confirm"))  # fmt: skip
    if not made & sealed:
        some = ", ".join(sorted(made)[:3])
        raise TaskError(f"{fault.name}: no subject of discover ({some}, ..) occurs in confirm, so what is written cannot show"
                        " there. A rank-one edit changes facts about the subjects it names: give a file with the same facts"
                        " in many templates, and without 'entities'.")  # fmt: skip


def examples(before: Model, after: Model, pairs: Sequence[Pair], n: int = 4, tokens: int = 6) -> tuple[dict[str, Any], ...]:
    """Some prompts of confirm, one per answer, with what each model goes on with."""
    room = longest_of(before) - tokens
    chosen = list({pair.answers: pair for pair in pairs if len(before.tokens(pair.clean)[0]) <= room}.values())[:n]
    prompts = [pair.clean for pair in chosen]
    told = [model.generate(prompts, max_new_tokens=tokens).texts for model in (before, after)] if prompts else [[], []]
    return tuple({"prompt": pair.clean, "answer": pair.answers[0], "before": old, "after": new}
                 for pair, old, new in zip(chosen, *told, strict=True))  # fmt: skip
