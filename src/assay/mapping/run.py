"""`run_map`: from a model to an atlas of features that are explained, scored and tested, in stages that survive a kill.

1. *read*: the parts *shown*, *scored* and *tune* of a corpus; which units are on where (`assay.explain.reading`).
2. *explain*: every chosen unit from *shown*; by rules, or by an endpoint whose replies are kept (no call is paid twice).
3. *score*: each explanation on windows of *scored*, beside explanations of other units and units of an untrained twin.
4. *lock*: rules that pass a screen on *tune* become *explains* claims, with plans locked by hash.
5. *pay*: the ticket of every claim, and what it will read, is in the ledger. Only then
6. *sealed*: *confirm* and *ood* are read, by the model and by its twins, and
7. *test*: all claims are measured, and judged together with Holm's correction over all of them.
8. *atlas*: every unit, explained or not, with windows, scores and claims; what share is explained by supported claims, and what
   is not.
9. *index*: explanations can be found by meaning; units know their circuits, graphs and effects on tasks (`assay.atlas.linked`).
10. *concepts*, where labelled ones are named: the unit that tells each best is claimed to represent it (`mapping.concepts`).

The folder of a map is named by everything that decides it; the same command goes on where an earlier one ended.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from assay.atlas.linked import link_all
from assay.atlas.mapped import Mapped
from assay.atlas.mapped_records import SetRecord, score_of
from assay.atlas.mapped_writer import MappedWriter
from assay.atlas.store import Atlas
from assay.data.corpora import Corpus, open_corpus
from assay.errors import AssayError, SiteError, UsageError, bad_argument
from assay.evidence.bulk import pay_many, state_many, test_many
from assay.evidence.corpus_reading import TWIN_SEEDS, corpus_host, corpus_texts
from assay.evidence.corpus_windows import CorpusHost, CorpusSource, CorpusTexts
from assay.evidence.run import Settings
from assay.evidence.source import ConceptSource
from assay.explain.budget import Budget
from assay.explain.conditions import usable
from assay.explain.endpoint import Asker, EndpointError
from assay.explain.executed import Executed
from assay.explain.explainers import EXPLAINERS, explain
from assay.explain.lexical import LexicalPlan, explain_lexical
from assay.explain.output_side import Changes, Written, clamped, contexts_of, direct, some_of, written
from assay.explain.reading import Reading, ReadPlan, open_reading, read_features
from assay.explain.records import Cost, Explanation, Sample, Score
from assay.explain.sampling import SamplePlan, Samples, samples
from assay.explain.scorers.base import SCORERS, deranged, score_features
from assay.explain.scorers.intervention import look_alikes
from assay.explain.scorers.untrained import summarise
from assay.explain.tools import Ask, Tools
from assay.features.engines import HERE, Where, in_order
from assay.files import write_file
from assay.mapping.claims import NO_RULE, WORDS, Screened, screen, settings_for, supportable, wanted_claims, why_not
from assay.mapping.concepts import check_concepts, claim_concepts
from assay.mapping.features import Named, Records, densities, says
from assay.mapping.looks import record_reading
from assay.mapping.shares import Shares, shares_of
from assay.mapping.stages import Stages
from assay.mapping.units import MapUnits
from assay.model.context import context_length
from assay.model.model import Model
from assay.model.untrained import untrained_model
from assay.passport import run_passport
from assay.records import digest, plain

Report = Callable[[str, int, int], None]
CORPUS, OOD = "mixed", "brown"
SCORERS_USED = ("detection", "fuzzing", "simulation", "intruder")
BLOCK, SHARD = 64, 256
SEALED = ("confirm", "ood")
EXPLAINED = "explanations.json"



@dataclass(frozen=True)
class MapPlan:
    """What decides a map. `tokens`: of all parts; `features`: names, or how many drawn by seed, None for all.

    `explainer`: lexical, or openai:MODEL@URL with `prompt` as its way of asking. `baseline`: units of an untrained twin that
    are explained and scored, 0 for none. `alpha`: of the claims. `topics`: rules may also say what a text is about, by sentence
    embeddings, which takes longer.
    """

    corpus: str | Corpus = CORPUS
    ood: str | Corpus | None = OOD
    tokens: int = 200_000
    context: int = 128
    features: int | tuple[str, ...] | None = None
    explainer: str = "lexical"
    prompt: str = "contrast"
    scorers: tuple[str, ...] = SCORERS_USED
    baseline: int = 128
    alpha: float = 0.05
    seed: int = 0
    topics: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.features, int) and self.features < 1:
            raise bad_argument("features", self.features, "1 or more, names, or none for all")
        if self.baseline < 0:
            raise bad_argument("baseline", self.baseline, "0 or more")
        if not 0 < self.alpha <= 0.2:
            raise bad_argument("alpha", self.alpha, "above 0, at most 0.2")
        if not self.scorers:
            raise bad_argument("scorers", "none", ", ".join(SCORERS.names()))
        for name in self.scorers:
            SCORERS.get(name)
        if self.explainer != "lexical":
            EXPLAINERS.get(self.prompt)

    def record(self) -> dict[str, Any]:
        """As plain data; corpora by name and digest."""
        corpora = {name: None if (given := getattr(self, name)) is None else open_corpus(given).record()
                   for name in ("corpus", "ood")}  # fmt: skip
        given = {each.name: corpora.get(each.name, getattr(self, each.name)) for each in fields(self)}
        if not self.topics:  # maps without are named as they were before there were any with
            del given["topics"]
        return plain(given)

    @property
    def lexical(self) -> LexicalPlan:
        """How rules are looked for."""
        return LexicalPlan(kinds=tuple(kind.name for kind in usable(costly=True))) if self.topics else LexicalPlan()

    @property
    def sees_outputs(self) -> bool:
        """Whether an endpoint is shown what units do to the next token."""
        return self.explainer != "lexical" and self.prompt in ("output", "both")

    def reading(self, context: int) -> ReadPlan:
        """How the corpus is read, by a model that holds so many tokens."""
        length = min(self.context, context)
        files = min(65_536, max(2048, self.tokens // 32))  # tokens in one: what a worker has at once
        return ReadPlan(tokens=self.tokens, context=length, per_document=length, seed=self.seed, file_tokens=files)


@dataclass(frozen=True, eq=False)
class Side:
    """Whose units are explained and scored: the model's, or those of `what` beside it."""

    model: Model
    reading: Reading
    names: list[str]
    what: str = ""


