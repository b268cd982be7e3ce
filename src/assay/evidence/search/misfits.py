"""Misfits: confirm examples that fire without being members, and members that stay silent.

1. A non-member fires when its score passes the threshold that half of the members pass on tune.
2. A member is silent when its score stays below the threshold that one in twenty non-members passes.
3. The worst are read again, alone; those that misfit again are *verified*. On a language model they are shown
   token by token, the first of them shortened as far as they still fire.
"""

from assay.evidence.hosts import as_host
from assay.evidence.hunting.labels import as_claimed
from assay.evidence.hunting.reading import reader_of
from assay.evidence.hunting.showing import Candidate, fails, show
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.records import Counterexample

KINDS = ("represents", "decodes", "explains", "detects")


@as_claimed
def find(hunt: Hunt) -> Found:
    """Misfits of the confirm split, the furthest beyond their threshold first."""
    half, strict = hunt.setup.half, hunt.setup.strict
    misfits = []
    for row, (example, score) in enumerate(zip(hunt.data.items, hunt.columns["score"], strict=True)):
        if score is not None and fails(hunt.setup, example.label, score):
            misfits.append((strict - score if example.label else score - half, row))
    misfits.sort(reverse=True)
    worst, reader, failed = [row for _, row in misfits[: hunt.keep]], reader_of(hunt), tuple(row for _, row in misfits)
    if reader is None:
        kept = [_alone(hunt, row) for row in worst]
        return Found(len(hunt.data), len(misfits), tuple(kept), len(worst), failed=failed)
    items = hunt.data.items
    found = [Candidate(items[row].text, tuple(hunt.data.tokens[row]), hunt.data.at[row], items[row].label,
                       items[row].template, made=False) for row in worst]  # fmt: skip
    kept, notes = show(hunt, reader, found, "misfits")
    return Found(len(hunt.data), len(misfits), tuple(kept), reader.passes, notes=notes, failed=failed)


def _alone(hunt: Hunt, row: int) -> Counterexample:
    """One item read again on a host that has no texts of its own."""
    example = hunt.data.items[row]
    host = hunt.setup.host or as_host(hunt.model)
    score = float(hunt.setup.score(host.read(hunt.setup.site, hunt.data.select([row])))[0])
    expected = f"above {hunt.setup.strict:.3g} (member)" if example.label else f"at most {hunt.setup.half:.3g} (not a member)"
    status = "verified" if fails(hunt.setup, example.label, score) else "open"
    return Counterexample(hunt.claim.id, example.text, "", example.template, "sensitivity" if example.label else "firing",
                          score, expected, status, "misfits")  # fmt: skip


register_search(SearchMethod("misfits", KINDS, find, sampled=True, required=True))
