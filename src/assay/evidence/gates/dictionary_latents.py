"""Latents: would another dictionary have them, do they have holes, are they the planted ones?

1. Seed consistency: latents are matched one to one with those of a second dictionary (Hungarian method on
   cosines). Contrast per example: mean matched cosine of its active latents, weighted by activation; its bar is
   .7. Required for listing features when a second dictionary was given; the unweighted mean (MCC) is in the notes.
2. Absorption: the latent that ranks members best is silent, and others that point along a probe for the concept
   (cosine .1 or more) carry 40% or more of its projection, both from their means on tune (Chanin et al. 2024). Contrast per
   member: 1 - absorbed.
3. Recovery, on worlds whose directions are known: mean cosine of active latents with the nearest true
   direction, weighted by activation; the share of true directions found (cosine .9) is in the notes.

The last two are reported. A probe is a difference of class means on tune, and can itself be wrong.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from assay.evidence.dictionaries import USES, directions_of, numbers
from assay.evidence.gates.base import Columns, Contrast, Gate, Table, column, mean, register
from assay.records import Claim, GatePlan

KINDS = ("reconstructs",)
ALIGNED, CARRIED, FOUND = 0.1, 0.4, 0.9


def measure_second(instrument, gate: GatePlan) -> Columns:
    """Matched cosine of active latents, and the mean over all latents."""
    if instrument.setup.second is None:
        return {}
    cosines = directions_of(instrument.setup.dictionary) @ directions_of(instrument.setup.second).T
    rows, columns = linear_sum_assignment(-cosines.numpy())
    matched = torch.zeros(len(cosines))
    matched[torch.as_tensor(rows)] = cosines[rows, columns]
    return {"matched": _weighted(instrument.codes, matched), "mcc": [float(matched.mean())] * len(instrument.data)}


def measure_recovery(instrument, gate: GatePlan) -> Columns:
    """Cosine of active latents with the nearest planted direction, and the share of those found."""
    if instrument.setup.truth is None:
        return {}
    cosines = directions_of(instrument.setup.dictionary) @ instrument.setup.truth.T
    return {"nearest": _weighted(instrument.codes, cosines.max(1).values),
            "recall": [float((cosines.max(0).values >= FOUND).float().mean())] * len(instrument.data)}  # fmt: skip


def measure_absorption(instrument, gate: GatePlan) -> Columns:
    """1 for members whose main latent is silent while aligned ones carry the probe's projection."""
    setup, codes = instrument.setup, instrument.codes
    along = directions_of(setup.dictionary) @ setup.probe
    sizes = (setup.dictionary.decode(torch.eye(setup.dictionary.width))
             - setup.dictionary.decode(torch.zeros(1, setup.dictionary.width))).norm(dim=1)  # fmt: skip
    aligned = along >= ALIGNED
    aligned[setup.main] = False
    carried = (codes - setup.codes)[:, aligned] @ (along * sizes)[aligned]
    projection = (instrument.acts - setup.mean) @ setup.probe
    absorbed = (codes[:, setup.main] == 0) & (projection > 0) & (carried >= CARRIED * projection)
    member = [example.label == 1 for example in instrument.data.examples]
    return {"absorbed": [float(value) if is_member else None
                         for value, is_member in zip(absorbed.tolist(), member, strict=True)]}  # fmt: skip


def _weighted(codes: Tensor, values: Tensor) -> list[float | None]:
    weight = codes.abs()
    shares = numbers((weight @ values) / weight.sum(1).clamp_min(1e-12))
    return [value if active else None for value, active in zip(shares, weight.sum(1).tolist(), strict=True)]


def matched(table: Table, gate: GatePlan) -> Contrast:
    """Matched cosine of active latents."""
    return Contrast(list(column(table, "matched")), notes={"mcc": mean(column(table, "mcc"))})


def recovery(table: Table, gate: GatePlan) -> Contrast:
    """Cosine with the nearest planted direction."""
    return Contrast(list(column(table, "nearest")), notes={"recall": mean(column(table, "recall"))})


def absorption(table: Table, gate: GatePlan) -> Contrast:
    """1 - absorbed."""
    return Contrast([None if value is None else 1 - value for value in column(table, "absorbed")])


def has_second(claim: Claim) -> bool:
    """Claims about listing features that name a second dictionary."""
    return claim.subject.get("use") == USES[0] and claim.subject.get("second") is not None


register(Gate("seeds", "seeds", KINDS, 0.7, has_second, measure_second, matched,
              says="the latents of a second dictionary match with a cosine of {estimate}"))  # fmt: skip
register(Gate("absorption", "absorption", KINDS, 0.9, False, measure_absorption, absorption))
register(Gate("recovery", "recovery", KINDS, 0.9, False, measure_recovery, recovery))
