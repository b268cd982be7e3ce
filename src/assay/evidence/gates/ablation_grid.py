"""Ablation grid: does the sign of the effect depend on how the subject is switched off?

1. Primary: resample ablation; alternative: mean ablation. Both must reach the bar of necessity (`necessity.py`).
2. Zero ablation, declared beforehand as well, only has to point the same way: the drop is above 0.
3. Contrast per pair: (clean - ablated) / mean over the split of (clean - corrupted).

Zeros are far from anything the model has seen, so how large their effect is says little; an effect that is a
rise under zeros and a drop under resampling is a property of the ablation (Miller et al. 2024), and the
verdict says *ablation-dependent*. Failing here alone never refutes.
"""

from assay.evidence.gates.base import Columns, Gate, register
from assay.evidence.gates.necessity import contrast
from assay.records import GatePlan

KINDS = ("mediates",)


def measure(instrument, gate: GatePlan) -> Columns:
    """The metric on clean prompts with the subject at zero."""
    how = gate.options["ablation"]
    return {"clean": instrument.clean, f"ablated.{how}": instrument.ablated(instrument.units, how)}


register(Gate("ablation.zero", "ablation", KINDS, 0.0, True, measure, contrast, {"ablation": "zero"},
              says="setting it to zero removes {estimate} of the effect"))  # fmt: skip
