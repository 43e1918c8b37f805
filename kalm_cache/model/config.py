"""Shape of one T5Gemma2 text stack, read from a checkpoint's `config.json`. Knows nothing of weights or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kalm_cache.errors import CheckpointError

DEFAULT_ROPE_THETA = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}
DEFAULT_EOI_TOKEN_INDEX = 256_000


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding of one kind of layer: base `theta`, positions divided by `factor` (linear scaling; 1 = none)."""

    theta: float
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class StackConfig:
    """One encoder or decoder stack. Field names follow transformers' `T5Gemma2TextConfig`, where they have one."""

    vocab_size: int
    hidden_size: int  # D
    intermediate_size: int  # I
    layer_types: tuple[str, ...]
    num_attention_heads: int  # H
    num_key_value_heads: int  # K
    head_dim: int  # E; H · E need not be D
    query_pre_attn_scalar: float  # scores are divided by its square root, not by that of E
    sliding_window: int
    rms_norm_eps: float
    rope: Mapping[str, RopeConfig]
    final_logit_softcapping: float | None
    eoi_token_index: int

    def window_of(self, kind: str) -> int | None:
        """The sliding window of a kind of layer; `None` = it sees everything."""
        return self.sliding_window if kind == "sliding_attention" else None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Both text stacks of a reranker; a vision tower, if the checkpoint has one, is ignored."""

    encoder: StackConfig
    decoder: StackConfig


def parse_model_config(raw: Any) -> ModelConfig:
    """Read the parsed `config.json` of a `T5Gemma2ForConditionalGeneration`.

    Raises:
        CheckpointError: another architecture, a missing field, or a feature that this runtime does not compute.
    """
    model_type = raw.get("model_type") if isinstance(raw, Mapping) else None
    if model_type != "t5gemma2":
        raise CheckpointError(f"config.json: model_type is {model_type!r}, expected 't5gemma2' (KaLM-Reranker-V1)")
    try:
        eoi = int(raw["encoder"].get("eoi_token_index", DEFAULT_EOI_TOKEN_INDEX))  # transformers: the encoder's counts
        return ModelConfig(
            encoder=_parse_stack(raw["encoder"]["text_config"], eoi), decoder=_parse_stack(raw["decoder"], eoi)
        )
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise CheckpointError(f"config.json: a field of encoder or decoder is missing or malformed: {exc!r}") from exc


def _parse_stack(raw: Mapping[str, Any], eoi_token_index: int) -> StackConfig:
    if raw.get("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise CheckpointError(f"config.json: hidden_activation {raw['hidden_activation']!r} is not supported")
    if raw.get("attention_bias"):
        raise CheckpointError("config.json: attention_bias=true is not supported")
    # fields that a config.json leaves out have transformers' defaults
    return StackConfig(
        vocab_size=int(raw["vocab_size"]),
        hidden_size=int(raw["hidden_size"]),
        intermediate_size=int(raw["intermediate_size"]),
        layer_types=_parse_layer_types(raw),
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


def _parse_layer_types(raw: Mapping[str, Any]) -> tuple[str, ...]:
    count, pattern = int(raw["num_hidden_layers"]), int(raw.get("sliding_window_pattern", 6))
    kinds = raw.get("layer_types") or [
        "sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(count)
    ]
    if len(kinds) < count:
        raise CheckpointError(f"config.json: {len(kinds)} layer types for {count} layers")
    for kind in kinds[:count]:
        if kind not in DEFAULT_ROPE_THETA:
            raise CheckpointError(
                f"config.json: layer type {kind!r} is not supported ({', '.join(DEFAULT_ROPE_THETA)})"
            )
    return tuple(kinds[:count])


def _parse_rope(raw: Mapping[str, Any], kind: str) -> RopeConfig:
    # Priorities and older fields (`rope_scaling`, `rope_theta`, `rope_local_base_freq`) as in transformers'
    # `convert_rope_params_to_dict`.
    full = kind == "full_attention"
    params = dict((raw.get("rope_parameters") or {}).get(kind) or {}) | ((full and raw.get("rope_scaling")) or {})
    rope_type = params.get("rope_type", "default")
    if rope_type not in ("default", "linear"):
        raise CheckpointError(f"config.json: rope_type {rope_type!r} of {kind} is not supported (default, linear)")
    older_theta = raw.get("rope_theta" if full else "rope_local_base_freq", DEFAULT_ROPE_THETA[kind])
    factor = float(params["factor"]) if rope_type == "linear" else 1.0
    return RopeConfig(float(params.get("rope_theta", older_theta)), factor)
