"""Black-box reader: does the monitor find more than a language model that only reads the texts?

1. The reader named by the claim (`assay.evidence.black_box`) scores every text.
2. Contrast per member: placement under the monitor minus placement under the reader.

Planned only for claims that name a reader; then it decides. Where more than a tenth of the texts have no usable answer, the
gate was not measured: a broken reader is no rival. Where the reader does as well, the verdict says *lexical*.
"""

from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, difference, mean, register
from assay.evidence.gates.detection import placed
from assay.records import GatePlan

KINDS = ("detects",)
UNANSWERED = 0.1


def measure(instrument, gate: GatePlan) -> Columns:
    """The claimed score and the reader's."""
    return {"label": instrument.labels(), "score": instrument.score(), "reader": instrument.read_by_reader()}


def contrast(table: Table, gate: GatePlan) -> Contrast:
    """Placement minus the reader's. KeyError where too many texts have no answer."""
    answers = column(table, "reader")
    missing = sum(answer is None for answer in answers)
    if missing > UNANSWERED * len(answers):
        raise KeyError("reader")
    own, read = placed(table), placed(table, "reader")
    return Contrast(difference(own, read), notes={"monitor": mean(own), "reader": mean(read), "unanswered": missing})


register(Gate("black_box", "lexical", KINDS, 0.0, True, measure, contrast, asked="reader_url",
              says="it beats a language model that reads the texts by {estimate}"))  # fmt: skip
