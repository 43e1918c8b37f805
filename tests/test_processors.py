"""What `make test-processors` runs, and how it reads pytest's last line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processors import PROCESSOR_TESTS, ROOT, UNWRITABLE, Result, counts_of


def test_every_place_named_is_there() -> None:
    assert [name for name in PROCESSOR_TESTS if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("output", "counts"),
    [
        ("..\n10 passed in 2.51s\n", {"passed": 10}),
        (
            "F\n3 failed, 10 passed, 2 skipped, 1 error in 65.10s (0:01:05)",
            {"failed": 3, "passed": 10, "skipped": 2, "errors": 1},
        ),
        ("4 passed in 1.00s\n2 passed, 2 errors in 3.00s\n", {"passed": 2, "errors": 2}),
        ("no tests ran in 0.01s", {}),
        ("", {}),
    ],
)
def test_the_last_line_is_counted(output: str, counts: dict[str, int]) -> None:
    assert counts_of(output) == counts


@pytest.mark.parametrize(
    ("counts", "exit_code", "ok"), [({"passed": 1}, 0, True), ({"passed": 9}, 1, False), ({}, 0, False)]
)
def test_an_environment_without_tests_that_passed_is_no_success(
    counts: dict[str, int], exit_code: int, ok: bool
) -> None:
    assert Result("name", counts, [], exit_code, 1.0).ok == ok


def test_the_read_only_home_cannot_be_written_to() -> None:
    with pytest.raises(OSError):
        Path(UNWRITABLE, "folder").mkdir()
