"""Clients of the query service, with the methods that an index or a reranker has in this process.

`calls.py` makes requests of arguments and `options.py`, `answers.py` reads their bodies, `retries.py` reads everything
else and decides on another try. None of them opens a socket: `client.py` does, with one loop around httpx for each.
"""

from kalm_cache.client.answers import AttendedChunk, Explanation, PairScore, ServedAnswer, ServedPlan, ServedResult
from kalm_cache.client.calls import DocumentLike, PairLike
from kalm_cache.client.client import AsyncClient, Client
from kalm_cache.client.options import ExplainOptions, RerankOptions, ScoreOptions, SearchOptions
from kalm_cache.client.retries import Retries

__all__ = [
    "AsyncClient",
    "AttendedChunk",
    "Client",
    "DocumentLike",
    "ExplainOptions",
    "Explanation",
    "PairLike",
    "PairScore",
    "RerankOptions",
    "Retries",
    "ScoreOptions",
    "SearchOptions",
    "ServedAnswer",
    "ServedPlan",
    "ServedResult",
]
