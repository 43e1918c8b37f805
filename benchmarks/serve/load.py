"""Clients of an HTTP service, in a process of their own: closed loops, and arrivals at a rate. Keeps connections.

Reads one job as JSON from standard input, prints what came of it as JSON:

    python -m benchmarks.serve.load < job.json

In a closed loop each client asks again as soon as it is answered. In an open loop requests come when they come
(Poisson), whether others are answered or not, and a latency counts from when a request was due, so that a client that
could not keep up hides nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

LOST = 0  # in place of a status: no answer came
MAX_CONNECTIONS = 4000


@dataclass(frozen=True, slots=True)
class Job:
    """Who asks what. `rate` (requests/s) makes it an open loop; `bodies` are asked for in turn."""

    host: str
    port: int
    path: str
    bodies: list[str]
    seconds: float
    clients: int = 1
    rate: float | None = None
    seed: int = 0


@dataclass(slots=True)
class Load:
    """What came of a job: for each request when it was due, after how many milliseconds it ended, and how."""

    seconds: float = 0.0
    due_s: list[float] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    @property
    def lasted_s(self) -> float:
        """Until the last answer came."""
        return max((due + took / 1000 for due, took in zip(self.due_s, self.took_ms, strict=True)), default=0.0)

    @property
    def counts(self) -> dict[str, int]:
        """Requests by status."""
        return {str(status): count for status, count in sorted(Counter(self.statuses).items())}

    def answered_ms(self, since_s: float = 0.0) -> list[float]:
        """Sorted latencies of the requests due from `since_s` on that were answered with 200."""
        rows = zip(self.due_s, self.took_ms, self.statuses, strict=True)
        return sorted(took for due, took, status in rows if status == 200 and due >= since_s)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the sorted values lie; NaN of none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


class Connection:
    """One connection that is kept, and opened again when the other side closed it. One request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._head = f"Host: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: "
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; `LOST` where none came."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._address)
            reader, writer = self._streams
            writer.write(f"POST {path} HTTP/1.1\r\n{self._head}{len(body)}\r\n\r\n".encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            content = await reader.readexactly(int(head.split("content-length:", 1)[1].split("\r\n", 1)[0]))
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return LOST, b""
        if "connection: close" in head:
            self.close()
        return int(head.split(" ", 2)[1]), content

    def close(self) -> None:
        """Let go of the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


Check = Callable[[int, int, bytes], None]  # number of the body, status, content


async def closed_loop(job: Job, check: Check | None = None) -> Load:
    """`job.clients` of them, each with one request under way at any time."""
    load, bodies = Load(), itertools.cycle(enumerate(one.encode() for one in job.bodies))
    started = time.perf_counter()

    async def client() -> None:
        connection = Connection(job.host, job.port)
        while time.perf_counter() - started < job.seconds:
            await _ask(connection, job.path, next(bodies), time.perf_counter(), started, load, check)
        connection.close()

    await asyncio.gather(*(client() for _ in range(job.clients)))
    load.seconds = time.perf_counter() - started
    return load


async def open_loop(job: Job, check: Check | None = None) -> Load:
    """Requests at `job.rate`, on as many connections as it takes."""
    load, idle = Load(), [Connection(job.host, job.port) for _ in range(MAX_CONNECTIONS)]
    bodies = itertools.cycle(enumerate(one.encode() for one in job.bodies))
    started, under_way = time.perf_counter(), set()

    async def one(due: float) -> None:
        connection = idle.pop()
        await _ask(connection, job.path, next(bodies), due, started, load, check)
        idle.append(connection)  # the one used last is used next: few connections stay open

    for at in arrivals(job.rate or 1.0, job.seconds, job.seed):
        await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
        task = asyncio.ensure_future(one(started + at))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    load.seconds = max(job.seconds, time.perf_counter() - started)
    await asyncio.gather(*under_way)
    for connection in idle:
        connection.close()
    return load


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests come: a Poisson process."""
    draw = random.Random(seed)
    at = draw.expovariate(rate)
    while at < seconds:
        yield at
        at += draw.expovariate(rate)


async def _ask(
    connection: Connection,
    path: str,
    body: tuple[int, bytes],
    due: float,
    started: float,
    load: Load,
    check: Check | None,
) -> None:
    status, content = await connection.post(path, body[1])
    load.due_s.append(round(due - started, 4))
    load.took_ms.append(round((time.perf_counter() - due) * 1000, 3))
    load.statuses.append(status)
    if check is not None:
        check(body[0], status, content)


def run_job(job: Job) -> Load:
    """Run a job in a process of its own, and wait for it."""
    command = [sys.executable, "-m", "benchmarks.serve.load"]
    done = subprocess.run(command, input=json.dumps(asdict(job)), stdout=subprocess.PIPE, text=True, check=True)
    return Load(**json.loads(done.stdout))


def loop_of(job: Job) -> Callable[[Job, Check | None], Awaitable[Load]]:
    """The loop that a job asks for."""
    return closed_loop if job.rate is None else open_loop


def main() -> None:
    """Read a job, run it, print what came of it."""
    fields: dict[str, Any] = json.load(sys.stdin)
    job = Job(**fields)

    async def run() -> Load:
        return await loop_of(job)(job, None)

    print(json.dumps(asdict(asyncio.run(run()))))


if __name__ == "__main__":
    main()
