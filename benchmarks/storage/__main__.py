"""Codec × chunk size: bytes per passage and what they cost in margins, rankings and nDCG@10, on judged collections.

    python -m benchmarks.storage --beir DIR [DIR ...] --out DIR [--model tiny]
        [--codecs fp32,bf16,fp16,int8,int4,int3,int2] [--chunk-sizes 1,2,4,8,16,32]
        [--k 50] [--max-queries N] [--pairs-only] [--sensitivity FILE]

Candidates come from the fused first stage, once for each collection; only they are encoded, once, at r = 1. Everything
is computed in float32, so that an error is the codec's. Each configuration is compared with fp32 at the same r.

`--sensitivity` (of `benchmarks.sensitivity`; default: what lies beside the weights) adds the codecs below 8 bits once
more, rounding by it: `int4 with_sensitivity`. Their payloads decode as those of `int4`.

Writes OUT/storage.jsonl after each configuration, which a later run goes on from (remove it to measure again), and in
the end OUT/storage.md and OUT/storage.png of all that the file holds. `--pairs-only` leaves nDCG and recall out: for a
model that was not trained to rank.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.candidates import Collection, find_candidates
from benchmarks.codec import Float32, agreement, encode_texts, margins_of
from benchmarks.storage.report import load_figure, markdown_report, plot
from benchmarks.timing import emit, exit_code, progress, significant
from kalm_cache.codec import CODECS, Codec, get_codec
from kalm_cache.codec.rotated import Rotated
from kalm_cache.codec.sensitivity import load_sensitivity
from kalm_cache.evaluation import load_beir
from kalm_cache.evaluation.evaluate import sample_queries
from kalm_cache.evaluation.measures.metrics import measure_queries
from kalm_cache.model.checkpoint import SENSITIVITY_FILE, open_checkpoint
from kalm_cache.scoring.pooling import PooledPassage, mean_pool, pooled_length
from kalm_cache.scoring.query_side import QuerySide, load_query_side
from kalm_cache.storage.durable import write_atomically
from kalm_cache.storage.passage_store import STATES_FILE, PassageMeta, key_of
from kalm_cache.storage.record import Record
from kalm_cache.storage.store_writer import StoreWriter

EXACT = "fp32"
USUAL_TOKENS = 128  # of the passage that goals and other stores are stated for
TIMED_RECORDS, TIMED_REPEATS = 100, 5
FILED_PASSAGES = 1000  # in the store whose file is measured, at least
KEY = ("collection", "split", "model", "checkpoint", "queries", "k", "pairs_only", "r", "codec")
MEASURES = ("ndcg@10", "recall@10")


@dataclass(frozen=True, slots=True)
class Stored:
    """What one codec makes of pooled states: payloads and what they decode to. MB/s are of float32."""

    payloads: list[bytes]
    decoded: list[Float32]
    encode_mb_s: float
    decode_mb_s: float


def store(codec: Codec, states: list[Float32]) -> Stored:
    """Encode and decode all; decoding is timed on some, the best of several times, as a rerank reads them.

    Processor time, that of all threads: it is much the same on a busy machine.
    """
    started = time.process_time()
    payloads = [codec.encode(one) for one in states]
    encode_s = time.process_time() - started
    rows, width = [len(one) for one in states], states[0].shape[1]
    some, out = rows[:TIMED_RECORDS], np.empty((sum(rows), width), np.float32)
    decode_s = min(
        _seconds(lambda: codec.decode_many(payloads[: len(some)], some, width, out[: sum(some)]))
        for _ in range(TIMED_REPEATS)
    )
    codec.decode_many(payloads, rows, width, out)
    decoded = np.split(out, np.cumsum(rows)[:-1])
    return Stored(payloads, decoded, out.nbytes / encode_s / 1e6, out[: sum(some)].nbytes / decode_s / 1e6)


def file_bytes(codec: Codec, ratio: int, passages: list[PooledPassage], payloads: list[bytes], width: int) -> float:
    """Bytes per passage of the states' file in a sealed store of these payloads.

    Few passages are stored several times over: in a large index, a file's first pages do not count.
    """
    times = -(-FILED_PASSAGES // len(payloads))
    with tempfile.TemporaryDirectory() as temporary:
        keys: list[bytes] = []
        with StoreWriter(Path(temporary)) as writer:
            for passage, payload in list(zip(passages, payloads, strict=True)) * times:
                keys.append(key_of(f"passage-{len(keys):08d}"))  # rising
                record = Record(codec.number, ratio, width, passage.tokens, passage.truncated, payload)
                writer.add(keys[-1], record, PassageMeta(len(keys) - 1, bytes(16)), b"")
            writer.finish(enumerate(keys), len(keys))
        return (Path(temporary) / STATES_FILE).stat().st_size / len(keys)


def sizes_of(codec: Codec, ratio: int, passages: list[PooledPassage], payloads: list[bytes]) -> dict[str, Any]:
    """Bytes per passage and per token: of payloads, and of the file that holds them."""
    width = passages[0].states.shape[1]
    tokens, payload = sum(passage.tokens for passage in passages), sum(map(len, payloads))
    file = file_bytes(codec, ratio, passages, payloads, width)
    return {
        "width": width,
        "passages": len(passages),
        "tokens_per_passage": round(tokens / len(passages), 1),
        "payload_bytes_per_passage": round(payload / len(passages), 1),
        "payload_bytes_per_token": round(payload / tokens, 2),
        "file_bytes_per_passage": round(file, 1),
        "file_bytes_per_token": round(file * len(passages) / tokens, 2),
        f"payload_bytes_of_{USUAL_TOKENS}_tokens": codec.payload_bytes(pooled_length(USUAL_TOKENS, ratio), width),
    }


def relative_error(exact: list[Float32], found: list[Float32]) -> float:
    """‖found − exact‖ / ‖exact‖ over all states."""
    pairs = zip(exact, found, strict=True)
    error = sum(float(np.square(b - a, dtype=np.float64).sum()) for a, b in pairs)
    return float(np.sqrt(error / sum(float(np.square(a, dtype=np.float64).sum()) for a in exact)))


def judge(collection: Collection, margins: NDArray[np.float64]) -> dict[str, list[float]]:
    """Each measure of each query, in the order of `task.queries`."""
    run = {
        query_id: [collection.doc_ids[places[i]] for i in np.argsort(-row, kind="stable")]
        for query_id, places, row in zip(collection.task.queries, collection.questions.candidates, margins, strict=True)
    }
    values = measure_queries(collection.task.qrels, run, MEASURES)
    return {name: [values[query_id][name] for query_id in collection.task.queries] for name in MEASURES}


def quality_of(collection: Collection, exact: NDArray[np.float64], margins: NDArray[np.float64]) -> dict[str, Any]:
    """nDCG@10 and recall@10, and nDCG's change from fp32 with the standard error of that mean over the queries."""
    found = judge(collection, margins)
    change = np.array(found["ndcg@10"]) - np.array(judge(collection, exact)["ndcg@10"])
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()} | {
        "ndcg_change": round(float(change.mean()), 4),
        "ndcg_change_se": round(float(change.std(ddof=1) / np.sqrt(len(change))), 4) if len(change) > 1 else None,
    }


