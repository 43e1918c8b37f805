import math

import pytest
import torch

from kalm_cache.model.kernels.prefix_kv import keep

STATES = torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0, 0.0]).reshape(1, 2, 1, 1, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_are_kept_in_their_dtype_without_scales(dtype: torch.dtype):
    kept = keep((1, 2), 3, STATES, dtype)
    assert (kept.prefix, kept.pooled, kept.scale) == ((1, 2), 3, None)
    assert torch.equal(kept.states, STATES.to(dtype))
    assert kept.states.is_contiguous()
    assert kept.nbytes == 6 * dtype.itemsize


def test_int8_has_one_scale_a_vector_and_a_vector_of_zeros_stays_zero():
    kept = keep((1,), 0, STATES, torch.int8)
    assert kept.scale is not None
    # 1 / (2 / 127) = 63.5, to even
    assert kept.states.tolist() == [[[[[64, -127, 32]]], [[[0, 0, 0]]]]]
    torch.testing.assert_close(kept.scale, torch.tensor([2 / 127, 0.0]).reshape(1, 2, 1, 1))
    assert kept.nbytes == 6 + 2 * 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_vector_that_is_not_finite_has_a_scale_that_is_not(value: float):
    states = STATES.clone()
    states[0, 1, 0, 0, 2] = value
    kept = keep((1,), 0, states, torch.int8)
    assert kept.scale is not None
    assert kept.scale.flatten().isfinite().tolist() == [True, False]


def test_what_is_kept_is_no_view_of_the_buffers():
    # buffers are written anew by the next run
    buffers = STATES.clone()
    kept = keep((1,), 0, torch.stack([buffers[0]]), torch.float32)
    buffers.zero_()
    assert torch.equal(kept.states, STATES)
