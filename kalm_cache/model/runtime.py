"""Checkpoint -> ready module, on a device and in a dtype. Each side loads only what it computes with."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kalm_cache.errors import CheckpointError, DeviceMemoryError
from kalm_cache.model.checkpoint import DECODER_PREFIX, Checkpoint
from kalm_cache.model.config import StackConfig
from kalm_cache.model.decoder import QueryDecoder
from kalm_cache.model.encoder import PassageEncoder
from kalm_cache.model.kernels import choose_kernels
from kalm_cache.model.layers.embedding import Embedding, TokenEmbedding
from kalm_cache.model.layers.int8 import require_fast_int8
from kalm_cache.model.layers.layer import Layer, Norms
from kalm_cache.model.layers.linear import Linear, quantize_weight
from kalm_cache.model.layers.stack import Stack
from kalm_cache.model.precision import stream_dtype


def load_encoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> PassageEncoder:
    """The passage side: the text encoder's layers and the embedding table, mapped on a CPU. Never the vision tower.

    Args:
        checkpoint: an open checkpoint.
        device: where to compute.
        dtype: what to compute in; int8 = int8 products in a float32 run.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
        UsageError: int8, where float32 is faster.
    """
    config = checkpoint.config.encoder
    embedding = _embedding(checkpoint, config, device, dtype, checkpoint.encoder_embedding)
    return PassageEncoder(_load_stack(checkpoint, config, checkpoint.encoder_prefix(), embedding, device, dtype))


def load_decoder(
    checkpoint: Checkpoint, answer_ids: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> QueryDecoder:
    """The query side: the decoder's layers, the embedding table, mapped on a CPU, and two rows of the output matrix.

    Args:
        checkpoint: an open checkpoint.
        answer_ids: the token ids of `yes` and `no`.
        device: where to compute.
        dtype: what to compute in; int8 = int8 products in a float32 run.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
        UsageError: int8, where float32 is faster.
    """
    config = checkpoint.config.decoder
    table = _shaped(checkpoint, checkpoint.head(), (config.vocab_size, config.hidden_size))
    # rounded to the run's dtype as the reference's head is, then float32: the margin is computed in it
    answer_rows = table[list(answer_ids)].to(device, stream_dtype(dtype)).float()  # (2, D)
    embedding = _embedding(checkpoint, config, device, dtype, checkpoint.decoder_embedding)
    stack = _load_stack(checkpoint, config, DECODER_PREFIX, embedding, device, dtype)
    return QueryDecoder(stack, answer_rows, checkpoint.config.isolated_prefix)


def _load_stack(
    checkpoint: Checkpoint,
    config: StackConfig,
    prefix: str,
    embedding: Embedding,
    device: torch.device,
    dtype: torch.dtype,
) -> Stack:
    if dtype == torch.int8:
        require_fast_int8()
    weights = _Weights(checkpoint, prefix, config, device, dtype)
    require_room(device, dtype.itemsize * sum(map(math.prod, _shapes(config).values())), f"{prefix}layers")
    layers = tuple(weights.layer(index, kind) for index, kind in enumerate(config.layer_types))
    stream = stream_dtype(dtype)
    return Stack(
        config=config,
        embed=embedding,
        layers=layers,
        norm=weights.norm("norm"),
        kernels=choose_kernels(device, stream),
        device=device,
        dtype=stream,
        quantized=dtype == torch.int8,
    )


def require_room(device: torch.device, nbytes: int, what: str) -> None:
    """Raise `DeviceMemoryError` where a GPU has not so many bytes free; what is on a CPU, the system can page out."""
    if device.type == "cuda" and nbytes > (free := torch.cuda.mem_get_info(device)[0]):
        raise DeviceMemoryError(device, f"{what}: {nbytes / 2**30:.1f} GiB, and {free / 2**30:.1f} are free")


class _Weights:
    """The tensors of one stack, read one by one and cast or quantised at once: there is never a second copy of all."""

    def __init__(
        self, checkpoint: Checkpoint, prefix: str, config: StackConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._checkpoint, self._prefix, self._config = checkpoint, prefix, config
        self._device, self._dtype = device, dtype
        self._shapes = _shapes(config)
        there = checkpoint.layers_below(prefix)
        absent = [name for name in self._shapes if name not in there]
        unknown = sorted(there - self._shapes.keys())
        if absent or unknown:
            raise CheckpointError(f"{checkpoint.folder}: tensors missing {absent[:3]}, not known {unknown[:3]}")

    def layer(self, index: int, kind: str) -> Layer:
        """Layer `index`, its products fused where they share their input: q, k, v; gate and up."""
        at, config = f"layers.{index}.", self._config
        norms = Norms(
            pre_attention=self.norm(f"{at}pre_self_attn_layernorm"),  # (D,), and the next three
            post_attention=self.norm(f"{at}post_self_attn_layernorm"),
            pre_mlp=self.norm(f"{at}pre_feedforward_layernorm"),
            post_mlp=self.norm(f"{at}post_feedforward_layernorm"),
            # attention's scale goes into the queries' norm: one product of numbers less for every score
            query=self.norm(f"{at}self_attn.q_norm") * config.query_pre_attn_scalar**-0.5,  # (E,)
            key=self.norm(f"{at}self_attn.k_norm"),
            eps=config.rms_norm_eps,
        )
        return Layer(
            kind=kind,
            queries=config.num_attention_heads * config.head_dim,
            qkv=self._linear(*(f"{at}self_attn.{name}_proj" for name in "qkv")),  # ((H + 2·K)·E, D)
            o=self._linear(f"{at}self_attn.o_proj"),  # (D, H·E)
            gate_up=self._linear(f"{at}mlp.gate_proj", f"{at}mlp.up_proj"),  # (2·I, D)
            down=self._linear(f"{at}mlp.down_proj"),  # (D, I)
            norms=norms,
        )

    def norm(self, name: str) -> Tensor:
        """1 + w in float32, w rounded to the run's dtype first, as the reference has it."""
        return 1.0 + self._read(f"{name}.weight").to(self._device, stream_dtype(self._dtype)).float()

    def _linear(self, *names: str) -> Linear:
        """Matrices (O, D) of one input, one below the other: (ΣO, D), so that one product serves them all."""
        parts = [self._read(f"{name}.weight") for name in names]
        if self._dtype == torch.int8:
            # each output has a scale of its own: parts one below the other round as they would alone
            quantized = [quantize_weight(part.to(self._device)) for part in parts]
            scales = [linear.scale for linear in quantized if linear.scale is not None]  # (O,) each
            return Linear(torch.cat([linear.weight for linear in quantized]), torch.cat(scales))  # (ΣO, D), (ΣO,)
        rows = sum(len(part) for part in parts)
        # filled part by part: `torch.cat` and a cast would hold each matrix twice
        fused = torch.empty(rows, parts[0].shape[1], dtype=self._dtype, device=self._device)  # (ΣO, D)
        start = 0
        for part in parts:
            fused[start : start + len(part)] = part  # read from the mapped file, cast and moved in one step
            start += len(part)
        return Linear(fused)

    def _read(self, name: str) -> Tensor:
        return _shaped(self._checkpoint, self._prefix + name, self._shapes[name])


