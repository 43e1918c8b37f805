"""The codec of a checkpoint's states: it rounds by the checkpoint's sensitivity, where that was measured."""

from __future__ import annotations

from kalm_cache.codec import Codec, get_codec
from kalm_cache.codec.sensitivity import load_sensitivity
from kalm_cache.errors import CheckpointError
from kalm_cache.model.checkpoint import SENSITIVITY_FILE, Checkpoint


def codec_of(checkpoint: Checkpoint, name: str) -> Codec:
    """The codec of that name, to encode states of this checkpoint.

    Raises:
        UsageError: there is no such codec.
        CheckpointError: the sensitivity is damaged, or another model's.
    """
    path, width = checkpoint.folder / SENSITIVITY_FILE, checkpoint.config.encoder.hidden_size
    sensitivity = load_sensitivity(path)  # (D, D)
    if sensitivity is not None and len(sensitivity) != width:
        raise CheckpointError(
            f"{path}: is of states {len(sensitivity)} wide, the model's are {width}; "
            "measure it with this model, or remove it"
        )
    return get_codec(name, sensitivity)
