import pytest
import torch
from torch import Tensor

from benchmarks.reference import mean_of_groups
from kalm_cache.errors import UsageError
from kalm_cache.scoring.pooling import mean_pool, pooled_length


def random_states(tokens: int, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


def pool_one(states: Tensor, chunk_size: int) -> Tensor:
    [pooled] = mean_pool(states, [len(states)], chunk_size)
    return pooled


def test_consecutive_states_are_averaged_and_the_last_group_may_be_shorter():
    states = torch.tensor([[1.0, 10.0], [3.0, 20.0], [5.0, 30.0], [7.0, 50.0], [9.0, 90.0]])
    assert pool_one(states, 2).tolist() == [[2.0, 15.0], [6.0, 40.0], [9.0, 90.0]]


def test_no_group_reaches_into_the_next_passage():
    states = torch.tensor([[1.0], [2.0], [6.0], [4.0], [8.0], [0.0], [2.0], [10.0]])
    assert [pooled.tolist() for pooled in mean_pool(states, [3, 5], 3)] == [[[3.0]], [[4.0], [6.0]]]
    assert [pooled.tolist() for pooled in mean_pool(states, [1, 1, 6], 4)] == [[[1.0]], [[2.0]], [[4.5], [6.0]]]


def test_ratio_one_returns_the_states_as_they_are():
    states = torch.tensor([[1.5], [2.5], [9.0]])
    assert [pooled.tolist() for pooled in mean_pool(states, [2, 1], 1)] == [[[1.5], [2.5]], [[9.0]]]


def test_a_ratio_larger_than_the_passage_gives_one_mean():
    assert pool_one(torch.tensor([[1.0], [2.0], [6.0]]), 32).tolist() == [[3.0]]


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 8, 16, 32, 128])
@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 97])
def test_pooling_equals_a_loop_over_groups(tokens: int, chunk_size: int):
    states = random_states(tokens)
    torch.testing.assert_close(pool_one(states, chunk_size), mean_of_groups(states, chunk_size), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 4, 5, 32])
def test_passages_of_a_batch_pool_like_their_passages_alone(chunk_size: int):
    passages = [random_states(tokens, seed=tokens) for tokens in (1, 9, 16, 13, 4, 4, 33)]
    pooled = mean_pool(torch.cat(passages), [len(states) for states in passages], chunk_size)
    assert len(pooled) == len(passages)
    for ours, states in zip(pooled, passages, strict=True):
        assert len(ours) == pooled_length(len(states), chunk_size)
        torch.testing.assert_close(ours, mean_of_groups(states, chunk_size), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_are_kept_in_float32(dtype: torch.dtype):
    # bfloat16 holds 8 bits: adding 1 to 256 in it changes nothing, so a bfloat16 running sum would stay at 256
    pooled = pool_one(torch.cat((torch.full((1, 1), 256.0), torch.ones(127, 1))).to(dtype), 128)
    assert pooled.dtype == dtype
    assert pooled.item() == torch.tensor((256.0 + 127.0) / 128.0).to(dtype).item()


@pytest.mark.parametrize(
    ("tokens", "chunk_size", "expected"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (1024, 1, 1024), (7, 128, 1)]
)
def test_pooled_length_rounds_up(tokens: int, chunk_size: int, expected: int):
    assert pooled_length(tokens, chunk_size) == expected


def test_the_short_last_group_of_stored_means_weighs_by_its_tokens():
    # five tokens 0, 2, 4, 6, 100 stored at 2: means 1, 5 and (of one token) 100
    stored = torch.tensor([[1.0], [5.0], [100.0]])
    assert [pooled.tolist() for pooled in mean_pool(stored, [5], 4, stored_chunk_size=2)] == [[[3.0], [100.0]]]
    # at 8 all five tokens are one group: 112 / 5, not the mean of the three means
    [pooled] = mean_pool(stored, [5], 8, stored_chunk_size=2)
    assert pooled.tolist() == [[pytest.approx(22.4)]]


def test_stored_means_of_several_passages_are_pooled_each_by_itself():
    # 3 tokens (0, 2, 10) and 4 tokens (4, 6, 8, 8) stored at 2
    stored = torch.tensor([[1.0], [10.0], [5.0], [8.0]])
    assert [pooled.tolist() for pooled in mean_pool(stored, [3, 4], 4, stored_chunk_size=2)] == [[[4.0]], [[6.5]]]


@pytest.mark.parametrize(
    ("stored_chunk_size", "chunk_size"), [(1, 2), (1, 3), (2, 4), (2, 32), (4, 8), (4, 12), (4, 128), (3, 9), (32, 128)]
)
def test_states_stored_at_a_ratio_serve_any_multiple_of_it(stored_chunk_size: int, chunk_size: int):
    passages = [random_states(tokens, seed=tokens) for tokens in (1, 3, 4, 5, 47, 64, 65, 200)]
    tokens = [len(states) for states in passages]
    stored = mean_pool(torch.cat(passages), tokens, stored_chunk_size)
    pooled = mean_pool(torch.cat(stored), tokens, chunk_size, stored_chunk_size=stored_chunk_size)
    for ours, states in zip(pooled, passages, strict=True):
        torch.testing.assert_close(ours, mean_of_groups(states, chunk_size), atol=1e-6, rtol=1e-6)


def test_pooling_at_the_stored_ratio_changes_nothing():
    stored = random_states(7).to(torch.bfloat16)
    first, second = mean_pool(stored, [18, 5], 4, stored_chunk_size=4)
    assert torch.equal(torch.cat((first, second)), stored)
    assert (len(first), len(second)) == (5, 2)


def test_pooling_keeps_the_dtype():
    stored = random_states(4).to(torch.bfloat16)
    assert mean_pool(stored, [16], 8, stored_chunk_size=4)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_the_states_are_left_as_they_were(chunk_size: int):
    states = random_states(9)
    before = states.clone()
    mean_pool(states, [4, 5], chunk_size)
    assert torch.equal(states, before)


@pytest.mark.parametrize(("stored_chunk_size", "chunk_size"), [(4, 6), (4, 2), (4, 1), (3, 4), (2, 0), (1, 0), (2, -2)])
def test_a_ratio_that_the_stored_one_does_not_divide_is_refused(stored_chunk_size: int, chunk_size: int):
    with pytest.raises(UsageError, match=f"chunk size {chunk_size} was asked for, but the states are stored at"):
        mean_pool(random_states(4), [4 * stored_chunk_size], chunk_size, stored_chunk_size=stored_chunk_size)
