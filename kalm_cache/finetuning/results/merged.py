"""The fine-tuned checkpoint: the base's files with the decoder's layers replaced. All else is copied, bit by bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kalm_cache.errors import CheckpointError
from kalm_cache.model.checkpoint import SENSITIVITY_FILE, Checkpoint, open_checkpoint
from kalm_cache.model.config import ISOLATED_PREFIX
from kalm_cache.model.digests import encoder_digest
from kalm_cache.storage.durable import publish_file, write_atomically

# besides the weights: what a checkpoint needs to be loaded, here and by transformers
BESIDE = ("tokenizer*", "special_tokens_map.json", "generation_config.json", "added_tokens.json", SENSITIVITY_FILE)
INDEX = "model.safetensors.index.json"


def write_merged(
    base: Checkpoint, tensors: Mapping[str, Tensor], folder: Path, *, isolated_prefix: bool = False
) -> Checkpoint:
    """Write a checkpoint that is `base` with `tensors` in place of its own of these names; `config.json` comes last.

    With `isolated_prefix` that says so, and is `base`'s otherwise.
    Trained tensors are float32: rounded to bfloat16, a small change of a weight would be lost.

    Raises:
        CheckpointError: what was written has another encoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for name in sorted(set(base.files.values())):
        total += _write_weights(base.folder / name, tensors, folder / name)
    for pattern in BESIDE:
        for path in base.folder.glob(pattern):
            if path.is_file() and path.suffix != ".jinja":
                _copy(path, folder / path.name)
    if (base.folder / INDEX).is_file():
        index: dict[str, Any] = json.loads((base.folder / INDEX).read_text("utf-8"))
        index.setdefault("metadata", {})["total_size"] = total
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    config = (base.folder / "config.json").read_bytes()
    if isolated_prefix:
        config = (json.dumps({**json.loads(config), ISOLATED_PREFIX: True}, indent=2) + "\n").encode()
    write_atomically(folder / "config.json", config)
    merged = open_checkpoint(str(folder))
    require_same_encoder(base, merged)
    return merged


def require_same_encoder(base: Checkpoint, merged: Checkpoint) -> None:
    """Raise `CheckpointError` unless both encode passages to the same bits: then the stored states serve both."""
    if encoder_digest(base) != encoder_digest(merged):
        raise CheckpointError(f"{merged.folder}: its encoder is not that of {base.folder}")


def _write_weights(source: Path, tensors: Mapping[str, Tensor], target: Path) -> int:
    """One file of weights, copied as it is where none of its tensors is replaced; returns the bytes of its tensors."""
    with safe_open(source, framework="pt") as file:
        names, metadata = list(file.keys()), file.metadata()
        held = {name: tensors[name] if name in tensors else file.get_tensor(name) for name in names}  # mapped
        if tensors.keys() & held.keys():
            beside = target.with_name(target.name + ".tmp")
            save_file(held, beside, metadata=metadata or {"format": "pt"})
            publish_file(beside, target)
        else:
            _copy(source, target)
        return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def _copy(source: Path, target: Path) -> None:
    beside = target.with_name(target.name + ".tmp")
    shutil.copyfile(source, beside)
    publish_file(beside, target)
