"""State and test claims on a model.

    claim, plan = state_claim(atlas, model, Source("ioi"), ["z.3.1", "z.4.0"])
    verdict = test_claim(atlas, claim.id, model)

1. State: the subject is checked, tune items are measured for the smallest detectable effect, claim and
   plan are locked. Confirm and ood are not read.
2. Test: ticket, read, leak check, preconditions on confirm; if they hold, every gate on confirm and
   ood, then the counterexample searches, then evidence, then verdict.
3. Everything a kind needs is behind its interface (`kinds.py`); a trial knows items, columns and gates.
"""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from assay.data.prepare_concept import PreparedConcept
from assay.data.whereabouts import placeless
from assay.errors import PlanWarning, ReproduceError, UsageError, bad_argument
from assay.evidence import claims
from assay.evidence.cautions import weak
from assay.evidence.claims import QUANTIFIERS, ClaimStore
from assay.evidence.empirical import instrument_flags
from assay.evidence.gates import evaluate
from assay.evidence.gates.base import template_means
from assay.evidence.kinds import KINDS, ChecksTexts, Columns, Data, Item, Kind, Progress, check_items, check_model
from assay.evidence.ledger import now, subject_key, unjudged
from assay.evidence.options import check_options
from assay.evidence.search import SEARCHES, Found, Hunt
from assay.evidence.shares import share_interval
from assay.evidence.source import OfCodes, Population, ReadsMore, clusters, leaks, marks, source_of
from assay.evidence.stale import other_gates, other_tokenizer, tokenizer_of
from assay.passport import run_passport
from assay.records import Claim, Counterexample, Dataset, Evidence, GateResult, Plan, Run, Verdict, digest
from assay.statistics import DRAWS, cluster_means, mde80

KEPT_HITS = 20


@dataclass(frozen=True)
class Settings:
    """How a claim is measured. Fixed when it is locked.

    `tune`, `confirm`, `ood`: items of each split. `positions`: all or last. `draws`: random controls;
    `control_pairs`: pairs per template that they are measured on. `options`: what a kind wants besides.
    `search`: candidates to try per search method, instead of the method's own number. `resamples`: of every p, where many
    claims are corrected for together (see `bulk.draws_for`).
    """

    tune: int = 48
    confirm: int = 128
    ood: int = 64
    seed: int = 0
    alpha: float = 0.05
    metric: str = "logit_diff"
    positions: str = "all"
    draws: int = 99
    control_pairs: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    search: dict[str, int] = field(default_factory=dict)
    resamples: int = DRAWS

    @property
    def sizes(self) -> dict[str, int]:
        return {"tune": self.tune, "confirm": self.confirm, "ood": self.ood}

    def check(self) -> None:
        """Raises UsageError for a setting outside its limits."""
        for name, value in {**self.sizes, "draws": self.draws, "control_pairs": self.control_pairs}.items():
            if not isinstance(value, int) or value < 1:
                raise bad_argument(name, value, "a whole number, 1 or more")
        if not isinstance(self.resamples, int) or self.resamples < DRAWS:
            raise bad_argument("resamples", self.resamples, f"a whole number, {DRAWS} or more")
        if not 0 < self.alpha <= 0.2:
            raise bad_argument("alpha", self.alpha, "above 0, at most 0.2")
        if self.positions not in ("all", "last"):
            raise bad_argument("positions", self.positions, "all or last")
        if self.metric != "logit_diff":
            raise bad_argument("metric", self.metric, "logit_diff", "Wrong signs and accuracy are read off it.")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise bad_argument("seed", self.seed, "a whole number, 0 or more")
        for name, budget in self.search.items():
            SEARCHES.get(name)
            if not isinstance(budget, int) or budget < 0:
                raise bad_argument(f"search budget of {name}", budget, "a whole number, 0 or more")


@dataclass(frozen=True)
class Statement:
    """What is claimed, in the words of whoever claims it."""

    kind: str = "mediates"
    quantifier: str = "tends"
    text: str = ""
    parent: str | None = None
    rivals: tuple[str, ...] = ()


