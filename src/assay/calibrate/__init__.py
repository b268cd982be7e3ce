"""The battery is itself tested: false support, power, coverage and what every gate is good for.

`calibrate()` runs claims whose truth is planted; `calibrate_model()` runs negative controls on a user's model.
"""

from assay.calibrate import circuits, edges, effects, mediates, reconstructs, represents, scored  # noqa: F401, E501  (each registers its kind)
from assay.calibrate.base import CALIBRATIONS, Calibration, Case, Family, Outcome
from assay.calibrate.named import NAMED, Named
from assay.calibrate.run import calibrate

__all__ = ["CALIBRATIONS", "NAMED", "Calibration", "Case", "Family", "Named", "Outcome", "calibrate"]
