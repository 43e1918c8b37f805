"""What many services have: whole pooled states in a dictionary in memory, and one lock around it all.

    python -m benchmarks.text_cache.lru JOB

`JOB` is a file with the fields of `Job` as JSON. The models, batches and kernels are ours; the cache and the handler
are what is compared. Before it serves, the dictionary gets states for the passages of an earlier part of the stream.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import BaseModel
from torch import Tensor

from benchmarks.text_cache.prepared import shape_of
from benchmarks.text_cache.stream import Stream
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.precision import resolve_device, resolve_dtype
from kalm_cache.model.prompts import Prompt, Tokens
from kalm_cache.scoring.batching import DECODE_BATCH
from kalm_cache.scoring.passage_side import PassageSide, load_passage_side
from kalm_cache.scoring.query_side import QuerySide, load_query_side, score_of
from kalm_cache.settings import Settings, load_settings
from query_service.server import address_of, bind, make_server, serve

KEPT_AS = torch.bfloat16
ENCODE_TOKENS = 4096  # of a batch, padding included


@dataclass(frozen=True, slots=True)
class Job:
    """model, dtype: what computes. stream: its fields. mib: of states. history, seed: requests that came before."""

    model: str
    dtype: str
    stream: dict[str, Any]
    mib: int
    history: int
    seed: int

    def to_json(self) -> str:
        """For the command."""
        return json.dumps(asdict(self))


class Lru:
    """States by text. The least recently used leave first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._states: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, text: str) -> Tensor | None:
        """The states of a text."""
        states = self._states.get(text)
        if states is not None:
            self._states.move_to_end(text)
        return states

    def put(self, text: str, states: Tensor) -> None:
        """Keep the states of a text that has none."""
        self._states[text] = states
        self._bytes += states.nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._states.popitem(last=False)[1].nbytes

    def __len__(self) -> int:
        return len(self._states)


class Reranker:
    """Texts → scores, one request at a time."""

    def __init__(self, lru: Lru, query_side: QuerySide, passage_side: PassageSide) -> None:
        self._lru, self._query_side, self._passage_side, self._lock = lru, query_side, passage_side, Lock()

    def rank(self, query: str, texts: list[str]) -> list[dict[str, Any]]:
        """A result for each text, best first."""
        with self._lock:
            found = {text: states for text in texts if (states := self._lru.get(text)) is not None}
            states = found | self._encode([text for text in texts if text not in found])
            prompt = self._query_side.tokenize(Prompt(query))
            margins = self._query_side.margins([prompt] * len(texts), [states[text] for text in texts], DECODE_BATCH)
        results = [
            {"index": i, "relevance_score": score_of(margin), "cache": "hit" if text in found else "encoded"}
            for i, (text, margin) in enumerate(zip(texts, margins, strict=True))
        ]
        return sorted(results, key=lambda result: -float(result["relevance_score"]))

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        tokens = dict(zip(texts, self._passage_side.tokenize(texts), strict=True))
        states: dict[str, Tensor] = {}
        for batch in _batches(tokens):
            encoded = self._passage_side.encode([tokens[text] for text in batch])
            states |= {text: each.to(KEPT_AS) for text, each in zip(batch, encoded, strict=True)}
        for text, each in states.items():
            self._lru.put(text, each)
        return states


def _batches(tokens: dict[str, Tokens]) -> list[list[str]]:
    """As many together as the service of this project encodes together."""
    if not tokens:
        return []
    size = max(1, ENCODE_TOKENS // max(len(each.ids) for each in tokens.values()))
    texts = list(tokens)
    return [texts[start : start + size] for start in range(0, len(texts), size)]


class Request(BaseModel):
    """The part of a rerank that the benchmark uses."""

    query: str
    documents: list[str]


def create_app(reranker: Reranker) -> FastAPI:
    """One route."""
    app = FastAPI()

    @app.post("/rerank")
    def rerank(request: Request) -> dict[str, Any]:
        return {"results": reranker.rank(request.query, request.documents)}

    return app


def load(job: Job) -> Reranker:
    """The models, and a dictionary that is as full as the stream made it."""
    settings = load_settings(model=job.model, dtype=job.dtype, device="cpu")
    checkpoint, device = open_checkpoint(job.model), resolve_device("cpu")
    dtype = resolve_dtype(job.dtype, device)
    query_side = load_query_side(checkpoint, device=device, dtype=dtype, query_max_length=settings.query_max_length)
    passage_side = load_passage_side(
        checkpoint,
        device=device,
        dtype=dtype,
        max_length=settings.max_length,
        chunk_size=settings.chunk_size,
        tokenizer=query_side.tokenizer,
    )
    query_side.warm_up()
    return Reranker(_seen(job, settings, query_side), query_side, passage_side)


def _seen(job: Job, settings: Settings, query_side: QuerySide) -> Lru:
    stream, lru = Stream(**job.stream), Lru(job.mib << 20)
    texts, shape = stream.texts(query_side.tokenizer), shape_of(settings, stream.tokens)
    states = shape.states(0).to(KEPT_AS)
    for number in stream.requests(job.history, job.seed).ravel():
        if lru.get(texts[number]) is None:
            lru.put(texts[number], states.clone())
    return lru


def main() -> None:
    """Serve until SIGTERM."""
    reranker = load(Job(**json.loads(Path(sys.argv[1]).read_text("utf-8"))))
    with bind("127.0.0.1", 0) as listener:
        print(address_of(listener), file=sys.stderr, flush=True)
        serve(make_server(create_app(reranker)), listener)


if __name__ == "__main__":
    main()
