"""What the service is compared with: the same decoder behind a plain FastAPI handler, one request at a time.

python -m benchmarks.serve.plain INDEX [DTYPE]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from kalm_cache.index.passage_index import PassageIndex
from query_service.server import address_of, bind, serve


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
        serve(create_app(index), listener)


if __name__ == "__main__":
    main()
