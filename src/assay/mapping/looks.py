"""A reading in the ledger: whoever saw documents cannot test a claim on them as if they were new."""

from assay.atlas.store import Atlas
from assay.evidence.corpus_reading import texts_of
from assay.evidence.corpus_windows import marks_of
from assay.explain.reading import Reading

SEEN = ("shown", "scored")


def record_reading(atlas: Atlas, model: str, reading: Reading, what: str) -> None:
    """One look at all documents of the parts that are seen; `model`: its digest. A claim that is tested on one of them later,
    on another corpus or seed, is *exploratory*."""
    seen = sorted({mark for part in SEEN for mark in marks_of(texts_of(reading.as_text(part)))})
    atlas.append("look", {"what": what, "model": model, "clusters": seen, "n": len(seen)})
