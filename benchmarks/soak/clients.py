"""Clients that ask at a steady pace and print a line for each answer; a process of its own, started by soak.py.

Reads a job as `serve_load` does, with a `rate`; prints JSON lines: number of the body, status, milliseconds,
index_version, and [id, margin] of each result.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time

from benchmarks.serve.load import Connection, Job


async def ask_steadily(job: Job) -> None:
    """`job.clients` that share the rate. One that is late asks at once, and does not catch up: no queue builds up."""
    numbers = itertools.cycle(range(len(job.bodies)))
    ends, pause = time.perf_counter() + job.seconds, job.clients / (job.rate or 1.0)

    async def client(place: int) -> None:
        connection = Connection(job.host, job.port)
        await asyncio.sleep(place * pause / job.clients)
        while (asked := time.perf_counter()) < ends:
            number = next(numbers)
            status, content = await connection.post(job.path, job.bodies[number].encode())
            print(json.dumps(line(number, status, (time.perf_counter() - asked) * 1000, content)), flush=True)
            await asyncio.sleep(max(0.0, asked + pause - time.perf_counter()))
        connection.close()

    await asyncio.gather(*(client(place) for place in range(job.clients)))


def line(number: int, status: int, took_ms: float, content: bytes) -> list[object]:
    """What is printed of one answer."""
    if status != 200:
        return [number, status, took_ms, content.decode("utf-8", "replace")[:300], []]
    answer = json.loads(content)
    results = [[one["doc_id"], one["margin"]] for one in answer["results"]]
    return [number, status, round(took_ms, 2), answer["index_version"], results]


if __name__ == "__main__":
    asyncio.run(ask_steadily(Job(**json.load(sys.stdin))))
