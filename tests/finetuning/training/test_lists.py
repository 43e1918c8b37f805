from __future__ import annotations

import numpy as np

from kalm_cache.finetuning.data.example import Example, Item
from kalm_cache.finetuning.options import TrainingOptions
from kalm_cache.finetuning.training.lists import Steps, draw


def example(positives: int, negatives: int, source: str = "f:1") -> Example:
    return Example(
        source,
        "q",
        tuple(Item(f"p{n}") for n in range(positives)),
        tuple(Item(f"n{n}") for n in range(negatives)),
        tuple(range(1, positives + 1)),
        tuple(float(n) for n in range(positives)),
        tuple(float(-n) for n in range(negatives)),
    )


def test_a_list_is_mostly_negatives_and_grades_and_scores_stay_with_their_passages() -> None:
    drawn = draw(example(10, 30), 16, np.random.default_rng(0))
    assert (len(drawn.positives), len(drawn.negatives)) == (4, 12)
    numbers = [int(item.value[1:]) for item in drawn.positives]
    assert drawn.grades == tuple(n + 1 for n in numbers)
    assert drawn.positive_scores == tuple(float(n) for n in numbers)
    assert drawn.negative_scores == tuple(-float(item.value[1:]) for item in drawn.negatives)


def test_a_list_with_few_negatives_is_filled_with_positives() -> None:
    drawn = draw(example(20, 2), 16, np.random.default_rng(0))
    assert (len(drawn.positives), len(drawn.negatives)) == (14, 2)


def test_an_epoch_takes_every_example_once_and_steps_depend_on_their_number_alone() -> None:
    examples = [example(1, 3, f"f:{n}") for n in range(10)]
    steps = Steps(examples, (2, 8), TrainingOptions(queries=4, passages=3, epochs=2))
    assert (steps.an_epoch, steps.count) == (3, 6)
    epochs = [[each.source for n in epoch for each in steps.step(n).examples] for epoch in (range(3), range(3, 6))]
    assert [sorted(epoch) for epoch in epochs] == [sorted(each.source for each in examples)] * 2
    assert epochs[0] != epochs[1]
    assert steps.step(4) == steps.step(4)
    assert {steps.step(n).chunk_size for n in range(6)} == {2, 8}
