"""Shape of one T5Gemma2 text stack, read from a checkpoint's `config.json`. Knows nothing of weights or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kalm_cache.errors import CheckpointError

DEFAULT_ROPE_THETA = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding of one kind of layer: base `theta`, positions divided by `factor` (linear scaling; 1 = none)."""

    theta: float
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class StackConfig:
    """One encoder or decoder stack. Field names follow transformers' `T5Gemma2TextConfig`, where they have one."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layer_types: tuple[str, ...]
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    query_pre_attn_scalar: float
    sliding_window: int
    rms_norm_eps: float
    rope: Mapping[str, RopeConfig]
    final_logit_softcapping: float | None
    eoi_token_index: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Both text stacks of a reranker; a vision tower, if the checkpoint has one, is ignored."""

    encoder: StackConfig
    decoder: StackConfig
    tie_word_embeddings: bool


def parse_model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Read the parsed `config.json` of a `T5Gemma2ForConditionalGeneration`.

    Raises:
        CheckpointError: another architecture, or a feature that this runtime does not compute.
    """
    if raw.get("model_type") != "t5gemma2":
        raise CheckpointError(
            f"config.json: model_type is {raw.get('model_type')!r}, expected 't5gemma2' (KaLM-Reranker-V1)"
        )
    eoi = int(raw.get("eoi_token_index", raw["encoder"].get("eoi_token_index", 256_000)))
    return ModelConfig(
        encoder=_parse_stack(raw["encoder"]["text_config"], eoi),
        decoder=_parse_stack(raw["decoder"], eoi),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", True)),
    )


def _parse_stack(raw: Mapping[str, Any], eoi_token_index: int) -> StackConfig:
    if raw.get("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise CheckpointError(f"config.json: hidden_activation {raw['hidden_activation']!r} is not supported")
    if raw.get("attention_bias"):
        raise CheckpointError("config.json: attention_bias=true is not supported")
    layers = int(raw["num_hidden_layers"])
    layer_types = raw.get("layer_types") or [
        "full_attention" if (i + 1) % int(raw.get("sliding_window_pattern", 6)) == 0 else "sliding_attention"
        for i in range(layers)
    ]
    return StackConfig(
        vocab_size=int(raw["vocab_size"]),
        hidden_size=int(raw["hidden_size"]),
        intermediate_size=int(raw["intermediate_size"]),
        layer_types=tuple(layer_types[:layers]),
        num_attention_heads=int(raw["num_attention_heads"]),
        num_key_value_heads=int(raw["num_key_value_heads"]),
        head_dim=int(raw["head_dim"]),
        query_pre_attn_scalar=float(raw.get("query_pre_attn_scalar", 256)),
        sliding_window=int(raw.get("sliding_window") or 4096),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope={kind: _parse_rope(raw, kind) for kind in DEFAULT_ROPE_THETA},
        final_logit_softcapping=raw.get("final_logit_softcapping"),
        eoi_token_index=eoi_token_index,
    )


def _parse_rope(raw: Mapping[str, Any], kind: str) -> RopeConfig:
    params = (raw.get("rope_parameters") or {}).get(kind) or {}
    rope_type = params.get("rope_type", "default")
    if rope_type not in ("default", "linear"):
        raise CheckpointError(f"config.json: rope_type {rope_type!r} of {kind} is not supported (default, linear)")
    theta = float(params.get("rope_theta", DEFAULT_ROPE_THETA[kind]))
    return RopeConfig(theta, float(params.get("factor", 1.0)) if rope_type == "linear" else 1.0)
