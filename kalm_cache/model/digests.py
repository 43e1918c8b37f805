"""The two sides of a checkpoint as digests: what decides a passage's states, and what answers queries over them.

A change of the decoder leaves the encoder's digest as it is, and so every state that was stored. Where both share the
embedding table, a change of it changes both. Indexes hold these digests: what they are made of must never change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from kalm_cache.model.checkpoint import DECODER_PREFIX, Checkpoint
from kalm_cache.model.config import StackConfig

TOKENIZER = "tokenizer.json"


def encoder_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 (hex) over the text encoder's layers, norms and embedding table, its configuration, and the tokenizer.

    Raises:
        CheckpointError: a tensor is missing, or its file is damaged.
    """
    embedding = {f"embed_tokens.{part}": checkpoint.encoder_embedding(part) for part in ("weight", "eoi_embedding")}
    tensors = _layers(checkpoint, checkpoint.encoder_prefix()) | embedding
    return _digest(checkpoint, checkpoint.config.encoder, tensors)


def decoder_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 (hex) over the decoder's layers, norms, embedding table and head, its configuration, and the tokenizer.

    Whether it isolates its prefix is a part of it.

    Raises:
        CheckpointError: a tensor is missing, or its file is damaged.
    """
    embedding = {f"embed_tokens.{part}": checkpoint.decoder_embedding(part) for part in ("weight", "eoi_embedding")}
    tensors = _layers(checkpoint, DECODER_PREFIX) | embedding | {"head": checkpoint.head()}
    how = {"isolated_prefix": True} if checkpoint.config.isolated_prefix else {}
    return _digest(checkpoint, checkpoint.config.decoder, tensors, how)


def _layers(checkpoint: Checkpoint, prefix: str) -> dict[str, str]:
    return {name: prefix + name for name in checkpoint.layers_below(prefix)}


def _digest(
    checkpoint: Checkpoint, config: StackConfig, tensors: Mapping[str, str], how: Mapping[str, Any] | None = None
) -> str:
    """`tensors`: what each is for → its name in the checkpoint; the names differ between versions of transformers.

    `how`: what else decides the results; nothing where all is as it always was.
    """
    each = {name: _tensor_digest(checkpoint, name) for name in set(tensors.values())}  # a tied one is read once
    parts: dict[str, Any] = {
        "config": asdict(config),
        "tensors": {what: each[name] for what, name in tensors.items()},
        "tokenizer": _tokenizer_digests(checkpoint),
        **(how or {}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _tensor_digest(checkpoint: Checkpoint, name: str) -> str:
    tensor = checkpoint.tensor(name).contiguous()
    sha = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    sha.update(tensor.flatten().view(torch.uint8).numpy().data)  # mapped: never a copy of a whole table
    return sha.hexdigest()


def _tokenizer_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """Of the one file that is read; of all files of a tokenizer where transformers has to build it."""
    one = checkpoint.folder / TOKENIZER
    files = [one] if one.is_file() else [path for path in checkpoint.folder.glob("tokenizer*") if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
