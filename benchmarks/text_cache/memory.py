"""The memory of a process that scores distinct texts through a text cache, one after the other: is it flat?

    python -m benchmarks.text_cache.memory [--texts 1000000] [--mib 256] [--model tiny] [--folder DIR]

Drives `KaLMReranker.encode`: tokenising, looking up, queueing, writing and evicting are the library's own. The encoder
alone poses, as it would take days for a million texts: its states depend on the tokens and cost nothing. Prints a row
for each tenth of the run. `own` is memory of the process alone, `file` the cache file's pages that the system keeps
mapped, which it takes back when it needs them.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from kalm_cache.reranker import KaLMReranker
from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions

BATCH = 500
WORDS = 8  # of a text, beside its number


class PosingEncoder:
    """Token ids (R,) → states (R, D): rows of one random table."""

    def __init__(self, width: int) -> None:
        self._table = torch.randn(4096, width, generator=torch.Generator().manual_seed(0))

    def __call__(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """As the model's encoder."""
        return self._table[ids % len(self._table)]


def text_of(number: int) -> str:
    """A text that no other number has."""
    words = " ".join(f"w{number * 7919 * i % 1009}" for i in range(1, WORDS + 1))
    return f"passage {number}: {words}"


def resident_mib() -> tuple[float, float]:
    """Memory of this process alone, and of mapped files, MiB."""
    status = Path("/proc/self/status").read_text()
    own, file = (int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) for name in ("RssAnon", "RssFile"))  # type: ignore[index]
    return own / 1024, file / 1024


def row(done: int, cache: TextCache, started: float) -> str:
    """A row of the table."""
    own, file = resident_mib()
    counts = cache.counts
    return (
        f"| {done:,} | {own:.0f} | {file:.0f} | {counts.written:,} | {counts.dropped:,} | {counts.evicted:,} | "
        f"{counts.hits:,} | {time.perf_counter() - started:.0f} |"
    )


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    print("| texts | own, MiB | file, MiB | written | dropped | evicted | hits | seconds |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        TextCache(TextCacheOptions(Path(folder) / "cache", options.mib << 20)) as cache,
        KaLMReranker(options.model, device="cpu", dtype="float32", cache=cache) as reranker,
    ):
        [states] = reranker.encode(["a text"])
        posing = cast(Any, PosingEncoder(states.shape[1]))
        reranker.passage_side = replace(reranker.passage_side, encoder=posing)
        started, shown = time.perf_counter(), 0
        for start in range(0, options.texts, BATCH):
            done = min(start + BATCH, options.texts)
            reranker.encode([text_of(number) for number in range(start, done)], batch_size=BATCH)
            if done * 10 // options.texts > shown:
                shown = done * 10 // options.texts
                print(row(done, cache, started), flush=True)


if __name__ == "__main__":
    main()