def state_claim(
    store: ClaimStore,
    model: Any,
    source: Population,
    subject: Any,
    *,
    statement: Statement | None = None,
    sesoi: Mapping[str, float] | None = None,
    settings: Settings | None = None,
) -> tuple[Claim, Plan]:
    """State a claim and lock its plan; `sesoi` by gate or group name. Warns (PlanWarning) of too little power.

    `model`: a language model, or a host of features. `subject`: what the kind takes, sites for *mediates*,
    a feature for *represents*. Raises UsageError for a wrong argument, TaskError for data that do not fit.
    """
    draft = drafted(store, model, source, subject, statement=statement, sesoi=sesoi, settings=settings)
    claim, plan = record_draft(store, draft)
    for text in weak(plan, source):
        warnings.warn(f"claim {claim.id}: {text}", PlanWarning, stacklevel=2)
    return claim, plan


@dataclass(frozen=True)
class Draft:
    """A claim with its locked plan that is not recorded yet, and the model and names of the tune data that were looked at."""

    claim: Claim
    plan: Plan
    model: str
    looked: list[str]
    n: int


def drafted(
    store: ClaimStore, model: Any, source: Population, subject: Any, *, statement: Statement | None = None,
    sesoi: Mapping[str, float] | None = None, settings: Settings | None = None,
) -> Draft:  # fmt: skip
    """What `state_claim` records. Nothing is written; confirm and ood are not read."""
    statement = Statement() if statement is None else statement
    settings = Settings() if settings is None else settings
    settings.check()
    kind = _kind(statement)
    check_model(kind, model)
    check_options(kind.name, settings.options)
    model.fresh_digest()
    claim = _claim(store, model, source, kind.subject(model, subject), statement, settings.positions)
    plan = claims.make_plan(claim, source, settings.sizes, sesoi or {}, asdict(settings))
    items = source.items("tune", settings.tune, settings.seed)
    check_items(kind, items, source.name)
    if isinstance(kind, ChecksTexts):
        for split, n in settings.sizes.items():
            kind.check_texts(claim.subject, split, source.items(split, n, settings.seed))
    tune = kind.load(model, items)
    setup, controls = kind.prepare(model, plan, claim.subject, tune)
    seen = claims.seen_gates(plan.gates)
    columns = kind.measure(model, tune, setup, seen)
    plan = replace(plan, mde=_mde(plan, seen, tune, columns), settings={**plan.settings, "controls": controls})
    plan = replace(plan, lock=claims.lock_of(claim, plan))
    second = getattr(setup, "second", None)
    more = marks(second.examples) if isinstance(second, PreparedConcept) else marks(getattr(second, "items", []))
    return Draft(claim, plan, model.digest, [*names_of(source, "tune", tune.items), *more], len(tune.items))


def record_draft(store: ClaimStore, draft: Draft) -> tuple[Claim, Plan]:
    """The look at tune data, then claim and plan: from here on they are locked."""
    store.append("look", {"what": "tune items for the smallest detectable effect", "model": draft.model,
                          "clusters": draft.looked, "n": draft.n})  # fmt: skip
    store.record_claim(draft.claim, draft.plan)
    return draft.claim, draft.plan


def names_of(source: Population, split: str, items: Sequence[Item]) -> list[str]:
    """By what the ledger knows the data of a split: as the source says that more is read than its items, else the items'."""
    return source.marks(split) if isinstance(source, ReadsMore) else marks(items)


def test_claim(
    store: ClaimStore,
    claim_id: str,
    model: Any,
    progress: Progress | None = None,
    *,
    source: Population | None = None,
    corpus: Sequence[str] = (),
) -> Verdict:
    """Read confirm and ood, once, and decide. Raises ReproduceError when model or data are others, EvidenceError when another
    process tested it meanwhile.

    `source`: the data again, where they were given in memory. `corpus`: ordinary texts for the searches. What was measured and
    not judged, because a run was killed, is judged and not read again.
    """
    claim, plan = store.claim(claim_id), store.plan(claim_id)
    claims.check_lock(claim, plan)
    if unjudged(store.entries_of(claim_id)):
        return claims.judge(store, claim_id)
    source = source_of(claim.task) if source is None else source

    def on_read(split: str, items: Sequence[Item]) -> list[str]:
        return spend(store, claim, plan, split, items, names_of(source, split, items))

    record_outcome(store, measured(Trial(claim, plan, model, progress, on_read, source, corpus)))
    return claims.judge(store, claim_id)