@dataclass(eq=False)
class MapRun:
    """One run. `asker`: an endpoint with its journal and budget, where the explainer is one. `where`: where corpora are read,
    rules looked for and scored; what is asked, stated, paid and tested is done here. `concepts`: labelled data for *represents*
    claims; they decide nothing else, so a map that is there is gone on with."""

    model: Model
    units: MapUnits
    atlas: Atlas
    plan: MapPlan = field(default_factory=MapPlan)
    asker: Ask | None = None
    report: Report | None = None
    where: Where = HERE
    concepts: tuple[str, ...] = ()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the map."""
        return plain({"model": self.model.digest, "units": self.units.source.record, "plan": self.plan.record()})

    @cached_property
    def folder(self) -> Path:
        """Where it is kept."""
        what = self.units.dictionary.name if self.units.dictionary is not None else self.units.site
        safe = "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in f"{self.model.name}-{what}")
        return self.atlas.path / "maps" / f"{safe[:80]}-{digest(self.identity)[:8]}"

    @cached_property
    def stages(self) -> Stages:
        """What is finished."""
        return Stages(self.folder)

    def say(self, what: str, done: int, total: int) -> None:
        """Progress."""
        if self.report:
            self.report(what, done, total)

    # what stages share -----------------------------------------------------------------------

    @cached_property
    def reading(self) -> Reading:
        """The reading, with the parts that are read so far."""
        found = open_reading(self.folder / "reading")
        return Reading(found.folder, self.units.source, self.where)

    @cached_property
    def names(self) -> list[str]:
        """Units that are explained, in the order of columns."""
        chosen, known = self.plan.features, list(self.reading.units)
        if chosen is None:
            return known
        if isinstance(chosen, int):
            some = np.random.default_rng([self.plan.seed, 31]).permutation(len(known))[:chosen]
            return [known[column] for column in sorted(some.tolist())]
        return [known[column] for column in sorted({self.reading.column(name) for name in chosen})]

    @cached_property
    def texts(self) -> CorpusTexts:
        """The parts that claims are tested on, as text."""
        return corpus_texts(self.reading)

    @cached_property
    def host(self) -> CorpusHost:
        """The codes as a host of features."""
        return corpus_host(self.texts, self.reading, self.model)

    @property
    def sampling(self) -> SamplePlan:
        """Windows of a unit."""
        return SamplePlan(seed=self.plan.seed)

    @cached_property
    def explained(self) -> dict[str, Explanation]:
        """Explanations by feature, in order. Once all are there they are kept, so that no later stage asks anything again,
        not even what failed: scores and claims are about these very words."""
        path, key = self.folder / EXPLAINED, digest([self.reading.digest, self.names])
        kept = json.loads(path.read_text()) if path.is_file() else {}
        if kept.get("key") == key:
            found = [Explanation(**{**each, "cost": Cost(**each["cost"])}) for each in kept["explanations"]]
        else:
            found = list(self.explanations(self.side))
            self.check_answered()
            write_file(path, json.dumps({"key": key, "explanations": [plain(asdict(each)) for each in found]}).encode())
        return {each.feature: each for each in found}

    @property
    def side(self) -> Side:
        """The model itself, with what is explained of it."""
        return Side(self.model, self.reading, self.names)

    @cached_property
    def twin(self) -> Side:
        """An untrained twin, and units of it that are on anywhere in *shown*."""
        reading = self.reading.read_twins(self.model, "all", ("shown", "scored"), TWIN_SEEDS["all"], report=self.report)
        active = np.flatnonzero(np.diff(reading.part("shown").by_unit.indptr) > 0)
        some = np.random.default_rng([self.plan.seed, 32]).permutation(active)[: self.plan.baseline]
        runs = self.plan.sees_outputs or "intervention" in self.plan.scorers
        model = untrained_model(self.model, "all", TWIN_SEEDS["all"]) if runs else self.model
        return Side(model, reading, [reading.units[column] for column in sorted(some.tolist())], "an untrained twin")

    def explanations(self, side: Side) -> Iterator[Explanation]:
        """Of its units, by the plan's explainer."""
        if not side.names:
            return
        count = self.count(f"explaining {side.what}".strip(), len(side.names))
        if self.plan.explainer == "lexical":
            kept = self.folder / "twin" if side.what else None
            yield from explain_lexical(side.reading, side.names, self.plan.lexical, count, kept, self.where)
            return
        outputs = {each.feature: each for each in direct(side.model, self.written(side))} if self.plan.sees_outputs else {}
        tools = Tools(self.asker, reading=side.reading, seed=self.plan.seed, outputs=outputs, report=count)
        for block in _by(samples(side.reading, self.sampling, side.names), BLOCK):
            if self.plan.sees_outputs and (changes := _changes(self, side, block, "shown")) is not None:
                tools.clamped = changes.outputs
            yield from explain(block, self.plan.prompt, tools)

    def check_answered(self) -> None:
        """Raises EndpointError where the endpoint gave no answer to something: what was made without it is not kept."""
        if self.asker is not None and (left := self.asker.unanswered):
            last = list(left.values())[-1]
            raise EndpointError(f"{self.asker.name}: {len(left)} prompts have no answer yet; the last: {last}."
                                " All replies so far are kept: run the same command to ask for these again.")  # fmt: skip

    def written(self, side: Side) -> list[Written]:
        """What the units write; of a head, what it adds in the windows in which it is on."""
        heads = getattr(self.units.source, "kind", "") == "head"
        return written(side.model, self.units.source, samples(side.reading, self.sampling, side.names) if heads else ())

    def count(self, what: str, total: int) -> Callable[[int], None]:
        done = 0

        def count(n: int) -> None:
            nonlocal done
            done += n
            self.say(what, done, total)

        return count


