"""2 to 8 bits a value: a fixed rotation, Lloyd-Max levels, one scale for each block of a vector. Needs no calibration.

The states of one passage share a large mean (91% of their energy in a Nano-shaped model with real weights, r = 4), so
a vector close to it is stored first, and the states as differences from that vector *as it will be decoded*: its own
error is made good in them. A payload is one vector of `mean_bits` a value, unless that is 0, then one of `row_bits` for
each state (see `shape`), and each vector is

    scales   one bfloat16 for each block of the rotation (640 -> 512 + 128: 2 scales, 4 bytes), little-endian
    codes    D codes, as `packing` lays them out

A vector decodes to signs · (levels · H) · scale, block by block. The scale keeps the block's length:
scale = |x| / √(w · Σ level²), so that |decoded| = |x| but for the scale's rounding, 2⁻⁸ at most.

With a checkpoint's sensitivity, codes are not those of the nearest levels but as `feedback` chooses them, and the scale
is |x| / (w · UNIT). Such payloads decode like all others.

Same decoded floats on every machine, and same bytes without a sensitivity: sums are of integers, see `rotation`;
everything else is single correctly rounded operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kalm_cache.codec.bfloat16 import from_bfloat16, to_bfloat16
from kalm_cache.codec.feedback import Float64, error_feedback, round_with_feedback
from kalm_cache.codec.interface import Float32, Payload, check_finite, check_sizes
from kalm_cache.codec.levels import UNIT, levels, nearest
from kalm_cache.codec.packing import pack, packed_width, unpack_levels
from kalm_cache.codec.rotation import blocks, hadamard, signs
from kalm_cache.errors import DamagedRecordError, StoreError

_GRID_BITS = 20  # states as integers of up to 2^20: squares summed over 2^11 coordinates stay exact in float64
_CHUNK_ROWS = 512  # decoded at a time: temporaries stay small, and in the cache
FEWEST_SHARING = 4  # states from which on a payload has a shared vector
MANY = 8  # states from which on they do not save for it
LARGEST = 2.0**100


class Shape(NamedTuple):
    """Bits a value of the shared vector (0: there is none) and of each state."""

    mean_bits: int
    row_bits: int


class Rotated:
    """Randomised Hadamard rotation and `bits`-bit codes; see the module. `feedback`: see that module."""

    item_bytes = 1

    def __init__(self, name: str, number: int, bits: int, feedback: Float64 | None = None) -> None:
        self.name, self.number, self.bits, self.feedback = name, number, bits, feedback

    def with_sensitivity(self, sensitivity: Float64) -> Rotated:
        """The same codec, rounding by a sensitivity (D, D) in the coordinates of states."""
        # Rᵀ·S·R, S in the coordinates that are rounded: first its rows are rotated, then its columns
        return Rotated(self.name, self.number, self.bits, error_feedback(_rotate(_rotate(sensitivity).T)))

    def shape(self, rows: int) -> Shape:
        """How a payload of `rows` states is laid out: part of the format.

        A shared vector costs as much as a state. Among few states each gives a bit for it: four vectors of 640 values
        and int4 take 1,300 bytes with it, 1,296 without, at 0.040 and 0.094 relative error (Nano-shaped, r = 32).
        """
        if rows < FEWEST_SHARING:
            return Shape(0, self.bits)
        return Shape(max(self.bits, 4), self.bits if rows >= MANY or self.bits in (2, 8) else self.bits - 1)

    def payload_bytes(self, rows: int, width: int) -> int:
        """See `RawCodec.payload_bytes`."""
        shape = self.shape(rows)
        return vector_bytes(width, shape.mean_bits) + rows * vector_bytes(width, shape.row_bits)

    def encode(self, pooled: Float32) -> bytes:
        """See `Codec.encode`; refuses values beyond `LARGEST` too, whose sums could overflow."""
        # too large counts as infinite: one check for both
        check_finite(np.where(np.abs(pooled) > LARGEST, np.inf, pooled), self.name)
        if self.feedback is not None and len(self.feedback) != pooled.shape[1]:
            raise StoreError(
                f"codec {self.name}: states are {pooled.shape[1]} wide, the sensitivity {len(self.feedback)}"
            )
        shape = self.shape(len(pooled))
        if not shape.mean_bits:
            return encode_vectors(pooled, shape.row_bits, self.feedback).tobytes()
        mean = encode_vectors(_mean(pooled), shape.mean_bits)  # (1, vector_bytes)
        rest = pooled - decode_vectors(mean, shape.mean_bits, pooled.shape[1])  # (P, D) - (1, D)
        return mean.tobytes() + encode_vectors(rest, shape.row_bits, self.feedback).tobytes()

    def decode_many(self, payloads: Sequence[Payload], rows: Sequence[int], width: int, out: Float32) -> None:
        """See `Codec.decode_many`."""
        check_sizes(payloads, [self.payload_bytes(count, width) for count in rows])
        try:
            self._decode_all(payloads, rows, width, out)
        except DamagedRecordError:  # the fast path knows only that one of them is damaged: look for it
            for i, (payload, count) in enumerate(zip(payloads, rows, strict=True)):
                try:
                    self._decode_all([payload], [count], width, out[:count])
                except DamagedRecordError as exc:
                    raise DamagedRecordError(f"payload {i}: {exc}") from exc
            raise

    def _decode_all(self, payloads: Sequence[Payload], rows: Sequence[int], width: int, out: Float32) -> None:
        shapes = [self.shape(count) for count in rows]
        views = [memoryview(payload) for payload in payloads]  # slices of them copy nothing
        starts = [vector_bytes(width, shape.mean_bits) for shape in shapes]  # of the states in each payload
        parts = np.split(out, np.cumsum(rows)[:-1])  # the rows of each passage, views of `out`
        # vectors of as many bits are decoded together, whichever passages they belong to: few NumPy calls
        for bits in {shape.row_bits for shape in shapes}:
            chosen = [i for i, shape in enumerate(shapes) if shape.row_bits == bits]
            stored = _matrix([views[i][starts[i] :] for i in chosen], width, bits)  # (rows, vector_bytes)
            if len(chosen) == len(shapes):  # the common case: decoded straight into `out`
                decode_into(stored, bits, out)
            else:
                decoded = decode_vectors(stored, bits, width)
                _scatter(decoded, [parts[i] for i in chosen])
        for bits in {shape.mean_bits for shape in shapes} - {0}:
            chosen = [i for i, shape in enumerate(shapes) if shape.mean_bits == bits]
            means = decode_vectors(_matrix([views[i][: starts[i]] for i in chosen], width, bits), bits, width)
            for i, mean in zip(chosen, means, strict=True):
                parts[i] += mean  # (rows of the passage, D) + (D,)


def vector_bytes(width: int, bits: int) -> int:
    """Bytes of one stored vector: its scales and its codes; none of 0 bits."""
    if not bits:
        return 0
    return 2 * len(blocks(width)) + packed_width(width, bits)


def encode_vectors(x: Float32, bits: int, feedback: Float64 | None = None) -> NDArray[np.uint8]:
    """(n, D) finite -> (n, vector_bytes)."""
    scales, codes = _to_nearest(x, bits) if feedback is None else _with_feedback(x, bits, feedback)
    return np.concatenate([scales.view(np.uint8), pack(codes, bits)], axis=1)  # (n, 2 · blocks), (n, packed_width)


def decode_vectors(stored: NDArray[np.uint8], bits: int, width: int) -> Float32:
    """(n, vector_bytes) -> (n, D). Raises `DamagedRecordError` for a scale that `encode_vectors` never writes."""
    out = np.empty((len(stored), width), np.float32)
    decode_into(stored, bits, out)
    return out


def decode_into(stored: NDArray[np.uint8], bits: int, out: Float32) -> None:
    """`decode_vectors` into (n, D)."""
    width = out.shape[1]
    split = 2 * len(blocks(width))
    scales = from_bfloat16(np.ascontiguousarray(stored[:, :split]).view("<u2"))  # (n, blocks)
    if not ((scales >= 0) & np.isfinite(scales)).all():
        raise DamagedRecordError("a scale is negative or not finite")
    for start in range(0, len(stored), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        integers = unpack_levels(stored[chunk, split:], bits, width)  # (chunk, D)
        for i, block in enumerate(blocks(width)):
            # integers go through H, so that sums are exact; the scale comes after: one rounding, the same everywhere
            np.multiply(hadamard(integers[:, block]), scales[chunk, i : i + 1], out=out[chunk, block])
        out[chunk] *= signs(width)


def _to_nearest(x: Float32, bits: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """(n, D) -> scales (n, blocks) in bfloat16, codes (n, D)."""
    flipped = x * signs(x.shape[1])  # (n, D) · (D,)
    quantised = [_quantise(flipped[:, block], bits) for block in blocks(x.shape[1])]
    scales = to_bfloat16(np.stack([scale for scale, _ in quantised], axis=1))
    return scales, np.concatenate([codes for _, codes in quantised], axis=1)


def _with_feedback(x: Float32, bits: int, feedback: Float64) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """`_to_nearest`, but each error is carried on by `feedback` (D, D); codes may differ between machines here.

    The scale is |x| / (w · UNIT), known before the first code is chosen: every error is measured with it.
    """
    rotated, sizes = _rotate(x.astype(np.float64)), [block.stop - block.start for block in blocks(x.shape[1])]
    lengths = np.stack([np.linalg.norm(rotated[:, block], axis=1) for block in blocks(x.shape[1])], axis=1)
    scales = to_bfloat16((lengths / (np.array(sizes) * UNIT)).astype(np.float32))  # (n, blocks)
    units = np.repeat(from_bfloat16(scales) * np.sqrt(sizes), sizes, axis=1)  # (n, D): what a level's unit stands for
    steps = levels(bits).astype(np.float64)

    def rounded(column: Float64, i: int) -> tuple[Float64, NDArray[np.uint8]]:
        unit = units[:, i]
        divisor = np.where(unit > 0, unit, 1)  # a block of zeros has unit 0
        codes = nearest(column / divisor / UNIT, bits)
        return steps[codes] * unit, codes

    return scales, round_with_feedback(rotated, feedback, rounded)


def _rotate(x: Float64) -> Float64:
    """(n, D) -> (n, D), orthonormal: what codes stand for, but for rounding."""
    flipped = x * signs(x.shape[1])
    return np.concatenate(
        [hadamard(flipped[:, block]) / np.sqrt(block.stop - block.start) for block in blocks(x.shape[1])], axis=1
    )


def _quantise(x: Float32, bits: int) -> tuple[Float32, NDArray[np.uint8]]:
    """One block of every vector, (n, w) with its signs flipped -> scales (n,) and codes (n, w)."""
    grid, exponent = _on_grid(x)  # integers: sums below are exact, so that every machine picks the same codes
    energy = (grid * grid).sum(axis=1)  # (n,), exact; it is the mean square of the rotated values, too (Parseval)
    rms = np.sqrt(np.where(energy > 0, energy, 1))
    codes = nearest(hadamard(grid) / rms[:, None], bits)
    squares = (levels(bits).astype(np.float64)[codes] ** 2).sum(axis=1)  # (n,), exact
    scales = np.ldexp(np.sqrt(energy / (x.shape[1] * squares)), exponent)  # (n,): |decoded| = |x|
    return scales.astype(np.float32), codes


def _on_grid(x: Float32) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """(n, w) -> integers of at most 2^20 in float64, and the power of two that is their unit in each row."""
    _, exponent = np.frexp(np.abs(x).max(axis=1))  # (n,): max |x| < 2^exponent
    exponent -= _GRID_BITS
    return np.rint(np.ldexp(x.astype(np.float64), -exponent[:, None])), exponent


def _mean(pooled: Float32) -> Float32:
    """(P, D) -> (1, D)."""
    # (P, D) -> (1, P · D): one unit for all rows, so that the sum is exact in any order
    grid, exponent = _on_grid(pooled.reshape(1, -1))
    mean = grid.reshape(pooled.shape).sum(axis=0, keepdims=True) / len(pooled)
    scaled: Float32 = np.ldexp(mean, exponent[0]).astype(np.float32)
    return scaled


def _matrix(stored: Sequence[memoryview], width: int, bits: int) -> NDArray[np.uint8]:
    """Payloads' vectors, one below the other: (vectors, vector_bytes)."""
    return np.frombuffer(b"".join(stored), np.uint8).reshape(-1, vector_bytes(width, bits))


def _scatter(decoded: Float32, parts: Sequence[Float32]) -> None:
    """Decoded rows (Σ, D), passage after passage, to where each passage's rows lie."""
    for part, rows in zip(parts, np.split(decoded, np.cumsum([len(part) for part in parts])[:-1]), strict=True):
        part[:] = rows