def spend(
    store: ClaimStore, claim: Claim, plan: Plan, split: str, items: Sequence[Item], names: Sequence[str]
) -> list[str]:  # fmt: skip
    """Spend the ticket and say what is read, before it is read; what was looked at of it earlier."""
    subject, locked = subject_key(claim.kind, claim.subject), plan.splits[split]
    with store:
        looked = store.looks(claim.subject["digest"], names)
        ticket = claims.ticket_for(store, claim, plan, subject)
        store.append("data", {"claim": claim.id, "ticket": ticket, "split": split, "subject": subject,
                              "digest": locked["digest"], "clusters": list(names)})  # fmt: skip
        store.record_dataset(Dataset(locked["digest"], claim.task["name"], split, locked["n"], locked["seed"],
                                     tuple(clusters(items)), claim.task, str(claim.task.get("licence", ""))))  # fmt: skip
    return looked


@dataclass(frozen=True)
class Measured:
    """A trial that was run: what came out, with what, when."""

    trial: "Trial"
    outcome: "Outcome"
    passport: dict[str, Any]
    started: str
    seconds: float


def measured(trial: "Trial") -> Measured:
    """Run a trial."""
    started, clock = now(), time.perf_counter()
    outcome = trial.run()
    passport = {**passport_of(trial.model, trial.plan), "rule": trial.plan.rule_version}
    return Measured(trial, outcome, passport, started, time.perf_counter() - clock)


def record_outcome(store: ClaimStore, found: Measured) -> Evidence:
    """Evidence and run of a trial. It is not judged yet."""
    claim, plan, outcome = found.trial.claim, found.trial.plan, found.outcome
    items = found.trial.items("confirm")
    reads = claims.reads_of(store, subject_key(claim.kind, claim.subject), plan, names_of(found.trial.source, "confirm", items))
    flags = (*outcome.flags, *instrument_flags(store, found.trial.model.digest, claim.kind))
    evidence = Evidence(claim.id, plan.lock, found.passport, outcome.tables, outcome.gates, outcome.search, outcome.data,
                        reads, flags, now())  # fmt: skip
    store.record_evidence(evidence, outcome.hits)
    ticket = next((e["body"]["ticket"] for e in reversed(store.entries_of(claim.id)) if e["kind"] == "ticket"), "")
    passes = sum(int(method.get("passes", 0)) for method in outcome.search["methods"].values())
    run = digest([found.passport, evidence.created])[:16]
    store.record_run(Run(run, claim.id, plan.lock, ticket, found.started, evidence.created, found.seconds, passes,
                         found.passport))  # fmt: skip
    return evidence


test_claim.__test__ = False  # type: ignore[attr-defined]  # a verb, not a pytest function


@dataclass(frozen=True)
class Outcome:
    """What a trial measured: tables per split, gates made from them, the searches, and what was read."""

    tables: dict[str, dict[str, Any]]
    gates: tuple[GateResult, ...]
    hits: list[Counterexample]
    search: dict[str, Any]
    data: dict[str, dict[str, Any]]
    flags: tuple[str, ...]


