from types import SimpleNamespace

import pytest
import torch

from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.layers.layer import _blocks, mlp_bytes
from kalm_cache.model.runtime import load_decoder
from tests.checkpoints import MINI

CPU = torch.device("cpu")


def test_queries_and_keys_with_values_are_parts_of_one_product(mini: Checkpoint):
    layer = load_decoder(mini, (0, 1), CPU, torch.float32).stack.layers[0]
    x = torch.randn(3, MINI.hidden_size)
    whole, queries, keys = layer.qkv(x), layer.q(x), layer.kv(x)
    assert isinstance(queries, torch.Tensor)
    assert queries.shape == (3, MINI.num_attention_heads * MINI.head_dim)
    torch.testing.assert_close(torch.cat((queries, keys), dim=1), whole)
    assert layer.kv.weight.untyped_storage().data_ptr() == layer.qkv.weight.untyped_storage().data_ptr()


def test_the_attentions_scale_is_in_the_norm_of_the_queries(mini: Checkpoint):
    norms = load_decoder(mini, (0, 1), CPU, torch.float32).stack.layers[1].norms
    stored = mini.tensor("model.decoder.layers.1.self_attn.q_norm.weight")
    torch.testing.assert_close(norms.query, (1 + stored) * MINI.query_pre_attn_scalar**-0.5)
    torch.testing.assert_close(norms.key, 1 + mini.tensor("model.decoder.layers.1.self_attn.k_norm.weight"))


@pytest.mark.parametrize(
    ("rows", "bounds"),
    [
        (0, [(0, 0)]),
        (1, [(0, 1)]),
        (8, [(0, 8)]),
        (11, [(0, 11)]),  # a rest of 3 goes with the block before
        (12, [(0, 12)]),
        (13, [(0, 8), (8, 13)]),  # one of 5 stands alone
        (16, [(0, 8), (8, 16)]),
        (20, [(0, 8), (8, 20)]),
    ],
)
def test_rows_go_in_blocks_and_a_small_rest_with_the_last(rows: int, bounds: list[tuple[int, int]]):
    assert [(block.start, block.stop) for block in _blocks(rows, 8)] == bounds


def test_a_block_of_gates_takes_a_64th_of_a_gpus_memory(monkeypatch: pytest.MonkeyPatch):
    memory = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert mlp_bytes(torch.device("cuda")) == 1280 << 20
    assert mlp_bytes(torch.device("cpu")) == 16 << 20
