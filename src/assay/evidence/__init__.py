"""Claims that must survive: plans, gates, statistics, ledger, verdicts.

Methods elsewhere return measurements; only this package turns measurements into verdicts. It keeps
nothing itself: a store that satisfies `assay.evidence.claims.ClaimStore` is passed in.
"""

from assay.evidence import (  # noqa: F401  (each registers what it contains)
    connects,
    decodes,
    detects,
    explains,
    gates,
    mediates,
    reconstructs,
    represents,
    search,
    steers,
    uses,
)