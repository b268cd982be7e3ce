"""What lies in an atlas is found in it, wherever its folder was moved: readings of maps, dictionaries that were trained here.

Claims name both by digest. Where something was last seen is kept in the cache of a machine (`assay.data.whereabouts`); where it
is not there any more, or was never seen on this machine, the folder of the claim's own atlas is looked through.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from assay.data.whereabouts import keep_in_mind, last_seen
from assay.errors import StoreError
from assay.records import Claim


def find_here(atlas: Path, claim: Claim) -> None:
    """Keep in mind where in its atlas lies what a claim is about, unless that is where it was last seen."""
    dictionaries = [claim.subject[part]["digest"] for part in ("dictionary", "second") if claim.subject.get(part)]
    wanted = [*dictionaries, *([claim.task["reading"]] if "reading" in claim.task else [])]
    lost = {digest for digest in wanted if (place := last_seen(digest)) is None or not place.exists()}
    for digest, place in _held(atlas) if lost else ():
        if digest in lost:
            keep_in_mind(digest, place)


def _held(atlas: Path) -> Iterator[tuple[str, Path]]:
    """(digest, folder) of all readings and dictionaries of an atlas; what is damaged is left out."""
    from assay.explain.reading import MANIFEST, open_reading
    from assay.features.kept import JSON, read_record

    for path in sorted(atlas.glob(f"maps/*/reading/{MANIFEST}")):
        with suppress(StoreError):
            yield open_reading(path.parent).digest, path.parent
    for path in sorted(atlas.glob(f"dictionaries/*/{JSON}")):
        with suppress(StoreError):
            yield str(read_record(path.parent)["digest"]), path.parent
