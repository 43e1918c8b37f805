"""Every codec: error bounds, stored bytes, many payloads at once, and what each refuses."""

from __future__ import annotations

import hashlib
import math
import struct
from pathlib import Path

import numpy as np
import pytest

from kalm_cache.codec import CODECS, Codec, codec_by_number, decode, get_codec
from kalm_cache.codec.levels import levels
from kalm_cache.codec.rotated import LARGEST, Rotated, vector_bytes
from kalm_cache.errors import DamagedRecordError, StoreError, UsageError
from tests.codec.states import counted_states, random_states, slow_vector

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_SHAPES = [(1, 44), (5, 44), (9, 44)]  # blocks of 32, 8 and 4; without, with a cheap, with a full shared vector
ROTATED = ["int8", "int4", "int3", "int2"]
ZSTD = ["fp32+zstd3", "bf16+zstd3", "fp16+zstd19", "int8+zstd1", "int4+zstd3"]
# SHA-256 of the decoded float32, which no machine may change
DECODED = {
    "fp32": "f0e57baeb8700eec63e44e0b8947950ad8dabe2b2c2ed1c20c5a59dc4809b71b",
    "bf16": "cf0c8355421b84281bb797b3247288645a9be95c507adb9f2b01d323c9486a97",
    "fp16": "f0e57baeb8700eec63e44e0b8947950ad8dabe2b2c2ed1c20c5a59dc4809b71b",
    "int8": "13796d8604de07ac1067e2fd07fcd44e6f4efc9f808545979624c89bd8a6520e",
    "int4": "d3d674db7949a3669843d2d42c469b0684c23d391064dcf8d6799318206dff9d",
    "int3": "e163ab7274afc3171726933b262a734cbada5de0021ba07ddab10feb05e00395",
    "int2": "6687cfeac4629d339b1c865b4bb1740e5d567f15c87241c1f6192b8a105a8ee3",
}


def each(*names: str) -> pytest.MarkDecorator:
    chosen = names or (*CODECS, *ZSTD)
    return pytest.mark.parametrize("codec", [get_codec(name) for name in chosen], ids=chosen)


def round_trip(codec: Codec, states: np.ndarray) -> np.ndarray:
    return decode(codec, codec.encode(states), *states.shape)


def relative_error(codec: Codec, states: np.ndarray) -> float:
    exact = states.astype(np.float64)
    return float(np.linalg.norm(round_trip(codec, states) - exact) / np.linalg.norm(exact))


# Stored bytes


@each(*CODECS)
def test_payloads_are_the_golden_ones(codec: Codec):
    payloads = b"".join(codec.encode(counted_states(*shape)) for shape in GOLDEN_SHAPES)
    assert payloads == (GOLDEN / f"{codec.name}.payloads").read_bytes()


@each(*CODECS)
def test_golden_payloads_decode_to_the_same_floats_on_every_machine(codec: Codec):
    stored, digest = (GOLDEN / f"{codec.name}.payloads").read_bytes(), hashlib.sha256()
    for rows, width in GOLDEN_SHAPES:
        size = codec.payload_bytes(rows, width)
        digest.update(decode(codec, stored[:size], rows, width).astype("<f4").tobytes())
        stored = stored[size:]
    assert (stored, digest.hexdigest()) == (b"", DECODED[codec.name])


@each("bf16+zstd3", "int4+zstd3")
def test_golden_frames_still_read(codec: Codec):
    """Read only: zstd's versions may compress the same content otherwise."""
    frame = (GOLDEN / f"{codec.name}.payload").read_bytes()
    inner = get_codec(codec.name.split("+")[0])
    np.testing.assert_array_equal(decode(codec, frame, 9, 44), round_trip(inner, counted_states(9, 44)))


def test_floats_are_stored_row_by_row():
    states = np.array([[0, 1, -2], [0.5, 63.5, 3]], np.float32)
    assert get_codec("fp32").encode(states) == struct.pack("<6f", *states.ravel())
    assert get_codec("fp16").encode(states) == struct.pack("<6e", *states.ravel())
    assert get_codec("bf16").encode(states) == bytes.fromhex("0000 803f 00c0 003f 7e42 4040")


