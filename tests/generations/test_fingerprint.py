"""What an index was built with: equality, digests and the words for a difference."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from kalm_cache.errors import IndexMismatchError
from kalm_cache.generations.fingerprint import Fingerprint, require_equal

BUILT = Fingerprint(
    model="a" * 64,
    passage_template="<Document>: {document}",
    max_length=1024,
    chunk_size=8,
    dtype="float32",
    codec="fp16",
    embedder="b" * 64,
    bm25=True,
    store_text=True,
)
OTHERS = {
    "model": "c" * 64,
    "passage_template": "{document}",
    "max_length": 512,
    "chunk_size": 4,
    "dtype": "bfloat16",
    "codec": "int8",
    "embedder": "d" * 64,
    "bm25": False,
    "store_text": False,
    "format_version": 99,
    "sensitivity": "e" * 64,
}


def test_there_is_an_other_value_for_every_field():
    assert set(OTHERS) == {field.name for field in fields(Fingerprint)}


@pytest.mark.parametrize("name", OTHERS)
def test_every_field_counts_in_the_digest_and_is_named_when_it_differs(name: str):
    other = replace(BUILT, **{name: OTHERS[name]})
    assert other.digest() != BUILT.digest()
    (difference,) = BUILT.differences(other)
    assert difference.startswith(f"{name} ")
    with pytest.raises(IndexMismatchError, match=name):
        require_equal(BUILT, other, "the index", "Run kalm-cache index.")


def test_equal_fingerprints_have_equal_digests_and_no_differences():
    same = replace(BUILT)
    assert same.digest() == BUILT.digest()
    assert BUILT.differences(same) == []
    require_equal(BUILT, same, "the index", "Run kalm-cache index.")


def test_text_cannot_move_from_one_field_to_its_neighbour():
    one = replace(BUILT, codec="fp16", dtype="float32x")
    other = replace(BUILT, codec="xfp16", dtype="float32")
    assert one.digest() != other.digest()


def test_a_mismatch_names_both_sides_of_every_difference_and_the_way_out():
    with pytest.raises(IndexMismatchError) as raised:
        require_equal(BUILT, replace(BUILT, chunk_size=4, model="c" * 64), "my index", "Run kalm-cache index.")
    assert str(raised.value) == (
        "my index was built with other settings: model aaaaaaaaaaaa… there, cccccccccccc… here; "
        "chunk_size 8 there, 4 here. Run kalm-cache index."
    )
    assert raised.value.exit_code == 4
