"""The store's part of `benchmarks.scale`: the index job over synthetic passages, then opening and lookup.

The job is `kalm-cache index`'s own: duplicates are looked for, states packed and committed batch by batch, everything
sealed in key order, hashed and published. Only the models are not there: passages of 128 tokens get one of 64 prepared
states each, in as many bytes (1,280, as fp16, which costs next to no time) as the Nano model's take in int4 at chunk
size 32, and vectors of 8 numbers, so that the first stage, which the other part measures, costs next to nothing too.
Ids come in no order, as they do in most corpora.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.scale.first_stage import BATCH, texts
from benchmarks.scale.steps import Column, Part, Step, latencies_ms, memory
from indexer.build.index_job import run_index_job
from indexer.corpus import CorpusLine
from indexer.models import Encoders
from kalm_cache.codec import get_codec
from kalm_cache.generations.fingerprint import Fingerprint, ServingDecoder
from kalm_cache.generations.generation import open_current, require_valid
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.model.prompts import Tokens
from kalm_cache.passage import Passage
from kalm_cache.scoring.state_reader import StateReader
from kalm_cache.settings import Settings, load_settings

CODEC = "fp16"
TOKENS, RATIO, WIDTH = 128, 32, 160
BATCH_TOKENS = 1 << 15  # 256 passages a transaction
DISTINCT = 64  # states
DIMENSION = 8
LOOKED_UP = 100  # ids together
CALLS = 300


def doc_id_of(ordinal: int) -> str:
    """Distinct for numbers below 2 ** 32, and in no order: the multiplier is odd."""
    return f"{ordinal * 2654435761 % (1 << 32):08x}"


class PreparedSide:
    """Stands for the passage side: every passage has `TOKENS` tokens, and one of `DISTINCT` states (P, D)."""

    chunk_size, dtype, device = RATIO, torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        chance = np.random.default_rng(0)
        states = chance.normal(size=(DISTINCT, -(-TOKENS // RATIO), WIDTH)).astype(np.float32)
        self._states = list(torch.from_numpy(states))
        self._tokens = Tokens([0] * TOKENS, truncated=False)

    def tokenize(self, documents: Sequence[str]) -> list[Tokens]:
        """The same for each."""
        return [self._tokens] * len(documents)

    def encode(self, batch: Sequence[Tokens]) -> list[torch.Tensor]:
        """The first ones."""
        return [self._states[i % DISTINCT] for i in range(len(batch))]


class PreparedEmbedder:
    """Stands for the embedder."""

    dimension = DIMENSION
    digest = "prepared"

    def __init__(self) -> None:
        self._vectors = np.random.default_rng(1).normal(size=(BATCH, DIMENSION)).astype(np.float32)

    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The first ones (n, E)."""
        return self._vectors[: len(texts)]

    embed_queries = embed_passages


def prepared(*, bm25: bool) -> tuple[Settings, Encoders]:
    """Settings, and what stands for the models."""
    settings = load_settings(codec=CODEC, chunk_size=RATIO, batch_tokens=BATCH_TOKENS, bm25=bm25, dense_index="flat")
    stored = ("", 1024, RATIO, "float32", CODEC)
    fingerprint = Fingerprint("prepared", *stored, "prepared", bm25, settings.store_text, sensitivity="")
    checkpoint = SimpleNamespace(config=SimpleNamespace(encoder=SimpleNamespace(hidden_size=WIDTH)))
    side, embedder = cast(Any, PreparedSide()), PreparedEmbedder()
    decoder = ServingDecoder("prepared", "prepared")
    return settings, Encoders(cast(Any, checkpoint), side, embedder, get_codec(CODEC), fingerprint, decoder)


def build(step: Step) -> dict[str, Any]:
    """`seconds` and `cpu_seconds` hold making the texts too; `build_seconds` and `build_cpu_seconds` do not."""
    made = [0.0, 0.0]  # by the clock, and of the processor

    def lines() -> Iterator[CorpusLine]:
        for batch, start in enumerate(range(0, step.passages, BATCH)):
            before = time.perf_counter(), time.process_time()
            some = texts(batch, min(BATCH, step.passages - start))
            made[0] += time.perf_counter() - before[0]
            made[1] += time.process_time() - before[1]
            for ordinal, text in enumerate(some, start):
                yield CorpusLine(Passage(doc_id_of(ordinal), text), f"made:{ordinal}")

    settings, encoders = prepared(bm25=False)
    started = time.perf_counter(), time.process_time()
    report = run_index_job(
        lines(), step.folder, settings, encoders, on_reject=lambda line: None, on_progress=lambda progress: None
    )
    seconds = time.perf_counter() - started[0] - made[0]
    cpu_seconds = time.process_time() - started[1] - made[1]
    assert report.passages == step.passages
    return {
        "build_seconds": round(seconds, 3),
        "build_cpu_seconds": round(cpu_seconds, 3),
        "passages_per_second": round(step.passages / seconds),
        "payload_bytes": report.payload_bytes,
        "bytes": report.file_bytes,
    }


def look_up(step: Step) -> dict[str, Any]:
    """Opening, checks included, and `LOOKED_UP` random ids -> one float32 tensor, warm."""
    chance = random.Random(0)
    asked = [[doc_id_of(chance.randrange(step.passages)) for _ in range(LOOKED_UP)] for _ in range(CALLS)]
    opened = []
    for _ in range(5):
        started = time.perf_counter()
        generation = open_current(step.folder)
        require_valid(generation)
        with SegmentSet(generation) as store:
            opened.append(1e3 * (time.perf_counter() - started))
    with SegmentSet(generation) as store:
        reader = StateReader(store, get_codec(CODEC), RATIO)
        for ids in asked:
            reader.read(ids, RATIO)  # so that what is looked up is in memory
        row = latencies_ms(CALLS, lambda i: reader.read(asked[i], RATIO))
    return {"open_ms": round(max(opened), 3), "lookup": row}


def _cpu_ms(built: Mapping[str, Any]) -> float:
    return 1e3 * float(built["build_cpu_seconds"]) / float(built["passages"])


PART = Part(
    "store",
    {"build": build, "look_up": look_up},
    {
        "Store: the index job, models aside": (
            Column("passages/s", lambda rows: f"{rows['build']['passages_per_second']:,}"),
            Column("ms of processor each", lambda rows: f"{_cpu_ms(rows['build']):.3f}"),
            memory("build"),
            Column("bytes each", lambda rows: f"{rows['build']['bytes'] / rows['build']['passages']:,.0f}"),
        ),
        f"Store: {LOOKED_UP} random ids to tensor, warm": (
            Column("open, ms", lambda rows: f"{rows['look_up']['open_ms']:.1f}"),
            memory("look_up"),
            Column("p50 / p95, ms", lambda rows: "{p50_ms:.2f} / {p95_ms:.2f}".format(**rows["look_up"]["lookup"])),
        ),
    },
)
