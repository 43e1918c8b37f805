from __future__ import annotations

import pytest

from kalm_cache.errors import UsageError
from kalm_cache.first_stage.dense.faiss_types import choose_type, clusters_for, parameter_ladder, sample_rows


@pytest.mark.parametrize(
    ("choice", "passages", "expected"),
    [
        ("auto", 0, "flat"),
        ("auto", 100_000, "flat"),
        ("auto", 100_001, "ivf"),
        ("flat", 10_000_000, "flat"),
        ("hnsw", 10, "hnsw"),
        ("ivf", 10, "ivf"),
        ("ivf", 0, "flat"),
    ],
)
def test_the_type_follows_the_choice_and_then_the_size(choice: str, passages: int, expected: str) -> None:
    assert choose_type(choice, passages) == expected


def test_an_unknown_choice_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'lsh'"):
        choose_type("lsh", 5)


def test_clusters_are_the_nearest_power_of_two_to_twice_the_root_within_limits() -> None:
    # 2 * sqrt(n): 2, 20 (but 100 // 48 rows to train on), 632.5, 2000, 6324.6 (limit 4096)
    assert [clusters_for(n) for n in (1, 100, 100_000, 1_000_000, 10_000_000)] == [1, 2, 512, 2048, 4096]


def test_the_ladder_rises_by_halves_to_everything() -> None:
    assert parameter_ladder("ivf", 4000) == [4, 6, 8, 12, 16, 24, 32, 48, 64, 83]
    assert parameter_ladder("ivf", 100) == [2]
    assert parameter_ladder("hnsw", 100) == [128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
    assert parameter_ladder("flat", 100) == []


def test_samples_are_ascending_distinct_and_the_same_every_time() -> None:
    rows = sample_rows(1000, 50)
    assert (rows[1:] > rows[:-1]).all()
    assert len(rows) == 50
    assert rows.tolist() == sample_rows(1000, 50).tolist()
    assert sample_rows(3, 50).tolist() == [0, 1, 2]
