"""What the service is compared with: the same queries without a service, and behind a plain handler.

Without a service: bare decoding of their pairs, and whole searches, one after the other. The plain FastAPI handler does
one request at a time; `python -m benchmarks.serve.baselines INDEX [DTYPE]` serves it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel
from torch import Tensor

from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.prompts import Prompt, Tokens
from kalm_cache.scoring.batching import DECODE_BATCH
from query_service.server import address_of, bind, make_server, serve

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Read:
    """One query, tokenised, and the states of its candidates."""

    prompt: Tokens
    states: list[Tensor | PrefixKV]


class Offline:
    """An index opened in this process. `close` it."""

    def __init__(self, index: Path, queries: Sequence[str], k: int, dtype: str | None, read: int) -> None:
        """Candidates of the first `read` queries are held in memory for bare decoding."""
        self._index = PassageIndex.open(index, device="cpu", dtype=dtype)
        self._queries, self._k, self._turn = list(queries), k, 0
        self._read = [self._look_up(query) for query in self._queries[:read]]
        self.decode_ms(0.0), self.search_ms(0.0)

    @property
    def pairs(self) -> float:
        """Pairs of a query, on average."""
        return sum(len(one.states) for one in self._read) / len(self._read)

    def decode_ms(self, seconds: float) -> float:
        """Milliseconds a query, its pairs decoded alone: states read and prompts tokenised before."""
        side = self._index.query_side
        return self._timed(
            seconds, self._read, lambda one: side.margins([one.prompt] * len(one.states), one.states, DECODE_BATCH)
        )

    def search_ms(self, seconds: float) -> float:
        """Milliseconds a query, searched whole: first stage, reading, decoding, texts."""
        return self._timed(seconds, self._queries, lambda query: self._index.search(query, k=self._k))

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def _look_up(self, query: str) -> _Read:
        prompt = self._index.query_side.tokenize(Prompt(query))
        ids = self._index.find(query, self._k).doc_ids
        found = self._index.stored.look_up(ids, [prompt])
        return _Read(prompt, [one.states for one in self._index.stored.prepare(found).passages])

    def _timed(self, seconds: float, items: Sequence[_T], function: Callable[[_T], object]) -> float:
        started, done = time.perf_counter(), 0
        while done == 0 or time.perf_counter() - started < seconds:
            function(items[self._turn % len(items)])
            self._turn, done = self._turn + 1, done + 1
        return 1000 * (time.perf_counter() - started) / done


class Request(BaseModel):
    """The part of a search that the benchmark uses."""

    query: str
    k: int
    top_n: int


def create_app(index: PassageIndex) -> FastAPI:
    """One route; it computes on the event loop, and so for one client at a time."""
    app = FastAPI()

    @app.post("/search")
    async def search(request: Request) -> dict[str, Any]:
        answer = index.search(request.query, k=request.k, top_n=request.top_n)
        return {"results": [{"doc_id": one.doc_id, "margin": one.margin, "text": one.text} for one in answer.results]}

    return app


def main() -> None:
    """Serve until SIGTERM."""
    dtype = sys.argv[2] if len(sys.argv) > 2 else None
    with PassageIndex.open(Path(sys.argv[1]), device="cpu", dtype=dtype) as index, bind("127.0.0.1", 0) as listener:
        print(address_of(listener), file=sys.stderr, flush=True)
        serve(make_server(create_app(index)), listener)


if __name__ == "__main__":
    main()
