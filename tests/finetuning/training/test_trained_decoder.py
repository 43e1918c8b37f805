"""The decoder with gradients computes what the one for inference does, on every shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kalm_cache.finetuning.training.trained_decoder import LoraOptions, load_trained_decoder
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.prompts import Prompt
from kalm_cache.scoring.query_side import QuerySide, load_query_side

CPU = torch.device("cpu")


def open_side(checkpoint: Checkpoint) -> QuerySide:
    return load_query_side(checkpoint, device=CPU, dtype=torch.float32, query_max_length=512)


@pytest.mark.parametrize("lora", [None, LoraOptions(4, 8)], ids=["whole", "lora"])
@pytest.mark.parametrize("folder", ["mini_folder", "nano_folder", "small_folder"])
def test_margins_before_training_are_those_of_the_runtime(
    folder: str, lora: LoraOptions | None, request: pytest.FixtureRequest
) -> None:
    checkpoint = open_checkpoint(str(request.getfixturevalue(folder)))
    side = open_side(checkpoint)
    prompts = [side.tokenize(Prompt(query)) for query in ("bees", "where is the ferry to the island in the morning")]
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(n, checkpoint.config.decoder.hidden_size, generator=generator) for n in (3, 20)]
    decoder = load_trained_decoder(checkpoint, side.decoder, CPU, lora)
    with decoder.scoring():
        found = decoder.margins([prompt.ids for prompt in prompts], states)
    assert found.tolist() == pytest.approx(side.margins(prompts, states, 2), abs=1e-4)


def test_adapters_alone_learn_and_the_adapter_is_pefts_for_the_whole_model(mini: Checkpoint, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import T5Gemma2ForConditionalGeneration

    side = open_side(mini)
    decoder = load_trained_decoder(mini, side.decoder, CPU, LoraOptions(2, 4))
    assert all("lora_" in name for name in decoder.parameters)
    with torch.no_grad():
        for number, value in enumerate(decoder.parameters.values()):
            value.add_(0.01 * (number + 1))
    merged, name = decoder.merged(), "model.decoder.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged[name], mini.tensor(name).float())
    assert torch.equal(merged["model.decoder.norm.weight"], mini.tensor("model.decoder.norm.weight").float())
    assert decoder.save_adapter(tmp_path, "base")
    theirs = PeftModel.from_pretrained(T5Gemma2ForConditionalGeneration.from_pretrained(mini.folder), tmp_path)
    loaded = theirs.merge_and_unload().state_dict()
    torch.testing.assert_close(loaded[name], merged[name])


def test_a_decoder_that_is_trained_whole_has_no_adapter(mini: Checkpoint, tmp_path: Path) -> None:
    decoder = load_trained_decoder(mini, open_side(mini).decoder, CPU, None)
    names = {name for name in mini.files if name.startswith(("model.decoder.layers.", "model.decoder.norm."))}
    assert decoder.parameters.keys() == names == decoder.merged().keys()
    assert not decoder.save_adapter(tmp_path, "base")
