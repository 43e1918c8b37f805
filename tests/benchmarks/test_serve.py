from __future__ import annotations

import asyncio
import json
import math

import pytest

from benchmarks.serve.__main__ import recovery_s
from benchmarks.serve.load import LOST, Job, Load, arrivals, closed_loop, open_loop, percentile


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that counts the requests of each connection, and refuses every third."""
    number = 0
    try:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
            await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
            number += 1
            body = json.dumps({"number": number}).encode()
            status = "429 Too Many Requests" if number % 3 == 0 else "200 OK"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    except asyncio.IncompleteReadError:
        writer.close()


def run(job: Job, loop: object) -> tuple[Load, list[tuple[int, int, bytes]]]:
    seen: list[tuple[int, int, bytes]] = []

    async def serve() -> Load:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        there = Job("127.0.0.1", port, job.path, job.bodies, job.seconds, job.clients, job.rate)
        load: Load = await loop(there, lambda *said: seen.append(said))  # type: ignore[operator]
        server.close()
        return load

    return asyncio.run(serve()), seen


def test_clients_of_a_closed_loop_keep_their_connections_and_count_every_answer() -> None:
    load, seen = run(Job("", 0, "/", ["a", "ü"], 0.2, clients=2), closed_loop)
    assert len(seen) == len(load.statuses) > 4
    assert load.counts.keys() == {"200", "429"}
    assert max(json.loads(content)["number"] for _, _, content in seen) > len(seen) / 4
    assert len(load.answered_ms()) == load.counts["200"]


def test_an_open_loop_asks_at_its_rate() -> None:
    load, _ = run(Job("", 0, "/", ["a"], 0.5, rate=200.0), open_loop)
    assert len(load.statuses) == len(list(arrivals(200.0, 0.5, 0)))


def test_where_nobody_answers_requests_are_lost() -> None:
    load = asyncio.run(closed_loop(Job("127.0.0.1", 1, "/", ["a"], 0.05)))
    assert set(load.statuses) == {LOST}


def test_arrivals_come_at_the_rate_and_before_the_end() -> None:
    at = list(arrivals(100.0, 50.0, seed=3))
    assert len(at) == pytest.approx(5000, rel=0.05)
    assert at == sorted(at) and at[-1] < 50.0


def test_percentiles_of_sorted_values() -> None:
    assert [percentile(list(range(100)), share) for share in (0.5, 0.95, 0.99)] == [50, 95, 99]
    assert math.isnan(percentile([], 0.5))


def test_a_service_is_normal_again_with_the_first_of_five_good_answers_in_a_row() -> None:
    #                   during    slow  refused good, interrupted      five in a row
    due = [1.0, 9.0, 10.0, 11.0, 12.0, 12.1, 13.0, 14.0, 14.1, 14.2, 14.3, 14.4]
    took = [5.0, 5000.0, 900.0, 5.0, 5.0, 900.0, 900.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    statuses = [200, 200, 200, 429, 200, 200, 200, 200, 200, 200, 200, 200]
    assert recovery_s(Load(15.0, due, took, statuses), 10.0, limit_ms=10.0) == 4.0
    assert recovery_s(Load(15.0, due[:-1], took[:-1], statuses[:-1]), 10.0, limit_ms=10.0) is None
