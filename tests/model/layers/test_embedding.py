import pytest
import torch

from kalm_cache.model.layers.embedding import TokenEmbedding


def test_embeddings_are_scaled_by_the_root_of_the_width_and_end_of_image_has_its_own_vector():
    table = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]])
    embedding = TokenEmbedding(table, torch.tensor([7.0, 7.0, 7.0, 7.0]), eoi_token_index=2, dtype=torch.float32)
    states = embedding(torch.tensor([0, 2, 1]))
    assert states.tolist() == [[2.0, 0.0, 0.0, 0.0], [7.0, 7.0, 7.0, 7.0], [0.0, 2.0, 0.0, 0.0]]


def test_the_embedding_scale_is_rounded_to_the_dtype_of_the_run():
    embedding = TokenEmbedding(torch.ones(1, 640), None, eoi_token_index=5, dtype=torch.bfloat16)
    # sqrt(640) = 25.298…; bfloat16 steps by 0.125 there
    assert embedding(torch.tensor([0]))[0, 0].item() == 25.25


def test_the_table_stays_in_its_own_dtype_and_only_rows_are_converted():
    table = torch.ones(3, 4, dtype=torch.bfloat16)
    embedding = TokenEmbedding(table, None, eoi_token_index=5, dtype=torch.float32)
    assert embedding.table is table
    assert embedding(torch.tensor([1, 1])).dtype == torch.float32


def test_every_call_gives_rows_of_its_own():
    # layers add to them in place
    embedding = TokenEmbedding(torch.ones(3, 4), None, eoi_token_index=5, dtype=torch.float32)
    embedding(torch.tensor([0, 1])).zero_()
    assert embedding(torch.tensor([0, 1])).tolist() == [[2.0] * 4] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_table_on_a_device_has_the_very_rows_that_a_mapped_one_gives(dtype: torch.dtype):
    draw = torch.Generator().manual_seed(0)
    table, eoi = torch.randn(5, 640, generator=draw), torch.randn(640, generator=draw)
    mapped = TokenEmbedding(table.to(torch.bfloat16), eoi, eoi_token_index=3, dtype=dtype)
    ids = torch.tensor([0, 3, 4, 3, 1, 2])
    on_device = mapped.on(torch.device("cpu"))
    assert torch.equal(on_device(ids), mapped(ids))
    assert [tensor.shape for tensor in on_device.tensors()] == [(5, 640)]
