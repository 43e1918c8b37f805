"""Codecs: error bounds, stored bytes, and what each refuses."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard

from kalm_cache.codec import CODECS, Codec, codec_by_number, get_codec
from kalm_cache.codec.codec import compress
from kalm_cache.errors import DamagedRecordError, StoreError, UsageError
from kalm_cache.record import Record, pack_record, unpack_record

GOLDEN = Path(__file__).parents[1] / "golden"
STATES = np.array([[0, 1, -2, 0.5], [127, -63.5, 1, 0]], np.float32)
# row 0: scale 2/127, 1 / scale = 63.5 and 0.5 / scale = 31.75, rounded to even; row 1: scale 1
RAW = {
    "fp16": struct.pack("<8e", 0, 1, -2, 0.5, 127, -63.5, 1, 0),
    "int8": struct.pack("<2f8b", 2 / 127, 1, 0, 64, -127, 32, 127, -64, 1, 0),
}
DECODED = {
    "fp16": STATES,
    "int8": np.array([[0, 128 / 127, -2, 64 / 127], [127, -64, 1, 0]], np.float32),
}
KEY = "doc-ü".encode()
RECORD_FIELDS = {
    "ratio": 4,
    "tokens": 7,
    "rows": 2,
    "width": 4,
    "number": 258,
    "content_hash": bytes(range(16)),
    "truncated": True,
}


def both(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("codec", [get_codec(name) for name in names or CODECS], ids=names or [*CODECS])


def random_states(rows: int, width: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(rows).normal(size=(rows, width)) * scale).astype(np.float32)


def round_trip(codec: Codec, states: np.ndarray) -> np.ndarray:
    return codec.decode(codec.encode(states), *states.shape)


@pytest.mark.parametrize("shape", [(1, 1), (1, 256), (33, 64), (7, 3)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 500.0])
def test_fp16_keeps_eleven_bits_of_every_value(shape: tuple[int, int], scale: float):
    states = random_states(*shape, scale)
    bound = np.maximum(np.abs(states) * 2.0**-11, 2.0**-25)
    assert (np.abs(round_trip(get_codec("fp16"), states) - states) <= bound).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 256), (33, 64), (7, 3)])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_int8_is_off_by_at_most_half_a_step_of_each_vector(shape: tuple[int, int], scale: float):
    states = random_states(*shape, scale)
    half_step = np.abs(states).max(axis=1, keepdims=True) / 254
    rounding = 1 + 1e-5  # of the scale and of the product, in float32
    assert (np.abs(round_trip(get_codec("int8"), states) - states) <= half_step * rounding).all()


@both()
def test_decoded_states_are_float32_of_the_shape_asked_for(codec: Codec):
    decoded = round_trip(codec, random_states(5, 12))
    assert decoded.dtype == np.float32
    assert decoded.shape == (5, 12)


@both()
def test_a_vector_of_zeros_stays_zeros_beside_others(codec: Codec):
    states = random_states(3, 8)
    states[1] = 0
    decoded = round_trip(codec, states)
    assert not decoded[1].any()
    assert decoded[0].any()
    assert decoded[2].any()


@both()
def test_decoding_what_was_decoded_changes_nothing_more(codec: Codec):
    once = round_trip(codec, random_states(9, 16))
    np.testing.assert_array_equal(round_trip(codec, once), once)


@both()
def test_payloads_decode_from_a_view_too(codec: Codec):
    payload = codec.encode(STATES)
    np.testing.assert_array_equal(codec.decode(memoryview(payload), 2, 4), DECODED[codec.name])


@both()
def test_encoding_does_not_change_its_input(codec: Codec):
    states = random_states(4, 4)
    before = states.copy()
    codec.encode(states)
    np.testing.assert_array_equal(states, before)


def test_fp16_holds_its_largest_value_and_refuses_the_next():
    largest = np.array([[65504, -65504]], np.float32)
    np.testing.assert_array_equal(round_trip(get_codec("fp16"), largest), largest)
    with pytest.raises(StoreError, match="codec fp16: a state is not finite"):
        get_codec("fp16").encode(np.array([[65520.0]], np.float32))


def test_int8_holds_values_far_beyond_half_precision():
    states = np.array([[3e38, -1e38]], np.float32)
    np.testing.assert_allclose(round_trip(get_codec("int8"), states), states, atol=3e38 / 253)


def test_int8_refuses_values_that_would_decode_to_infinity():
    with pytest.raises(StoreError, match="not finite"):
        get_codec("int8").encode(np.array([[np.finfo(np.float32).max]], np.float32))


@both()
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_no_reader_could_use_are_refused(codec: Codec, value: float):
    states = random_states(3, 4)
    states[1, 2] = value
    with pytest.raises(StoreError, match=f"codec {codec.name}: a state is not finite; encode with --dtype bfloat16"):
        codec.encode(states)


@both()
@pytest.mark.parametrize(("rows", "width"), [(1, 4), (3, 4), (2, 3), (2, 5), (0, 4), (4, 2000)])
def test_a_payload_of_another_size_than_its_header_says_is_refused(codec: Codec, rows: int, width: int):
    with pytest.raises(DamagedRecordError, match="its header says"):
        codec.decode(codec.encode(STATES), rows, width)


@both()
@pytest.mark.parametrize("spoil", [lambda p: b"", lambda p: p[:-1], lambda p: p + b"\0", lambda p: b"\0" + p])
def test_a_payload_that_does_not_decompress_is_refused(codec: Codec, spoil):
    with pytest.raises(DamagedRecordError, match="does not decompress"):
        codec.decode(spoil(codec.encode(STATES)), 2, 4)


@both()
def test_the_raw_payload_is_the_golden_one(codec: Codec):
    raw = zstandard.ZstdDecompressor().decompress(codec.encode(STATES))
    assert raw == RAW[codec.name]
    assert raw == (GOLDEN / f"{codec.name}.raw").read_bytes()


@both()
def test_the_golden_record_still_reads(codec: Codec):
    record = unpack_record(KEY, (GOLDEN / f"{codec.name}.record").read_bytes())
    expected = {"codec": codec.number, **RECORD_FIELDS}
    assert {name: getattr(record, name) for name in expected} == expected
    np.testing.assert_array_equal(codec.decode(record.payload, record.rows, record.width), DECODED[codec.name])


@both()
def test_the_golden_record_is_still_what_is_written(codec: Codec):
    golden = (GOLDEN / f"{codec.name}.record").read_bytes()
    payload = unpack_record(KEY, golden).payload  # as it is: zstd versions may compress the same content otherwise
    assert pack_record(KEY, Record(codec=codec.number, **RECORD_FIELDS, payload=payload)) == golden


def test_numbers_are_distinct_and_lead_back_to_their_codec():
    assert {name: codec.number for name, codec in CODECS.items()} == {"fp16": 1, "int8": 2}
    assert all(codec_by_number(codec.number) is codec for codec in CODECS.values())
    assert codec_by_number(0) is None


def test_an_unknown_codec_is_a_usage_error_that_lists_the_known_ones():
    with pytest.raises(UsageError, match="codec 'fp8' is not known: use fp16, int8"):
        get_codec("fp8")


def test_compressed_payloads_say_their_size():
    assert zstandard.frame_content_size(compress(b"a" * 1000)) == 1000
