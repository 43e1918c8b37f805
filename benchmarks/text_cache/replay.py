"""The stream of a RAG application, replayed against services that keep states in different places.

    python -m benchmarks.checkpoints --shape nano --tokenizer kalm_cache/bundled/tiny --out nano-shaped
    python -m benchmarks.text_cache.replay --model nano-shaped [--dtype int8] [--codec int8] [--rounds 5]
        [--requests 50] [--no-cache-requests 5] [--lru-requests 15] [--cold-requests 10] [--out replay.json]

Requests have 50 distinct passages each, of 20,000 with 256 tokens, by Zipf's law (s = 1). Every system is a service in
a process of its own, asked over HTTP by one client; the others idle. They take turns, and all are asked the same
requests from the first on, those that encode fewer of them. The systems:

    no cache        `kalm-cache serve`, requests with `"cache": false`
    in-memory LRU   a plain handler, states in a dictionary of 256 MiB behind a lock (lru.py), full at the start
    cold            `kalm-cache serve --text-cache` on an empty folder
    warm            the same on a full one, which holds every passage
    restarted       the same, a new process in every turn; its first requests are asked and not counted
    by id           `kalm-cache serve --index`, the same passages as ids

What is warm holds random states of the true shape and codec (prepared.py); misses are encoded. The warm cache is as
full as its bound allows: what the passages leave, records of others take.

The writer at its limit: a thread in the service's process fills the cache as fast as it is written (flooded.py), while
requests of 10 passages are asked for, and in turns none does. This service computes on one thread, in both turns: the
second core is the writer's. The look-up alone, beside decoding as many pairs, is timed in this process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.serve.process import Running
from benchmarks.text_cache import flooded, prepared
from benchmarks.text_cache.asking import Asked, ask
from benchmarks.text_cache.findings import goals_of, rows_of, tables
from benchmarks.text_cache.stream import Stream, query
from benchmarks.text_cache.systems import HISTORY, REQUESTS, Bench, open_bench
from benchmarks.timing import Times, interleave, machine, progress
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.precision import resolve_device
from kalm_cache.model.prompts import CutSide, Prompt, Tokens
from kalm_cache.scoring.batching import DECODE_BATCH
from kalm_cache.scoring.query_side import load_query_side

LOOKED_UP = 100
UNDER_WAY_SECONDS = 1.0
FULL = 0.85  # of a cache's bound that is filled before


def prepare(bench: Bench) -> None:
    """Write the full cache and the index."""
    progress(f"an index of {bench.stream.passages} passages")
    prepared.build_index(bench.index, bench.texts, bench.settings, bench.shape)
    with bench.open_full() as cache:
        record = bench.shape.record(bench.shape.states(0))
        others = int(FULL * cache.options.max_bytes) - bench.stream.passages * len(record.payload)
        progress(f"a text cache, {others >> 20} MiB of others' records first")
        prepared.fill_up(cache, others, bench.shape)
        prepared.fill(prepared.states_in(cache, bench.settings, bench.dtype), bench.texts, bench.shape)


def replay(bench: Bench) -> dict[str, Asked]:
    """Every system's answers, asked in turns."""
    args = bench.args
    stream = bench.stream.requests(args.requests, REQUESTS)
    bodies = bench.bodies(stream)
    asks = {
        "no cache": bench.bodies(stream[: args.no_cache_requests], cache=False),
        "in-memory LRU": bodies[: args.lru_requests],
        "cold": bodies[: args.cold_requests],
        "warm": bodies,
        "restarted": bodies,
        "by id": bench.bodies(stream, ids=True),
    }
    with ExitStack() as stack:
        services: dict[str, Running] = {}
        for name, service in (("cold", bench.cached(bench.folder / "cold")), ("warm", bench.cached(bench.full))):
            progress(f"starting {name}")
            services[name] = stack.enter_context(service)
        progress("starting the in-memory LRU and by id")
        services |= {"in-memory LRU": stack.enter_context(bench.lru()), "by id": stack.enter_context(bench.by_id())}
        services["no cache"] = services["cold"]  # what is asked for without a cache neither reads nor writes one
        warm_up = bench.bodies(bench.stream.requests(1, HISTORY), cache=False)
        for name in ("cold", "in-memory LRU"):
            ask(services[name], warm_up)  # compilers, allocators and the encoder's weights
        return _in_turns(bench, services, asks)


def _in_turns(bench: Bench, services: dict[str, Running], asks: dict[str, list[str]]) -> dict[str, Asked]:
    answers = {name: Asked() for name in asks}
    for turn in range(bench.args.rounds):
        for name in list(asks)[:: 1 if turn % 2 == 0 else -1]:
            bodies = _share(asks[name], turn, bench.args.rounds)
            progress(f"round {turn + 1} of {bench.args.rounds}: {name}, {len(bodies)} requests")
            if name != "restarted":
                answers[name] += ask(services[name], bodies)
                continue
            answers[name] += _restarted(bench, bodies)
    return answers


def _restarted(bench: Bench, bodies: list[str]) -> Asked:
    """Answers of a new process, once it has answered some; and how long it took until then."""
    started = time.perf_counter()
    with bench.cached(bench.full) as service:
        ask(service, bench.bodies(bench.stream.requests(1, HISTORY)))
        first = time.perf_counter() - started
        ask(service, bench.bodies(bench.stream.requests(bench.args.settling, HISTORY + 1)))
        settled = time.perf_counter() - started
        progress(f"a new process: first answer after {first:.1f} s, counted from {settled:.1f} s on")
        asked = ask(service, bodies)
    asked.first_answers_s, asked.settled_s = [first], [settled]
    return asked


