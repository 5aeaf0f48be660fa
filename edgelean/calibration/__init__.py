"""Calibration: a board's cost model, fitted to kernels that were measured on it."""

from edgelean.calibration.procedure import Calibrated as Calibrated
from edgelean.calibration.procedure import Trial as Trial
from edgelean.calibration.procedure import calibrate as calibrate
