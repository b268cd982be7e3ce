"""Negative controls on a user's own model: does the instrument find what is not there?

1. Texts of discover and tune are read once at one site; confirm and ood stay sealed.
2. Every control claims a direction (isotropic, or drawn from the covariance of these activations) or a unit of
   that site, about labels that mean nothing: shuffled inside templates, or, where words cross templates, drawn
   once per word, so that what is shared by the texts of a word shows.
3. Templates are dealt anew to tune, confirm and ood each time, and the claim takes the whole road. The true
   AUROC is .5: p is that of "at most .5", not of the bar.
4. The empirical null is fitted to all controls and filed in the ledger.

The controls share texts, so they are not independent of each other: the fitted spread is that of these texts.
The untrained twins of a control are noise of the same size: the model is not trained again for each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from assay.errors import TaskError, bad_argument
from assay.evidence.claims import ClaimStore
from assay.evidence.empirical import EmpiricalNull, calibrated_p, fit_null, null_of, record_null
from assay.evidence.features import Feature, direction
from assay.evidence.gates import get_gate
from assay.evidence.hosts import as_host
from assay.evidence.memory import MemoryStore
from assay.evidence.run import Settings, Statement, drafted, record_draft, test_claim
from assay.evidence.source import MemorySource
from assay.passport import one_git_state
from assay.records import Evidence, Example
from assay.statistics import summarise
from assay.testing.worlds import World

KINDS = ("represents", "decodes", "explains", "detects")  # those that decide on placements, as the controls do
SHARES = {"tune": 2, "confirm": 5, "ood": 3}
FEWEST_TEMPLATES = 12
MOST_ITEMS = 400


@dataclass(frozen=True)
class Control:
    """One negative control: p of "AUROC is at most .5", the estimate, its standard error, and the verdict."""

    name: str
    p: float
    estimate: float
    error: float
    verdict: str


@dataclass(frozen=True)
class Calibrated:
    """Negative controls of a model and their empirical null; `claims`: nominal and calibrated p of stored claims."""

    model: str
    site: str
    null: EmpiricalNull
    controls: tuple[Control, ...]
    claims: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The machine-readable twin."""
        null = self.null
        p = sorted(control.p for control in self.controls)
        calibrated = sorted(calibrated_p(control.estimate, control.error, 0.5, null) for control in self.controls)
        return {"model": self.model, "site": self.site, "n": null.n, "alpha": null.alpha,
                "false_positives": null.false_positives, "rate": null.rate, "supported": null.supported,
                "misbehaves": null.misbehaves, "systematic_error": {"mean": null.mean, "sd": null.sd},
                "kinds": list(null.kinds), "p_nominal": p, "p_calibrated": calibrated,
                "calibrated_rate": sum(value <= null.alpha for value in calibrated) / max(1, null.n),
                "claims": list(self.claims)}  # fmt: skip


