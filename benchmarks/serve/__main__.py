"""The service under load, beside bare decoding, offline searching, a plain handler, and too much of it.

    python -m benchmarks.serve [--demo | --beir DIR | --synthetic N] [--index DIR] [--model tiny] [--dtype float32]
        [--k 100] [--queries 200] [--clients 1,4,16,64] [--seconds 5] [--rounds 3] [--threads N] [--workers N]
        [--only closed,open,overload,plain]

`kalm-cache serve` runs in a process of its own over an index built with the default settings (`--index`: where it is,
or will be), clients in another; requests are POST /search of real queries, or of random words where the corpus is
`--synthetic` (N passages of 256 tokens, for checkpoints without a bundled index). Closed loops: each client asks again
as soon as it is answered. Open loops: Poisson arrivals at a share of what the service answered to 16 clients.

Overhead: with 16 clients the service is never idle, so its time a request is the latency's median over 16 (Little).
That is compared with the same queries' pairs decoded by `QuerySide.margins` alone, states in memory, in this process
with as many threads: overhead = p50 / 16 / decoding - 1. `of offline` is the throughput over that of
`PassageIndex.search`, one query after the other. Both are measured in turns with the service, which idles meanwhile.

Overload: five times what it answers, for `--seconds` times four; resident memory before and after; recovery is the time
from the last arrival until a client beside it has five answers in a row within twice the normal median.
Prints JSON lines, then Markdown tables; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.serve.baselines import Offline
from benchmarks.serve.load import Job, Load, percentile, run_job
from benchmarks.serve.process import Running, running, serving
from benchmarks.timing import emit, machine, markdown, progress, short, significant
from indexer.build.index_job import is_built, load_encoders, run_index_job
from indexer.corpus import CorpusLine, read_corpus
from kalm_cache.cli.commands.demo import BUNDLED_DEMO
from kalm_cache.evaluation import load_beir
from kalm_cache.passage import Passage
from kalm_cache.settings import load_settings

SATURATING = 16
SHARES = (0.25, 0.5, 0.75, 0.9, 1.1)
OVERLOAD = 5.0
SYNTHETIC_TOKENS = 256
HELD = 20  # queries whose candidates are kept for bare decoding
NORMAL, IN_A_ROW = 2.0, 5
WATCHED_SECONDS = 60.0  # after an overload: what waits then has half of that to be answered
PARTS = ("closed", "open", "overload", "plain")


@dataclass(frozen=True, slots=True)
class Bench:
    """What every part asks: `job` is one client's, `pairs` those of a request."""

    job: Job
    pairs: float
    seconds: float

    def closed(self, clients: int) -> Load:
        """So many clients in a closed loop."""
        return run_job(replace(self.job, clients=clients, seconds=self.seconds))

    def open(self, rate: float, seconds: float) -> Load:
        """Arrivals at a rate."""
        return run_job(replace(self.job, rate=rate, seconds=seconds))

    def row(self, name: str, load: Load) -> dict[str, Any]:
        """Latencies and throughput of a load. Latencies are those of answers, not of refusals."""
        took = load.answered_ms()
        ended = len(took) / max(load.lasted_s, 1e-9)
        shares = {f"p{round(100 * share)}_ms": significant(percentile(took, share)) for share in (0.5, 0.95, 0.99)}
        rates = {"requests_per_s": significant(ended), "pairs_per_s": significant(ended * self.pairs)}
        return {"benchmark": "serve", "load": name, **shares, **rates, "statuses": load.counts}


def measure_closed(
    bench: Bench, service: Running, offline: Offline, clients: list[int], rounds: int
) -> list[dict[str, Any]]:
    """Each number of clients; offline and saturated in turns, for the ratios. `service_cores`: how many it had."""
    rows, decodes, searches, saturated, busy_s = [], [], [], Load(), 0.0
    for turn in range(rounds):
        progress(f"round {turn + 1} of {rounds}: offline and {SATURATING} clients")
        decodes.append(offline.decode_ms(bench.seconds / 2))
        searches.append(offline.search_ms(bench.seconds / 2))
        before_s = service.cpu_s
        _extend(saturated, bench.closed(SATURATING))
        busy_s += service.cpu_s - before_s
    row = bench.row(f"{SATURATING} clients", saturated)
    decode_ms, search_ms = statistics.median(decodes), statistics.median(searches)
    rows.append(
        row
        | {
            "bare_decode_ms": significant(decode_ms),
            "offline_search_ms": significant(search_ms),
            "overhead": significant(row["p50_ms"] / SATURATING / decode_ms - 1),
            "of_bare_decode": significant(row["requests_per_s"] * decode_ms / 1000),
            "of_offline": significant(row["requests_per_s"] * search_ms / 1000),
            "service_cores": significant(busy_s / saturated.seconds),
        }
    )
    for count in clients:
        if count != SATURATING:
            progress(f"{count} clients")
            rows.append(bench.row(f"{count} clients", bench.closed(count)))
    return sorted(rows, key=lambda one: int(one["load"].split()[0]))