def measure(
    collection: Collection,
    passages: list[PooledPassage],
    side: QuerySide,
    wanted: dict[int, dict[str, Codec]],
    pairs_only: bool,
) -> Iterator[dict[str, Any]]:
    """One row for each chunk size and codec of `wanted`, which also says what to call it."""
    for ratio, codecs in wanted.items():
        states = [mean_pool(one.states, [one.tokens], ratio)[0].numpy() for one in passages]
        exact = margins_of(side, collection.questions, states)
        for label, codec in codecs.items():
            progress(f"{collection.task.name}, r = {ratio}, {label}")
            stored = store(codec, states)
            same = codec.name == EXACT  # it decodes to the same floats
            margins = exact if same else margins_of(side, collection.questions, stored.decoded)
            row = {"r": ratio, "codec": label} | sizes_of(codec, ratio, passages, stored.payloads)
            row |= {"encode_mb_s": significant(stored.encode_mb_s), "decode_mb_s": significant(stored.decode_mb_s)}
            row |= {"relative_error": significant(relative_error(states, stored.decoded))}
            row |= agreement(exact, margins)
            yield row if pairs_only else row | quality_of(collection, exact, margins)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What an earlier run measured."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def codecs_of(names: list[str], sensitivity: NDArray[np.float64] | None) -> dict[str, Codec]:
    """Codecs by what rows call them; those that can round by a sensitivity also do so, where there is one."""
    codecs: dict[str, Codec] = {}
    for name in names:
        codecs[get_codec(name).name] = get_codec(name)
        with_sensitivity = get_codec(name, sensitivity)
        if with_sensitivity is not codecs[get_codec(name).name] and isinstance(with_sensitivity, Rotated):
            codecs[f"{with_sensitivity.name} by sensitivity"] = with_sensitivity
    return codecs


