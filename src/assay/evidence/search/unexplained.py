"""Unexplained: confirm examples whose reconstruction misses more than the claim allows on average.

1. An example misfits when less of it is explained than half of what the variance gate asks for.
2. The worst are read and rebuilt again, alone; those that misfit again are *verified*.
"""

from assay.evidence.dictionaries import DictionaryInstrument
from assay.evidence.hosts import as_host
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.records import Counterexample

HALF = 0.5


def find(hunt: Hunt) -> Found:
    """The worst explained examples of the confirm split."""
    bar = HALF * next(gate.sesoi for gate in hunt.plan.gates if gate.name == "variance")
    explained = hunt.columns["explained"]
    misfits = sorted((value, row) for row, value in enumerate(explained) if value is not None and value < bar)
    kept = []
    for _, row in misfits[: hunt.keep]:
        alone = DictionaryInstrument(as_host(hunt.model), hunt.data.select([row]), hunt.setup)
        (again,) = alone.explained(alone.reconstruction)
        example = hunt.data.items[row]
        status = "verified" if again is not None and again < bar else "open"
        kept.append(Counterexample(hunt.claim.id, example.text, "", example.template, "variance", again or 0.0,
                                   f"above {bar:.2g} explained", status, "unexplained"))  # fmt: skip
    return Found(len(hunt.data), len(misfits), tuple(kept), len(kept), failed=tuple(row for _, row in misfits))


register_search(SearchMethod("unexplained", ("reconstructs",), find, sampled=True, required=True))
