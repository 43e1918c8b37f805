"""Checkpoint -> ready module, on a device and in a dtype. Each side loads only what it computes with."""

from __future__ import annotations

from typing import TypeVar

import torch

from kalm_cache.errors import CheckpointError, UsageError
from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.config import StackConfig
from kalm_cache.model.decoder import QueryDecoder
from kalm_cache.model.encoder import PassageEncoder
from kalm_cache.model.layers import TokenEmbedding

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
# transformers has saved the text encoder under both names
ENCODER_PREFIXES = ("model.encoder.text_model.", "model.encoder.")
DECODER_PREFIX = "model.decoder."

_Stack = TypeVar("_Stack", PassageEncoder, QueryDecoder)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """`None` or `auto`: CUDA when there is one, else the CPU. Raises `UsageError` for a device torch does not know."""
    if device is None or str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as exc:
        raise UsageError(f"device {device!r} is not one that torch knows: use auto, cpu, cuda or cuda:N") from exc
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but torch sees no CUDA here; use auto or cpu")
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """`None` or `auto`: bfloat16 on CUDA, float32 on the CPU (the reference's defaults)."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None or dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known: use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype's long name without `torch.`, as manifests and messages show it."""
    return str(dtype).removeprefix("torch.")


def load_encoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> PassageEncoder:
    """The passage side: the text encoder's layers and the mapped embedding table. Never the vision tower.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    config = checkpoint.config.encoder
    embedding = _embedding(checkpoint, config, dtype, (*ENCODER_PREFIXES, DECODER_PREFIX))
    with torch.device("meta"):
        encoder = PassageEncoder(config, embedding)
    return _fill(encoder, checkpoint, _encoder_prefix(checkpoint), device, dtype)


def load_decoder(
    checkpoint: Checkpoint, answer_ids: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> QueryDecoder:
    """The query side: the decoder's layers, the mapped embedding table and two rows of the output matrix.

    Args:
        checkpoint: an open checkpoint.
        answer_ids: the token ids of `yes` and `no`.
        device: where to compute.
        dtype: what to compute in.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    config = checkpoint.config.decoder
    # A tensor that is there counts; one that is not is tied to the encoder's. transformers 5 reads files this way too.
    head = checkpoint.find("lm_head.out_proj.weight", "lm_head.weight")
    table = checkpoint.tensor(head or _embedding_name(checkpoint, "weight", (*ENCODER_PREFIXES, DECODER_PREFIX)))
    answer_rows = table[list(answer_ids)].to(device, dtype)  # (2, D)
    embedding = _embedding(checkpoint, config, dtype, (DECODER_PREFIX, *ENCODER_PREFIXES))
    with torch.device("meta"):
        decoder = QueryDecoder(config, embedding, answer_rows)
    return _fill(decoder, checkpoint, DECODER_PREFIX, device, dtype)


def _fill(module: _Stack, checkpoint: Checkpoint, prefix: str, device: torch.device, dtype: torch.dtype) -> _Stack:
    """Give a module that was built without memory its weights, cast one by one: no second copy of the whole."""
    wanted = (f"{prefix}layers.", f"{prefix}norm.")
    weights = {
        name.removeprefix(prefix): checkpoint.tensor(name).to(device, dtype)
        for name in checkpoint.files
        if name.startswith(wanted)
    }
    try:
        missing, unexpected = module.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as exc:
        raise CheckpointError(f"{checkpoint.folder}: weights do not fit config.json: {exc}") from exc
    absent = [name for name in missing if name != "answer_rows"]
    if absent or unexpected:
        raise CheckpointError(f"{checkpoint.folder}: tensors missing {absent[:3]}, not known {unexpected[:3]}")
    return module.eval().requires_grad_(False)


def _encoder_prefix(checkpoint: Checkpoint) -> str:
    for prefix in ENCODER_PREFIXES:
        if checkpoint.find(f"{prefix}norm.weight"):
            return prefix
    raise CheckpointError(f"{checkpoint.folder}: no text encoder among the tensors ({ENCODER_PREFIXES[0]}…)")


def _embedding_name(checkpoint: Checkpoint, part: str, prefixes: tuple[str, ...]) -> str:
    name = checkpoint.find(*(f"{prefix}embed_tokens.{part}" for prefix in prefixes))
    if name is None:
        raise CheckpointError(f"{checkpoint.folder}: no token embeddings (…embed_tokens.{part})")
    return name


def _embedding(
    checkpoint: Checkpoint, config: StackConfig, dtype: torch.dtype, prefixes: tuple[str, ...]
) -> TokenEmbedding:
    table, eoi = (
        checkpoint.tensor(_embedding_name(checkpoint, part, prefixes)) for part in ("weight", "eoi_embedding")
    )
    return TokenEmbedding(table, eoi, config.eoi_token_index, dtype)