def measure_open(bench: Bench, capacity: float) -> list[dict[str, Any]]:
    """Arrivals at shares of the capacity (requests/s)."""
    rows = []
    for share in SHARES:
        progress(f"open loop at {share:.0%} of {capacity:.1f} requests/s")
        rows.append(bench.row(f"{share:.0%} of capacity", bench.open(share * capacity, bench.seconds)))
    return rows


def measure_overload(bench: Bench, service: Running, capacity: float, normal_ms: float) -> dict[str, Any]:
    """Five times the capacity, and a client beside it that says when all is as before."""
    seconds = 4 * bench.seconds
    before = service.rss_mib
    progress(f"overload: {OVERLOAD * capacity:.0f} requests/s for {seconds:.0f} s")
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(run_job, replace(bench.job, clients=1, seconds=seconds + WATCHED_SECONDS))
        load = bench.open(OVERLOAD * capacity, seconds)
        during = service.rss_mib
        probe = beside.result()
    # a short second one: what the first made the process keep is not a leak
    again = bench.open(OVERLOAD * capacity, seconds / 2)
    return bench.row("500% of capacity", load) | {
        "errors_but_429_504": sum(1 for one in (*load.statuses, *again.statuses) if one not in (200, 429, 504)),
        "rss_mib": [round(one, 1) for one in (before, during, service.rss_mib)],
        "recovery_s": recovery_s(probe, seconds, NORMAL * normal_ms),
    }


def recovery_s(probe: Load, since_s: float, limit_ms: float) -> float | None:
    """Seconds from `since_s` until five answers in a row are within the limit; `None` = never."""
    good = 0
    for due, took, status in sorted(zip(probe.due_s, probe.took_ms, probe.statuses, strict=True)):
        if due + took / 1000 < since_s:
            continue
        good = good + 1 if status == 200 and took <= limit_ms else 0
        if good == 1:
            first = due
        if good == IN_A_ROW:
            return round(max(0.0, first - since_s), 2)
    return None


def measure_plain(bench: Bench, index: Path, dtype: str | None) -> list[dict[str, Any]]:
    """The plain handler, by one client and by 16."""
    with running(
        [sys.executable, "-m", "benchmarks.serve.baselines", str(index), *([dtype] if dtype else [])]
    ) as plain:
        there = replace(bench, job=replace(bench.job, host=plain.host, port=plain.port))
        run_job(replace(there.job, seconds=1.0))
        return [there.row(f"plain handler, {count} clients", there.closed(count)) for count in (1, SATURATING)]


def _extend(load: Load, other: Load) -> None:
    load.due_s += [load.seconds + due for due in other.due_s]
    load.took_ms += other.took_ms
    load.statuses += other.statuses
    load.seconds += other.seconds


def ensure_index(args: argparse.Namespace, folder: Path) -> Path:
    """The index to serve: the one given, or one of the corpus, built where it is not there yet."""
    index: Path = args.index or folder / "index"
    max_length = SYNTHETIC_TOKENS if args.synthetic else None
    settings = load_settings(model=args.model, device="cpu", max_length=max_length)
    encoders = load_encoders(settings)
    if not is_built(index, encoders):
        progress(f"indexing into {index}")
        run_index_job(corpus(args), index, settings, encoders, on_reject=_no_reject, on_progress=lambda state: None)
    return index


def corpus(args: argparse.Namespace) -> Iterable[Any]:
    """Passages as the indexer reads them."""
    if args.synthetic:
        return [CorpusLine(Passage(f"s{i}", _words(2 * SYNTHETIC_TOKENS, i)), f"{i}") for i in range(args.synthetic)]
    return read_corpus(args.beir or BUNDLED_DEMO / "corpus.jsonl.zst")


