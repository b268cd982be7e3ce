"""Precision on everything: of all tokens at which the feature is on, how many does the rule name?

1. All tokens of the split's documents are looked at, not only those drawn as items: drawn items have more members than the
   corpus, which flatters precision.
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
    """Per item, both shares of its document. Nothing on a host without codes."""
    host, setup = instrument.host, instrument.setup
    if not isinstance(host, CorpusHost) or setup.unit is None:
        return {}
    part = host.part_of(instrument.data)
    fires, rule = host.everywhere(setup.unit, setup.half, part), host.ruled(setup.record, part)
    texts = host.texts.parts[part]
    named, found = by_document(texts, fires, rule), by_document(texts, rule, fires)
    of = [example.template for example in instrument.data.examples]
    return {"corpus.precision": [named.get(name) for name in of], "corpus.recall": [found.get(name) for name in of]}


def precision(table: Table, gate: GatePlan) -> Contrast:
    """Share of firing tokens that the rule names, per document."""
    return Contrast(column(table, "corpus.precision"))


def recall(table: Table, gate: GatePlan) -> Contrast:
    """Share of named tokens at which it fires, per document."""
    return Contrast(column(table, "corpus.recall"))


register(Gate("corpus.precision", "precision", KINDS, 0.6, True, measure, precision, asked=OPTION,
              says="the rule names {estimate} of all tokens it is on at"))  # fmt: skip
register(Gate("corpus.recall", "sensitivity", KINDS, 0.6, False, measure, recall, asked=OPTION,
              says="it is on at {estimate} of all tokens the rule names"))  # fmt: skip
