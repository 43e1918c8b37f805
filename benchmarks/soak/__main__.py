"""The service under steady load while generations change under it: errors, mixed-up answers, memory, open files.

    python -m benchmarks.soak [--minutes 30] [--share 0.6] [--clients 8] [--swap-every 5] [--index DIR] [--workers N]
                              [--hostile] [--json FILE] [--plot FILE.png]

A copy of the index (bundled demo corpus, indexed with the default settings, where none is given) is served by
`kalm-cache serve` in a process of its own, at `--share` of what it answers when clients never pause. Meanwhile it is
changed, a step every few seconds: passages are added, some in the place of old ones, and deleted, the first generation
is made live again, and gc removes the others. After each step the new generation is opened and asked the same queries.
An answer is mixed up unless its `index_version` was published and its ids are that generation's, each with its margin
(within 1e-4: pairs that share a batch differ in their last bits; queries are decoded in float32).

With `--hostile` one more client attacks in every second minute (hostile.py), and the service encodes documents, too.
The p99 of the others is given for both kinds of minutes, and their ratio. 429, 503 and 504 are no errors then.

Memory is flat where the median of the last third is within 3% of the second third's. Prints JSON lines; exit code 1
where an answer was not 200, or mixed up.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch

from benchmarks.serve.load import Job, percentile, run_job
from benchmarks.serve.process import Running, serving
from benchmarks.soak.changes import DTYPE, Changes, K, build
from benchmarks.soak.tally import Tally
from benchmarks.timing import emit, machine, progress, significant
from kalm_cache.cli.commands.demo import BUNDLED_DEMO
from kalm_cache.evaluation import load_beir

QUERIES = 16
FLAT = 0.03
SAMPLE_SECONDS = 2.0
SHOWN_PROBLEMS = 10
REFUSALS = frozenset({429, 503, 504})


def soak(service: Running, changes: Changes, queries: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Load, changes and samples side by side, for so many minutes; the counts."""
    bodies = [json.dumps({"query": query, "k": K, "top_n": 0, "return_documents": False}) for query in queries]
    job = Job(service.host, service.port, "/search", bodies, seconds=5.0, clients=16)
    run_job(job)  # warm
    saturated = run_job(job)
    capacity = len(saturated.answered_ms()) / saturated.seconds
    samples: list[dict[str, float]] = []
    tally, over = Tally(refusals=REFUSALS if args.hostile else frozenset()), Event()
    tally.publish(changes.live, changes.answers())
    steady = Job(job.host, job.port, job.path, bodies, args.minutes * 60, args.clients, args.share * capacity)
    with _Clients(steady, tally) as asking, _hostile(steady, tally) if args.hostile else nullcontext():
        sampling = Thread(target=_sample, args=(service, tally, samples, over))
        sampling.start()
        try:
            _change(changes, tally, args.swap_every, asking)
        finally:
            over.set()
            sampling.join()
    return _counts(tally, changes, samples) | {"capacity_per_s": significant(capacity), "share": args.share}


class _Clients:
    """The clients' process, and a thread that counts what it prints."""

    def __init__(self, job: Job, tally: Tally) -> None:
        command = [sys.executable, "-m", "benchmarks.soak.clients"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(job)))
        self._process.stdin.close()
        self._thread = Thread(target=self._read, args=(tally,))

    @property
    def asking(self) -> bool:
        """Whether they still ask."""
        return self._process.poll() is None

    def __enter__(self) -> _Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._thread.join()

    def _read(self, tally: Tally) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            number, status, took_ms, said, results = json.loads(line)
            tally.add(number, status, took_ms, said, [(one, margin) for one, margin in results])


