"""Every codec on real states: bytes, error, what it does to margins and rankings, and how fast it is.

    python -m benchmarks.codec [--model tiny] [--queries 20] [--candidates 50] [--chunk-sizes 1,4] [--codecs int8,int4]

States and margins are the model's, for questions over the bundled demo corpus and their fused candidates; each codec's
margins are compared with those of the float32 states. Speed is that of 100 records of 64 x 640 states. Prints one JSON
line for each measurement, then Markdown tables; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.candidates import Questions, find_candidates
from benchmarks.timing import emit, markdown
from kalm_cache.codec import CODECS, Codec, decode, get_codec
from kalm_cache.evaluation import load_beir
from kalm_cache.evaluation.evaluate import sample_queries
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.prompts import Prompt
from kalm_cache.scoring.passage_side import load_passage_side
from kalm_cache.scoring.pooling import PooledPassage, mean_pool
from kalm_cache.scoring.query_side import QuerySide, load_query_side

Float32 = NDArray[np.float32]
DEMO = Path(__file__).parents[1] / "kalm_cache" / "bundled" / "demo"
DEFAULT_CODECS = (*CODECS, "fp32+zstd3", "bf16+zstd3", "fp16+zstd3", "int8+zstd3", "int4+zstd3")
RECORDS, ROWS, WIDTH = 100, 64, 640
TOP = 10
BATCH = 16


def read_questions(count: int, candidates: int) -> Questions:
    """A fixed sample of the demo's questions and the fused first stage's best passages for each."""
    return find_candidates(DEMO, sample_queries(load_beir(DEMO), count), candidates).questions


def encode_texts(model: str, texts: list[str]) -> list[PooledPassage]:
    """The passages' states at r = 1, float32 on the CPU."""
    side = load_passage_side(
        open_checkpoint(model), device=torch.device("cpu"), dtype=torch.float32, max_length=1024, chunk_size=1
    )
    return side.encode_documents(texts, BATCH)


def margins_of(side: QuerySide, questions: Questions, states: list[Float32]) -> NDArray[np.float64]:
    """(questions, candidates)."""
    tensors = [torch.from_numpy(one) for one in states]
    rows = []
    for query, ids in zip(questions.queries, questions.candidates, strict=True):
        prompt = side.tokenize(Prompt(query))
        rows.append(side.margins([prompt] * len(ids), [tensors[i] for i in ids], BATCH))
    return np.array(rows)


def errors_of(codec: Codec, states: list[Float32], tokens: int) -> tuple[dict[str, Any], list[Float32]]:
    """Bytes and distances from float32, and the decoded states."""
    payloads = [codec.encode(one) for one in states]
    decoded = [decode(codec, payload, *one.shape) for payload, one in zip(payloads, states, strict=True)]
    exact, found = np.concatenate(states).astype(np.float64), np.concatenate(decoded).astype(np.float64)
    size = sum(map(len, payloads))
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(found, axis=1)
    report = {
        "bytes_per_token": round(size / tokens, 1),
        "bits_per_value": round(8 * size / exact.size, 3),
        "relative_error": round(float(np.linalg.norm(found - exact) / np.linalg.norm(exact)), 5),
        "cosine": round(float(((exact * found).sum(axis=1) / lengths).mean()), 5),
    }
    return report, decoded


def agreement(exact: NDArray[np.float64], found: NDArray[np.float64]) -> dict[str, float]:
    """Margin drift, Kendall's tau (a) and the overlap of the first ten, means over the questions."""
    drift = np.abs(found - exact)
    pairs = list(zip(exact, found, strict=True))
    return {
        "drift_mean": round(float(drift.mean()), 4),
        "drift_max": round(float(drift.max()), 3),
        "kendall": round(float(np.mean([kendall(a, b) for a, b in pairs])), 4),
        "top10": round(float(np.mean([len({*_best(a)} & {*_best(b)}) / TOP for a, b in pairs])), 4),
    }


def kendall(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """(concordant - discordant) / all pairs."""
    i, j = np.triu_indices(len(a), 1)
    return float((np.sign(a[i] - a[j]) * np.sign(b[i] - b[j])).mean())


def measure_quality(
    model: str, questions: Questions, ratios: list[int], codecs: list[Codec]
) -> Iterator[dict[str, Any]]:
    """One report for each codec and pooling ratio."""
    passages = encode_texts(model, questions.texts)
    side = load_query_side(
        open_checkpoint(model), device=torch.device("cpu"), dtype=torch.float32, query_max_length=512
    )
    tokens = sum(passage.tokens for passage in passages)
    for ratio in ratios:
        states = [mean_pool(passage.states, [passage.tokens], ratio)[0].numpy() for passage in passages]
        exact = margins_of(side, questions, states)
        for codec in codecs:
            print(f"r = {ratio}, {codec.name}", file=sys.stderr)
            errors, decoded = errors_of(codec, states, tokens)
            margins = margins_of(side, questions, decoded)
            yield {"codec": codec.name, "model": model, "r": ratio} | errors | agreement(exact, margins)


def measure_speed(codec: Codec) -> dict[str, Any]:
    """Milliseconds for 100 records of 64 x 640, the best of several runs, and MB/s of float32."""
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(ROWS, WIDTH)).astype(np.float32) for _ in range(RECORDS)]
    payloads = [codec.encode(one) for one in states]
    out = np.empty((RECORDS * ROWS, WIDTH), np.float32)
    encode_ms = _best_ms(lambda: [codec.encode(one) for one in states], 2)
    decode_ms = _best_ms(lambda: codec.decode_many(payloads, [ROWS] * RECORDS, WIDTH, out), 9)
    return {
        "codec": codec.name,
        "record_bytes": len(payloads[0]),
        "encode_ms": round(encode_ms, 1),
        "decode_ms": round(decode_ms, 2),
        "encode_mb_s": round(out.nbytes / encode_ms / 1000),
        "decode_mb_s": round(out.nbytes / decode_ms / 1000),
    }


def _best(margins: NDArray[np.float64]) -> list[int]:
    return [int(i) for i in np.argsort(-margins, kind="stable")[:TOP]]


def _best_ms(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return min(times)


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--chunk-sizes", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4])
    parser.add_argument("--codecs", type=lambda text: text.split(","), default=list(DEFAULT_CODECS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codecs = [get_codec(name) for name in args.codecs]
    reports: list[list[dict[str, Any]]] = [[], []]
    for codec in codecs:
        reports[0].append(measure_speed(codec))
        emit(reports[0][-1])
    lossless = [codec for codec in codecs if not codec.name.startswith("fp32") and "+" not in codec.name]
    questions = read_questions(args.queries, args.candidates)
    for report in measure_quality(args.model, questions, args.chunk_sizes, lossless):
        reports[1].append(report)
        emit(report)
    for rows in reports:
        print(f"\n{markdown(list(rows[0]), [list(row.values()) for row in rows])}")


if __name__ == "__main__":
    main()
