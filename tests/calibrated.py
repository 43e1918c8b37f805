"""Calibrations that were not fitted: curves of one's own."""

from __future__ import annotations

from kalm_cache.calibration import FittedCalibration, FittedCurve


def curve(chunk_size: int, temperature: float = 2.0, offset: float = 0.5, weight: float | None = 3.0) -> FittedCurve:
    return FittedCurve(chunk_size, temperature, offset, weight, [])


def calibration(*curves: FittedCurve, decoder: str = "d" * 64, first_stage: str = "fused") -> FittedCalibration:
    return FittedCalibration(decoder, "instruction", first_stage, 100, "j" * 64, 7, 700, list(curves))