def calibrate_model(
    model: Any, source: Any, *, site: str | None = None, n: int = 60, seed: int = 0, store: ClaimStore | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> Calibrated:  # fmt: skip
    """Test n negative controls on a model and fit the empirical null. Raises UsageError for an n below 20, TaskError
    for too few templates. With a `store`, the calibration is filed there and its claims get calibrated p."""
    if n < 20:
        raise bad_argument("n", n, "20 or more", "Fewer controls say nothing about a rate of one in twenty.")
    host = as_host(model)
    site = site or f"resid_post.{max(0, model.n_layers // 2)}"
    world, items = world_of(host, site, explored(source, seed))
    controls: list[Control] = []
    with one_git_state():
        for place in range(n):
            if report:
                report("negative controls", place, n)
            controls.append(control(world, site, items, seed * 100_003 + place))
    null = summed_up(controls, 0.05)
    if store is not None:
        record_null(store, host.digest, null, items, f"{source.name} at {site}")
    return Calibrated(host.name, site, null, tuple(controls), calibrated_claims(store, host.digest))


def explored(source: Any, seed: int) -> list[Example]:
    """Examples of discover and tune; of a task, both prompts of every pair, whose labels will be drawn."""
    found: list[Example] = []
    for split in ("discover", "tune"):
        for item in source.items(split, MOST_ITEMS // 2, seed):
            if isinstance(item, Example):
                found.append(item)
            else:
                found += [Example(text, int(text == item.clean), item.template) for text in dict.fromkeys(item.texts)]
    kept = {item.text: item for item in found}
    if (templates := len({item.template for item in kept.values()})) < FEWEST_TEMPLATES:
        raise TaskError(f"{source.name}: {templates} templates in discover and tune; {FEWEST_TEMPLATES} are needed for"
                        " negative controls. Give more sentence patterns.")  # fmt: skip
    return list(kept.values())


def world_of(host: Any, site: str, items: Sequence[Example]) -> tuple[World, list[Example]]:
    """The model's activations at one site as a world, and the examples that could be read."""
    data = host.load(items)
    acts = host.read(site, data).double().numpy()
    vectors = {example.text: row for example, row in zip(data.examples, acts, strict=True)}
    return World(host.name, vectors, np.eye(acts.shape[1]), salt=host.digest, source="model", site=site), data.examples


def control(world: World, site: str, items: Sequence[Example], seed: int) -> Control:
    """One negative control through the whole battery, in a store of its own."""
    rng = np.random.default_rng([seed, 60])
    labelled, how = meaningless(items, rng, by_word=bool(seed % 2))
    source = dealt(labelled, rng)
    name, feature = nothing(world, site, rng, seed)
    sizes = {split: len(found) for split, found in source.splits.items()}
    store = MemoryStore()
    draft = drafted(store, world, source, feature, statement=Statement("represents"),
                    settings=replace(Settings(draws=9, seed=seed), **sizes))  # fmt: skip
    claim, _ = record_draft(store, draft)
    verdict = test_claim(store, claim.id, world, source=source)
    evidence = store.evidence(claim.id)
    p, estimate, error = at_chance(evidence, seed) if evidence is not None else (1.0, 0.5, 0.0)
    return Control(f"{name}, labels {how}", p, estimate, error, verdict.verdict)


def at_chance(evidence: Evidence, seed: int) -> tuple[float, float, float]:
    """(p of "AUROC is at most .5", AUROC, standard error) from the stored columns of confirm."""
    table = evidence.tables["confirm"]
    values = get_gate("detection").contrast(table, get_gate("detection").plan()).values
    found = summarise(values, table["templates"], 0.5, seed=seed)
    worst = found
    if table.get("words"):
        worst = max(found, summarise(values, table["words"], 0.5, seed=seed), key=lambda s: s.p_above)
    k, sd = int(worst.sample["K"] or 0), float(worst.sample["sd"] or 0.0)
    return worst.p_above, float(worst.estimate or 0.5), sd / max(1, k) ** 0.5


def meaningless(items: Sequence[Example], rng: np.random.Generator, by_word: bool) -> tuple[list[Example], str]:
    """Labels that mean nothing: one per word where words cross templates and it is asked for, else shuffled."""
    words = [item.entities[0] if item.entities else "" for item in items]
    crossing = len(set(words)) < len(words) and all(words)
    if by_word and crossing:
        drawn = dict(zip(names := sorted(set(words)), rng.permutation(np.arange(len(names)) % 2).tolist(), strict=True))
        named = zip(items, words, strict=True)
        return [replace(item, label=drawn[word], near_miss=False) for item, word in named], "by word"
    rows: dict[str, list[Example]] = {}
    for item in items:
        rows.setdefault(item.template, []).append(item)
    found = []
    for group in rows.values():
        labels = rng.permutation(np.arange(len(group)) % 2).tolist()
        found += [replace(item, label=label, near_miss=False) for item, label in zip(group, labels, strict=True)]
    return found, "shuffled"


def dealt(items: Sequence[Example], rng: np.random.Generator) -> MemorySource:
    """Templates dealt at random to tune, confirm and ood. Words are left where they are: their labels mean nothing."""
    names = rng.permutation(sorted({item.template for item in items})).tolist()
    total, start, home = sum(SHARES.values()), 0, {}
    for split, share in SHARES.items():
        stop = len(names) if split == "ood" else start + max(2, round(len(names) * share / total))
        home |= dict.fromkeys(names[start:stop], split)
        start = stop
    splits = {split: [item for item in items if home[item.template] == split] for split in SHARES}
    return MemorySource("negative control", splits)


def nothing(world: World, site: str, rng: np.random.Generator, seed: int) -> tuple[str, Feature]:
    """A direction or unit that was drawn, not found."""
    acts = np.stack(list(world.vectors.values()))
    if seed % 3 == 0:
        return "isotropic direction", direction(site, rng.standard_normal(acts.shape[1]).tolist())
    if seed % 3 == 1:
        return "covariance direction", direction(site, (rng.standard_normal(len(acts)) @ (acts - acts.mean(0))).tolist())
    alive = np.flatnonzero(acts.std(0) > 0)
    return "unit", Feature(site, int(rng.choice(alive)))


def summed_up(controls: Sequence[Control], alpha: float) -> EmpiricalNull:
    """The empirical null of some controls."""
    mean, sd = fit_null([c.estimate - 0.5 for c in controls], [c.error for c in controls])
    return EmpiricalNull("detection", KINDS, len(controls), sum(c.p <= alpha for c in controls),
                         sum(c.verdict == "supported" for c in controls), alpha, mean, sd)  # fmt: skip


def calibrated_claims(store: Any, model: str) -> tuple[dict[str, Any], ...]:
    """Nominal and calibrated p of the detection gate of every stored claim about a model."""
    found = []
    for claim in store.claims() if hasattr(store, "claims") else ():
        null, evidence = null_of(store, claim.subject["digest"], claim.kind), store.evidence(claim.id)
        if claim.subject["digest"] != model or null is None or evidence is None:
            continue
        for gate in evidence.gates:
            if gate.name == null.gate and gate.estimate is not None and gate.sample.get("sd") is not None:
                error = float(gate.sample["sd"]) / max(1, int(gate.sample["K"])) ** 0.5
                p = calibrated_p(gate.estimate, error, gate.sesoi, null)
                found.append({"claim": claim.id, "gate": gate.label, "estimate": gate.estimate, "sesoi": gate.sesoi,
                              "p": gate.p_above, "p_calibrated": p})  # fmt: skip
    return tuple(found)
