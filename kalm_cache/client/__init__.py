"""Clients of the query service, with the methods that an index or a reranker has in this process.

`calls.py` says what is sent and how answers are read, `retries.py` when to try again; both know nothing of sockets.
`client.py` and `async_client.py` are what remains: one loop around httpx each.
"""

from kalm_cache.client.answers import AttendedChunk, Explanation, PairScore, ServedAnswer, ServedPlan, ServedResult
from kalm_cache.client.async_client import AsyncClient
from kalm_cache.client.calls import DocumentLike, ExplainOptions, PairLike, RerankOptions, ScoreOptions, SearchOptions
from kalm_cache.client.client import Client
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
