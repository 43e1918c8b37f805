import pytest
import torch

from benchmarks.reference import mean_of_groups
from kalm_cache.errors import UsageError
from kalm_cache.pooling import mean_pool, pooled_length, repool


def all_real(states: torch.Tensor) -> torch.Tensor:
    return torch.ones(states.shape[:2], dtype=torch.bool)


def random_states(tokens: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


def pool_one(states: torch.Tensor, ratio: int) -> torch.Tensor:
    return mean_pool(states.unsqueeze(0), all_real(states.unsqueeze(0)), ratio)[0]


def test_consecutive_states_are_averaged_and_the_last_group_may_be_shorter():
    states = torch.tensor([[[1.0, 10.0], [3.0, 20.0], [5.0, 30.0], [7.0, 50.0], [9.0, 90.0]]])
    pooled = mean_pool(states, all_real(states), 2)
    assert pooled.tolist() == [[[2.0, 15.0], [6.0, 40.0], [9.0, 90.0]]]


def test_padding_counts_neither_in_sums_nor_in_counts():
    states = torch.tensor([[[1.0], [2.0], [6.0], [100.0], [100.0]], [[4.0], [8.0], [0.0], [2.0], [10.0]]])
    mask = torch.tensor([[True, True, True, False, False], [True, True, True, True, True]])
    assert mean_pool(states, mask, 3).tolist() == [[[3.0], [0.0]], [[4.0], [6.0]]]


def test_a_group_of_padding_alone_is_zero():
    states = torch.full((1, 4, 2), 7.0)
    mask = torch.tensor([[True, False, False, False]])
    assert mean_pool(states, mask, 2).tolist() == [[[7.0, 7.0], [0.0, 0.0]]]


def test_ratio_one_returns_the_states_with_padding_zeroed():
    states = torch.tensor([[[1.5], [2.5], [9.0]]])
    mask = torch.tensor([[True, True, False]])
    assert mean_pool(states, mask, 1).tolist() == [[[1.5], [2.5], [0.0]]]


def test_a_ratio_larger_than_the_passage_gives_one_mean():
    states = torch.tensor([[[1.0], [2.0], [6.0]]])
    assert mean_pool(states, all_real(states), 32).tolist() == [[[3.0]]]


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 8, 16, 32, 128])
@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 97])
def test_pooling_equals_a_loop_over_groups(tokens: int, ratio: int):
    states = random_states(tokens)
    torch.testing.assert_close(pool_one(states, ratio), mean_of_groups(states, ratio), atol=1e-6, rtol=1e-6)


def test_ragged_batches_pool_like_their_passages_alone():
    lengths = [1, 9, 16, 13]
    states = torch.stack([random_states(16, seed=seed) for seed in range(4)])  # (4, 16, 8), noise behind the lengths
    mask = torch.arange(16) < torch.tensor(lengths).unsqueeze(1)
    pooled = mean_pool(states, mask, 4)
    for row, passage, length in zip(pooled, states, lengths, strict=True):
        torch.testing.assert_close(row[: pooled_length(length, 4)], mean_of_groups(passage[:length], 4))


def test_half_precision_sums_are_kept_in_float32():
    # bfloat16 holds 8 bits: adding 1 to 256 in it changes nothing, so a bfloat16 running sum would stay at 256
    states = torch.cat((torch.full((1, 1, 1), 256.0), torch.ones(1, 127, 1)), dim=1).to(torch.bfloat16)
    pooled = mean_pool(states, all_real(states), 128)
    assert pooled.dtype == torch.bfloat16
    assert pooled.item() == torch.tensor((256.0 + 127.0) / 128.0).to(torch.bfloat16).item()


@pytest.mark.parametrize(
    ("tokens", "ratio", "expected"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (1024, 1, 1024), (7, 128, 1)]
)
def test_pooled_length_rounds_up(tokens: int, ratio: int, expected: int):
    assert pooled_length(tokens, ratio) == expected


def test_repool_weighs_the_short_last_group_by_its_tokens():
    # five tokens 0, 2, 4, 6, 100 stored at 2: means 1, 5 and (of one token) 100
    stored = torch.tensor([[1.0], [5.0], [100.0]])
    assert repool(stored, tokens=5, stored_ratio=2, ratio=4).tolist() == [[3.0], [100.0]]
    # at 8 all five tokens are one group: 112 / 5, not the mean of the three means
    assert repool(stored, tokens=5, stored_ratio=2, ratio=8).tolist() == [[pytest.approx(22.4)]]


@pytest.mark.parametrize(
    ("stored_ratio", "ratio"), [(1, 2), (1, 3), (2, 4), (2, 32), (4, 8), (4, 12), (4, 128), (3, 9)]
)
@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 47, 64, 65])
def test_repooled_states_equal_pooling_directly(tokens: int, stored_ratio: int, ratio: int):
    states = random_states(tokens)
    repooled = repool(pool_one(states, stored_ratio), tokens, stored_ratio, ratio)
    torch.testing.assert_close(repooled, pool_one(states, ratio), atol=1e-6, rtol=1e-6)


def test_repool_at_the_stored_ratio_changes_nothing():
    stored = random_states(5).to(torch.bfloat16)
    assert torch.equal(repool(stored, tokens=18, stored_ratio=4, ratio=4), stored)


def test_repool_keeps_the_dtype():
    stored = random_states(4).to(torch.bfloat16)
    assert repool(stored, tokens=16, stored_ratio=4, ratio=8).dtype == torch.bfloat16


@pytest.mark.parametrize(("stored_ratio", "ratio"), [(4, 6), (4, 2), (4, 1), (3, 4), (2, 0), (1, 0), (2, -2)])
def test_a_ratio_that_the_stored_one_does_not_divide_is_refused(stored_ratio: int, ratio: int):
    with pytest.raises(UsageError, match=f"chunk size {ratio} was asked for, but the states are stored at"):
        repool(random_states(4), tokens=4 * stored_ratio, stored_ratio=stored_ratio, ratio=ratio)
