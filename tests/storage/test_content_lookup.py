"""A segment's content lookup finds the passages of a text, however many there are, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kalm_cache.errors import StoreError
from kalm_cache.storage import content_lookup
from kalm_cache.storage.content_lookup import CONTENTS_FILE, ContentLookup, ContentWriter


def written(folder: Path, items: list[tuple[bytes, int]]) -> ContentLookup:
    writer = ContentWriter()
    for content_hash, ordinal in items:
        writer.add(content_hash, ordinal)
    writer.write(folder)
    return ContentLookup(folder)


@pytest.mark.parametrize("copied", [0, 1 << 20], ids=["mapped", "copied"])
def test_every_content_leads_to_its_ordinals_and_others_to_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: int
) -> None:
    monkeypatch.setattr(content_lookup, "COPIED_BYTES", copied)
    draw = random.Random(0)
    hashes = [draw.randbytes(16) for _ in range(1000)] + [bytes(16), b"\xff" * 16]
    items = [(one, ordinal) for ordinal, one in enumerate(hashes)]
    draw.shuffle(items)
    lookup = written(tmp_path, items)
    assert lookup.find(hashes) == [[ordinal] for ordinal in range(len(hashes))]
    assert lookup.find([draw.randbytes(16), b"\xff" * 15 + b"\xfe"]) == [[], []]


def test_passages_of_one_text_are_all_found_and_halves_alone_lead_nowhere(tmp_path: Path) -> None:
    same, near = b"a" * 16, b"a" * 8 + b"b" * 8
    lookup = written(tmp_path, [(same, 9), (near, 2**40), (same, 3)])
    assert lookup.find([same, near, b"b" * 8 + b"a" * 8]) == [[3, 9], [2**40], []]


def test_an_empty_segment_and_one_of_an_earlier_version_find_nothing(tmp_path: Path) -> None:
    assert ContentLookup(tmp_path).find([bytes(16)]) == [[]]
    assert written(tmp_path, []).find([bytes(16)]) == [[]]


@pytest.mark.parametrize(
    "spoil", [lambda content: content[:-1], lambda content: b"X" + content[1:], lambda content: b""]
)
def test_a_file_that_is_cut_or_of_another_kind_is_refused(tmp_path: Path, spoil) -> None:
    written(tmp_path, [(bytes(16), 1)])
    path = tmp_path / CONTENTS_FILE
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(StoreError, match=r"contents\.bin: .*verify"):
        ContentLookup(tmp_path)