def _shaped(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor that has the shape which the configuration gives it."""
    tensor = checkpoint.tensor(name)
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"{checkpoint.folder}: weights do not fit config.json: {name} is {tuple(tensor.shape)}, expected {shape}"
        )
    return tensor


def _shapes(config: StackConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a stack has, but the embeddings: name behind the stack's prefix -> shape."""
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim  # D, I, E
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head  # H·E, K·E
    layer = {  # outputs first, as `torch.nn.Linear` keeps its weight
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "pre_self_attn_layernorm": (width,),
        "post_self_attn_layernorm": (width,),
        "pre_feedforward_layernorm": (width,),
        "post_feedforward_layernorm": (width,),
    }
    layers = range(len(config.layer_types))
    named = {f"layers.{index}.{name}.weight": shape for index in layers for name, shape in layer.items()}
    return named | {"norm.weight": (width,)}


def _embedding(
    checkpoint: Checkpoint, config: StackConfig, device: torch.device, dtype: torch.dtype, name_of: Callable[[str], str]
) -> Embedding:
    table, eoi = (
        _shaped(checkpoint, name_of(part), shape)
        for part, shape in (
            ("weight", (config.vocab_size, config.hidden_size)),
            ("eoi_embedding", (config.hidden_size,)),
        )
    )
    mapped = TokenEmbedding(table, eoi, config.eoi_token_index, stream_dtype(dtype))
    if device.type == "cpu":
        return mapped
    require_room(device, table.numel() * stream_dtype(dtype).itemsize, "embeddings")
    return mapped.on(device)
