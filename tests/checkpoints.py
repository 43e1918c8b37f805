"""Random checkpoints on disk, as transformers saves them, and the ways in which real ones differ from each other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.checkpoints import SHAPES, TINY_VISION, Shape, random_model, train_tokenizer
from tests.texts import TRAINING_SENTENCES

SLIDING, FULL = "sliding_attention", "full_attention"
VOCABULARY = 900

# mini: all features, little arithmetic: two key/value heads, and a window that most texts are longer than
MINI = Shape(
    64,
    128,
    (SLIDING, SLIDING, FULL, SLIDING),
    num_key_value_heads=2,
    head_dim=32,
    query_pre_attn_scalar=32,
    sliding_window=16,
)
NANO = replace(SHAPES["nano"], layer_types=(SLIDING, FULL))
SMALL = replace(SHAPES["small"], layer_types=(SLIDING, FULL))


def make_checkpoint(
    folder: Path,
    shape: Shape = MINI,
    *,
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    seed: int = 0,
) -> Path:
    """Save a random model with a tiny vision tower and a small tokenizer; returns the folder."""
    tokenizer = train_tokenizer(TRAINING_SENTENCES, VOCABULARY)
    eoi_token = tokenizer.convert_tokens_to_ids("<end_of_image>")
    model = random_model(
        shape, vocab_size=len(tokenizer), eoi_token=eoi_token, vision=TINY_VISION, tied=tied, seed=seed
    )
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite `model.safetensors` of a folder with the tensors that `edit` makes of those in it."""
    path = folder / "model.safetensors"
    tensors = edit({name: tensor.clone() for name, tensor in load_file(path).items()})
    save_file(tensors, path, metadata={"format": "pt"})


def with_other_decoder(source: Path, folder: Path, factor: float = 1.1) -> Path:
    """A copy of a checkpoint, the weights of its decoder's layers multiplied; returns its folder."""
    shutil.copytree(source, folder)
    layers = "model.decoder.layers."
    edit_tensors(
        folder,
        lambda tensors: {name: each * factor if name.startswith(layers) else each for name, each in tensors.items()},
    )
    return folder


def edit_config(folder: Path, edit: Callable[[dict], None]) -> None:
    """Change `config.json` of a folder in place."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def name_text_model(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout `model.encoder.text_model.layers…` in place of `model.encoder.layers…`."""
    old, new = "model.encoder.", "model.encoder.text_model."
    vision = ("model.encoder.vision_tower.", "model.encoder.multi_modal_projector.")
    return {
        name.replace(old, new) if name.startswith(old) and not name.startswith(vision) else name: tensor
        for name, tensor in tensors.items()
    }