def test_bfloat16_rounds_to_nearest_and_ties_to_even():
    # one bfloat16 step above 1 is 2^-7; halves of it go to the even neighbour
    states = np.array([[1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8]], np.float32)
    assert round_trip(get_codec("bf16"), states).tolist() == [[1, 1 + 2**-6, 1 + 2**-7, -1]]


def test_a_single_value_becomes_levels_of_one_size():
    """One coordinate of four rotates to ±8 each; ±1 standard deviation is code 11 or 4 (levels ±965) of int4."""
    payload = get_codec("int4").encode(np.array([[8, 0, 0, 0]], np.float32))
    # the sign of column 0 is -1, so all four are -8: code 4; scale 8 / √(4 · 4 · 965²) = 2.0725e-3, 0x3B08 in bfloat16
    assert payload == struct.pack("<HBB", 0x3B08, 0x44, 0x44)
    np.testing.assert_allclose(decode(get_codec("int4"), payload, 1, 4), [[8, 0, 0, 0]], rtol=2**-8)


@each(*ROTATED)
@pytest.mark.parametrize("shape", [(1, 13), (3, 44), (4, 44), (7, 24), (8, 24), (17, 5)])
def test_decoding_equals_a_slow_decoder_written_from_the_documentation(codec: Rotated, shape: tuple[int, int]):
    rows, width = shape
    payload, at = codec.encode(counted_states(rows, width)), 0
    bits = codec.shape(rows)
    expected, mean = [], [0.0] * width
    for row_bits in [bits.mean_bits] * bool(bits.mean_bits) + [bits.row_bits] * rows:
        positive = levels(row_bits)[1 << (row_bits - 1) :].astype(int).tolist()
        vector, used = slow_vector(payload[at:], row_bits, width, positive)
        expected.append(vector)
        at += used
    if bits.mean_bits:
        mean, *expected = expected
    assert at == len(payload)
    exact = np.array(expected, np.float32) + np.array(mean, np.float32)
    np.testing.assert_array_equal(decode(codec, payload, rows, width), exact)


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("int4", 32, 33 * (4 + 320)),  # 128 tokens at r = 4: 10,692 bytes
        ("int4", 4, 324 + 4 * (4 + 240)),  # at r = 32: 1,300 bytes
        ("int4", 3, 3 * 324),
        ("int3", 32, 324 + 32 * 244),
        ("int2", 32, 324 + 32 * 164),
        ("int8", 32, 33 * 644),
        ("fp16", 32, 32 * 1280),
    ],
)
def test_sizes_are_those_documented(name: str, rows: int, expected: int):
    codec = get_codec(name)
    assert len(codec.encode(random_states(rows, 640))) == codec.payload_bytes(rows, 640) == expected


# Errors


@pytest.mark.parametrize("shape", [(1, 1), (1, 256), (33, 64), (7, 3)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 500.0])
@pytest.mark.parametrize(("name", "bits", "smallest"), [("fp16", 11, 2.0**-25), ("bf16", 8, 0), ("fp32", 99, 0)])
def test_floats_keep_their_bits_of_every_value(
    shape: tuple[int, int], scale: float, name: str, bits: int, smallest: float
):
    states = random_states(*shape, scale)
    bound = np.maximum(np.abs(states) * 2.0**-bits, smallest)
    assert (np.abs(round_trip(get_codec(name), states) - states) <= bound).all()