class Trial:
    """One measurement of one locked claim. Knows no store: `on_read(split, items)` is told before sealed
    items are measured, and says what was looked at of them earlier."""

    def __init__(
        self,
        claim: Claim,
        plan: Plan,
        model: Any,
        progress: Progress | None = None,
        on_read: Callable[[str, Sequence[Item]], list[str]] = lambda split, items: [],
        source: Population | None = None,
        corpus: Sequence[str] = (),
    ) -> None:
        self.claim, self.plan = claim, plan
        self.source = source_of(claim.task) if source is None else source
        self.model = self.source.host(model) if isinstance(self.source, OfCodes) else model
        self.progress, self.on_read, self.corpus = progress, on_read, corpus
        self.kind = KINDS.get(claim.kind)
        self.data: dict[str, dict[str, Any]] = {}
        self.flags: list[str] = []

    def run(self) -> Outcome:
        """Measurements, gates and counterexamples. Raises ReproduceError for another model or other data."""
        self._check()
        plan, model = self.plan, self.model
        seen = {split: self.items(split) for split in ("discover", "tune") if split in plan.splits}
        tune = self.kind.load(model, seen["tune"])
        setup, controls = self.kind.prepare(model, plan, self.claim.subject, tune)
        if controls != plan.settings["controls"]:
            self.flags.append("the controls made now are not those in the plan")
        data: dict[str, Data] = {}
        for split in plan.levels:
            data[split] = self._read(split, seen)
            seen[split] = self.items(split)
        tables: dict[str, dict[str, Any]] = {}
        search: dict[str, Any] = {"complete": False, "methods": {}, "hits": 0, "candidates": 0}
        hits: list[Counterexample] = []
        if self._preconditions(data["confirm"], setup, tables):
            for split, items in data.items():
                columns = self.kind.measure(model, items, setup, plan.gates, self._progress(split))
                tables[split] = self._table(items, columns)
            hits, search = self._search(data["confirm"], setup, tables["confirm"]["columns"])
        return Outcome(tables, claims.derive_gates(plan, tables), hits, search, self.data, tuple(self.flags))

    def _check(self) -> None:
        """The model and the texts must be those that were locked."""
        subject, got = self.claim.subject, self.model
        if got.fresh_digest() != subject["digest"]:
            raise ReproduceError(f"claim {self.claim.id} is about {subject['model']} with digest"
                                 f" {subject['digest'][:12]}; got {got.name} with {got.digest[:12]}."
                                 " State a claim about this model instead.")  # fmt: skip
        if problems := [*other_tokenizer(self.claim, got), *other_gates(self.plan)]:
            raise ReproduceError(f"claim {self.claim.id}: {'; '.join(problems)}. State the claim again.")
        for split, locked in self.plan.splits.items():
            if self.source.digest(split, locked["n"], locked["seed"]) != locked["digest"]:
                raise ReproduceError(f"task {self.source.name}: its data are not those the plan was locked on"
                                     f" (split {split}). Restore them, or state the claim again.")  # fmt: skip

    def items(self, split: str) -> list[Item]:
        """The items of a split, as locked."""
        locked = self.plan.splits[split]
        return self.source.items(split, locked["n"], locked["seed"])

    def _read(self, split: str, known: Mapping[str, Sequence[Item]]) -> Data:
        """Items of a sealed split, ready for the model; whether they leak into the splits read before."""
        items = self.items(split)
        looked = self.on_read(split, items)
        data = self.kind.load(self.model, items)
        self.data[split] = {"digest": self.plan.splits[split]["digest"], "pairs": len(data),
                            "clusters": len(clusters(data.items)), "dropped": data.dropped, "looked": looked}  # fmt: skip
        for other, seen in known.items():
            shared = self.source.leaks(other, split) if isinstance(self.source, ReadsMore) else leaks(seen, items)
            if shared:
                what = ", ".join(f"{n} {name}" for name, n in shared.items())
                self.flags.append(f"leak: {split} shares {what} with {other}")
        return data

    def _table(self, data: Data, columns: Columns) -> dict[str, Any]:
        for name in (name for name, column in columns.items() if not _finite(column)):
            self.flags.append(f"non-finite scores: {name}")
        clean = {name: [_number(value) for value in column] for name, column in columns.items()}
        scores = [value for value in clean.get(self.kind.score, ()) if value is not None]
        if len(scores) > 1 and len(set(scores)) == 1:
            self.flags.append("constant scores: every item has the same score")
        return {"templates": data.templates, "words": data.words, "columns": clean}

    def _preconditions(self, data: Data, setup: Any, tables: dict[str, dict[str, Any]]) -> bool:
        """Whether there is anything to test; a kind without such gates always has."""
        gates, level = claims.preconditions(self.plan), self.plan.levels["confirm"]
        if not gates:
            return True
        tables["confirm"] = self._table(data, self.kind.measure(self.model, data, setup, gates))
        results = [evaluate(gate, "confirm", tables["confirm"], level, self.plan.settings["seed"]) for gate in gates]
        return all(result is not None and result.p_above <= level for result in results)

    def _search(self, data: Data, setup: Any, columns: Columns) -> tuple[list[Counterexample], dict[str, Any]]:
        """Every method of the plan; what a method could not finish is said."""
        kept: list[Counterexample] = []
        methods: dict[str, dict[str, Any]] = {}
        for number, (name, budget) in enumerate(self.plan.search["methods"].items()):
            if self.progress:
                self.progress(f"searching: {name}", number, len(self.plan.search["methods"]))
            method = SEARCHES.get(name)
            hunt = Hunt(self.model, self.claim, self.plan, self.kind, data, setup, columns, budget, KEPT_HITS,
                        self.plan.settings["seed"], self.corpus)  # fmt: skip
            found = method.find(hunt) if budget > 0 else Found(0, 0, complete=False)  # a search not run is not finished
            kept.extend(found.kept)
            share = {} if found.failed is None else failing_share(data, found.failed)
            methods[name] = {**found.record(method.sampled), "required": method.required, **share}
        sampled = [found for found in methods.values() if found["sampled"]]
        return kept, {
            "complete": bool(methods) and all(found["complete"] for found in methods.values() if found["required"]),
            "methods": methods, "hits": sum(found["hits"] for found in sampled),
            "candidates": sum(found["tried"] for found in sampled), **corpus_record(self.corpus),
        }  # fmt: skip

    def _progress(self, split: str) -> Progress | None:
        report = self.progress
        return None if report is None else lambda label, done, total: report(f"{label} {split}", done, total)


