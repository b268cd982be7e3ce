"""Dictionaries that are open: what `latent.<name>` means until the program ends.

A site `latent.NAME.N` is latent N of the open dictionary of that name, computed from what its spec says it reads. Names are
what addresses have, digests are what claims keep: opening another dictionary under a name that is taken is refused.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.errors import SiteError, bad_argument
from assay.features.dictionary import Dictionary, of_texts

PREFIX = "latent."
_OPEN: dict[str, Dictionary] = {}
Read = Callable[[str], Float[Tensor, "example d"]]


def open_latents(dictionary: Dictionary) -> str:
    """Make the latents of a dictionary readable; the site of all of them (`latent.NAME`).

    Raises UsageError when it does not say what it reads, or when its name is taken by another one.
    """
    if not dictionary.spec.inputs:
        raise bad_argument("dictionary", f"{dictionary.name}, whose file names no input site", "one that says what it reads",
                           "Set spec.inputs when it is loaded.")  # fmt: skip
    if dictionary.reads_texts:
        raise of_texts(dictionary, "Sites are read at single tokens, so its latents are none. Evaluate it, or encode a corpus.")
    taken = _OPEN.get(dictionary.name)
    if taken is not None and taken.digest != dictionary.digest:
        raise bad_argument("dictionary", f"{dictionary.name} ({dictionary.digest[:12]})", "a name that is not taken",
                           f"Another is open, {taken.digest[:12]}: close_latents({dictionary.name!r}) first.")  # fmt: skip
    _OPEN[dictionary.name] = dictionary
    return PREFIX + dictionary.name


def close_latents(name: str) -> None:
    """Forget an open dictionary, if there is one of that name."""
    _OPEN.pop(name, None)


def is_latent(site: str) -> bool:
    """Whether a site is latents of a dictionary."""
    return site.startswith(PREFIX)


def dictionary_at(site: str) -> Dictionary:
    """The open dictionary of a whole site `latent.NAME`. Raises SiteError, naming those that are open, for another."""
    name = site.removeprefix(PREFIX)
    if name not in _OPEN:
        known = ", ".join(PREFIX + other for other in _OPEN) or "none is open"
        raise SiteError(f"site {site}: no dictionary {name!r} is open; open: {known}."
                        " Give its files with --dictionary PATH, or open_latents(dictionary) in Python.")  # fmt: skip
    return _OPEN[name]


def sources_of(site: str) -> tuple[str, ...]:
    """The sites of the model that a site is computed from: what an open dictionary reads, else the site itself."""
    return dictionary_at(site).spec.inputs if is_latent(site) else (site,)


def read_latents(site: str, read: Read, positions: Int[Tensor, " example"] | None = None) -> Float[Tensor, "example latent"]:
    """Latents of a whole site `latent.NAME`, dense; `read(site)` gives the activations of an ordinary site.

    Examples that the dictionary is not for (massive activations; first positions of a text, where `positions` says which they
    are) have no active latent.
    """
    dictionary, acts = dictionary_at(site), joined(site, read)
    return dictionary.encode(acts) * dictionary.typical(acts, positions)[:, None]


def before_selection(site: str, read: Read) -> Float[Tensor, "example latent"]:
    """Pre-activations of all latents, with gradients to what was read: defined where a latent is silent, too."""
    dictionary, acts = dictionary_at(site), joined(site, read)
    return dictionary.pre(dictionary.normed(acts.to(dictionary.b_dec))[0])


def scales(site: str, read: Read) -> Float[Tensor, "example 1"] | float:
    """What a latent of a whole site `latent.NAME` adds when it is 1, in decoder rows: 1, or how large each example is where
    inputs are normalised."""
    dictionary, acts = dictionary_at(site), joined(site, read)
    return dictionary.normed(acts.to(dictionary.b_dec))[1]


def joined(site: str, read: Read) -> Float[Tensor, "example d"]:
    """What a dictionary reads, its sites one after the other."""
    return torch.cat([read(source).flatten(1).float() for source in sources_of(site)], 1)
