"""The journal: the highest names and ordinals ever given, kept beside what is published."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kalm_cache.generations import generation
from kalm_cache.generations.current import write_current
from kalm_cache.generations.journal import Journal, journal_problem, read_journal
from tests.generations.builds import change_undetected, publish_next


def test_names_and_numbers_are_kept_when_generations_are_removed(tmp_path: Path):
    publish_next(tmp_path)
    folder = publish_next(tmp_path).folder
    write_current(tmp_path, "000001")
    shutil.rmtree(folder)
    assert generation.high_water_marks(tmp_path) == Journal(2, 5, "000002")
    assert publish_next(tmp_path).name == "000003"


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b'{"generation": 9, "next_number": 9, "checksum": "0"}']
)
def test_a_damaged_journal_is_named_and_the_manifests_go(tmp_path: Path, content: bytes):
    publish_next(tmp_path)
    (tmp_path / "JOURNAL").write_bytes(content)
    assert journal_problem(tmp_path) is not None
    assert generation.high_water_marks(tmp_path) == Journal(1, 5, None)
    publish_next(tmp_path)
    assert journal_problem(tmp_path) is None
    assert read_journal(tmp_path) == Journal(2, 5, "000002")


@pytest.mark.parametrize("change", [{"generation": 10**16}, {"next_ordinal": -1}, {"publishing": "../x"}, {"more": 1}])
def test_a_journal_of_a_stranger_is_not_gone_by(tmp_path: Path, change: dict[str, object]):
    publish_next(tmp_path)
    change_undetected(tmp_path / "JOURNAL", change)
    assert next(iter(change)) in (journal_problem(tmp_path) or "")
    assert read_journal(tmp_path) == Journal()
