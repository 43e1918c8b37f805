"""The services of a replay, and what they are asked: the stream, its texts, and the settings that all have."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.serve.process import Running, running
from benchmarks.text_cache import prepared
from benchmarks.text_cache.lru import Job
from benchmarks.text_cache.stream import Stream, query, words_of
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.precision import resolve_device, resolve_dtype
from kalm_cache.model.prompts import load_prompt_tokenizer
from kalm_cache.settings import Settings, load_settings
from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions

Service = AbstractContextManager[Running]
REQUESTS, HISTORY = 0, 1  # seeds
KALM_CACHE = [sys.executable, "-c", "from kalm_cache.cli import main; main()"]
NO_LIMIT = {"KALM_CACHE_TIMEOUT_MS": "3600000"}  # encoding 50 passages may take longer than answers usually may


@dataclass(frozen=True, slots=True)
class Bench:
    """What a run has: the stream, its texts, the settings of every service, and where files lie."""

    args: argparse.Namespace
    stream: Stream
    texts: list[str]
    words: list[str]
    settings: Settings
    dtype: torch.dtype
    folder: Path

    @property
    def shape(self) -> prepared.Shape:
        """Of a passage's states."""
        return prepared.shape_of(self.settings, self.stream.tokens)

    @property
    def full(self) -> Path:
        """The full cache."""
        return self.folder / "full"

    @property
    def index(self) -> Path:
        """The index."""
        return self.folder / "index"

    def open_full(self) -> TextCache:
        """The full cache, in this process."""
        return TextCache(TextCacheOptions(self.full, int(self.args.gib * (1 << 30))))

    def cached(self, folder: Path, prefix: Sequence[str] = KALM_CACHE, **environment: str) -> Service:
        """A service with a text cache."""
        options = ["--text-cache", str(folder), "--text-cache-gib", str(self.args.gib), "--model", self.args.model]
        return self._serving(prefix, options, environment)

    def by_id(self) -> Service:
        """A service with the index."""
        return self._serving(KALM_CACHE, ["--index", str(self.index)], {})

    def _serving(self, prefix: Sequence[str], options: Sequence[str], environment: Mapping[str, str]) -> Service:
        encoding = {"KALM_CACHE_CODEC": self.args.codec, "KALM_CACHE_MAX_LENGTH": str(self.settings.max_length)}
        common = ["serve", "--port", "0", "--device", "cpu", "--dtype", self.args.dtype]
        return running([*prefix, *common, *options], {**NO_LIMIT, **encoding, **environment})

    def lru(self) -> Service:
        """The service with a dictionary."""
        job = Job(self.args.model, self.args.dtype, asdict(self.stream), self.args.lru_mib, self.args.history, HISTORY)
        path = self.folder / "lru.json"
        path.write_text(job.to_json(), "utf-8")
        return running([sys.executable, "-m", "benchmarks.text_cache.lru", str(path)])

    def bodies(self, numbers: NDArray[np.int64], *, ids: bool = False, **fields: Any) -> list[str]:
        """A request for each row of passage numbers."""
        return [
            json.dumps({"query": query(self.words, i), "return_documents": False} | self._passages(row, ids) | fields)
            for i, row in enumerate(numbers.tolist())
        ]

    def _passages(self, numbers: list[int], ids: bool) -> dict[str, list[str]]:
        if ids:
            return {"ids": [prepared.doc_id_of(number) for number in numbers]}
        return {"documents": [self.texts[number] for number in numbers]}


def open_bench(args: argparse.Namespace, folder: Path) -> Bench:
    """The stream and the settings of a run."""
    settings = load_settings(
        model=args.model, dtype=args.dtype, device="cpu", codec=args.codec, bm25=False, dense_index="flat"
    )
    checkpoint = open_checkpoint(args.model)
    tokenizer = load_prompt_tokenizer(checkpoint.folder, checkpoint.config.encoder.vocab_size)
    stream = Stream(args.passages, args.tokens, args.documents, args.exponent)
    dtype = resolve_dtype(args.dtype, resolve_device("cpu"))
    return Bench(args, stream, stream.texts(tokenizer), words_of(tokenizer), settings, dtype, folder)
