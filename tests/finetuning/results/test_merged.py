from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kalm_cache.errors import CheckpointError
from kalm_cache.finetuning.results.merged import require_same_encoder, write_merged
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from tests.checkpoints import edit_tensors, make_checkpoint

NORM = "model.decoder.norm.weight"


def test_the_files_of_a_checkpoint_in_parts_stay_parts_and_other_tensors_keep_their_bits(tmp_path: Path) -> None:
    base = open_checkpoint(str(make_checkpoint(tmp_path / "base", dtype=torch.bfloat16, max_shard_size="200KB")))
    assert len(set(base.files.values())) > 1
    merged = write_merged(base, {NORM: torch.full((64,), 0.1)}, tmp_path / "out")
    assert merged.files == base.files
    assert merged.tensor(NORM).dtype == torch.float32
    assert all(torch.equal(base.tensor(name), merged.tensor(name)) for name in base.files.keys() - {NORM})
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    bfloat16 = sum(base.tensor(name).nbytes for name in base.files)
    assert index["metadata"]["total_size"] == bfloat16 + 2 * 64
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base.folder / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "config.json").read_bytes() == (base.folder / "config.json").read_bytes()


def test_an_encoder_that_differs_in_one_bit_is_refused(mini: Checkpoint, tmp_path: Path) -> None:
    write_merged(mini, {}, tmp_path)
    name = next(name for name in mini.files if ".encoder." in name and name.endswith("q_proj.weight"))

    def flip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name].view(torch.int32)[0, 0] ^= 1
        return tensors

    edit_tensors(tmp_path, flip)
    with pytest.raises(CheckpointError, match="its encoder is not that of"):
        require_same_encoder(mini, open_checkpoint(str(tmp_path)))
