"""What a record's bytes mean."""

from __future__ import annotations

import pytest

from kalm_cache.storage.record import MAX_TOKENS, Record, unpack_record

RECORD = Record(codec=7, chunk_size=4, width=640, tokens=9, truncated=True, payload=b"payload")


def test_a_record_is_laid_out_as_documented():
    assert RECORD.common == bytes([7, 0, 0, 0, 4, 0, 0, 0, 128, 2, 0, 0])
    assert RECORD.fields == bytes([9, 0, 0, 0x80])
    assert RECORD._replace(truncated=False, tokens=1024).fields == bytes([0, 4, 0, 0])


@pytest.mark.parametrize("changes", [{}, {"truncated": False}, {"tokens": MAX_TOKENS}, {"codec": 0x87, "width": 1}])
def test_unpacking_gives_back_every_field(changes: dict[str, int]):
    record = RECORD._replace(**changes)
    assert unpack_record(record.common, record.fields, record.payload) == record


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_the_last_state_may_stand_for_fewer_tokens(tokens: int, rows: int):
    assert RECORD._replace(tokens=tokens).rows == rows
