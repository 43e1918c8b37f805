"""The Lloyd-Max constants, solved again, and compared with the published table."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from kalm_cache.codec.levels import UNIT, levels, nearest, thresholds


def density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def mean_between(low: float, high: float) -> float:
    """E[X | low < X < high] of a unit Gaussian; tails through erfc, which does not cancel."""
    probability = (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))) / 2
    return (density(low) - density(high)) / probability


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_level_is_the_mean_of_its_cell(bits: int):
    """The fixed point of Lloyd's iteration, to the rounding of the integers."""
    positive = levels(bits)[1 << (bits - 1) :] / UNIT
    edges = [0.0, *((positive[1:] + positive[:-1]) / 2).tolist(), math.inf]
    means = [mean_between(low, high) for low, high in itertools.pairwise(edges)]
    assert np.abs(np.array(means) - positive).max() <= 1 / UNIT


@pytest.mark.parametrize(
    ("bits", "published"),
    [
        (2, [0.4528, 1.510]),
        (3, [0.2451, 0.7560, 1.344, 2.152]),
        (4, [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733]),
    ],
)
def test_levels_are_those_of_max_1960(bits: int, published: list[float]):
    np.testing.assert_allclose(levels(bits)[1 << (bits - 1) :] / UNIT, published, atol=0.5 / UNIT + 0.0005)


@pytest.mark.parametrize(("bits", "error"), [(2, 0.3428), (3, 0.1859), (4, 0.0975), (8, 0.0064)])
def test_the_documented_errors_are_those_of_a_gaussian(bits: int, error: float):
    x = np.random.default_rng(0).normal(size=200_000)
    quantised = levels(bits)[np.searchsorted(thresholds(bits), x)] / UNIT
    assert np.linalg.norm(quantised - x) / np.linalg.norm(x) == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_levels_are_integers_rising_and_symmetric(bits: int):
    both = levels(bits)
    assert len(both) == 1 << bits
    assert (np.diff(both) > 0).all()
    np.testing.assert_array_equal(both, -both[::-1])
    np.testing.assert_array_equal(both, np.rint(both))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_table_finds_the_code_that_a_search_among_the_thresholds_finds(bits: int):
    edges, random = thresholds(bits), np.random.default_rng(bits)
    values = np.concatenate(
        [
            random.standard_normal(50_000) * 2,
            random.integers(-10_000, 10_000, 5_000) / (2 * UNIT),
            edges,
            np.nextafter(edges, np.inf),
            np.nextafter(edges, -np.inf),
            np.array([0.0, -0.0, 5e-324, -5e-324, 1e9, -1e9, 1e300, -1e300]),
        ]
    )

    assert np.array_equal(nearest(values, bits), np.searchsorted(edges, values))
