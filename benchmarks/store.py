"""100 random records by id -> tensor: warm and cold, beside a copy of the same bytes; and how large the files are.

    python -m benchmarks.store [--passages 20000] [--codec int4] [--tokens 128] [--width 640] [--chunk-size 4]
                               [--records 100] [--decode-ms 4000] [--folder DIR]

States are synthetic: the encoding of a few random passages, stored again and again. `read` is from ids to one float32
tensor, checksums and decoding included; `records` ends before decoding. For a cold read the kernel is told to drop the
files from its memory (POSIX_FADV_DONTNEED, which a virtual machine's disk below it may not follow). With
`--decode-ms`, how long the decoder takes for as many candidates, times are given as a share of that too. Prints JSON
lines, then Markdown tables; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import Times, emit, interleave, machine, markdown, progress, short, significant
from kalm_cache.codec import Codec, get_codec
from kalm_cache.scoring.state_reader import StateReader
from kalm_cache.storage.passage_store import PASSAGES_FILE, STATES_FILE, PassageMeta, PassageStore
from kalm_cache.storage.record import Record
from kalm_cache.storage.store_writer import StoreWriter

SIZES = (300, 512, 1330, 2320, 4080, 5160, 10_280, 20_500, 65_536)
SIZED_BYTES = 8 << 20  # payload bytes of each file whose size is measured
DISTINCT = 64  # passages that are encoded
COLD_SAMPLES = 20
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Shape:
    """What is stored: passages of `tokens` tokens, states of `width` values for each `ratio` of them."""

    passages: int
    tokens: int
    width: int
    ratio: int
    codec: Codec

    @property
    def rows(self) -> int:
        """Pooled states of a passage."""
        return -(-self.tokens // self.ratio)

    def payloads(self) -> list[bytes]:
        """Encoded random states, `DISTINCT` of them."""
        chance = np.random.default_rng(0)
        states = chance.normal(size=(DISTINCT, self.rows, self.width)).astype(np.float32)
        return [self.codec.encode(one) for one in states]


def doc_id_of(ordinal: int) -> str:
    """An id of 10 bytes."""
    return f"doc-{ordinal:06d}"


def write(folder: Path, shape: Shape) -> dict[str, Any]:
    """Seal a store of the shape, and say how fast that was and what it takes."""
    payloads, meta = shape.payloads(), bytes(16)
    started = time.perf_counter()
    with StoreWriter(folder) as writer:
        for ordinal in range(shape.passages):
            payload = payloads[ordinal % DISTINCT]
            record = Record(shape.codec.number, shape.ratio, shape.width, shape.tokens, False, payload)
            writer.add(doc_id_of(ordinal).encode(), record, PassageMeta(ordinal, meta), b"")
        ordinals = ((ordinal, doc_id_of(ordinal).encode()) for ordinal in range(shape.passages))
        writer.finish(ordinals, shape.passages)
    seconds = time.perf_counter() - started
    payload_bytes = sum(len(payloads[ordinal % DISTINCT]) for ordinal in range(shape.passages))
    states_bytes = (folder / STATES_FILE).stat().st_size
    return {
        "records_per_second": round(shape.passages / seconds),
        "payload_bytes": payload_bytes,
        "states_bytes": states_bytes,
        "passages_bytes": (folder / PASSAGES_FILE).stat().st_size,
        "overhead": round(states_bytes / payload_bytes, 4),
        "states_bytes_per_passage": round(states_bytes / shape.passages, 1),
    }


def measure_overhead(size: int) -> dict[str, Any]:
    """File bytes of states through payload bytes, for records of one size under ids of 10 bytes."""
    count, chance = max(100, SIZED_BYTES // size), random.Random(size)
    with tempfile.TemporaryDirectory() as folder, StoreWriter(Path(folder)) as writer:
        for ordinal in range(count):
            record = Record(7, 4, 640, 128, False, chance.randbytes(size))
            writer.add(doc_id_of(ordinal).encode(), record, PassageMeta(ordinal, bytes(16)), b"")
        writer.finish(((ordinal, doc_id_of(ordinal).encode()) for ordinal in range(count)), count)
        return {"record_bytes": size, "overhead": round((Path(folder) / STATES_FILE).stat().st_size / size / count, 4)}


def drop(folder: Path) -> None:
    """Ask the kernel to forget the files; nothing may have them mapped."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure_cold(folder: Path, shape: Shape, asked: list[list[str]]) -> dict[str, Times]:
    """Opening the store, and the first read, after the files were dropped."""
    opening, reading = [], []
    for ids in asked[:COLD_SAMPLES]:
        drop(folder)
        started = time.perf_counter()
        with PassageStore(folder) as store:
            opened = time.perf_counter()
            StateReader(store, shape.codec, shape.ratio).read(ids, shape.ratio)
            reading.append(1e3 * (time.perf_counter() - opened))
        opening.append(1e3 * (opened - started))
    return {"cold open": Times(opening), "cold read": Times(reading)}


