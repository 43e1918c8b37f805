"""Records to pooled states: decoded together, pooled further, and without the damaged ones where asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kalm_cache.codec import CODECS, Codec, decode, get_codec
from kalm_cache.errors import DamagedRecordError, UnknownIdError, UsageError
from kalm_cache.scoring.pooling import mean_pool
from kalm_cache.scoring.state_reader import DamagedPassage, StateReader
from kalm_cache.storage.passage_store import PassageMeta, PassageStore
from kalm_cache.storage.record import Record
from tests.stores import Stored, change_contents, damage_record, write_store

WIDTH, RATIO = 64, 4
TOKENS = {"a": 9, "b": 4, "c": 130, "d": 1, "e": 31}
STATES = {
    doc_id: np.random.default_rng(tokens).normal(size=(-(-tokens // RATIO), WIDTH)).astype(np.float32)
    for doc_id, tokens in TOKENS.items()
}


def write(folder: Path, codec: Codec) -> None:
    def stored(doc_id: str, number: int) -> Stored:
        payload = codec.encode(STATES[doc_id])
        truncated = doc_id == "c"
        return Stored(
            Record(codec.number, RATIO, WIDTH, TOKENS[doc_id], truncated, payload), PassageMeta(number, b"h" * 16)
        )

    write_store(folder, {doc_id: stored(doc_id, number) for number, doc_id in enumerate(STATES)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, get_codec("fp32"))
    return tmp_path


@pytest.fixture
def reader(folder: Path) -> Iterator[StateReader]:
    with PassageStore(folder) as store:
        yield StateReader(store, get_codec("fp32"), RATIO)


@pytest.mark.parametrize("name", [*CODECS, "bf16+zstd3", "int4+zstd1"])
def test_passages_come_in_the_order_asked_for_as_their_codec_decodes_them(tmp_path: Path, name: str):
    codec = get_codec(name)
    write(tmp_path, codec)
    with PassageStore(tmp_path) as store:
        found = StateReader(store, codec, RATIO).read(["c", "a", "e", "a"], RATIO)
    for doc_id, passage in zip("caea", found, strict=True):
        states = STATES[doc_id]
        assert (passage.tokens, passage.truncated) == (TOKENS[doc_id], doc_id == "c")
        assert torch.equal(passage.states, torch.from_numpy(decode(codec, codec.encode(states), *states.shape)))


def test_all_states_are_views_of_one_tensor(reader: StateReader):
    found = reader.read(list(STATES), RATIO)
    assert len({passage.states.untyped_storage().data_ptr() for passage in found}) == 1
    assert all(passage.states.dtype == torch.float32 for passage in found)


def test_states_come_in_the_dtype_that_is_asked_for(reader: StateReader):
    whole = reader.read_valid(list(STATES), RATIO, torch.bfloat16).passages
    for found, passage in zip(whole, reader.read(list(STATES), RATIO), strict=True):
        assert torch.equal(found.states, passage.states.bfloat16())


def test_states_are_pooled_further(reader: StateReader):
    for doc_id, passage in zip(STATES, reader.read(list(STATES), 12), strict=True):
        (expected,) = mean_pool(torch.from_numpy(STATES[doc_id]), [TOKENS[doc_id]], 12, stored_chunk_size=RATIO)
        assert torch.allclose(passage.states, expected, atol=1e-6)


def test_nothing_asked_for_is_nothing_read(reader: StateReader):
    assert reader.read([], RATIO) == []
    assert reader.read_valid([], 8).passages == []


def test_unknown_ids_are_named_all_of_them(reader: StateReader):
    with pytest.raises(UnknownIdError) as raised:
        reader.read(["a", "x", "b", "y"], RATIO)
    assert raised.value.ids == ["x", "y"]
    with pytest.raises(UnknownIdError):
        reader.read_valid(["x"], RATIO)


@pytest.mark.parametrize("chunk_size", [0, 2, 6])
def test_a_ratio_that_is_no_multiple_of_the_stored_one_is_refused(reader: StateReader, chunk_size: int):
    with pytest.raises(UsageError, match=f"chunk size {chunk_size} was asked for"):
        reader.read(["a"], chunk_size)


def test_a_damaged_record_is_an_error_with_its_name(folder: Path):
    damage_record(folder, "b")
    with PassageStore(folder) as store:
        reader = StateReader(store, get_codec("fp32"), RATIO)
        with pytest.raises(DamagedRecordError, match="record 'b': checksum mismatch; run kalm-cache verify"):
            reader.read(["a", "b", "c"], RATIO)
        assert len(reader.read(["a", "c"], RATIO)) == 2


def test_the_whole_ones_are_read_beside_damaged_ones(folder: Path):
    damage_record(folder, "b")
    damage_record(folder, "e")
    with PassageStore(folder) as store:
        found = StateReader(store, get_codec("fp32"), RATIO).read_valid(["e", "a", "b", "c"], RATIO)
    assert found.positions == [1, 3]
    assert [passage.tokens for passage in found.passages] == [TOKENS["a"], TOKENS["c"]]
    assert torch.equal(found.passages[1].states, torch.from_numpy(STATES["c"]))
    assert found.damaged == [
        DamagedPassage(doc_id, f"record {doc_id!r}: checksum mismatch; run kalm-cache verify") for doc_id in "eb"
    ]


def test_when_all_are_damaged_none_is_read(folder: Path):
    damage_record(folder, "b")
    with PassageStore(folder) as store:
        found = StateReader(store, get_codec("fp32"), RATIO).read_valid(["b"], 8)
    assert (found.positions, found.passages, len(found.damaged)) == ([], [], 1)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"codec": 5}, "codec 5, the manifest says fp32 (3)"),
        ({"chunk_size": 8}, "pooling ratio 8, the manifest says 4"),
        ({"payload": b"short"}, "its payload: holds 5 bytes, its header says 256"),
        ({"width": 32}, "its states have width 32, those of others 64"),
        ({"tokens": 40}, "its payload: holds 256 bytes, its header says 2560"),
    ],
)
def test_a_record_with_a_right_checksum_that_does_not_decode_is_named(
    folder: Path, fields: dict[str, object], problem: str
):
    change_contents(folder, lambda contents: contents.set_record("b", **fields))
    with PassageStore(folder) as store:
        reader = StateReader(store, get_codec("fp32"), RATIO)
        found = reader.read_valid(["a", "b", "c"], RATIO)
        assert found.positions == [0, 2]
        assert torch.equal(found.passages[1].states, torch.from_numpy(STATES["c"]))
        assert found.damaged == [DamagedPassage("b", f"record 'b': {problem}")]
        with pytest.raises(DamagedRecordError, match="record 'b'"):
            reader.read(["a", "b", "c"], RATIO)


def test_a_zstd_frame_that_does_not_decompress_is_named(tmp_path: Path):
    codec = get_codec("bf16+zstd3")
    write(tmp_path, codec)
    change_contents(tmp_path, lambda contents: contents.set_record("b", payload=b"no zstd"))
    with PassageStore(tmp_path) as store:
        found = StateReader(store, codec, RATIO).read_valid(["a", "b", "c"], RATIO)
    assert found.positions == [0, 2]
    assert found.damaged[0].problem.startswith("record 'b': its payload: it does")