@contextmanager
def _hostile(job: Job, tally: Tally) -> Iterator[None]:
    """The hostile client's process, and a thread that counts what it prints."""
    command = [sys.executable, "-m", "benchmarks.soak.hostile", job.host, str(job.port), str(job.seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = process.stdout

    def read() -> None:
        for line in lines:
            name, status = json.loads(line)
            tally.attacks[f"{name}: {status}"] += 1

    thread, tally.hostile_since = Thread(target=read), time.monotonic()
    thread.start()
    try:
        yield
    finally:
        process.terminate()
        thread.join()
        process.wait()


def _change(changes: Changes, tally: Tally, every_seconds: float, asking: _Clients) -> None:
    for name, step in changes.steps():
        started = time.monotonic()
        before = changes.live
        step()
        changes.made[name] += 1
        if changes.live != before:
            changes.made["swaps"] += 1
            tally.publish(changes.live, changes.answers())
        while (left := started + every_seconds - time.monotonic()) > 0 and asking.asking:
            time.sleep(min(left, 0.5))
        if not asking.asking:
            return


def _sample(service: Running, tally: Tally, samples: list[dict[str, float]], over: Event) -> None:
    started, said = time.monotonic(), 0.0
    while not over.wait(SAMPLE_SECONDS):
        at = time.monotonic() - started
        samples.append({"s": round(at, 1), "rss_mib": round(service.rss_mib, 1), "fds": service.descriptors})
        if at - said > 60:
            said = at
            answers, problems = sum(tally.statuses.values()), len(tally.problems)
            progress(f"{at / 60:.0f} min: {answers} answers, {problems} problems, {samples[-1]}")


def _counts(tally: Tally, changes: Changes, samples: list[dict[str, float]]) -> dict[str, Any]:
    took, attacked = sorted(tally.took_ms), sorted(tally.took_ms_attacked)
    errors = sum(count for status, count in tally.statuses.items() if status != 200 and status not in tally.refusals)
    second, last = (_median(samples, "rss_mib", third) for third in (1, 2))
    return {
        "benchmark": "soak",
        "requests": sum(tally.statuses.values()),
        "errors": errors,
        "mixed_up": len(tally.problems) - errors,
        "unknown_generation": len(tally.waiting),
        "generations_answered": len(tally.checked),
        "changes": dict(changes.made),
        "p50_ms": percentile(took, 0.5),
        "p99_ms": percentile(took, 0.99),
        **_under_attack(took, attacked, tally),
        "rss_mib_thirds": [_median(samples, "rss_mib", third) for third in range(3)],
        "rss_growth": significant(last / second - 1),
        "rss_flat": abs(last / second - 1) <= FLAT,
        "fds_thirds": [_median(samples, "fds", third) for third in range(3)],
        "problems": tally.problems[:SHOWN_PROBLEMS],
        "samples": samples,
    }


def _under_attack(took: list[float], attacked: list[float], tally: Tally) -> dict[str, Any]:
    if not attacked:
        return {}
    return {
        "p99_ms_attacked": percentile(attacked, 0.99),
        "p99_ratio": significant(percentile(attacked, 0.99) / percentile(took, 0.99)),
        "statuses": dict(tally.statuses),
        "attacks": dict(tally.attacks),
    }


def _median(samples: list[dict[str, float]], name: str, third: int) -> float:
    size = max(1, len(samples) // 3)
    return round(statistics.median(one[name] for one in samples[third * size : (third + 1) * size]), 1)


def plot(counts: dict[str, Any], path: Path) -> None:
    """Resident memory and open files over the run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (memory, files) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 4.5))
    minutes = [one["s"] / 60 for one in counts["samples"]]
    memory.plot(minutes, [one["rss_mib"] for one in counts["samples"]])
    memory.set(ylabel="resident MiB", ylim=(0, None))
    files.plot(minutes, [one["fds"] for one in counts["samples"]])
    files.set(ylabel="open files", xlabel="minutes", ylim=(0, None))
    memory.set_title(f"{counts['requests']} requests, {counts['changes'].get('swaps', 0)} swaps")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 1 where an answer was an error, or mixed up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--share", type=float, default=0.6, help="of what the service answers at most")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--swap-every", type=float, default=5.0, help="seconds between two changes")
    parser.add_argument("--index", type=Path, help="of the demo corpus; a copy is changed")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--hostile", action="store_true", help="one more client attacks in every second minute")
    parser.add_argument("--json", type=Path, help="write the counts, samples included")
    parser.add_argument("--plot", type=Path, help="write memory and open files as a PNG")
    args = parser.parse_args(arguments)
    emit({"benchmark": "soak", "minutes": args.minutes, "workers": args.workers} | machine(torch.device("cpu")))
    queries = list(load_beir(BUNDLED_DEMO).queries.values())[:QUERIES]
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        if args.index:
            shutil.copytree(args.index, index)
        else:
            build(BUNDLED_DEMO / "corpus.jsonl.zst", index)
        changes = Changes(index, queries)
        flags = ["--device", "cpu", "--dtype", DTYPE, "--workers", str(args.workers)]
        with serving(index, *flags, *(["--with-encoder"] if args.hostile else [])) as service:
            counts = soak(service, changes, queries, args)
    if args.json:
        args.json.write_text(json.dumps(counts) + "\n")
    if args.plot:
        plot(counts, args.plot)
    emit({name: value for name, value in counts.items() if name != "samples"})
    return int(bool(counts["problems"] or counts["unknown_generation"]))


if __name__ == "__main__":
    sys.exit(main())