def corpus_record(corpus: Sequence[str]) -> dict[str, str]:
    """{"corpus": digest} of the ordinary texts that searches read; nothing where there were none."""
    return {"corpus": digest(list(corpus))} if corpus else {}


def failing_share(data: Data, failed: Sequence[int]) -> dict[str, float]:
    """95% bounds of the share of items that fail, by template; where words cross templates the outer of both."""
    rows = set(failed)
    values = [float(row in rows) for row in range(len(data))]
    groupings = [data.templates, *([data.words] if data.words else [])]
    means = [list(cluster_means(values, names).values()) for names in groupings]
    bounds = [share_interval(each, len(values)) if len(each) > 1 else (0.0, 1.0) for each in means]
    return {"low": min(low for low, _ in bounds), "high": max(high for _, high in bounds)}


def passport_of(model: Any, plan: Plan) -> dict[str, Any]:
    """Model and run, without the folders of this machine."""
    found = model.passport()
    source = {"source": placeless(str(found["source"]), model.digest)} if "source" in found else {}
    return {**found, **source, **run_passport(plan.settings)}


# the parts of stating ----------------------------------------------------------------------------


def _kind(statement: Statement) -> Kind:
    if statement.quantifier not in QUANTIFIERS:
        raise bad_argument("quantifier", statement.quantifier, ", ".join(QUANTIFIERS))
    return KINDS.get(statement.kind)


def _claim(
    store: ClaimStore, model: Any, source: Population, subject: dict[str, Any], statement: Statement, positions: str
) -> Claim:
    parent = None if statement.parent is None else store.claim(statement.parent)
    if parent is not None and parent.kind != statement.kind:
        raise UsageError(f"parent: claim {parent.id} is of kind {parent.kind}; allowed: {statement.kind}.")
    text = statement.text or KINDS.get(statement.kind).words(subject, statement.quantifier, source.name)
    body = {
        "version": 1 if parent is None else parent.version + 1, "parent": statement.parent, "kind": statement.kind,
        "statement": text, "quantifier": statement.quantifier,
        "subject": {"model": model.name, "source": placeless(str(model.source), model.digest),
                    "digest": model.digest, "positions": positions,
                    **tokenizer_of(model),
                    **subject},
        "task": source.record(), "direction": "positive",
        "rivals": list(statement.rivals), "created": now(),
    }  # fmt: skip
    return Claim(id=claims.claim_id({**body, "n": store.entry_count()}), **{**body, "rivals": statement.rivals})


def _mde(plan: Plan, gates: Sequence[Any], tune: Data, columns: Columns) -> dict[str, float | None]:
    """Per gate, from the spread of tune templates and the number of confirm templates."""
    table = {"templates": tune.templates, "words": tune.words, "columns": columns}
    found: dict[str, float | None] = {gate.name: None for gate in plan.gates}
    for gate in gates:
        means = template_means(gate, table)
        if means is not None:
            found[gate.name] = mde80(means, plan.levels["confirm"], plan.splits["confirm"]["templates"])
    return found


def _finite(column: Sequence[float | None]) -> bool:
    return all(value is None or math.isfinite(value) for value in column)


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
