"""One client of a rerank service: asks, waits, asks again; counts hits."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.serve.load import Connection
from benchmarks.serve.process import START_SECONDS, Running


@dataclass(slots=True)
class Asked:
    """What came of requests: how long each took, and of their documents, how many had states already.

    first_answers_s: seconds from the start of a process to its first answer.
    settled_s: the same to the first that is counted here.
    """

    took_ms: list[float] = field(default_factory=list)
    documents: int = 0
    hits: int = 0
    first_answers_s: list[float] = field(default_factory=list)
    settled_s: list[float] = field(default_factory=list)

    def __iadd__(self, other: Asked) -> Asked:
        self.took_ms += other.took_ms
        self.documents += other.documents
        self.hits += other.hits
        self.first_answers_s += other.first_answers_s
        self.settled_s += other.settled_s
        return self

    @property
    def requests_per_s(self) -> float:
        """Of one client."""
        return 1000 * len(self.took_ms) / sum(self.took_ms)


def ask(service: Running, bodies: Sequence[str]) -> Asked:
    """Ask for each body, one after the other, on one connection. Raises `RuntimeError` where an answer is no 200."""
    return asyncio.run(_ask(service, bodies))


async def _ask(service: Running, bodies: Sequence[str]) -> Asked:
    connection, asked = Connection(service.host, service.port), Asked()
    await _until_it_listens(service)
    for body in bodies:
        started = time.perf_counter()
        status, content = await connection.post("/rerank", body.encode())
        asked.took_ms.append(1000 * (time.perf_counter() - started))
        if status != 200:
            raise RuntimeError(f"{status}: {content[:500].decode(errors='replace')}")
        results = json.loads(content)["results"]
        asked.documents += len(results)
        asked.hits += sum(result["cache"] == "hit" for result in results)
    connection.close()
    return asked


async def _until_it_listens(service: Running) -> None:
    """A service names its address a moment before."""
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            _, writer = await asyncio.open_connection(service.host, service.port)
        except OSError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