@pytest.mark.parametrize("width", [64, 384, 640, 1152, 2560])
@pytest.mark.parametrize(("name", "error"), [("int8", 0.0064), ("int4", 0.0975), ("int3", 0.1859), ("int2", 0.3428)])
@pytest.mark.parametrize("outlier", [0, 60])
def test_gaussian_errors_are_reached_at_any_width_with_or_without_outliers(
    width: int, name: str, error: float, outlier: float
):
    states = random_states(3, width)
    states[:, width // 3] += outlier
    tolerance = 0.1 if width > 64 else 0.3  # three vectors of 64 are a small sample
    assert relative_error(get_codec(name), states) <= error * (1 + tolerance) + 0.001


@each(*ROTATED)
def test_the_length_of_a_vector_is_kept(codec: Codec):
    states = random_states(3, 640) * np.array([[1e-6], [1], [1e6]], np.float32)
    lengths = np.linalg.norm(round_trip(codec, states), axis=1) / np.linalg.norm(states, axis=1)
    np.testing.assert_allclose(lengths, 1, atol=2**-8)


@each(*ROTATED)
def test_a_mean_that_states_share_costs_them_little_precision(codec: Codec):
    rest = random_states(32, 640)
    shared = rest + 3 * random_states(1, 640)
    absolute = relative_error(codec, shared) * np.linalg.norm(shared)
    assert absolute <= 1.1 * relative_error(codec, rest[:3]) * np.linalg.norm(rest)


@each("int8", "int4", "int3")
@pytest.mark.parametrize("rows", [1, 8, 40])
def test_more_bits_lose_less(codec: Rotated, rows: int):
    fewer = get_codec(ROTATED[ROTATED.index(codec.name) + 1])
    states = counted_states(rows, 64)
    assert relative_error(codec, states) < relative_error(fewer, states)


@each()
def test_a_vector_of_zeros_stays_zeros_beside_others(codec: Codec):
    states = random_states(3, 8)
    states[1] = 0
    decoded = round_trip(codec, states)
    assert not decoded[1].any()
    assert decoded[0].any()
    assert decoded[2].any()


@each()
@pytest.mark.parametrize("rows", [1, 4, 40])
def test_all_zeros_stay_zeros(codec: Codec, rows: int):
    assert not round_trip(codec, np.zeros((rows, 20), np.float32)).any()


@each()
@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e4])
def test_tiny_and_large_values_stay_finite(codec: Codec, scale: float):
    states = counted_states(8, 20) * np.float32(scale) / 20
    decoded = round_trip(codec, states)
    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() <= 4 * np.abs(states).max()


# Many at once


@each()
def test_many_payloads_decode_as_each_alone(codec: Codec):
    rows = [8, 1, 40, 3, 5, 600, 4]
    payloads = [codec.encode(counted_states(count, 44)) for count in rows]
    out = np.full((sum(rows), 44), np.nan, np.float32)
    codec.decode_many([memoryview(payload) for payload in payloads], rows, 44, out)
    alone = [decode(codec, payload, count, 44) for payload, count in zip(payloads, rows, strict=True)]
    np.testing.assert_array_equal(out, np.concatenate(alone))


@each()
def test_no_payloads_decode_to_no_rows(codec: Codec):
    around = np.full((3, 44), 7, np.float32)
    codec.decode_many([], [], 44, around[1:1])
    assert (around == 7).all()


@each()
def test_decoded_states_are_float32_of_the_shape_asked_for_and_can_be_written(codec: Codec):
    decoded = round_trip(codec, random_states(5, 12))
    assert (decoded.dtype, decoded.shape) == (np.float32, (5, 12))
    assert decoded.flags.writeable


@each()
def test_encoding_is_repeatable_and_does_not_change_its_input(codec: Codec):
    states = random_states(9, 44)
    before = states.copy()
    assert codec.encode(states) == codec.encode(np.asfortranarray(states))
    np.testing.assert_array_equal(states, before)


# What is refused


def test_fp16_holds_its_largest_value_and_refuses_the_next():
    largest = np.array([[65504, -65504]], np.float32)
    np.testing.assert_array_equal(round_trip(get_codec("fp16"), largest), largest)
    with pytest.raises(StoreError, match="codec fp16: a state is not finite"):
        get_codec("fp16").encode(np.array([[65520.0]], np.float32))


def test_bf16_refuses_values_that_would_round_to_infinity():
    with pytest.raises(StoreError, match="codec bf16: a state is not finite"):
        get_codec("bf16").encode(np.array([[np.finfo(np.float32).max]], np.float32))


@each(*ROTATED)
def test_rotated_codecs_hold_values_far_beyond_half_precision_and_refuse_larger_ones(codec: Codec):
    largest = np.full((8, 64), LARGEST, np.float32)
    assert relative_error(codec, largest) < 0.5
    with pytest.raises(StoreError, match="not finite"):
        codec.encode(2 * largest)


