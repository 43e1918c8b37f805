import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kalm_cache.errors import CheckpointError
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.decoder import QueryDecoder
from kalm_cache.model.encoder import PassageEncoder
from kalm_cache.model.runtime import load_decoder, load_encoder
from tests.checkpoints import MINI, edit_config, edit_tensors, make_checkpoint, name_text_model

CPU = torch.device("cpu")
ANSWERS = (99, 103)


@pytest.fixture
def folder(mini_folder: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(mini_folder, tmp_path / "model"))


def keep(folder: Path, *prefixes: str) -> None:
    edit_tensors(folder, lambda all: {name: tensor for name, tensor in all.items() if name.startswith(prefixes)})


def weights(side: PassageEncoder | QueryDecoder) -> list[Tensor]:
    """All that a side holds."""
    return [*side.stack.tensors(), *([side.answer_rows] if isinstance(side, QueryDecoder) else [])]


def same_weights(ours: PassageEncoder | QueryDecoder, theirs: PassageEncoder | QueryDecoder) -> bool:
    return all(torch.equal(left, right) for left, right in zip(weights(ours), weights(theirs), strict=True))


def test_the_passage_side_reads_neither_the_decoder_nor_the_vision_tower(mini: Checkpoint, folder: Path):
    keep(folder, "model.encoder.layers.", "model.encoder.norm.", "model.encoder.embed_tokens.")
    encoder = load_encoder(open_checkpoint(str(folder)), CPU, torch.float32)
    assert same_weights(encoder, load_encoder(mini, CPU, torch.float32))


def test_the_query_side_reads_neither_the_encoder_nor_the_vision_tower(mini: Checkpoint, folder: Path):
    keep(folder, "model.decoder.", "model.encoder.embed_tokens.")
    decoder = load_decoder(open_checkpoint(str(folder)), ANSWERS, CPU, torch.float32)
    assert same_weights(decoder, load_decoder(mini, ANSWERS, CPU, torch.float32))


def test_the_query_side_holds_two_rows_of_the_output_matrix(mini: Checkpoint):
    decoder = load_decoder(mini, ANSWERS, CPU, torch.float32)
    table = mini.tensor("model.encoder.embed_tokens.weight")
    assert torch.equal(decoder.answer_rows, table[list(ANSWERS)])
    assert max(tensor.numel() for tensor in weights(decoder)) < table.numel()


def test_both_layouts_of_names_load_alike(mini: Checkpoint, folder: Path):
    edit_tensors(folder, name_text_model)
    renamed = open_checkpoint(str(folder))
    assert "model.encoder.text_model.layers.0.mlp.up_proj.weight" in renamed.files
    assert same_weights(load_encoder(renamed, CPU, torch.float32), load_encoder(mini, CPU, torch.float32))
    assert same_weights(
        load_decoder(renamed, ANSWERS, CPU, torch.float32), load_decoder(mini, ANSWERS, CPU, torch.float32)
    )


def test_embeddings_saved_under_the_decoder_alone_serve_both_sides(mini: Checkpoint, folder: Path):
    def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("encoder.embed_tokens", "decoder.embed_tokens"): tensors[name] for name in tensors}

    edit_tensors(folder, move)
    moved = open_checkpoint(str(folder))
    table = mini.tensor("model.encoder.embed_tokens.weight")
    assert torch.equal(load_encoder(moved, CPU, torch.float32).stack.embed.table, table)
    assert torch.equal(load_decoder(moved, ANSWERS, CPU, torch.float32).stack.embed.table, table)


