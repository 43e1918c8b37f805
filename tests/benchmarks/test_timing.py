from __future__ import annotations

import torch

from benchmarks.timing import Times, interleave, markdown, short, significant


def test_contenders_take_turns_and_every_other_round_goes_backwards() -> None:
    calls: list[tuple[str, int]] = []
    times = interleave(
        {name: lambda number, name=name: calls.append((name, number)) for name in "abc"},
        repeats=2,
        turn_s=0,
        device=torch.device("cpu"),
    )
    assert [name for name, _ in calls] == list("abc" + "abc" + "cba")
    assert [number for name, number in calls if name == "a"] == [1, 2, 3]
    assert {name: len(taken.samples_ms) for name, taken in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_times_are_reported_for_a_call_and_for_an_item() -> None:
    assert Times([30.0, 10.0, 20.0]).to_json(items=10) == {
        "samples": 3,
        "median_ms": 20.0,
        "min_ms": 10.0,
        "median_ms_per_item": 2.0,
        "min_ms_per_item": 1.0,
    }


def test_tables_and_numbers_are_short() -> None:
    assert significant(1234.56) == 1235.0
    assert [short(value) for value in (0.01234, 12.345, 1234.5)] == ["0.0123", "12.3", "1,234"]
    assert markdown(["a", "b"], [["x", 1]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
