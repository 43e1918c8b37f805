from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kalm_cache.errors import UsageError
from kalm_cache.finetuning.data.example import Example, Item
from kalm_cache.finetuning.negatives.mining import Mined, Miner, parse_range
from kalm_cache.finetuning.options import MiningOptions
from kalm_cache.index.passage_index import PassageIndex

QUERY = "bees and flowers"


class ByNumber:
    """Scores a passage by the number in its id."""

    def __call__(self, query: str, instruction: str | None, items: Sequence[Item]) -> list[float]:
        return [float(item.value[1:]) for item in items]


def mined(
    index: PassageIndex, options: MiningOptions, example: Example, *, keep: bool = False
) -> tuple[Example, Mined]:
    counts = Mined()
    [found] = Miner(index, options, ByNumber(), 0, keep).mine([example], counts, lambda count: None)
    return found, counts


def test_negatives_come_from_the_ranks_of_the_range_and_are_none_that_is_given(index: PassageIndex) -> None:
    ranked = index.find(QUERY, 12).doc_ids
    example = Example("f:1", QUERY, (Item(ranked[4], True),), (Item(ranked[5], True),))
    found, counts = mined(index, MiningOptions(20, 3, 12, random=0, false_above=None), example)
    assert found.negatives[0] == Item(ranked[5], True)
    assert {item.value for item in found.negatives} == set(ranked[2:]) - {ranked[4]}
    assert len(found.negatives) == len(set(found.negatives)) == counts.taken + 1


def test_random_ones_come_from_the_whole_corpus(index: PassageIndex, texts: dict[str, str]) -> None:
    example = Example("f:1", QUERY, (Item("d0", True),))
    found, _ = mined(index, MiningOptions(0, random=30, false_above=None), example)
    assert len(found.negatives) > 10
    assert {item.value for item in found.negatives} <= texts.keys() - {"d0"}


def test_what_scores_above_the_best_relevant_passage_is_left_out(index: PassageIndex) -> None:
    example = Example("f:1", QUERY, (Item("d10", True), Item("d20", True)))
    found, counts = mined(index, MiningOptions(40, 1, 40, random=0, false_above=3.0), example)
    numbers = {int(item.value[1:]) for item in found.negatives}
    assert numbers == set(range(24)) - {10, 20}
    assert counts.false == 40 - 24


def test_a_teachers_scores_are_kept_and_those_of_the_file_are_not_mixed_with_none(index: PassageIndex) -> None:
    example = Example("f:1", QUERY, (Item("d10", True),), (Item("d3", True),), (), (1.0,), (0.5,))
    options = MiningOptions(4, 1, 40, random=1, false_above=None)
    found, _ = mined(index, options, example, keep=True)
    assert found.scores == tuple(float(item.value[1:]) for item in found.items)
    without, _ = mined(index, options, example)
    assert without.scores == ()  # mined ones have no score
    assert mined(index, MiningOptions(1, random=0), example)[0] == example


def test_the_same_seed_draws_the_same(index: PassageIndex) -> None:
    example, options = Example("f:1", QUERY, (Item("d0", True),)), MiningOptions(5, 2, 30, false_above=None)
    assert mined(index, options, example)[0] == mined(index, options, example)[0]


@pytest.mark.parametrize("text", ["200", "0-5", "9-2", "a-b"])
def test_a_range_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected FIRST-LAST, as 2-200"):
        MiningOptions(5, *parse_range(text))
