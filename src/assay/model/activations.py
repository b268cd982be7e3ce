"""Activations that a run returns: owned copies, packed without padding.

Rows of different lengths lie one after the other in one tensor per site, so memory is what was
asked for and nothing more. `acts[site]` pads on request; `acts.rows(site)` never pads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from assay.errors import SiteError
from assay.sites import Site, parse_site


class Activations(Mapping[Site, Tensor]):
    """Captured activations by site.

    `acts["resid_post.3"]` is (n, pos, *feature), zeros after the end of shorter prompts;
    `acts["pattern.3"]` is (n, head, query, key). `lengths` counts the positions kept per prompt.
    """

    def __init__(self, lengths: Sequence[int], packed: dict[Site, Tensor]) -> None:
        self.lengths = list(lengths)
        self._packed = packed

    def flat(self, site: str | Site) -> Tensor:
        """All kept positions of all prompts in order, (sum of lengths, *feature), not copied."""
        wanted = parse_site(site)
        if wanted in self._packed:
            return self._packed[wanted]
        for kept in self._packed:
            if kept.name == wanted.name and wanted.layer is not None and wanted.layer < 0:
                top = max(s.layer or 0 for s in self._packed if s.name == wanted.name)
                raise SiteError(f"site {wanted}: name the layer itself here, e.g. {wanted.name}.{top}.")
        raise SiteError(f"site {wanted} was not captured; captured: {', '.join(map(str, self))}.")

    def __getitem__(self, site: str | Site) -> Tensor:
        flat = self.flat(site)
        if len(set(self.lengths)) <= 1:
            padded = flat.view(len(self.lengths), -1, *flat.shape[1:])
        else:
            padded = flat.new_zeros(len(self.lengths), max(self.lengths), *flat.shape[1:])
            for row, part in enumerate(flat.split(self.lengths)):
                padded[row, : len(part)] = part
        return padded.transpose(1, 2) if _is_whole_pattern(parse_site(site)) else padded

    def rows(self, site: str | Site) -> list[Tensor]:
        """One tensor per prompt, (positions of that prompt, *feature)."""
        return list(self.flat(site).split(self.lengths))

    def __iter__(self) -> Iterator[Site]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def __contains__(self, site: object) -> bool:
        return isinstance(site, str | Site) and parse_site(site) in self._packed

    def __repr__(self) -> str:
        shapes = ", ".join(f"{site}: {tuple(x.shape)}" for site, x in self._packed.items())
        return f"Activations({len(self.lengths)} prompts; {shapes})"


class Collector:
    """Writes batches of activations into packed tensors, in the caller's order of prompts."""

    def __init__(self, lengths: Sequence[int], longest: int, device: str | torch.device) -> None:
        self.lengths = torch.tensor(list(lengths))
        self.starts = torch.cumsum(self.lengths, 0) - self.lengths
        self.total = int(self.lengths.sum())
        self.longest = longest
        self.device = device
        self.packed: dict[Site, Tensor] = {}

    def write(self, site: Site, x: Tensor, rows: Tensor, columns: Tensor | None) -> None:
        """Keep x (batch, pos, *feature) of these prompts; `columns` (batch, k) picks positions."""
        x = x.detach()
        if site.name == "pattern":
            x = self._pattern(site, x)
        if site not in self.packed:
            self.packed[site] = x.new_zeros((self.total, *x.shape[2:]), device=self.device)
        target = self.packed[site]
        lengths, starts = self.lengths[rows], self.starts[rows]
        if columns is not None:
            x = x[torch.arange(len(x), device=x.device)[:, None], columns.to(x.device)]
        if _consecutive(lengths, starts) and int(lengths[0]) == x.shape[1]:
            target[int(starts[0]) : int(starts[0]) + x.shape[0] * x.shape[1]] = x.flatten(0, 1)
            return
        for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            target[start : start + length] = x[row, :length]

    def sink(self, rows: Tensor) -> Callable[[Site, Tensor], None]:
        """What a pass of these prompts hands its captures to, all positions."""
        return lambda site, x: self.write(site, x, rows, None)

    def _pattern(self, site: Site, x: Tensor) -> Tensor:
        """(batch, query, [head,] key) with keys padded to the longest prompt."""
        missing = self.longest - x.shape[-1]
        return torch.nn.functional.pad(x, (0, missing)) if missing > 0 else x

    def done(self, sites: Sequence[Site]) -> Activations:
        """What was collected, in the order the sites were asked for."""
        return Activations(self.lengths.tolist(), {site: self.packed[site] for site in sites})


def _consecutive(lengths: Tensor, starts: Tensor) -> bool:
    """Equal lengths, one prompt right after the other."""
    if not bool((lengths == lengths[0]).all()):
        return False
    return len(starts) == 1 or bool((starts.diff() == lengths[0]).all())


def _is_whole_pattern(site: Site) -> bool:
    return site.name == "pattern" and site.index is None