def run_map(run: MapRun) -> dict[str, Any]:
    """All stages; the summary. Raises what the stages raise; what is finished is kept."""
    if run.plan.explainer != "lexical" and run.asker is None:
        raise bad_argument("explainer", run.plan.explainer, "lexical, or an endpoint that was opened")
    check_concepts(run.units, run.concepts)
    _check_names(run)
    read = run.stages.run("read", run.identity, lambda: _read(run))
    explained = run.stages.run("explain", read, lambda: _explain(run))
    scored = run.stages.run("score", explained, lambda: _score(run))
    locked = run.stages.run("lock", [read, explained], lambda: _lock(run))
    paid = run.stages.run("pay", locked, lambda: _pay(run, locked))
    sealed = run.stages.run("sealed", paid, lambda: _sealed(run, bool(locked["claims"])))
    tested = run.stages.run("test", [paid, sealed], lambda: _test(run, locked))
    written = run.stages.run("atlas", [scored, tested], lambda: _atlas(run, explained, scored, locked, tested))
    linked = run.stages.run("index", written, lambda: _index(run, written["set"]))
    stood: dict[str, Any] = {}
    if run.concepts:
        stood = run.stages.run("concepts", [written, _known_concepts(run)], lambda: _concepts(run, written["set"]))
    return {**written, **linked, **stood, "seconds": run.stages.seconds}


