"""What a finding has to bring: one file in `findings/`, one registration.

    @finding("attention-sinks", title=..., paper=..., published=..., method=..., differs=...)
    def attention_sinks(lab: Lab) -> Found: ...

A lab holds the model, the atlas with its ledger, the seed and the sizes. Whatever a finding reads of bundled tasks or
concepts it reads by split: it looks on discover, chooses on tune, and measures its figures on confirm, which it tells the
ledger (`lab.items`). Claims are stated and tested as everywhere else (`lab.tested`); one that was tested before is taken
with its verdict, never tested twice on the same data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from assay.atlas.store import Atlas
from assay.data.concepts import load_concept
from assay.data.prepare import PreparedTask, prepare
from assay.data.prepare_concept import PreparedConcept, prepare_concept
from assay.data.tasks import load_task
from assay.evidence.claims import record_look
from assay.evidence.known import state_once
from assay.evidence.run import Settings, Statement, test_claim
from assay.evidence.source import Population
from assay.model.model import Model
from assay.registry import Registry
from assay.replicate.records import Found, Tested

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sizes:
    """How much is read: pairs or texts of a split, tokens of a corpus, trained models, claims' items and controls."""

    pairs: int = 48
    texts: int = 32
    tokens: int = 24_000
    units: int = 24
    models: int = 5
    claim: Settings = Settings(tune=40, confirm=80, ood=40, draws=19, control_pairs=2)


@dataclass(frozen=True)
class Lab:
    """Where a finding is tried."""

    model: Model
    store: Atlas
    seed: int = 0
    sizes: Sizes = Sizes()
    report: Report = lambda label, done, total: None

    def pairs(self, task: str, split: str, n: int | None = None) -> PreparedTask:
        """Pairs of a bundled task, for this tokenizer; the ledger is told. Raises TaskError when none fit."""
        found = prepare(load_task(task, split, n or self.sizes.pairs, self.seed), self.model)
        self.looked(f"{split} of {task}", found.pairs)
        return found

    def examples(self, concept: str, split: str, n: int | None = None) -> PreparedConcept:
        """Examples of a bundled concept, for this tokenizer; the ledger is told."""
        found = prepare_concept(load_concept(concept, split, n or 2 * self.sizes.pairs, self.seed), self.model)
        self.looked(f"{split} of {concept}", found.examples)
        return found

    def looked(self, what: str, items: Sequence[Any]) -> None:
        """Every look counts."""
        record_look(self.store, self.model.digest, f"replicate: {what}", items)

    def tested(self, kind: str, source: Population, subject: Any, text: str) -> Tested:
        """A claim, stated and tested on sealed data; with its verdict where that was done before."""
        words = Statement(kind=kind, text=text)
        stated, *_ = state_once(self.store, self.model, source, subject, statement=words, settings=self.sizes.claim)
        verdict = self.store.verdict(stated.id) or test_claim(self.store, stated.id, self.model, self.report)
        return Tested(stated.id, stated.statement, verdict.verdict, tuple(verdict.reasons))


@dataclass(frozen=True)
class Finding:
    """A published finding and how it is measured here. `needs_model`: False where it brings models of its own."""

    name: str
    title: str
    paper: str
    published: str
    method: str
    differs: str
    run: Callable[[Lab], Found]
    needs_model: bool = True


FINDINGS: Registry[Finding] = Registry("finding")


def finding(
    name: str, *, title: str, paper: str, published: str, method: str, differs: str, needs_model: bool = True
) -> Callable[[Callable[[Lab], Found]], Callable[[Lab], Found]]:
    """Decorator: register the function that measures a finding."""

    def add(run: Callable[[Lab], Found]) -> Callable[[Lab], Found]:
        FINDINGS.add(name, Finding(name, title, paper, published, method, differs, run, needs_model))
        return run

    return add

