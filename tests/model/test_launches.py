"""What a batch asks of a GPU: kernels, copies, waits. A device poses as one; Triton's kernels are counted, not run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.kernels import Kernels
from kalm_cache.model.kernels.prefix_kv import make_prefix_kv
from kalm_cache.model.layers.stack import Stack
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.passage_side import PassageSide, load_passage_side
from kalm_cache.scoring.query_side import QuerySide, load_query_side
from tests.model.posing import Posing

POSING = torch.device("meta")
LAYERS = 4  # of the mini checkpoint
AROUND = 16  # kernels before the first layer and after the last, whatever their number
PASSAGES = [Tokens(list(range(5, 5 + length)), False) for length in (9, 4, 7)]
PROMPT = Tokens([5, 6, 7, 8], False)


@pytest.fixture
def posing(monkeypatch: pytest.MonkeyPatch) -> Posing:
    kernels = pytest.importorskip("kalm_cache.model.kernels.triton.kernels")
    device = Posing(POSING)
    monkeypatch.setattr(kernels, "_launch", lambda kernel, *_, **__: device.launched(kernel.__name__))
    return device


def with_triton(stack: Stack) -> Stack:
    from kalm_cache.model.kernels.triton.kernels import TritonKernels

    kernels: Kernels = TritonKernels()
    return replace(stack, kernels=kernels)


@pytest.fixture
def passage_side(posing: Posing, mini: Checkpoint) -> PassageSide:
    side = load_passage_side(mini, device=POSING, dtype=torch.bfloat16, max_length=64, chunk_size=4)
    return replace(side, encoder=replace(side.encoder, stack=with_triton(side.encoder.stack)))


@pytest.fixture
def query_side(posing: Posing, mini: Checkpoint) -> QuerySide:
    side = load_query_side(mini, device=POSING, dtype=torch.bfloat16, query_max_length=16)
    return replace(side, decoder=replace(side.decoder, stack=with_triton(side.decoder.stack)))


def second_time(posing: Posing, run: Any, *arguments: Any) -> Posing:
    """Counts of a run that is not the first: rotary tables are there."""
    with posing:
        run(*arguments)
        posing.clear()
        run(*arguments)
    return posing


def test_an_encoder_of_one_key_head_launches_ten_kernels_a_layer_and_waits_for_nothing(
    posing: Posing, passage_side: PassageSide
):
    counts = second_time(posing, passage_side.encode, PASSAGES)
    # qkv, split_heads, attend, rows out of padding, o, add_norm, gate_up, gated_gelu, down, add_norm; with two key
    # heads there is a copy more, which brings the heads of a token together
    assert counts.launches.total() <= (10 + 1) * LAYERS + AROUND, counts.launches
    assert (counts.copies_in, counts.copies_out) == (2, 0)  # the batch; what pooling sums up


def test_decoding_launches_two_kernels_a_layer_more_for_the_passages_and_waits_for_the_margins_alone(
    posing: Posing, query_side: QuerySide
):
    states = [torch.zeros(length, 64) for length in (3, 1, 2)]
    counts = second_time(posing, query_side.margins, [PROMPT] * 3, states, 3)
    assert counts.launches.total() <= (12 + 1) * LAYERS + AROUND, counts.launches
    assert (counts.copies_in, counts.copies_out) == (1, 1)


def test_going_on_from_cached_prefixes_launches_one_kernel_a_layer_for_all_passages(
    posing: Posing, query_side: QuerySide
):
    cached = [
        make_prefix_kv((5, 6), count, torch.zeros(LAYERS, 2, 2, 2 + count, 32, device=POSING), torch.bfloat16)
        for count in (3, 1, 2)
    ]
    counts = second_time(posing, query_side.margins, [PROMPT] * 3, cached, 3)
    assert counts.launches["load_kv"] == LAYERS
    assert counts.launches.total() <= (11 + 1) * LAYERS + AROUND, counts.launches
    assert (counts.copies_in, counts.copies_out) == (1, 1)