def _share(bodies: list[str], turn: int, rounds: int) -> list[str]:
    """The part of a system's requests that this turn asks for."""
    return bodies[turn * len(bodies) // rounds : (turn + 1) * len(bodies) // rounds]


def replay_flooded(bench: Bench) -> tuple[dict[str, Asked], dict[str, Any]]:
    """Answers with the writer idle and at its limit, in turns, and what the writer did."""
    args, flag = bench.args, bench.folder / "flood"
    small = Stream(bench.stream.passages, bench.stream.tokens, args.writer_documents)
    bodies = bench.bodies(small.requests(args.writer_requests, REQUESTS))
    shape = json.dumps(asdict(bench.shape))
    prefix = [sys.executable, "-m", "benchmarks.text_cache.flooded", str(flag), str(bench.full), str(args.gib), shape]
    answers = {"writer idle": Asked(), "writer at its limit": Asked()}
    written: list[dict[str, Any]] = []
    with bench.cached(bench.full, prefix, OMP_NUM_THREADS="1") as service:
        ask(service, bench.bodies(small.requests(args.settling, HISTORY)))
        for turn in range(args.rounds):
            for name in list(answers)[:: 1 if turn % 2 == 0 else -1]:
                some = _share(bodies, turn, args.rounds)
                progress(f"round {turn + 1} of {args.rounds}: {name}, {len(some)} requests")
                if name == "writer idle":
                    answers[name] += ask(service, some)
                    continue
                with _flooding(flag, written):
                    answers[name] += ask(service, some)
    totals = {key: sum(one[key] for one in written) for key in ("seconds", "written", "evicted", "dropped")}
    return answers, totals | {"off": [one["off"] for one in written if one["off"]]}


@contextmanager
def _flooding(flag: Path, written: list[dict[str, Any]]) -> Iterator[None]:
    """The writer is at its limit within the block; what it wrote comes to `written`."""
    flooded.report_of(flag).unlink(missing_ok=True)
    flag.touch()
    time.sleep(UNDER_WAY_SECONDS)
    yield
    flag.unlink()
    while not flooded.report_of(flag).exists():
        time.sleep(flooded.LOOK_SECONDS)
    written.append(json.loads(flooded.report_of(flag).read_text("utf-8")))


@dataclass(frozen=True, slots=True)
class AllHeld:
    """Stands for what tokenises texts that are not there."""

    max_length: int

    def tokenize(self, documents: Sequence[str], cut_side: CutSide = "right") -> list[Tokens]:
        """There must be none."""
        raise RuntimeError(f"{len(documents)} texts are not in the full cache")


def look_up_and_decode(bench: Bench) -> dict[str, Times]:
    """Looking 100 texts up, hash, read and decoding of the codec, and decoding their pairs."""
    settings = bench.settings
    device = resolve_device("cpu")
    side = load_query_side(
        open_checkpoint(settings.model),
        device=device,
        dtype=bench.dtype,
        query_max_length=settings.query_max_length,
    )
    held, prompts = AllHeld(settings.max_length), [side.tokenize(Prompt(query(bench.words, i))) for i in range(100)]
    rows = Stream(bench.stream.passages, bench.stream.tokens, LOOKED_UP).requests(500, HISTORY)
    asked = [[bench.texts[number] for number in row] for row in rows]
    with bench.open_full() as cache:
        states = prepared.states_in(cache, settings, bench.dtype)

        def look_up(i: int) -> list[torch.Tensor]:
            found = states.look_up(held, asked[i % len(asked)]).found
            return [passage.states for passage in found.values()]

        fixed = look_up(0)
        return interleave(
            {
                "look-up": look_up,
                "decoder": lambda i: side.margins([prompts[i % len(prompts)]] * LOOKED_UP, fixed, DECODE_BATCH),
            },
            repeats=bench.args.rounds,
            turn_s=0.5,
            device=device,
        )


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint folder")
    parser.add_argument("--dtype", default="int8", help="that services compute in")
    parser.add_argument("--codec", default="int8", help="of cached and indexed states")
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=256, help="of a passage")
    parser.add_argument("--documents", type=int, default=50, help="of a request")
    parser.add_argument("--exponent", type=float, default=1.0, help="of Zipf's law")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=50, help="warm, restarted and by id")
    parser.add_argument("--no-cache-requests", type=int, default=5)
    parser.add_argument("--lru-requests", type=int, default=15)
    parser.add_argument("--cold-requests", type=int, default=10)
    parser.add_argument("--lru-mib", type=int, default=256)
    parser.add_argument("--history", type=int, default=400, help="requests that the LRU has seen before")
    parser.add_argument("--settling", type=int, default=20, help="first requests of a process, not counted")
    parser.add_argument("--gib", type=float, default=5.0, help="bound of a text cache")
    parser.add_argument("--writer-requests", type=int, default=150, help="with the writer idle, and at its limit")
    parser.add_argument("--writer-documents", type=int, default=10, help="of these requests")
    parser.add_argument("--folder", type=Path, help="where caches and index are written; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=Path("replay.json"), help="gets everything measured as JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print tables, write the file."""
    args, started = parse_arguments(arguments), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        bench = open_bench(args, Path(folder))
        prepare(bench)
        times = look_up_and_decode(bench)
        rows = rows_of(replay(bench), beside="by id")
        answers, written = replay_flooded(bench)
    writer_rows = rows_of(answers, beside="writer idle")
    goals = goals_of(rows, writer_rows, times)
    print(tables(rows, writer_rows, goals))
    found = {
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "machine": machine(torch.device("cpu")),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "systems": rows,
        "writer": {"loads": writer_rows, "wrote": written},
        "look_up": {name: taken.to_json() for name, taken in times.items()},
        "goals": goals,
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    progress(f"{args.out} after {found['minutes']} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
