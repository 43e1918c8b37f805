"""What was fitted, as a manifest keeps it, and a probability by it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from kalm_cache.errors import UsageError
from kalm_cache.foreign_files import STRICT, Count, Positive

Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def sigmoid(margin: float) -> float:
    """1 / (1 + e^−margin), in float64: no ties where half precision would saturate."""
    # the exponent is never positive: nothing overflows
    if margin >= 0:
        return 1.0 / (1.0 + math.exp(-margin))
    odds = math.exp(margin)
    return odds / (1.0 + odds)


@dataclass(frozen=True, slots=True)
class PrecisionThreshold:
    """Of pairs with `probability` or more, at least the share `precision` was relevant.

    `recall`: the share of all relevant ones that they hold.
    """

    precision: Share
    probability: Share
    recall: Share
    __pydantic_config__ = STRICT


@dataclass(frozen=True, slots=True)
class FittedCurve:
    """One chunk size: probability = sigmoid((margin − offset) / temperature).

    first_stage_weight: that ranked the judged queries best; `None` where pairs were judged, and nothing was searched.
    thresholds: the lowest probability for each precision that was reached.
    """

    chunk_size: Positive
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    offset: Finite
    first_stage_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    thresholds: list[PrecisionThreshold]
    __pydantic_config__ = STRICT

    def probability(self, margin: float) -> float:
        """How probable it is that a passage with this margin is relevant."""
        return sigmoid((margin - self.offset) / self.temperature)


@dataclass(frozen=True, slots=True)
class FittedCalibration:
    """The curves of one decoder over one index.

    decoder: its digest; the curves are of no other. instruction, first_stage, k: of the judged searches; `first_stage`
    is empty where pairs were judged. judgments: SHA-256 of their file. queries, pairs: how many were judged.
    shared_prefix: as it was when the margins were computed.
    """

    decoder: str
    instruction: str
    first_stage: str
    k: Count
    judgments: str
    queries: Count
    pairs: Count
    curves: Annotated[list[FittedCurve], Field(min_length=1)]
    shared_prefix: str | None = None
    __pydantic_config__ = STRICT

    def find(self, chunk_size: int) -> FittedCurve | None:
        """The curve of a chunk size, if one was fitted."""
        return next((curve for curve in self.curves if curve.chunk_size == chunk_size), None)


def require_curve(calibration: FittedCalibration | None, chunk_size: int, what: str) -> FittedCurve:
    """The curve of a chunk size, without which `what` means nothing. Raises `UsageError` that says what there is."""
    curve = None if calibration is None else calibration.find(chunk_size)
    if curve is None:
        fitted = "none" if calibration is None else ", ".join(str(one.chunk_size) for one in calibration.curves)
        raise UsageError(
            f"{what}: the decoder is not calibrated at chunk size {chunk_size} (at: {fitted}); run kalm-cache calibrate"
        )
    return curve


def fitted_weight(calibration: FittedCalibration | None, chunk_size: int, first_stage: str | None) -> float:
    """The weight that `first_stage_weight = "auto"` stands for.

    Args:
        calibration: of the index, if there is one.
        chunk_size: of the answer.
        first_stage: the mode that searched; `None` = it is not known.

    Raises:
        UsageError: no weight was fitted for it.
    """
    curve = require_curve(calibration, chunk_size, 'first_stage_weight "auto"')
    assert calibration is not None
    if curve.first_stage_weight is None:
        raise UsageError(
            'first_stage_weight "auto": pairs were judged, and no searches; run kalm-cache calibrate --qrels'
        )
    if first_stage not in (None, calibration.first_stage):
        raise UsageError(
            f'first_stage_weight "auto": was fitted for the first stage {calibration.first_stage}, and {first_stage} '
            "was asked for; name a weight"
        )
    return curve.first_stage_weight
