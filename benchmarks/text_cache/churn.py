"""The text cache's file under millions of insertions and evictions: does it keep its bound, and how full is it?

    python -m benchmarks.text_cache.churn [--insertions 10000000] [--mib 1024] [--distinct 0] [--folder DIR] [--seed 0]

Passages have lengths like those of web passages (log-normal around 110 tokens, at most 1,024), states of Nano's width
in int4. With `--distinct N`, requests come by Zipf's law (s = 1) over N passages and only misses are inserted: the last
lines then say the hit rate beside that of an exact least-recently-used cache of as many bytes. Prints a row for each
tenth of the run, for which the last 10,000 that were asked for are read back; the largest file size is taken after
every batch.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kalm_cache.codec import get_codec
from kalm_cache.storage.record import Record
from kalm_cache.storage.text_cache.cache_file import BATCH, CacheFile, Found
from kalm_cache.storage.text_cache.cached_blocks import Put
from kalm_cache.storage.text_cache.write_behind import BATCH_BYTES

WIDTH, CHUNK_SIZE, CODEC = 640, 4, "int4"
MEDIAN_TOKENS, SPREAD, MOST_TOKENS = 110, 0.6, 1024
BATCH_PASSAGES = 200
READ_BACK = 10_000
POOL = np.random.default_rng(0).bytes(8 << 20)  # payloads are slices of it


@dataclass(frozen=True, slots=True)
class Stream:
    """Numbers of passages, a batch at a time, and how many tokens each has."""

    tokens: NDArray[np.int64]
    batches: Iterator[NDArray[np.int64]]


def lengths(count: int, seed: int) -> NDArray[np.int64]:
    """Tokens of `count` passages."""
    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN_TOKENS), SPREAD, count)
    return np.clip(drawn.astype(np.int64), 8, MOST_TOKENS)


def new_ones(total: int) -> Iterator[NDArray[np.int64]]:
    """Passages that come once."""
    for start in range(0, total, BATCH_PASSAGES):
        yield np.arange(start, min(start + BATCH_PASSAGES, total))


def by_zipf(total: int, distinct: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Passages that come by Zipf's law with s = 1."""
    generator = np.random.default_rng(seed)
    edges = np.cumsum(1 / np.arange(1, distinct + 1))
    names = generator.permutation(distinct)
    for _ in range(0, total, BATCH_PASSAGES):
        yield names[np.searchsorted(edges, generator.random(BATCH_PASSAGES) * edges[-1])]


def key_of(number: int) -> bytes:
    """A passage's key."""
    return hashlib.sha256(number.to_bytes(8, "little")).digest()


def record_of(number: int, tokens: int) -> Record:
    """A record of the size that a passage of so many tokens has."""
    codec = get_codec(CODEC)
    nbytes = codec.payload_bytes(-(-tokens // CHUNK_SIZE), WIDTH)
    assert nbytes is not None
    start = number * 4099 % (len(POOL) - nbytes)
    return Record(codec.number, CHUNK_SIZE, WIDTH, tokens, False, POOL[start : start + nbytes])


class ExactLru:
    """The least recently used leaves first, to the byte."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes, self._sizes = max_bytes, 0, OrderedDict[int, int]()
        self.hits = 0

    def ask(self, number: int, nbytes: int) -> None:
        """Count a hit, or insert."""
        if number in self._sizes:
            self.hits += 1
            self._sizes.move_to_end(number)
            return
        self._sizes[number] = nbytes
        self._bytes += nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._sizes.popitem(last=False)[1]


class Churn:
    """One run: the file, and what was seen of it."""

    def __init__(self, folder: Path, max_bytes: int, tokens: NDArray[np.int64], exact: ExactLru | None) -> None:
        self.file, self.folder, self._tokens, self._exact = CacheFile(folder, max_bytes), folder, tokens, exact
        self.max_bytes = max_bytes
        self.asked = self.hits = self.inserted = self.evicted = self.largest = self.wrong = 0
        self.seconds = 0.0

    def run(self, numbers: NDArray[np.int64]) -> None:
        """Ask for passages; insert what is not there, and write again what is about to leave."""
        keys = {key_of(int(number)): int(number) for number in numbers}
        started = time.perf_counter()
        found = dict(zip(keys, self.file.find(list(keys)), strict=True))
        puts = []
        for key, number in keys.items():
            one = found[key]
            expected = record_of(number, int(self._tokens[number]))
            if isinstance(one, Found):
                self.hits += 1
                self.wrong += one.record != expected
            if not isinstance(one, Found) or one.is_old:
                puts.append(Put(key, expected, 0, replace=isinstance(one, Found)))
            if self._exact is not None:
                self._exact.ask(number, len(expected.payload))
        for some in parts(puts, min(BATCH_BYTES, int(self.max_bytes * BATCH))):
            self.evicted += self.file.write(some, {})
        self.seconds += time.perf_counter() - started
        self.asked += len(keys)
        self.inserted += len(puts)
        self.largest = max(self.largest, sum(path.stat().st_size for path in self.folder.iterdir()))

    def read_back(self, numbers: NDArray[np.int64]) -> int:
        """How many of these passages the file holds; each must be its own record."""
        held = 0
        for number, one in zip(numbers, self.file.find([key_of(int(each)) for each in numbers]), strict=True):
            if isinstance(one, Found):
                held += 1
                self.wrong += one.record != record_of(int(number), int(self._tokens[number]))
        return held

    def row(self, last: NDArray[np.int64]) -> str:
        """A row of the table, once the `last` passages have been read back."""
        stats, held = self.file.stats(), self.read_back(last)
        return (
            f"| {self.asked:,} | {self.inserted:,} | {self.evicted:,} | {self.largest / 2**20:.1f} | "
            f"{stats.used_bytes / self.max_bytes:.3f} | {stats.entries:,} | {self.hits / self.asked:.3f} | "
            f"{held:,} of {len(last):,} | {self.wrong} |"
        )


def parts(puts: list[Put], most_bytes: int) -> Iterator[list[Put]]:
    """Batches of at most so many bytes."""
    some: list[Put] = []
    nbytes = 0
    for put in puts:
        if some and nbytes + len(put.record.payload) > most_bytes:
            yield some
            some, nbytes = [], 0
        some.append(put)
        nbytes += len(put.record.payload)
    if some:
        yield some


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--insertions", type=int, default=10_000_000)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--distinct", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    max_bytes, total = options.mib << 20, options.insertions
    tokens = lengths(options.distinct or total, options.seed)
    exact = ExactLru(max_bytes) if options.distinct else None
    batches = by_zipf(total, options.distinct, options.seed) if options.distinct else new_ones(total)
    print(f"limit {options.mib} MiB; lengths: median {MEDIAN_TOKENS} tokens, {CODEC}, D = {WIDTH}, r = {CHUNK_SIZE}\n")
    print("| asked | written | evicted | largest size, MiB | used / limit | records | hit rate | read back | wrong |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        churn, shown = Churn(Path(folder), max_bytes, tokens, exact), 0
        last = np.empty(0, np.int64)
        for numbers in batches:
            churn.run(numbers)
            last = np.concatenate([last, numbers])[-READ_BACK:]
            if churn.asked * 10 // total > shown:
                shown = churn.asked * 10 // total
                print(churn.row(last), flush=True)
        print(f"\n{churn.inserted / churn.seconds:,.0f} written a second")
        if exact is not None:
            print(f"hit rate {churn.hits / churn.asked:.3f}; exact LRU of as many bytes {exact.hits / churn.asked:.3f}")
        churn.file.close()


if __name__ == "__main__":
    main()
