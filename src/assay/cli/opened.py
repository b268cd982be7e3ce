"""Dictionaries of claims on the command line: read from files, and found again by their digest."""

from collections.abc import Mapping, Sequence
from typing import Any

from assay.cli.common import Common
from assay.errors import ReproduceError, UsageError, bad_argument

LATENT_KINDS = ("represents", "explains")
USED = 'Say what it is claimed to be good for: --use "listing features", steering or "standing in the loss".'


def subject_with(
    common: Common, kind: str, site: str, paths: Sequence[str], use: str | None
) -> dict[str, Any] | None:
    """The subject of a claim of kind *reconstructs*; None for other kinds, for which dictionaries of latents are opened.

    Raises UsageError for parts that lack or do not belong there, or a dictionary that does not reconstruct what it reads.
    """
    from assay.evidence.dictionaries import USES
    from assay.features.opened import is_latent
    from assay.sites import parse_site

    if kind != "reconstructs":
        latents = is_latent(site) and kind in LATENT_KINDS
        if use is not None or (paths and not latents):
            raise bad_argument("--dictionary, --use", f"given for kind {kind}, {site}",
                               f"with reconstructs; of a latent, --dictionary with {' or '.join(LATENT_KINDS)}")  # fmt: skip
        for path in paths:
            open_dictionary(path)
        return None
    if not 1 <= len(paths) <= 2:
        raise bad_argument("--dictionary", f"{len(paths)} paths", "one dictionary, or two of one recipe",
                           "The second shows whether another run finds the same.")  # fmt: skip
    if use not in USES:
        raise bad_argument("--use", use, ", ".join(USES), USED)
    found = [open_dictionary(path) for path in paths]
    for path, dictionary in zip(paths, found, strict=True):
        spec = getattr(dictionary, "spec", None)
        if spec is not None and spec.transcodes:
            raise bad_argument("--dictionary", path, "one that reconstructs what it reads; this is a transcoder")
        if spec is not None and spec.inputs and str(parse_site(site)) not in spec.inputs:
            common.note(f"warning: {path} says it is for {', '.join(spec.inputs)}, not for {site}.")
    return {"site": site, "dictionary": found[0], "use": use, **({"second": found[1]} if len(found) == 2 else {})}


def open_for(subject: Mapping[str, Any], paths: Sequence[str]) -> None:
    """Open the dictionaries that a claim is about, from `paths` or where they were last seen on this machine.

    Raises UsageError for a path that holds another one, ReproduceError for one that is nowhere to be found.
    """
    records = [subject[part] for part in ("dictionary", "second") if subject.get(part)]
    if paths and not records:
        raise UsageError("--dictionary: this claim is about none; allowed: with claims about dictionaries and latents.")
    open_all({record["digest"]: record["name"] for record in records}, paths)


def open_all(wanted: Mapping[str, str], paths: Sequence[str]) -> None:
    """Open the dictionaries of these digests (digest -> name), from `paths` or where they were last seen on this machine.

    Raises UsageError for a path that holds another one, ReproduceError for one that is nowhere to be found.
    """
    from assay.data.whereabouts import last_seen
    from assay.evidence.dictionaries import is_open
    from assay.features.kept import shipped_folder

    for path in paths:
        if (dictionary := open_dictionary(path)).digest not in wanted:
            named = ", ".join(f"{name} ({digest[:12]})" for digest, name in wanted.items())
            raise bad_argument("--dictionary", f"{path} ({dictionary.digest[:12]})", f"that of the claim or monitor: {named}")
    for digest, name in wanted.items():
        places = [] if is_open(digest) else [last_seen(digest), shipped_folder(digest)]
        if place := next((place for place in places if place is not None and place.exists()), None):
            open_dictionary(str(place))
        if not is_open(digest):
            raise ReproduceError(f"dictionary {name} ({digest[:12]}): it is not where it was last seen. Give it with"
                                 " --dictionary PATH.")  # fmt: skip


def open_monitor(file: str, model: Any, paths: Sequence[str] = ()) -> Any:
    """The monitor of a file, for a model, with the dictionaries open whose latents it reads."""
    from assay.monitor.files import load_monitor

    open_all({digest: name for name, digest in load_monitor(file).dictionaries.items()}, paths)
    return load_monitor(file, model)


def open_dictionary(path: str) -> Any:
    """The dictionary at a path, or one that is shipped, by its name; open for claims, and where it is is kept in mind."""
    from pathlib import Path

    from assay.data.whereabouts import keep_in_mind
    from assay.evidence.dictionaries import opened
    from assay.features.formats import load_dictionary
    from assay.features.kept import shipped_folder
    from assay.features.opened import open_latents

    place = Path(path)
    place = place if place.exists() else shipped_folder(path) or place
    found = load_dictionary(place)
    opened(found)
    if found.spec.inputs:
        open_latents(found)
    keep_in_mind(found.digest, place)
    return found
