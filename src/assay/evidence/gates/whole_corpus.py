"""Precision on everything: of all tokens at which the feature is on, how many does the rule name?

1. All tokens of all documents of the split are looked at, not only drawn items nor the documents they are drawn from: both
   have more members than the corpus, which flatters precision.
2. Contrast: per document, the share of its tokens above the threshold at which the rule says on; documents in which the feature
   is off say nothing.
3. The reverse, the share of tokens that the rule names at which the feature is on, is reported.

Needs a host that has read whole documents; claims ask for it with the option `whole_corpus`.
"""

from assay.evidence.corpus_windows import CorpusHost, by_document
from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, register
from assay.records import GatePlan

KINDS = ("explains",)
OPTION = "whole_corpus"


def measure(instrument, gate: GatePlan) -> Columns:
    """Per document, not per item: both shares. Nothing on a host without codes."""
    host, setup = instrument.host, instrument.setup
    if not isinstance(host, CorpusHost) or setup.unit is None:
        return {}
    part = host.part_of(instrument.data)
    fires, rule = host.everywhere(setup.unit, setup.half, part), host.ruled(setup.record, part)
    texts = host.texts.parts[part]
    named, found = by_document(texts, fires, rule), by_document(texts, rule, fires)
    return {"corpus.precision": list(named.values()), "corpus.recall": list(found.values())}


def precision(table: Table, gate: GatePlan) -> Contrast:
    """Share of firing tokens that the rule names, per document."""
    return _by_document(column(table, "corpus.precision"))


def recall(table: Table, gate: GatePlan) -> Contrast:
    """Share of named tokens at which it fires, per document."""
    return _by_document(column(table, "corpus.recall"))


def _by_document(values: list[float | None]) -> Contrast:
    """Every value is a document of its own, drawn from or not."""
    return Contrast(values, clusters=[f"document {number}" for number in range(len(values))])


register(Gate("corpus.precision", "precision", KINDS, 0.6, True, measure, precision, asked=OPTION,
              says="the rule names {estimate} of all tokens it is on at"))  # fmt: skip
register(Gate("corpus.recall", "sensitivity", KINDS, 0.6, False, measure, recall, asked=OPTION,
              says="it is on at {estimate} of all tokens the rule names"))  # fmt: skip