def run(args: argparse.Namespace) -> None:
    """Measure what is missing, and write the report."""
    load_figure()  # first: a missing package should not cost an hour
    torch.set_num_threads(args.threads)
    tasks = [sample_queries(load_beir(folder, args.split), args.max_queries) for folder in args.beir]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "storage.jsonl"
    rows = read_rows(path)
    checkpoint = open_checkpoint(args.model)
    codecs = codecs_of(args.codecs, load_sensitivity(args.sensitivity or checkpoint.folder / SENSITIVITY_FILE))
    common = {"model": args.label or Path(args.model).name, "checkpoint": checkpoint.digest()[:12]}
    side = load_query_side(checkpoint, device=torch.device("cpu"), dtype=torch.float32, query_max_length=512)
    for folder, task in zip(args.beir, tasks, strict=True):
        of_task = {"collection": task.name, "split": task.split, **common, "queries": len(task.queries), "k": args.k}
        of_task |= {"pairs_only": args.pairs_only}
        done = {tuple(row[name] for name in KEY) for row in rows}
        missing = {
            ratio: {label: one for label, one in codecs.items() if (*of_task.values(), ratio, label) not in done}
            for ratio in args.chunk_sizes
        }
        wanted = {ratio: some for ratio, some in missing.items() if some}
        if not wanted:
            continue
        progress(f"{task.name}: candidates of {len(task.queries)} queries")
        collection = find_candidates(folder, task, args.k)
        progress(f"{task.name}: {len(collection.doc_ids)} passages to encode")
        passages = encode_texts(args.model, collection.questions.texts)
        for row in measure(collection, passages, side, wanted, args.pairs_only):
            rows.append(of_task | row)
            emit(rows[-1])
            write_atomically(path, "".join(f"{json.dumps(one)}\n" for one in rows).encode())
    report = markdown_report(rows)
    (args.out / "storage.md").write_text(report, "utf-8")
    plot(rows, args.out / "storage.png")
    print(f"\n{report}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beir", type=Path, nargs="+", required=True, help="folders laid out as BEIR does")
    parser.add_argument("--out", type=Path, required=True, help="where storage.jsonl, .md and .png are, or will be")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--label", help="what rows call the model; default: its alias, or its folder's name")
    parser.add_argument("--codecs", type=lambda text: text.split(","), default=list(CODECS))
    parser.add_argument(
        "--chunk-sizes", type=lambda text: [int(part) for part in text.split(",")], default="1,2,4,8,16,32"
    )
    parser.add_argument("--k", type=int, default=50, help="candidates of each query")
    parser.add_argument("--max-queries", type=int, help="a seeded sample of so many queries")
    parser.add_argument("--pairs-only", action="store_true", help="margins and their ranks, without nDCG and recall")
    parser.add_argument("--sensitivity", type=Path, help="file, or a folder that holds it")
    parser.add_argument("--split", default="test")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or that of the error."""
    return exit_code(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