def queries(args: argparse.Namespace) -> list[str]:
    """What clients ask."""
    if args.synthetic:
        return [_words(12, 10_000 + i) for i in range(args.queries)]
    asked = list(load_beir(args.beir or BUNDLED_DEMO, args.split).queries.values())
    random.Random(0).shuffle(asked)
    return asked[: args.queries]


def _words(count: int, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("aeioulnrst", k=draw.randint(2, 7))) for _ in range(count))


def _no_reject(line: object) -> None:
    raise AssertionError(line)


def tables(rows: list[dict[str, Any]]) -> str:
    """What was measured, as Markdown."""
    header = ["load", "p50 ms", "p95", "p99", "requests/s", "pairs/s", "answers"]
    names = ("p50_ms", "p95_ms", "p99_ms", "requests_per_s", "pairs_per_s")
    lines = [
        [row["load"], *(short(row[name]) for name in names), " ".join(f"{k}: {v}" for k, v in row["statuses"].items())]
        for row in rows
    ]
    said = [
        f"bare decoding {short(row['bare_decode_ms'])} ms a request, offline search {short(row['offline_search_ms'])}; "
        f"{SATURATING} clients: overhead {row['overhead']:+.1%} at p50, throughput {row['of_offline']:.2f} of offline"
        for row in rows
        if "overhead" in row
    ]
    said += [
        f"overload: {row['errors_but_429_504']} errors but 429 and 504; resident MiB {row['rss_mib']}; "
        f"normal again after {row['recovery_s']} s"
        for row in rows
        if "recovery_s" in row
    ]
    return "\n".join(["", markdown(header, lines), "", *said])


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--demo", action="store_true", help="the bundled corpus and its queries (the default)")
    what.add_argument("--beir", type=Path, help="a folder laid out as BEIR does")
    what.add_argument("--synthetic", type=int, help="so many passages of random words")
    parser.add_argument("--index", type=Path, help="where the index is, or will be")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dtype", help="of the decoder, here and there")
    parser.add_argument("--split", default="test")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--clients", type=lambda text: [int(one) for one in text.split(",")], default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="that compute, here and in the service (OMP_NUM_THREADS)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), help=", ".join(PARTS))
    return parser.parse_args(arguments)


def serve(args: argparse.Namespace, index: Path) -> AbstractContextManager[Running]:
    """The service as the command line wants it."""
    options = ["--device", "cpu", "--workers", str(args.workers), "--model", args.model]
    options += ["--dtype", args.dtype] if args.dtype else []
    return serving(index, *options)


def measure(args: argparse.Namespace, index: Path, asked: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each load, as it ends."""
    bodies = [json.dumps({"query": query, "k": args.k, "top_n": 10}) for query in asked]
    with closing(Offline(index, asked, args.k, args.dtype, read=min(len(asked), HELD))) as offline:
        with serve(args, index) as service:
            bench = Bench(Job(service.host, service.port, "/search", bodies, 1.0), offline.pairs, args.seconds)
            run_job(replace(bench.job, clients=4, seconds=2.0))  # warm
            rows = measure_closed(bench, service, offline, args.clients, args.rounds)
            yield from rows
            capacity = next(row["requests_per_s"] for row in rows if "overhead" in row)
            if "open" in args.only:
                yield from measure_open(bench, capacity)
            if "overload" in args.only:
                alone = run_job(replace(bench.job, seconds=args.seconds)).answered_ms()
                yield measure_overload(bench, service, capacity, percentile(alone, 0.5))
        if "plain" in args.only:
            yield from measure_plain(bench, index, args.dtype)


def main(arguments: list[str] | None = None) -> None:
    """Run the parts that were asked for."""
    args = parse_arguments(arguments)
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
        torch.set_num_threads(args.threads)
    asked = queries(args)
    with tempfile.TemporaryDirectory() as folder:
        index = ensure_index(args, Path(folder))
        said = {"model": Path(args.model).name, "k": args.k, "workers": args.workers}
        emit({"benchmark": "serve"} | said | machine(torch.device("cpu")))
        rows = []
        for row in measure(args, index, asked):
            emit(row)
            rows.append(row)
    print(tables(rows))


if __name__ == "__main__":
    main()
