"""A short run of what `make torture` does a thousand times."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from tests.torture.swapping import TOLERANCE, Said, Swapped, _problem, swap

SWAPS = 26  # one of them publishes a new generation


def test_swaps_under_load_fail_no_request_and_mix_up_no_answer(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path
) -> None:
    tally = swap(tmp_path, mini_folder, embedder_folder, SWAPS, clients=4)
    assert tally.problems == []
    assert (tally.swaps, tally.published) == (SWAPS, 1)
    assert tally.answers > SWAPS
    assert len(tally.generations) >= 4


def test_an_answer_of_another_generation_would_be_noticed(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path
) -> None:
    index = Swapped(tmp_path, mini_folder, embedder_folder)
    index.close()
    assert len(index.names) > 1
    for one, other in combinations(index.names, 2):
        for asked, margins in index.expected[one].items():
            assert _problem(Said(asked, one, margins), index.expected) is None
            if index.expected[other][asked].keys() != margins.keys() or any(
                abs(index.expected[other][asked][doc_id] - margin) > TOLERANCE for doc_id, margin in margins.items()
            ):
                assert _problem(Said(asked, other, margins), index.expected) is not None
        assert index.expected[one] != index.expected[other]
