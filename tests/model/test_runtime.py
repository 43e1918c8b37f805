import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kalm_cache.errors import CheckpointError, UsageError
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.runtime import dtype_name, load_decoder, load_encoder, resolve_device, resolve_dtype
from tests.checkpoints import edit_config, edit_tensors, make_checkpoint, name_text_model

CPU = torch.device("cpu")
ANSWERS = (99, 103)


@pytest.fixture
def folder(mini_folder: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(mini_folder, tmp_path / "model"))


def keep(folder: Path, *prefixes: str) -> None:
    edit_tensors(folder, lambda all: {name: tensor for name, tensor in all.items() if name.startswith(prefixes)})


def same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    left, right = ours.state_dict(), theirs.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


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
    assert max(parameter.numel() for parameter in decoder.parameters()) < table.numel()


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
    assert torch.equal(load_encoder(moved, CPU, torch.float32).embed_tokens.table, table)
    assert torch.equal(load_decoder(moved, ANSWERS, CPU, torch.float32).embed_tokens.table, table)


def test_untied_embeddings_and_head_are_each_sides_own(tmp_path: Path):
    untied = open_checkpoint(str(make_checkpoint(tmp_path, tied=False)))
    tables = {side: untied.tensor(f"model.{side}.embed_tokens.weight") for side in ("encoder", "decoder")}
    assert not torch.equal(tables["encoder"], tables["decoder"])
    decoder = load_decoder(untied, ANSWERS, CPU, torch.float32)
    assert torch.equal(load_encoder(untied, CPU, torch.float32).embed_tokens.table, tables["encoder"])
    assert torch.equal(decoder.embed_tokens.table, tables["decoder"])
    assert torch.equal(decoder.answer_rows, untied.tensor("lm_head.out_proj.weight")[list(ANSWERS)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_is_cast_to_the_dtype_of_the_run(mini: Checkpoint, dtype: torch.dtype):
    for module in (load_encoder(mini, CPU, dtype), load_decoder(mini, ANSWERS, CPU, dtype)):
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}
        assert module.embed_tokens(torch.tensor([[1]])).dtype == dtype
        assert not any(parameter.requires_grad for parameter in module.parameters())


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


def test_auto_is_bfloat16_on_cuda_and_float32_on_the_cpu():
    for dtype in (None, "auto"):
        assert resolve_dtype(dtype, torch.device("cuda")) == torch.bfloat16
        assert resolve_dtype(dtype, CPU) == torch.float32


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float32", torch.float32),
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("fp16", torch.float16),
        ("float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_references_dtype_names_are_known(name: str | torch.dtype, dtype: torch.dtype):
    assert resolve_dtype(name, CPU) == dtype


def test_dtype_names_are_long():
    assert dtype_name(resolve_dtype("bf16", CPU)) == "bfloat16"


@pytest.mark.parametrize("dtype", ["int8", "", "float64"])
def test_an_unknown_dtype_is_refused(dtype: str):
    with pytest.raises(UsageError, match="is not known: use auto, float32"):
        resolve_dtype(dtype, CPU)


def test_an_unknown_device_is_refused():
    with pytest.raises(UsageError, match="'gpu' is not one that torch knows"):
        resolve_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_cuda_the_device_is_the_cpu_and_cuda_is_refused():
    assert resolve_device(None) == resolve_device("auto") == resolve_device(CPU) == CPU
    with pytest.raises(UsageError, match="torch sees no CUDA here"):
        resolve_device("cuda:0")
