from __future__ import annotations

import pytest

from kalm_cache.finetuning.results.plot import SMOOTHED, smoothed


def test_the_dark_line_is_the_mean_of_the_last_steps() -> None:
    values = smoothed([float(n) for n in range(SMOOTHED + 2)])
    assert values[:2] == [0.0, 0.5]
    assert values[-1] == pytest.approx(sum(range(2, SMOOTHED + 2)) / SMOOTHED)
