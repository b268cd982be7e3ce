"""How much of a model's site is explained: of active units, of variance and of tokens, by supported claims alone.

With S the units that have a supported *explains* claim, on the tokens of *confirm*:

1. Units: |S| / units that were mapped and are on anywhere in *shown*. Where a sample of units is mapped this estimates the
   share of all; the other two shares count units that were not mapped as unexplained.
2. Variance, of a dictionary: 1 - |x - D(codes of S)|^2 / |x - mean|^2, with x the activations and D the decoder; beside it the
   same for all latents. Of other units: their share of the sum of squares of what is on.
3. Tokens: those at which units of S have at least half of the active mass (values times decoder norms); beside it those at
   which any of them is on.

The rest of each is unexplained. A latent with a supported rule is explained on the input side: where it is on, not what it
does.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse

from assay.explain.reading import CodedPart, Reading
from assay.features.dictionary import Dictionary
from assay.mapping.units import MapUnits
from assay.model.model import Model
from assay.statistics import clopper_pearson

TOKENS = 4096  # whose activations are read again for the variance
PART = "confirm"


@dataclass(frozen=True)
class Shares:
    """Shares from 0 to 1; None where they are not defined. `detail`: numbers behind them."""

    active_latents: float | None
    variance: float | None
    tokens: float | None
    detail: Mapping[str, Any]

    def json(self) -> dict[str, Any]:
        """As the machine-readable twin has them."""
        return {"active_latents": self.active_latents, "variance": self.variance, "tokens": self.tokens,
                "detail": dict(self.detail)}  # fmt: skip

    def unexplained(self) -> dict[str, float | None]:
        """The rest of each."""
        return {name: None if (value := getattr(self, name)) is None else 1 - value
                for name in ("active_latents", "variance", "tokens")}  # fmt: skip


def shares_of(
    model: Model, units: MapUnits, reading: Reading, supported: Collection[str], mapped: Collection[str]
) -> Shares:  # fmt: skip
    """Shares explained by the supported ones of the units that were mapped."""
    chosen = np.zeros(len(reading.units), bool)
    chosen[[reading.column(name) for name in supported]] = True
    known = set(mapped)
    alive = np.diff(reading.part("shown").by_unit.indptr) > 0
    active = alive.copy()
    active[[column for column, name in enumerate(reading.units) if name not in known]] = False
    part = reading.part(PART)
    low, high = clopper_pearson(int((chosen & active).sum()), int(active.sum()))
    half, some = token_shares(part, chosen, norms_of(units))
    variance, about = _variance(model, units, part, chosen)
    detail = {"active": int(alive.sum()), "active_mapped": int(active.sum()), "supported": int((chosen & active).sum()),
              "active_low": low, "active_high": high, "tokens_any": some, "part": PART, **about}  # fmt: skip
    share = float((chosen & active).sum() / active.sum()) if active.any() else None
    return Shares(share, variance, half, detail)


def norms_of(units: MapUnits) -> Float[np.ndarray, " unit"]:
    """Length of what 1 of each unit adds; 1 where that is no one direction."""
    decoder = units.decoder
    return np.ones(len(units.source.names)) if decoder is None else decoder.norm(dim=1).double().numpy()


def token_shares(part: CodedPart, chosen: np.ndarray, norms: np.ndarray) -> tuple[float | None, float | None]:
    """(share of tokens with at least half of the active mass in chosen units, with any of them on), of tokens that are read."""
    typical = np.asarray(part.typical, bool)
    mass = part.codes @ norms
    own = part.codes @ (norms * chosen)
    read = int(typical.sum())
    if not read:
        return None, None
    half = (own >= mass / 2) & (mass > 0) & typical
    return float(half.sum() / read), float(((own > 0) & typical).sum() / read)


def _variance(model: Model, units: MapUnits, part: CodedPart, chosen: np.ndarray) -> tuple[float | None, dict[str, Any]]:
    if not _decodes(units.dictionary):
        squares = part.codes.multiply(part.codes)
        total = float(squares.sum())
        own = float((squares @ chosen).sum())
        return (own / total if total else None), {"variance_of": "squares of what is on"}
    found = explained_variance(model, cast(Dictionary, units.dictionary), part, chosen)
    about = {"variance_of": "activations", "variance_all_latents": found["all"], "variance_supported": found["supported"],
             "variance_tokens": found["tokens"]}  # fmt: skip
    return max(0.0, found["supported"]), about


def _decodes(dictionary: Dictionary | None) -> bool:
    """Whether codes alone give back what the dictionary is about, at a site that is known."""
    return (dictionary is not None and dictionary.W_skip is None and dictionary.input_norm == "none"
            and not dictionary.reads_texts and bool(dictionary.spec.outputs))


def explained_variance(model: Model, dictionary: Dictionary, part: CodedPart, chosen: np.ndarray) -> dict[str, float]:
    """1 - FVU of all latents and of the chosen ones, on the first rows of a part."""
    rows = range(max(1, int(np.searchsorted(part.starts[1:], TOKENS, side="right"))))
    prompts = [part.row(row).tokens.tolist() for row in rows]
    sites = list(dictionary.spec.outputs)
    acts = model.capture(prompts, model.sites(sites))
    x = torch.cat([acts.flat(site).flatten(1).float() for site in model.sites(sites)], 1)
    n = int(part.starts[len(prompts)])
    keep = np.asarray(part.typical[:n], bool)
    codes = part.codes[:n][np.flatnonzero(keep)]
    x = x[torch.from_numpy(keep)]
    spread = float(((x - x.mean(0)) ** 2).sum())

    def share(some: Any) -> float:
        made = dictionary.decode(torch.from_numpy(some.toarray()).float())
        return 1 - float(((x - made) ** 2).sum()) / spread if spread else 0.0

    only = codes @ sparse.diags_array(chosen.astype(np.float32))
    return {"all": share(codes), "supported": share(only), "tokens": len(x)}
