"""A calibration beside the decoder that it was fitted for: a generation of the same files."""

from __future__ import annotations

from pathlib import Path

from indexer.change.publish_on_parent import publish_changed
from kalm_cache.calibration import FittedCalibration
from kalm_cache.errors import IndexMismatchError
from kalm_cache.generations.build_folders import locked_live_generation
from kalm_cache.generations.generation import Generation, require_valid
from kalm_cache.index.decoders import decoder_of, updated_generation


def set_calibration(index: Path, calibration: FittedCalibration, model: str | None = None) -> Generation:
    """Publish a generation of the live one's passages with this calibration; the new one.

    Args:
        index: the index folder.
        calibration: of the decoder that answers.
        model: where the checkpoint lies that built an index of an earlier version; `None` = where the manifest says.

    Raises:
        IndexNotFoundError: nothing has been published here.
        IndexLockedError: another job is changing the index.
        IndexMismatchError: it was fitted for another decoder than answers now.
        StoreError: the disk is full or cannot be written.
    """
    with locked_live_generation(index) as stored:
        require_valid(stored)
        live = updated_generation(stored, index, model)
        decoder = decoder_of(live)
        if decoder.digest != calibration.decoder:
            raise IndexMismatchError(
                f"{index}: answers with decoder {decoder.name!r} (digest {decoder.digest[:12]}…) by now, and the "
                f"calibration is of digest {calibration.decoder[:12]}…; run kalm-cache calibrate again"
            )
        return publish_changed(index, "calibrate", live, calibration=calibration)