def measure_warm(folder: Path, shape: Shape, asked: list[list[str]], repeats: int) -> dict[str, Times]:
    """Reads of what is in memory, in turns with copies of as many bytes."""
    with PassageStore(folder) as store:
        reader = StateReader(store, shape.codec, shape.ratio)

        def records(i: int) -> object:
            with store.snapshot() as snapshot:
                return snapshot.records(asked[i % len(asked)])

        with store.snapshot() as snapshot:
            found = [one for one in snapshot.records(asked[0]) if isinstance(one, Record)]
            payloads = [bytes(one.payload) for one in found]
        rows = [shape.rows] * len(payloads)
        stored, states = np.frombuffer(b"".join(payloads), np.uint8), torch.empty(sum(rows), shape.width)
        return interleave(
            {
                "copy of the payloads": lambda i: stored.copy(),
                "copy of the states": lambda i: states.clone(),
                "decoding alone": lambda i: shape.codec.decode_many(payloads, rows, shape.width, states.numpy()),
                "records": records,
                "read": lambda i: reader.read(asked[i % len(asked)], shape.ratio),
            },
            repeats=repeats,
            turn_s=0.2,
            device=CPU,
        )


def rows_of(times: dict[str, Times], decode_ms: float | None) -> list[dict[str, Any]]:
    """One report for each measurement; shares are of medians, and of the payloads' copy."""
    copied = times["copy of the payloads"].median_ms
    reports = []
    for name, taken in times.items():
        report = {"what": name, "median_ms": significant(taken.median_ms), "min_ms": significant(taken.min_ms)}
        report["copies"] = significant(taken.median_ms / copied)
        if decode_ms is not None:
            report["share_of_decode"] = significant(taken.median_ms / decode_ms)
        reports.append(report)
    return reports


def table(reports: Sequence[dict[str, Any]]) -> str:
    """Reports with the same keys as a Markdown table."""
    cells = [[short(cell) if isinstance(cell, float) else cell for cell in report.values()] for report in reports]
    return markdown(list(reports[0]), cells)


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--codec", default="int4")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--chunk-size", type=int, default=4)
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--decode-ms", type=float, help="what the decoder takes for as many candidates")
    parser.add_argument("--folder", type=Path, help="where the store is written; default: a temporary folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = Shape(args.passages, args.tokens, args.width, args.chunk_size, get_codec(args.codec))
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        progress(f"writing {args.passages} records of {args.codec}")
        written = write(folder, shape)
        chance = random.Random(0)
        asked = [[doc_id_of(chance.randrange(args.passages)) for _ in range(args.records)] for _ in range(200)]
        times = measure_warm(folder, shape, asked, args.repeats) | measure_cold(folder, shape, asked)
    setting = {"passages": args.passages, "codec": args.codec, "records": args.records} | machine(CPU)
    emit({"benchmark": "store", **setting, **written})
    reports = rows_of(times, args.decode_ms)
    for report in reports:
        emit({"benchmark": "store", "codec": args.codec, **report})
    sizes = []
    for size in SIZES:
        progress(f"records of {size} bytes")
        sizes.append(measure_overhead(size))
        emit({"benchmark": "store", **sizes[-1]})
    print(f"\n{table([written])}\n\n{table(reports)}\n\n{table(sizes)}")


if __name__ == "__main__":
    main()
