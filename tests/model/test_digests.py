"""The digests of a checkpoint's two sides: what each depends on, and what it must stay for ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kalm_cache.errors import CheckpointError
from kalm_cache.model.checkpoint import SENSITIVITY_FILE, Checkpoint, open_checkpoint
from kalm_cache.model.digests import decoder_digest, encoder_digest
from tests.checkpoints import edit_config, edit_tensors, make_checkpoint, name_text_model, with_other_decoder

TABLE, DECODER_TABLE = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"
STACK = {
    "vocab_size": 3,
    "hidden_size": 2,
    "intermediate_size": 2,
    "num_hidden_layers": 1,
    "layer_types": ["full_attention"],
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "sliding_window": 4,
}


@pytest.fixture
def folder(mini_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may change."""
    return Path(shutil.copytree(mini_folder, tmp_path / "checkpoint"))


def digests_of(folder: Path) -> tuple[str, str]:
    checkpoint = open_checkpoint(str(folder))
    return encoder_digest(checkpoint), decoder_digest(checkpoint)


def test_indexes_hold_these_digests_so_they_never_change(tmp_path: Path):
    tensors = {
        TABLE: torch.arange(6.0).reshape(3, 2),
        "model.encoder.embed_tokens.eoi_embedding": torch.tensor([1.0, 2.0]),
        "model.encoder.norm.weight": torch.tensor([0.5, 0.25], dtype=torch.bfloat16),
        "model.encoder.layers.0.mlp.down_proj.weight": torch.eye(2),
        "model.decoder.norm.weight": torch.tensor([0.125, 2.0]),
        "model.decoder.layers.0.mlp.down_proj.weight": 3 * torch.eye(2),
        "model.encoder.vision_tower.head.probe": torch.zeros(1),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"model_type": "t5gemma2", "encoder": {"text_config": STACK}, "decoder": STACK}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert digests_of(tmp_path) == (
        "5fdf0e202608c4216694fec09ecf608f5858166358c36979b54de957a8bf7536",
        "1ed9c144e715e832b504ee3a60a18585428fc926b7518ec224cb65f0f20b894b",
    )


def test_another_decoder_leaves_the_encoders_digest_as_it_is(mini_folder: Path, tmp_path: Path):
    encoder, decoder = digests_of(mini_folder)
    other = with_other_decoder(mini_folder, tmp_path / "other")
    assert digests_of(other)[0] == encoder
    assert digests_of(other)[1] != decoder


def test_another_encoder_layer_leaves_the_decoders_digest_as_it_is(folder: Path, mini_folder: Path):
    name = "model.encoder.layers.1.mlp.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors | {name: tensors[name] + 1e-3})
    (encoder, decoder), (old_encoder, old_decoder) = digests_of(folder), digests_of(mini_folder)
    assert encoder != old_encoder
    assert decoder == old_decoder


def test_a_table_that_both_share_is_part_of_both(folder: Path, mini_folder: Path):
    edit_tensors(folder, lambda tensors: tensors | {TABLE: tensors[TABLE] + 1e-3})
    changed, before = digests_of(folder), digests_of(mini_folder)
    assert changed[0] != before[0]
    assert changed[1] != before[1]


def test_a_decoder_with_a_table_of_its_own_leaves_the_encoder_as_it_is(folder: Path, mini_folder: Path):
    edit_tensors(folder, lambda tensors: tensors | {DECODER_TABLE: tensors[TABLE] + 1e-3})
    changed, before = digests_of(folder), digests_of(mini_folder)
    assert changed[0] == before[0]
    assert changed[1] != before[1]


def test_a_tied_table_that_is_saved_twice_changes_nothing(folder: Path, mini_folder: Path):
    edit_tensors(folder, lambda tensors: tensors | {DECODER_TABLE: tensors[TABLE].clone()})
    assert digests_of(folder) == digests_of(mini_folder)


@pytest.mark.parametrize("head", ["lm_head.weight", "lm_head.out_proj.weight"])
def test_a_head_of_its_own_is_part_of_the_decoder_alone(folder: Path, mini_folder: Path, head: str):
    edit_tensors(folder, lambda tensors: tensors | {head: tensors[TABLE] + 1e-3})
    changed, before = digests_of(folder), digests_of(mini_folder)
    assert changed[0] == before[0]
    assert changed[1] != before[1]


def test_names_files_and_the_vision_tower_do_not_count(folder: Path, mini_folder: Path, tmp_path: Path):
    before = digests_of(mini_folder)
    edit_tensors(folder, lambda tensors: _without_vision(name_text_model(tensors)))
    (folder / SENSITIVITY_FILE).write_bytes(b"the codec's")
    (folder / "tokenizer_config.json").write_text("{}")
    assert digests_of(folder) == before
    sharded = make_checkpoint(tmp_path / "sharded", max_shard_size="100KB")
    assert digests_of(sharded) == before


def _without_vision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if ".vision_tower." not in name}


def test_numbers_in_another_precision_are_other_numbers(folder: Path, mini_folder: Path):
    edit_tensors(folder, lambda tensors: {name: tensor.double() for name, tensor in tensors.items()})
    assert set(digests_of(folder)).isdisjoint(digests_of(mini_folder))


@pytest.mark.parametrize(("side", "place"), [("encoder", 0), ("decoder", 1)])
def test_each_side_has_its_own_configuration(folder: Path, mini_folder: Path, side: str, place: int):
    def widen(config: dict) -> None:
        stack = config[side]
        (stack["text_config"] if side == "encoder" else stack)["sliding_window"] += 1

    edit_config(folder, widen)
    changed, before = digests_of(folder), digests_of(mini_folder)
    assert changed[place] != before[place]
    assert changed[1 - place] == before[1 - place]


def test_the_tokenizer_is_part_of_both(folder: Path, mini_folder: Path):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    assert set(digests_of(folder)).isdisjoint(digests_of(mini_folder))


def test_files_of_a_tokenizer_that_is_yet_to_be_built_count(folder: Path):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"one")
    before = digests_of(folder)
    (folder / "tokenizer.model").write_bytes(b"two")
    assert set(digests_of(folder)).isdisjoint(before)


def test_a_checkpoint_without_one_of_the_sides_has_no_digest_of_it(mini: Checkpoint):
    without = Checkpoint("x", mini.folder, mini.config, {n: f for n, f in mini.files.items() if "embed" not in n})
    with pytest.raises(CheckpointError, match="no token embeddings"):
        decoder_digest(without)
