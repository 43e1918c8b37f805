"""Rounding by a sensitivity: errors go where they do not matter, and payloads stay what they were."""

from __future__ import annotations

import numpy as np
import pytest

from kalm_cache.codec import Codec, decode, get_codec
from kalm_cache.codec.feedback import error_feedback, round_with_feedback
from kalm_cache.errors import StoreError
from tests.codec.states import random_states

WIDTH = 96  # blocks of 64 and 32


def few_directions(seen: int = 12) -> np.ndarray:
    """The sensitivity of margins that look at `seen` of WIDTH directions."""
    rows = np.random.default_rng(7).normal(size=(seen, WIDTH))
    return rows.T @ rows


def cost(error: np.ndarray, sensitivity: np.ndarray) -> float:
    return float(np.einsum("nd,de,ne->", error, sensitivity, error))


def error_of(codec: Codec, states: np.ndarray) -> np.ndarray:
    return decode(get_codec(codec.name), codec.encode(states), *states.shape).astype(np.float64) - states


def test_the_error_of_a_value_is_made_up_for_in_the_next():
    """Only the sum matters: 0.4 rounds to 0, so that the other 0.4 is taken for 0.8 and rounds to 1."""

    def nearest(column: np.ndarray, _: int) -> tuple[np.ndarray, np.ndarray]:
        return np.rint(column), np.rint(column).astype(np.uint8)

    only_the_sum = np.ones((2, 2))
    codes = round_with_feedback(np.array([[0.4, 0.4]]), error_feedback(only_the_sum), nearest)
    assert codes.tolist() == [[0, 1]]
    assert round_with_feedback(np.array([[0.4, 0.4]]), error_feedback(np.eye(2)), nearest).tolist() == [[0, 0]]


@pytest.mark.parametrize("name", ["int4", "int3", "int2"])
@pytest.mark.parametrize("rows", [1, 5, 20])
def test_errors_that_matter_become_less_than_half_and_the_payload_stays_as_long(name: str, rows: int):
    sensitivity, states = few_directions(), random_states(rows, WIDTH)
    with_sensitivity = get_codec(name, sensitivity)
    assert (
        with_sensitivity.payload_bytes(rows, WIDTH)
        == len(with_sensitivity.encode(states))
        == len(get_codec(name).encode(states))
    )
    plain = cost(error_of(get_codec(name), states), sensitivity)
    assert cost(error_of(with_sensitivity, states), sensitivity) < plain / 4  # squared


def test_what_matters_alike_everywhere_is_rounded_to_nearest():
    states = random_states(9, WIDTH)
    with_sensitivity, plain = (error_of(get_codec("int4", s), states) for s in (3 * np.eye(WIDTH), None))
    assert np.linalg.norm(with_sensitivity) == pytest.approx(np.linalg.norm(plain), rel=0.05)  # scales differ a little


def test_states_beside_zeros_and_with_outliers_stay_finite():
    states = random_states(5, WIDTH)
    states[1] = 0
    states[2, 3] = 1e6
    codec = get_codec("int4", few_directions())
    assert np.isfinite(error_of(codec, states)).all()
    assert not error_of(codec, np.zeros((2, WIDTH), np.float32)).any()


def test_a_sensitivity_that_is_all_zeros_asks_for_nothing():
    states = random_states(5, WIDTH)
    assert np.isfinite(error_of(get_codec("int4", np.zeros((WIDTH, WIDTH))), states)).all()


def test_a_sensitivity_of_another_width_is_refused():
    with pytest.raises(StoreError, match="codec int4: states are 44 wide, the sensitivity 96"):
        get_codec("int4", few_directions()).encode(random_states(5, 44))


def test_codecs_of_eight_bits_and_more_mind_nothing_and_zstd_takes_what_it_is_given():
    sensitivity, states = few_directions(), random_states(9, WIDTH)
    for name in ("fp32", "bf16", "fp16", "int8"):
        assert get_codec(name, sensitivity) is get_codec(name)
    framed = get_codec("int4+zstd3", sensitivity)
    np.testing.assert_array_equal(error_of(framed, states), error_of(get_codec("int4", sensitivity), states))
