"""Margins → probabilities: curves fitted on judgments, one for each chunk size. Knows nothing of models or files."""

from kalm_cache.calibration.fitted import FittedCalibration, FittedCurve, PrecisionThreshold, sigmoid

__all__ = ["FittedCalibration", "FittedCurve", "PrecisionThreshold", "sigmoid"]
