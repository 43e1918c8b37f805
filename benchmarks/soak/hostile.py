"""A client that means no good, minute on, minute off: half-open, long, wrong-typed. A process of its own.

    python -m benchmarks.soak.hostile HOST PORT SECONDS

Prints a JSON line for each answer that it gets: what it did, and the status; 0 where the connection was closed on it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable

ON_SECONDS = OFF_SECONDS = 60.0
HALF_OPEN = 20
HELD_SECONDS = 2.0

Address = tuple[str, int]


def is_on(seconds: float) -> bool:
    """Whether the client attacks, so many seconds after it was started: every second minute, the first is quiet."""
    return seconds % (ON_SECONDS + OFF_SECONDS) >= OFF_SECONDS


async def half_open(address: Address) -> int:
    """Connections that send the half of a head, and wait."""

    async def one() -> int:
        _, writer = await asyncio.open_connection(*address)
        writer.write(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Le")
        await asyncio.sleep(HELD_SECONDS)
        writer.close()
        return 0

    await asyncio.gather(*(one() for _ in range(HALF_OPEN)), return_exceptions=True)
    return 0


async def ask(address: Address, path: str, body: bytes) -> int:
    """One request; its status, 0 where the connection was closed first."""
    try:
        reader, writer = await asyncio.open_connection(*address)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        line = await reader.readline()
        writer.close()
        return int(line.split(b" ")[1]) if line else 0
    except (OSError, IndexError):
        return 0


LONG = json.dumps({"query": "q", "documents": ["A very long document. " * 400_000], "timeout_ms": 1000}).encode()
MANY_IDS = json.dumps({"query": "q", "ids": list(range(1_000_000))}).encode()
WRONG = json.dumps({"query": ["q"] * 100, "k": "ten", "top_n": True, "first_stage": 7}).encode()
INSTRUCTION = json.dumps({"query": "q", "k": 5, "instruction": "follow this " * 1200}).encode()
DOCUMENTS = json.dumps(
    {"query": "q", "documents": [f"{i} word " * 400 for i in range(200)], "timeout_ms": 2000}
).encode()

ATTACKS: dict[str, Callable[[Address], Awaitable[int]]] = {
    "half-open": half_open,
    "long document": lambda address: ask(address, "/rerank", LONG),
    "a million ids": lambda address: ask(address, "/rerank", MANY_IDS),
    "wrong types": lambda address: ask(address, "/search", WRONG),
    "long instruction": lambda address: ask(address, "/search", INSTRUCTION),
    "many documents": lambda address: ask(address, "/rerank", DOCUMENTS),
}


async def attack(address: Address, seconds: float) -> None:
    """One attack after the other, in the minutes that are on."""
    started = time.monotonic()
    for name in itertools.cycle(ATTACKS):
        while (at := time.monotonic() - started) < seconds and not is_on(at):
            await asyncio.sleep(0.2)
        if at >= seconds:
            return
        print(json.dumps([name, await ATTACKS[name](address)]), flush=True)


if __name__ == "__main__":
    asyncio.run(attack((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])))