def test_untied_embeddings_and_head_are_each_sides_own(tmp_path: Path):
    untied = open_checkpoint(str(make_checkpoint(tmp_path, tied=False)))
    tables = {side: untied.tensor(f"model.{side}.embed_tokens.weight") for side in ("encoder", "decoder")}
    assert not torch.equal(tables["encoder"], tables["decoder"])
    decoder = load_decoder(untied, ANSWERS, CPU, torch.float32)
    assert torch.equal(load_encoder(untied, CPU, torch.float32).stack.embed.table, tables["encoder"])
    assert torch.equal(decoder.stack.embed.table, tables["decoder"])
    assert torch.equal(decoder.answer_rows, untied.tensor("lm_head.out_proj.weight")[list(ANSWERS)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_is_cast_to_the_dtype_of_the_run_and_norms_are_float32(mini: Checkpoint, dtype: torch.dtype):
    for side in (load_encoder(mini, CPU, dtype), load_decoder(mini, ANSWERS, CPU, dtype)):
        assert {tensor.dtype for tensor in weights(side) if tensor.dim() == 2} - {torch.float32} <= {dtype}
        for layer in side.stack.layers:
            assert {linear.weight.dtype for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)} == {dtype}
            assert layer.norms.pre_mlp.dtype == torch.float32
        assert side.stack.embed(torch.tensor([1])).dtype == side.stack.dtype == dtype
        assert not any(tensor.requires_grad for tensor in weights(side))


def test_int8_products_stand_in_a_float32_run(mini: Checkpoint):
    for side in (load_encoder(mini, CPU, torch.int8), load_decoder(mini, ANSWERS, CPU, torch.int8)):
        assert side.stack.quantized
        assert side.stack.embed(torch.tensor([1])).dtype == side.stack.dtype == torch.float32
        for layer in side.stack.layers:
            for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
                assert linear.weight.dtype == torch.int8
                assert linear.scale is not None
                assert linear.scale.shape == linear.weight.shape[:1]


def test_norms_are_rounded_to_the_dtype_of_the_run_before_one_is_added(mini: Checkpoint):
    # as transformers' module holds them in a bfloat16 run
    stored = mini.tensor("model.decoder.norm.weight")
    assert torch.equal(load_decoder(mini, ANSWERS, CPU, torch.bfloat16).stack.norm, 1 + stored.bfloat16().float())
    assert torch.equal(load_decoder(mini, ANSWERS, CPU, torch.float32).stack.norm, 1 + stored)


@pytest.mark.parametrize(("dtype", "bytes_each"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.int8, 1)])
def test_each_side_holds_its_layers_weights_once_and_hardly_more(mini: Checkpoint, dtype: torch.dtype, bytes_each: int):
    width, inner, heads, keys = MINI.hidden_size, MINI.intermediate_size, 4 * MINI.head_dim, 2 * MINI.head_dim
    products = len(MINI.layer_types) * ((2 * heads + 2 * keys) * width + 3 * width * inner)
    for side in (load_encoder(mini, CPU, dtype), load_decoder(mini, ANSWERS, CPU, dtype)):
        held = sum(tensor.nbytes for tensor in weights(side))
        assert products * bytes_each < held < products * bytes_each * 1.15


@pytest.mark.parametrize("part", ["model.encoder.layers.1.mlp.up_proj.weight", "model.encoder.norm.weight"])
def test_a_missing_tensor_of_the_encoder_is_refused(folder: Path, part: str):
    edit_tensors(folder, lambda all: {name: tensor for name, tensor in all.items() if name != part})
    with pytest.raises(CheckpointError, match=r"up_proj|no text encoder"):
        load_encoder(open_checkpoint(str(folder)), CPU, torch.float32)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            "model.decoder.layers.3.self_attn.q_norm.weight",
            r"tensors missing \['layers\.3\.self_attn\.q_norm\.weight'\]",
        ),
        ("model.decoder.norm.weight", r"tensors missing \['norm\.weight'\]"),
        ("model.encoder.embed_tokens.weight", r"no token embeddings"),
        ("model.encoder.embed_tokens.eoi_embedding", r"no token embeddings"),
    ],
)
def test_a_missing_tensor_of_the_decoder_is_refused(folder: Path, part: str, message: str):
    edit_tensors(folder, lambda all: {name: tensor for name, tensor in all.items() if name != part})
    with pytest.raises(CheckpointError, match=message):
        load_decoder(open_checkpoint(str(folder)), ANSWERS, CPU, torch.float32)


def test_weights_that_do_not_fit_the_config_are_refused(folder: Path):
    edit_config(folder, lambda config: config["decoder"].update(intermediate_size=127))
    with pytest.raises(CheckpointError, match=r"weights do not fit config\.json"):
        load_decoder(open_checkpoint(str(folder)), ANSWERS, CPU, torch.float32)


def test_more_layers_in_the_file_than_in_the_config_are_refused(folder: Path):
    edit_config(folder, lambda config: config["decoder"].update(num_hidden_layers=3))
    with pytest.raises(CheckpointError, match=r"not known \['layers\.3\."):
        load_decoder(open_checkpoint(str(folder)), ANSWERS, CPU, torch.float32)
