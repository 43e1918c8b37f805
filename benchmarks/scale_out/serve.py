"""A router and 1, 2, 4, 8 services of shards beside one process over the whole index, all on this machine.

    python -m benchmarks.scale_out.serve [--index DIR] [--shards 1,2,4,8] [--ms-a-pair 26.4] [--k 32] [--queries 64]
        [--clients 8] [--seconds 5] [--rounds 3]

The bundled corpus in 8 shards, or `--index DIR` of 8. Decoding is slept through (`slept.py`): `--ms-a-pair` a pair, by
default what Nano takes in int8 on two cores (the table of speed in README.md); all else is real, search and HTTP
included. Contenders are asked in turns, by one client and by `--clients`; requests are POST /search, answers of 10.

- `overhead`: p50 of the router over one service, less that of one process: both decode all candidates one by one.
- `throughput`: answers a second to many clients, over those of one process.
- `cpu_ms`: processor time of the router a request.

Prints JSON lines, then a Markdown table; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.scale_out.slept import MS_A_PAIR
from benchmarks.serve.load import Job, Load, percentile, run_job
from benchmarks.serve.process import Running, running
from benchmarks.timing import emit, machine, markdown, progress, short, significant
from indexer.build.index_job import load_encoders, run_index_job
from indexer.corpus import read_corpus
from kalm_cache.cli.commands.demo import BUNDLED_DEMO
from kalm_cache.evaluation import load_beir
from kalm_cache.settings import load_settings

SHARDS = 8
SLEPT = [sys.executable, "-m", "benchmarks.scale_out.slept"]
ROUTER = [sys.executable, "-c", "from kalm_cache.cli import main; main()", "router", "--port", "0"]


@dataclass(slots=True)
class Contender:
    """What answers at an address, and what came of each round: with one client, with many, and the router's processor
    time a request.
    """

    service: Running
    alone: list[Load] = field(default_factory=list)
    together: list[Load] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def ask(self, job: Job, clients: int) -> None:
        """One round."""
        started = self.service.cpu_s
        self.alone.append(run_job(_for(job, self.service, 1)))
        self.together.append(run_job(_for(job, self.service, clients)))
        requests = len(self.alone[-1].statuses) + len(self.together[-1].statuses)
        self.cpu_ms.append(1000 * (self.service.cpu_s - started) / requests)

    def latency(self, share: float) -> float:
        """Of one client's answers, in milliseconds: the median over the rounds of a percentile."""
        return statistics.median(percentile(load.answered_ms(), share) for load in self.alone)

    @property
    def rate(self) -> float:
        """Answers a second to many clients: the median over the rounds."""
        return statistics.median(len(load.answered_ms()) / load.lasted_s for load in self.together)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--shards", default="1,2,4,8")
    parser.add_argument("--ms-a-pair", type=float, default=26.4)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    queries = list(load_beir(BUNDLED_DEMO).queries.values())[: given.queries]
    bodies = [json.dumps({"query": query, "k": given.k}) for query in queries]
    job = Job("", 0, "/search", bodies, given.seconds)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        index = given.index or _index(folder / "index")
        contenders = {"one process": Contender(stack.enter_context(_slept(index, given.ms_a_pair)))}
        for count in map(int, given.shards.split(",")):
            progress(f"starting {count} services and their router")
            router = _routed(index, count, given.ms_a_pair, folder / f"{count}.txt")
            contenders[f"router + {count}"] = Contender(stack.enter_context(router))
        for turn in range(given.rounds):
            progress(f"round {turn + 1} of {given.rounds}")
            for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
                contenders[name].ask(job, given.clients)
    emit({"kind": "machine", **machine(torch.device("cpu"))})
    _report(contenders)


def _report(contenders: dict[str, Contender]) -> None:
    one = contenders["one process"]
    rows = []
    for name, contender in contenders.items():
        p50, p99, rate = contender.latency(0.5), contender.latency(0.99), contender.rate
        statuses = [status for load in (*contender.alone, *contender.together) for status in load.statuses]
        line = {
            "kind": "serve",
            "contender": name,
            "p50_ms": significant(p50),
            "p99_ms": significant(p99),
            "overhead_ms": significant(p50 - one.latency(0.5)),
            "answers_s": significant(rate),
            "throughput": significant(rate / one.rate),
            "cpu_ms": significant(statistics.median(contender.cpu_ms)),
            "not_answered": sum(status != 200 for status in statuses),
        }
        emit(line)
        rows.append(
            [name, short(p50), short(p99), f"{p50 - one.latency(0.5):+.1f}", short(rate), f"{rate / one.rate:.2f}"]
        )
    print(markdown(["", "p50, ms", "p99, ms", "− one process", "answers/s", "÷ one process"], rows))


def _for(job: Job, service: Running, clients: int) -> Job:
    return Job(service.host, service.port, job.path, job.bodies, job.seconds, clients)


def _index(folder: Path) -> Path:
    """The bundled corpus in shards."""
    progress(f"indexing the bundled corpus in {SHARDS} shards")
    settings = load_settings(device="cpu")
    lines = read_corpus(BUNDLED_DEMO / "corpus.jsonl.zst")
    watch = {"on_reject": lambda line: None, "on_progress": lambda counts: None}
    run_index_job(lines, folder, settings, load_encoders(settings), shards=SHARDS, **watch)
    return folder


@contextmanager
def _slept(index: Path, ms_a_pair: float, *options: str) -> Iterator[Running]:
    """A service whose decoder sleeps."""
    command = [*SLEPT, "serve", "--index", str(index), "--port", "0", "--device", "cpu", *options]
    with running(command, {MS_A_PAIR: str(ms_a_pair), "OMP_NUM_THREADS": "1"}) as service:
        yield service


@contextmanager
def _routed(index: Path, count: int, ms_a_pair: float, file: Path) -> Iterator[Running]:
    """A router over so many services, which share the shards."""
    with ExitStack() as stack:
        addresses = []
        for first in range(count):
            numbers = ",".join(map(str, range(first, SHARDS, count)))
            service = stack.enter_context(_slept(index, ms_a_pair, "--shards", numbers))
            addresses.append(f"http://{service.host}:{service.port}\n")
        file.write_text("".join(addresses))
        yield stack.enter_context(running([*ROUTER, "--shards-file", str(file)]))


if __name__ == "__main__":
    main()
