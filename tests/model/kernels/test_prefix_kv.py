import math

import pytest
import torch

from kalm_cache.model.kernels.prefix_kv import make_prefix_kv

STATES = torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0, 0.0]).reshape(1, 2, 1, 1, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_are_kept_in_their_dtype_without_scales(dtype: torch.dtype):
    cached = make_prefix_kv((1, 2), 3, STATES, dtype)
    assert (cached.prefix, cached.pooled, cached.scale) == ((1, 2), 3, None)
    assert torch.equal(cached.states, STATES.to(dtype))
    assert cached.states.is_contiguous()
    assert cached.nbytes == 6 * dtype.itemsize


def test_int8_has_one_scale_a_vector_and_a_vector_of_zeros_stays_zero():
    cached = make_prefix_kv((1,), 0, STATES, torch.int8)
    assert cached.scale is not None
    # 1 / (2 / 127) = 63.5, to even
    assert cached.states.tolist() == [[[[[64, -127, 32]]], [[[0, 0, 0]]]]]
    torch.testing.assert_close(cached.scale, torch.tensor([2 / 127, 0.0]).reshape(1, 2, 1, 1))
    assert cached.nbytes == 6 + 2 * 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_vector_that_is_not_finite_has_a_scale_that_is_not(value: float):
    states = STATES.clone()
    states[0, 1, 0, 0, 2] = value
    cached = make_prefix_kv((1,), 0, states, torch.int8)
    assert cached.scale is not None
    assert cached.scale.flatten().isfinite().tolist() == [True, False]


def test_what_is_kept_is_no_view_of_the_buffers():
    # buffers are written anew by the next run
    buffers = STATES.clone()
    cached = make_prefix_kv((1,), 0, torch.stack([buffers[0]]), torch.float32)
    buffers.zero_()
    assert torch.equal(cached.states, STATES)
