import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import T5Gemma2Config

from benchmarks.checkpoints import NO_VISION
from kalm_cache.errors import CheckpointError
from kalm_cache.model.config import RopeConfig, parse_model_config
from tests.checkpoints import FULL, SLIDING


@pytest.fixture
def raw(mini_folder: Path) -> dict[str, Any]:
    return json.loads((mini_folder / "config.json").read_text())


def test_a_saved_config_is_read_whole(raw: dict[str, Any]):
    config = parse_model_config(raw)
    assert config.encoder == config.decoder
    stack = config.encoder
    assert (stack.hidden_size, stack.intermediate_size, stack.head_dim) == (64, 128, 32)
    assert (stack.num_attention_heads, stack.num_key_value_heads) == (4, 2)
    assert (stack.query_pre_attn_scalar, stack.sliding_window, stack.rms_norm_eps) == (32.0, 16, 1e-6)
    assert stack.layer_types == (SLIDING, SLIDING, FULL, SLIDING)
    assert stack.rope == {FULL: RopeConfig(1_000_000.0), SLIDING: RopeConfig(10_000.0)}
    assert stack.final_logit_softcapping is None
    assert stack.eoi_token_index == 6


def test_without_layer_types_every_sixth_layer_is_full(raw: dict[str, Any]):
    raw["decoder"] |= {"layer_types": None, "num_hidden_layers": 13}
    assert parse_model_config(raw).decoder.layer_types == ((SLIDING,) * 5 + (FULL,)) * 2 + (SLIDING,)


def test_linear_rope_scaling_is_read(raw: dict[str, Any]):
    raw["decoder"]["rope_parameters"][FULL] = {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 8.0}
    assert parse_model_config(raw).decoder.rope[FULL] == RopeConfig(500_000.0, 8.0)


def test_the_older_rope_fields_mean_what_transformers_makes_of_them(raw: dict[str, Any]):
    older = {
        "rope_theta": 500_000.0,
        "rope_local_base_freq": 20_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    text = raw["decoder"]
    del text["rope_parameters"]
    text |= older
    expected = T5Gemma2Config(
        encoder={"text_config": copy.deepcopy(text), "vision_config": dict(NO_VISION)}, decoder=copy.deepcopy(text)
    ).decoder.rope_parameters
    rope = parse_model_config(raw).decoder.rope
    for kind in (FULL, SLIDING):
        assert rope[kind] == RopeConfig(expected[kind]["rope_theta"], expected[kind].get("factor", 1.0))
    assert rope[FULL] == RopeConfig(500_000.0, 8.0)


def test_the_encoder_names_the_end_of_image_token_as_in_transformers(raw: dict[str, Any]):
    raw["encoder"]["eoi_token_index"], raw["eoi_token_index"] = 9, None
    assert T5Gemma2Config(**copy.deepcopy(raw)).eoi_token_index == 9
    assert parse_model_config(raw).encoder.eoi_token_index == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5gemma"}, "model_type is 't5gemma', expected 't5gemma2'"),
        ({"model_type": None}, "model_type is None"),
        ({"encoder": {}}, "text_config"),
        ({"decoder": None}, "decoder"),
    ],
)
def test_another_architecture_or_a_missing_part_is_refused(raw: dict[str, Any], change: dict[str, Any], message: str):
    with pytest.raises(CheckpointError, match=message):
        parse_model_config(raw | change)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_activation", "silu", "hidden_activation 'silu' is not supported"),
        ("attention_bias", True, "attention_bias=true is not supported"),
        ("layer_types", ["chunked_attention"] * 4, "layer type 'chunked_attention' is not supported"),
        ("layer_types", [FULL], "1 layer types for 4 layers"),
        ("rope_parameters", {FULL: {"rope_type": "yarn"}}, "rope_type 'yarn' of full_attention is not supported"),
    ],
)
def test_a_feature_that_is_not_computed_is_refused(raw: dict[str, Any], field: str, value: object, message: str):
    raw["decoder"][field] = value
    with pytest.raises(CheckpointError, match=message):
        parse_model_config(raw)


def test_a_missing_field_is_named(raw: dict[str, Any]):
    del raw["decoder"]["head_dim"]
    with pytest.raises(CheckpointError, match="head_dim"):
        parse_model_config(raw)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("hidden_size", 0),
        ("hidden_size", -64),
        ("hidden_size", True),
        ("hidden_size", "64"),
        ("vocab_size", 2**62),
        ("num_key_value_heads", 3),
        ("head_dim", 31),
        ("sliding_window", -1),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", float("nan")),
        ("query_pre_attn_scalar", -1),
        ("final_logit_softcapping", []),
    ],
)
def test_absurd_numbers_are_refused_by_name_before_anything_is_made_of_them(
    raw: dict[str, Any], field: str, value: object
):
    raw["decoder"][field] = value
    with pytest.raises(CheckpointError, match=r"config\.json: ") as refused:
        parse_model_config(raw)
    assert field in str(refused.value) or "key/value heads" in str(refused.value)


def test_encoder_and_decoder_have_one_width(raw: dict[str, Any]):
    raw["decoder"]["hidden_size"] = 128
    with pytest.raises(CheckpointError, match="hidden_size is 64 in the encoder and 128 in the decoder"):
        parse_model_config(raw)
