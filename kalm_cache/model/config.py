"""Shape of one T5Gemma2 text stack, read from a checkpoint's `config.json`. Knows nothing of weights or torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kalm_cache.errors import CheckpointError

DEFAULT_ROPE_THETA = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}
DEFAULT_EOI_TOKEN_INDEX = 256_000
ISOLATED_PREFIX = "isolated_prefix"  # a field of config.json


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

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of layers that there are."""
        return tuple(sorted(set(self.layer_types)))

    def window_of(self, kind: str) -> int | None:
        """The sliding window of a kind of layer; `None` = it sees everything."""
        return self.sliding_window if kind == "sliding_attention" else None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Both text stacks of a reranker; a vision tower, if the checkpoint has one, is ignored.

    isolated_prefix: the decoder was trained so that prompt tokens before the query see no passage. A field of this
        project: transformers does not know it.
    """

    encoder: StackConfig
    decoder: StackConfig
    isolated_prefix: bool = False


def parse_model_config(raw: Any) -> ModelConfig:
    """Read the parsed `config.json` of a `T5Gemma2ForConditionalGeneration`.

    Raises:
        CheckpointError: another architecture, a missing field, or a feature that this runtime does not compute.
    """
    model_type = raw.get("model_type") if isinstance(raw, Mapping) else None
    if model_type != "t5gemma2":
        raise CheckpointError(f"config.json: model_type is {model_type!r}, expected 't5gemma2' (KaLM-Reranker-V1)")
    try:
        # transformers: the encoder's counts
        encoder_fields = {"eoi_token_index": DEFAULT_EOI_TOKEN_INDEX} | raw["encoder"]
        eoi = _whole(encoder_fields, "eoi_token_index", 1 << 31, lowest=-1)
        encoder, decoder = _parse_stack(raw["encoder"]["text_config"], eoi), _parse_stack(raw["decoder"], eoi)
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise CheckpointError(f"config.json: a field of encoder or decoder is missing or malformed: {exc!r}") from exc
    if encoder.hidden_size != decoder.hidden_size:
        raise CheckpointError(
            f"config.json: hidden_size is {encoder.hidden_size} in the encoder and {decoder.hidden_size} in the decoder"
        )
    isolated = raw.get(ISOLATED_PREFIX, False)
    if not isinstance(isolated, bool):
        raise CheckpointError(f"config.json: {ISOLATED_PREFIX} is {str(isolated)[:30]!r}, expected true or false")
    return ModelConfig(encoder, decoder, isolated)


def _parse_stack(raw: Mapping[str, Any], eoi_token_index: int) -> StackConfig:
    if raw.get("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise CheckpointError(f"config.json: hidden_activation {str(raw['hidden_activation'])[:30]!r} is not supported")
    if raw.get("attention_bias"):
        raise CheckpointError("config.json: attention_bias=true is not supported")
    heads, kv_heads = _whole(raw, "num_attention_heads", 1 << 12), _whole(raw, "num_key_value_heads", 1 << 12)
    head_dim, cap = _whole(raw, "head_dim", 1 << 12), raw.get("final_logit_softcapping")
    if heads % kv_heads or head_dim % 2:
        raise CheckpointError(
            f"config.json: {heads} heads for {kv_heads} key/value heads, {head_dim} wide: must divide, and be even"
        )
    # fields that a config.json leaves out have transformers' defaults
    return StackConfig(
        vocab_size=_whole(raw, "vocab_size", 1 << 24),
        hidden_size=_whole(raw, "hidden_size", 1 << 16),
        intermediate_size=_whole(raw, "intermediate_size", 1 << 20),
        layer_types=_parse_layer_types(raw),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        query_pre_attn_scalar=_positive("query_pre_attn_scalar", raw.get("query_pre_attn_scalar", 256)),
        sliding_window=_whole(raw, "sliding_window", 1 << 31) if raw.get("sliding_window") else 4096,
        rms_norm_eps=_positive("rms_norm_eps", raw.get("rms_norm_eps", 1e-6)),
        rope={kind: _parse_rope(raw, kind) for kind in DEFAULT_ROPE_THETA},
        final_logit_softcapping=None if cap is None else _positive("final_logit_softcapping", cap),
        eoi_token_index=eoi_token_index,
    )


def _whole(raw: Mapping[str, Any], name: str, highest: int, lowest: int = 1) -> int:
    """A field that decides how much is computed: what no model has is refused before memory is taken."""
    value = raw[name]
    if type(value) is not int or not lowest <= value <= highest:
        raise CheckpointError(
            f"config.json: {name} is {str(value)[:30]!r}, expected a whole number from {lowest} to {highest}"
        )
    return value


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise CheckpointError(f"config.json: {name} is {str(value)[:30]!r}, expected a number above 0")
    return float(value)


def _parse_layer_types(raw: Mapping[str, Any]) -> tuple[str, ...]:
    count = _whole(raw, "num_hidden_layers", 1 << 10)
    pattern = _whole({"sliding_window_pattern": 6} | dict(raw), "sliding_window_pattern", 1 << 10)
    kinds = raw.get("layer_types") or [
        "sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(count)
    ]
    if len(kinds) < count:
        raise CheckpointError(f"config.json: {len(kinds)} layer types for {count} layers")
    for kind in kinds[:count]:
        if kind not in DEFAULT_ROPE_THETA:
            raise CheckpointError(
                f"config.json: layer type {str(kind)[:30]!r} is not supported ({', '.join(DEFAULT_ROPE_THETA)})"
            )
    return tuple(kinds[:count])


def _parse_rope(raw: Mapping[str, Any], kind: str) -> RopeConfig:
    # Priorities and older fields (`rope_scaling`, `rope_theta`, `rope_local_base_freq`) as in transformers'
    # `convert_rope_params_to_dict`.
    full = kind == "full_attention"
    params = dict((raw.get("rope_parameters") or {}).get(kind) or {}) | ((full and raw.get("rope_scaling")) or {})
    rope_type = params.get("rope_type", "default")
    if rope_type not in ("default", "linear"):
        raise CheckpointError(
            f"config.json: rope_type {str(rope_type)[:30]!r} of {kind} is not supported (default, linear)"
        )
    older_theta = raw.get("rope_theta" if full else "rope_local_base_freq", DEFAULT_ROPE_THETA[kind])
    factor = _positive("factor", params["factor"]) if rope_type == "linear" else 1.0
    return RopeConfig(_positive("rope_theta", params.get("rope_theta", older_theta)), factor)