@each()
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [3, 9])
def test_values_that_no_reader_could_use_are_refused(codec: Codec, value: float, rows: int):
    states = random_states(rows, 4)
    states[1, 2] = value
    name = codec.name.split("+")[0]
    with pytest.raises(StoreError, match=f"codec {name}: a state is not finite; encode with --dtype bfloat16"):
        codec.encode(states)


@each()
@pytest.mark.parametrize(("rows", "width"), [(1, 44), (10, 44), (9, 42), (9, 52), (0, 44), (40, 2000)])
def test_a_payload_of_another_size_than_its_header_says_is_refused(codec: Codec, rows: int, width: int):
    with pytest.raises(DamagedRecordError, match=r"payload 0.* holds \d+ bytes, its header says"):
        decode(codec, codec.encode(random_states(9, 44)), rows, width)


@each()
def test_the_damaged_one_of_many_payloads_is_named(codec: Codec):
    payloads = [codec.encode(random_states(9, 44))] * 3
    payloads[1] = payloads[1][:-1]
    with pytest.raises(DamagedRecordError, match="payload 1"):
        codec.decode_many(payloads, [9] * 3, 44, np.empty((27, 44), np.float32))


@each(*ROTATED)
@pytest.mark.parametrize("scale", [0x7F80, 0x7FC0, 0xFF80, 0xBF80])  # inf, NaN, -inf, -1
@pytest.mark.parametrize("row", [0, 1, 5])  # row 0 is the shared vector
def test_an_impossible_scale_is_refused(codec: Rotated, scale: int, row: int):
    good = codec.encode(random_states(9, 44))
    shape = codec.shape(9)
    at = 0 if row == 0 else vector_bytes(44, shape.mean_bits) + (row - 1) * vector_bytes(44, shape.row_bits)
    damaged = good[:at] + struct.pack("<H", scale) + good[at + 2 :]
    with pytest.raises(DamagedRecordError, match="payload 1: a scale is negative or not finite"):
        codec.decode_many([good, damaged], [9, 9], 44, np.empty((18, 44), np.float32))


# Names and numbers


def test_numbers_are_distinct_and_lead_back_to_their_codec():
    numbers = {"fp32": 3, "bf16": 4, "fp16": 5, "int8": 6, "int4": 7, "int3": 8, "int2": 9}
    assert {name: codec.number for name, codec in CODECS.items()} == numbers
    assert all(codec_by_number(codec.number) is codec for codec in CODECS.values())
    assert [codec_by_number(number) for number in (0, 1, 2, 10, 128, 255)] == [None] * 6


def test_any_zstd_level_has_one_number_and_reads_the_others():
    payload = get_codec("int4+zstd19").encode(counted_states(9, 44))
    assert get_codec("int4+zstd19").number == get_codec("int4+zstd1").number == 128 + 7
    reader = codec_by_number(135)
    assert reader is not None
    np.testing.assert_array_equal(decode(reader, payload, 9, 44), round_trip(get_codec("int4"), counted_states(9, 44)))


def test_names_say_the_level():
    assert get_codec("bf16+zstd").name == get_codec("bf16+zstd3").name == "bf16+zstd3"
    assert get_codec("bf16+zstd22").name == "bf16+zstd22"


@pytest.mark.parametrize("name", ["fp8", "", "int4+", "int4+zst", "int4+zstd3+zstd3", "zstd3", "int4+zstd-1", "INT4"])
def test_an_unknown_codec_is_a_usage_error_that_lists_the_known_ones(name: str):
    with pytest.raises(UsageError, match="is not known: use fp32, bf16, fp16, int8, int4, int3, int2, or one of them"):
        get_codec(name)


@pytest.mark.parametrize("level", [0, 23, 1000])
def test_a_level_that_zstd_lacks_is_a_usage_error(level: int):
    with pytest.raises(UsageError, match="zstd has levels 1 to 22"):
        get_codec(f"int4+zstd{level}")


def test_relative_errors_do_not_depend_on_the_unit():
    states = counted_states(9, 44)
    found = {relative_error(get_codec("int4"), states * np.float32(2.0**power)) for power in (-60, -3, 0, 3, 60)}
    assert len(found) == 1
    assert math.isfinite(found.pop())