def would_cost(run: MapRun) -> Any:
    """What a `DryRun` in the place of an endpoint counts: the corpus is read, units are explained and scored by placeholders.

    Nothing else of a map is done, nothing is kept of it.
    """
    run.stages.run("read", run.identity, lambda: _read(run))
    for side in (run.side, *((run.twin,) if run.plan.baseline else ())):
        explanations = {each.feature: each for each in run.explanations(side)}
        tools = Tools(run.asker, reading=side.reading, seed=run.plan.seed)
        found = (sample for sample in samples(side.reading, run.sampling, side.names) if sample.feature in explanations)
        others = deranged(explanations.values(), densities(side.reading), run.plan.seed) if explanations else {}
        for block in _by(found, BLOCK):
            tools.changes = _changes(run, side, block) if "intervention" in run.plan.scorers else None
            pairs = ((explanations[sample.feature], sample) for sample in block)
            for _ in score_features(pairs, run.plan.scorers, tools, others):
                pass
    return run.asker.estimate if run.asker is not None else None  # type: ignore[attr-defined]


def _by(stream: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    given = iter(stream)
    return iter(lambda: list(islice(given, size)), [])


def _check_names(run: MapRun) -> None:
    """Raises UsageError for units by name that there are none of, before anything is read."""
    known = run.units.source.names
    for name in sorted(set(run.plan.features) - set(known)) if isinstance(run.plan.features, tuple) else ():
        raise bad_argument("features", name, f"names of its {len(known)} units, as {known[0]}")


# stages ------------------------------------------------------------------------------------------


def _read(run: MapRun) -> dict[str, Any]:
    most = context_length(run.model.hf) or run.plan.context
    read_features(run.model, run.units.source, run.plan.corpus, run.folder / "reading", run.plan.reading(most), run.report,
                  run.plan.ood, run.where)  # fmt: skip
    record_reading(run.atlas, run.model.digest, run.reading, "map: windows that are shown and scored")
    active = int((np.diff(run.reading.part("shown").by_unit.indptr) > 0).sum())
    tokens = {part: run.reading.n_tokens(part) for part in ("shown", "scored", "tune", *SEALED)}
    return {"reading": run.reading.digest, "units": len(run.reading.units), "active": active, "tokens": tokens}


def _explain(run: MapRun) -> dict[str, Any]:
    found = run.explained
    rules = sum(each.rule is not None for each in found.values())
    cost = Cost()
    for each in found.values():
        cost = cost.plus(each.cost)
    said = digest([[each.feature, each.text, each.rule] for each in found.values()])
    return {"digest": said, "asked": len(run.names), "explained": sum(says(each) for each in found.values()), "rules": rules,
            "cost": asdict(cost)}  # fmt: skip


def _score(run: MapRun) -> dict[str, Any]:
    """Scores in blocks on disk, then those of the twin's units."""
    explanations = run.explained
    found = samples(run.reading, run.sampling, run.names)
    skipped: dict[tuple[str, str], str] = {}
    scores = list(_scored_blocks(run, found, explanations, run.folder / "scores", "scoring", skipped, run.side))
    twins = _twin_scores(run) if run.plan.baseline and scores else []
    summary = {name: each.json() for name, each in summarise(scores, twins).items()}
    return {"scorers": summary, "dropped": dict(Counter(found.dropped.values())), "why_not": found.dropped,
            "not_scored": dict(Counter(f"{scorer}: {why}" for (_, scorer), why in skipped.items())),
            "untrained_units": len({each.feature for each in twins})}  # fmt: skip


def _scored_blocks(
    run: MapRun, found: Samples, explanations: Mapping[str, Explanation], folder: Path, what: str,
    skipped: dict[tuple[str, str], str] | None = None, clamp: Side | None = None,
) -> Iterator[Score]:  # fmt: skip
    """Scores of every explanation, a block of units at a time; a block that is on disk is not scored again.

    What is dropped when it is reached goes into `found.dropped`, what a scorer cannot score into `skipped`, from disk too.
    A block in which the endpoint left something unanswered is not kept. Raises EndpointError after the last block then.
    """
    names = [name for name in explanations if name not in found.dropped]
    key = digest([[name, each.text, each.rule] for name, each in explanations.items()] + [list(run.plan.scorers)])[:12]
    blocks = [_Block(number, names[start : start + BLOCK], (folder / f"{key}-{start:07d}.json").absolute())
              for number, start in enumerate(range(0, len(names), BLOCK))]  # fmt: skip
    done = 0
    for block in in_order(_made(run, found, explanations, names, blocks, clamp)):
        done += len(block.names)
        if block.path.is_file():
            kept = json.loads(block.path.read_text())
            found.dropped |= kept["dropped"]
            if skipped is not None:
                skipped |= {(feature, scorer): why for feature, scorer, why in kept["skipped"]}
            yield from (score_of(body) for body in kept["scores"])
            run.say(what, done, len(names))
    run.check_answered()


def _made(
    run: MapRun, found: Samples, explanations: Mapping[str, Explanation], names: Sequence[str], blocks: Sequence["_Block"],
    clamp: Side | None,
) -> Iterator[tuple[int, "_Block"]]:  # fmt: skip
    """Blocks, by number, with their files made: elsewhere where nobody is asked and nothing is clamped."""
    changes = partial(_changes, run, clamp) if clamp and "intervention" in run.plan.scorers else None
    others = deranged([explanations[name] for name in names], densities(found.reading), run.plan.seed) if names else {}
    scoring = _Scoring(found, explanations, others, run.plan.scorers, run.plan.seed, run.asker, changes)
    where = run.where if run.asker is None and changes is None and not all(each.path.is_file() for each in blocks) else HERE
    sent = replace(scoring, found=None)
    there = partial(_scoring_there, found.reading.folder.absolute(), run.sampling, list(explanations), sent)
    return where.run(there if where.engine is not None else lambda: scoring.block, blocks)


@dataclass(frozen=True)
class _Block:
    """Units whose scores are kept in one file."""

    number: int
    names: list[str]
    path: Path


@dataclass(frozen=True, eq=False)
class _Scoring:
    """What scores a block of units."""

    found: Any
    explanations: Mapping[str, Explanation]
    others: Mapping[str, Explanation]
    scorers: tuple[str, ...]
    seed: int
    asker: Ask | None = None
    changes: Callable[[Sequence[Sample]], Changes | None] | None = None

    @cached_property
    def executed(self) -> Executed | None:
        ruled = any(each.rule for each in self.explanations.values())
        return Executed(self.found.reading.part("scored")) if ruled else None

    def block(self, block: _Block) -> tuple[int, _Block]:
        """Its file, unless it is there; none where the endpoint left something unanswered."""
        if block.path.is_file():
            return block.number, block
        kept_samples = [sample for sample in map(self.found.of, block.names) if sample is not None]
        pairs = [(self.explanations[sample.feature], sample) for sample in kept_samples]
        tools = Tools(self.asker, reading=self.found.reading, executed=self.executed, seed=self.seed,
                      changes=self.changes(kept_samples) if self.changes else None)  # fmt: skip
        left: dict[tuple[str, str], str] = {}
        before = len(self.asker.unanswered) if self.asker is not None else 0
        made = list(score_features(pairs, self.scorers, tools, self.others, left))
        gone = {name: self.found.dropped[name] for name in block.names if name in self.found.dropped}
        skips = [[*who, why] for who, why in left.items()]
        body = {"scores": [plain(each) for each in made], "dropped": gone, "skipped": skips}
        if self.asker is None or len(self.asker.unanswered) == before:
            write_file(block.path, json.dumps(body).encode())
        return block.number, block


def _scoring_there(folder: Path, plan: SamplePlan, names: Sequence[str], scoring: _Scoring) -> Callable[[_Block], Any]:
    return replace(scoring, found=samples(open_reading(folder), plan, names)).block


def _changes(run: MapRun, side: Side, block: Sequence[Sample], part: str = "scored") -> Changes | None:
    """What clamping each of some units to its largest value does to the next token, in contexts of a part. For scores their
    look-alikes are clamped too. Heads are not clamped: a head has no one vector before its samples are read again."""
    if run.units.kind == "head" or not block:
        return None
    targets = {sample.feature: sample.largest for sample in block}
    if part == "scored":
        codes = side.reading.part("shown").by_unit
        for name in (name for sample in block for name in look_alikes(sample) if name not in targets):
            column = side.reading.column(name)
            targets[name] = float(codes.data[codes.indptr[column] : codes.indptr[column + 1]].max(initial=0.0))
    groups = some_of(written(side.model, run.units.source), targets)
    return clamped(side.model, groups, contexts_of(side.model, block, part, seed=run.plan.seed), targets)


def _twin_scores(run: MapRun) -> list[Score]:
    """Units of an untrained twin, explained and scored in the same way, by the same endpoint where there is one."""
    explanations = {each.feature: each for each in run.explanations(run.twin)}
    run.check_answered()
    found = samples(run.twin.reading, run.sampling, run.twin.names)
    return list(_scored_blocks(run, found, explanations, run.folder / "twin_scores", "scoring an untrained twin",
                               clamp=run.twin))  # fmt: skip


def _lock(run: MapRun) -> dict[str, Any]:
    """Screen on tune, state and lock; nothing sealed is read."""
    explanations = run.explained
    screened = supportable(screen(explanations.values(), run.host, run.texts), run.plan.alpha)
    wanted = wanted_claims(explanations, screened, run.units, run.reading, run.host)
    settings = settings_for(len(wanted), run.plan.alpha, run.plan.seed)
    ids = state_many(run.atlas, run.host, list(wanted.values()), settings, run.report) if wanted else []
    near = {name: list(each.source.record()["near"]) for name, each in wanted.items()}
    return {"claims": dict(zip(wanted, ids, strict=True)), "near": near, "not_claimed": why_not(screened),
            "screen": {each.feature: _screen_record(each) for each in screened if each.why_not not in (NO_RULE, WORDS)},
            "resamples": settings.resamples}  # fmt: skip


def _screen_record(each: Screened) -> dict[str, Any]:
    return {"precision": round(each.precision, 4), "recall": round(each.recall, 4), "documents": list(each.documents),
            "why_not": each.why_not}  # fmt: skip


def _sources(run: MapRun, locked: Mapping[str, Any]) -> dict[str, Any]:
    """Claim -> its source."""
    explanations = run.explained
    return {claim: CorpusSource(run.texts, dict(explanations[name].rule or {}), tuple(locked["near"][name]))
            for name, claim in locked["claims"].items()}  # fmt: skip


def _pay(run: MapRun, locked: Mapping[str, Any]) -> dict[str, Any]:
    ids = list(locked["claims"].values())
    if ids:
        pay_many(run.atlas, ids, _sources(run, locked), run.report)
    return {"tickets": len(ids)}


def _sealed(run: MapRun, claimed: bool) -> dict[str, Any]:
    """The sealed parts, by the model and, where claims need them, by its twins."""
    run.reading.read_more(run.model, SEALED, run.units.source, run.report)
    for scheme, seed in TWIN_SEEDS.items() if claimed else ():
        run.reading.read_twins(run.model, scheme, SEALED, seed, run.units.source, run.report)
    return {part: run.reading.n_tokens(part) for part in SEALED}


def _test(run: MapRun, locked: Mapping[str, Any]) -> dict[str, Any]:
    ids = list(locked["claims"].values())
    if ids:
        test_many(run.atlas, run.host, ids, _sources(run, locked), run.report)
    verdicts, reasons = {}, Counter[str]()
    with run.atlas:
        for name, claim in locked["claims"].items():
            verdict = run.atlas.verdict(claim)
            verdicts[name] = "not tested" if verdict is None else verdict.verdict
            if verdict is not None:
                reasons.update(f"{verdict.verdict}: {reason}" for reason in verdict.reasons)
    return {"verdicts": verdicts, "reasons": dict(reasons.most_common())}


def _atlas(
    run: MapRun, explained: Mapping[str, Any], scored: Mapping[str, Any], locked: Mapping[str, Any], tested: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """Every unit into the atlas; what is explained and what is not."""
    verdicts = tested["verdicts"]
    supported = [name for name, verdict in verdicts.items() if verdict == "supported"]
    shares = shares_of(run.model, run.units, run.reading, supported, run.names)
    summary = _summary(run, explained, scored, locked, tested, shares)
    record = _set_record(run)
    explanations, found = run.explained, samples(run.reading, run.sampling, run.names)
    by_feature = _scores_kept(run, explanations, found, scored["scorers"])
    records = Records(run.reading, run.units, outputs_of(run), run.units.spread_over_neurons(run.model))
    with MappedWriter(run.atlas, record, SHARD) as writer:
        for number, name in enumerate(run.names[writer.done :], writer.done):
            sample: Sample | None = found.of(name)
            said, column = explanations.get(name), run.reading.column(name)
            why = _why(name, said, sample, scored["why_not"])
            writer.add([records.record(column, sample, said, by_feature.get(name, ()), why)])
            run.say("writing the atlas", number + 1, len(run.names))
        made = writer.finish(summary)
    Mapped(run.atlas).note(made.id, claims={name: [claim] for name, claim in locked["claims"].items()})
    return {**summary, "set": made.id, "folder": str(run.folder), "passport": run_passport({"map": run.plan.record()})}


def _index(run: MapRun, name: str) -> dict[str, Any]:
    """What searches need beside words, and what else the atlas holds of these units."""
    mapped = Mapped(run.atlas)
    links = link_all(mapped)
    try:
        mapped.index_meaning(name, report=run.count("indexing meanings", len(run.names)))
        return {"links": links, "meanings": ""}
    except AssayError as error:  # no encoder here: everything else of the map stands
        return {"links": links, "meanings": str(error)}


def _known_concepts(run: MapRun) -> list[dict[str, Any]]:
    """What *represents* claims are stated on, by content."""
    return [ConceptSource(concept).record() for concept in run.concepts]


def _concepts(run: MapRun, name: str) -> dict[str, Any]:
    """*represents* claims about the units that tell labelled concepts best, on the pages of these units."""
    settings = Settings(seed=run.plan.seed, alpha=run.plan.alpha)
    found = claim_concepts(run.atlas, run.model, run.units, run.names, run.concepts, settings, run.report)
    claims: dict[str, list[str]] = {}
    for each in found:
        if each["claim"]:
            claims.setdefault(each["feature"], []).append(each["claim"])
    Mapped(run.atlas).note(name, claims=claims)
    return {"concepts": found}


def _why(name: str, explanation: Explanation | None, sample: Sample | None, dropped: Mapping[str, str]) -> str:
    if name in dropped or (sample is None and explanation is None):
        return dropped.get(name, "not sampled")
    if explanation is None or not says(explanation):
        return "no rule found" if explanation is not None else "not explained"
    return ""


def _scores_kept(
    run: MapRun, explanations: Mapping[str, Explanation], found: Any, means: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[Score]]:  # fmt: skip
    """Scores by feature, each with what units of the untrained twin have on average beside it."""
    by_feature: dict[str, list[Score]] = {}
    for score in _scored_blocks(run, found, explanations, run.folder / "scores", "scoring"):
        beside = replace(score, untrained=means.get(score.scorer, {}).get("untrained"))
        by_feature.setdefault(score.feature, []).append(beside)
    return by_feature


def outputs_of(run: MapRun) -> dict[str, tuple[Named, Named]]:
    """Promoted and suppressed tokens by the decoder direction; none where units write in no one direction."""
    found = {}
    try:
        for each in direct(run.model, run.written(run.side), report=run.count("output side", len(run.names))):
            found[each.feature] = tuple(tuple((token.text, token.value) for token in tokens)
                                        for tokens in (each.promoted, each.suppressed))  # fmt: skip
    except (SiteError, UsageError):
        return {}
    return found


def _set_record(run: MapRun) -> SetRecord:
    dictionary, plan = run.units.dictionary, run.plan
    how = f"by seed {plan.seed}" if isinstance(plan.features, int) else f"by name, {digest(run.names)[:8]}"
    chosen = "all" if plan.features is None else f"{len(run.names)} {how}"
    corpus = run.reading.manifest["identity"]["corpus"]["name"]
    return SetRecord(
        run.model.name, run.model.digest, run.units.kind, run.units.site, str(corpus), dictionary.name if dictionary else "",
        dictionary.digest if dictionary else "", chosen, len(run.reading.units),
        sum(run.reading.n_tokens(part) for part in ("shown", "scored", "tune", *SEALED)),
        about={"map": run.folder.name, "reading": run.reading.digest, "explainer": plan.explainer, "plan": plan.record()},
    )  # fmt: skip


def _summary(
    run: MapRun, explained: Mapping[str, Any], scored: Mapping[str, Any], locked: Mapping[str, Any], tested: Mapping[str, Any],
    shares: Shares,
) -> dict[str, Any]:  # fmt: skip
    counts = Counter(tested["verdicts"].values())
    features = {"all": len(run.reading.units), "mapped": len(run.names), "active": shares.detail["active"],
                "explained": explained["explained"], "claimed": len(locked["claims"]), "supported": counts["supported"],
                "refuted": counts["refuted"], "inconclusive": counts["inconclusive"]}  # fmt: skip
    left = {**shares.unexplained()}
    return {"model": run.model.name, "dictionary": run.units.dictionary.name if run.units.dictionary else run.units.site,
            "unexplained": left, "features": features, "shares": shares.json(), "dropped": dict(scored["dropped"]),
            "not_scored": dict(scored["not_scored"]),
            "not_claimed": dict(locked["not_claimed"]), "reasons": dict(tested["reasons"]), "scores": dict(scored["scorers"]),
            "untrained_units": scored["untrained_units"], "cost": _cost(run), "resamples": locked["resamples"],
            "tokens": {part: run.reading.n_tokens(part) for part in ("shown", "scored", "tune", *SEALED)}}  # fmt: skip


def _cost(run: MapRun) -> dict[str, Any]:
    """Of all that was asked, by this run and those before it; `lost`: calls without a reply, which may have been paid."""
    budget = run.asker.budget if isinstance(run.asker, Asker) else Budget()
    return {**asdict(budget.spent), "lost": asdict(budget.lost)}


def names_in(given: str | Sequence[str]) -> tuple[str, ...]:
    """Comma-separated names as a tuple."""
    return tuple(name.strip() for name in given.split(",") if name.strip()) if isinstance(given, str) else tuple(given)
