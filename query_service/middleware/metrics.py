"""What the service counts, in Prometheus' text format, over one process or several. Knows nothing of who counts.

Several processes write their numbers into the folder that `PROMETHEUS_MULTIPROC_DIR` names, and each renders the sum of
all. The library decides on this when it is imported: the variable must be set before the first `Metrics`.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Literal, get_args

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from query_service.middleware.paths import OTHER, path_template

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

    MakeCounter = partial[Counter]
    MakeGauge = partial[Gauge]
    MakeHistogram = partial[Histogram]

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"  # the library's own name
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PAIRS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CLIENT_LEFT = "499"
RESTARTS = ("kalm_cache_worker_restarts", "Worker processes started again.")

TEXT_CACHE_EVENTS = ("hits", "misses", "expired", "damaged", "written", "dropped", "evicted")
Source = Literal["index_id", "index_text", "text_cache", "in_flight", "encoded"]  # of a passage's states
Stage = Literal["queue", "first_stage", "read", "decode", "encode"]
Outcome = Literal["answered", "failed", "refused", "hedged"]  # of a router's question
Rejection = Literal["queue_full", "deadline", "disconnected", "draining"]


class Metrics:
    """The numbers of one application. Every method may be called from any thread."""

    def __init__(self) -> None:
        """Each has its own registry: several applications in a process do not mix."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

        disable_created_metrics()  # a series more for each series, of which nobody asks
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry)
        total = partial(gauge, multiprocess_mode="livesum")  # over the workers that live
        self._add_request_metrics(counter, histogram, total)
        self._add_passage_metrics(counter, histogram, total)
        self._add_index_metrics(counter, gauge)
        counter(*RESTARTS)  # the parent of the workers counts them
        self._show_zeros()

    def _add_request_metrics(self, counter: MakeCounter, histogram: MakeHistogram, total: MakeGauge) -> None:
        self._requests = counter("kalm_cache_requests", "Requests answered.", ["method", "path", "status"])
        self._request_seconds = histogram(
            "kalm_cache_request_seconds", "From request to last byte.", ["path"], buckets=SECONDS
        )
        self._stage_seconds = histogram(
            "kalm_cache_stage_seconds", "Time in a stage of a request.", ["stage"], buckets=SECONDS
        )
        self._in_flight = total("kalm_cache_requests_in_flight", "Requests under way.")
        self._queue_depth = total("kalm_cache_queue_depth", "Requests that wait for the model.")
        self._rejected = counter(
            "kalm_cache_rejected", "Requests given up: 429, 504, client gone, stopping.", ["reason"]
        )

    def _add_passage_metrics(self, counter: MakeCounter, histogram: MakeHistogram, total: MakeGauge) -> None:
        self._batch_pairs = histogram("kalm_cache_batch_pairs", "Pairs decoded together.", buckets=PAIRS)
        self._batch_tokens = histogram(
            "kalm_cache_batch_tokens", "Tokens of the pairs decoded together.", buckets=TOKENS
        )
        self._passages = counter("kalm_cache_passages", "Passages asked for: cached, encoded or missing.", ["cache"])
        self._sources = counter("kalm_cache_passage_sources", "Passages scored, by where states came from.", ["source"])
        self._text_cache = counter("kalm_cache_text_cache_passages", "What the text cache did, by passage.", ["event"])
        self._text_cache_seen: dict[str, int] = {}
        self._text_cache_lock = Lock()
        self._text_cache_off = total(
            "kalm_cache_text_cache_off", "Processes that keep no more texts; the log says why."
        )
        self._prefix = counter("kalm_cache_prefix_lookups", "Passages looked up in the prefix cache.", ["outcome"])
        self._prefix_seen = (0, 0)
        self._read_bytes = counter("kalm_cache_read_bytes", "Bytes of states read from the store.")
        self._truncated = counter("kalm_cache_truncated", "Queries and documents that were cut.", ["what"])
        self._damaged = counter("kalm_cache_damaged_records", "Damaged records that answers had to do without.")

    def _add_index_metrics(self, counter: MakeCounter, gauge: MakeGauge) -> None:
        lowest, highest = partial(gauge, multiprocess_mode="livemin"), partial(gauge, multiprocess_mode="livemax")
        self._swaps = counter("kalm_cache_swaps", "Changes of generation.", ["outcome"])
        self._generation = lowest("kalm_cache_generation", "Oldest generation served.")
        self._behind = highest(
            "kalm_cache_generation_behind_seconds", "For how long a published generation could not be served."
        )
        self._shared_prefixes = highest(
            "kalm_cache_shared_prefixes", "Prefixes whose keys and values all passages share, kept now."
        )
        self._indexed = highest("kalm_cache_indexed_passages", "Passages of the index.")
        self._decoder = highest("kalm_cache_decoder", "1: the decoder that answers, 0: one before.", ["digest"])
        self._decoders: set[str] = set()
        self._info = highest("kalm_cache_info", "What runs; always 1.", ["version", "model"])

    def routes(self) -> None:
        """These are the numbers of a router, which has some of its own: call it once, before the next two."""
        from prometheus_client import Counter, Gauge

        highest = partial(Gauge, registry=self._registry, multiprocess_mode="livemax")
        self._questions = Counter(
            "kalm_cache_shard_questions",
            "Questions of a router to services of shards.",
            ["path", "outcome"],
            registry=self._registry,
        )
        self._replicas = highest("kalm_cache_replicas", "Services of shards that a router knows.", ["state"])
        self._missing_shards = highest("kalm_cache_missing_shards", "Shards that no service answers for now.")

    def question(self, path: str, outcome: Outcome) -> None:
        """A router asked a service of shards something; `hedged`: as another one was slow."""
        self._questions.labels(path, outcome).inc()

    def fleet(self, *, living: int, silent: int, missing_shards: int) -> None:
        """So many services of shards answer a router now, and so many do not."""
        self._replicas.labels("living").set(living)
        self._replicas.labels("silent").set(silent)
        self._missing_shards.set(missing_shards)

    def request(self, method: str, path: str, status: str, seconds: float) -> None:
        """A request was answered. `path`: the route's template."""
        self._requests.labels(method if method in METHODS else OTHER, path, status).inc()
        self._request_seconds.labels(path).observe(seconds)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """A request is under way."""
        self._in_flight.inc()
        try:
            yield
        finally:
            self._in_flight.dec()

    def observe_stage(self, stage: Stage, seconds: float) -> None:
        """A request, or a batch, spent this long in a stage."""
        self._stage_seconds.labels(stage).observe(seconds)

    def queue_depth(self, requests: int) -> None:
        """So many requests wait now."""
        self._queue_depth.set(requests)

    def batch(self, pairs: int, tokens: int) -> None:
        """So many pairs, with so many tokens, were decoded together."""
        self._batch_pairs.observe(pairs)
        self._batch_tokens.observe(tokens)

    def passages(self, sources: Mapping[Source, int], *, missing: int = 0) -> None:
        """A request's passages: how many came from which source, and how many are missing."""
        for source in get_args(Source):
            self._sources.labels(source).inc(sources.get(source, 0))
        encoded = sources.get("encoded", 0)
        for cache, count in (("hit", sum(sources.values()) - encoded), ("encoded", encoded), ("miss", missing)):
            self._passages.labels(cache).inc(count)

    def text_cache(self, *, is_off: bool, counts: Mapping[str, int]) -> None:
        """The text cache's counts since this process opened it, by event, and whether it gave up writing."""
        with self._text_cache_lock:
            for event, count in counts.items():
                self._text_cache.labels(event).inc(count - self._text_cache_seen.get(event, 0))
            self._text_cache_seen = dict(counts)
        self._text_cache_off.set(is_off)

    def shares_prefixes(self, kept: int) -> None:
        """So many prefixes are kept that all passages share."""
        self._shared_prefixes.set(kept)

    def prefix_cache(self, hits: int, misses: int) -> None:
        """The prefix cache's counts since it was made; start again at 0 with a new cache. Call from one thread."""
        before = self._prefix_seen if hits >= self._prefix_seen[0] and misses >= self._prefix_seen[1] else (0, 0)
        self._prefix.labels("hit").inc(hits - before[0])
        self._prefix.labels("miss").inc(misses - before[1])
        self._prefix_seen = (hits, misses)

    def read(self, size_bytes: int) -> None:
        """So many bytes of states came from the store."""
        self._read_bytes.inc(size_bytes)

    def truncated(self, *, queries: int = 0, documents: int = 0) -> None:
        """So many were cut to what the model takes."""
        self._truncated.labels("query").inc(queries)
        self._truncated.labels("document").inc(documents)

    def damaged(self, records: int) -> None:
        """So many stored records failed their checksum."""
        self._damaged.inc(records)

    def rejected(self, reason: Rejection) -> None:
        """A request was given up."""
        self._rejected.labels(reason).inc()

    def serves(self, index_version: str, passages: int) -> None:
        """This generation is served from now on."""
        self._generation.set(int(index_version) if index_version.isdecimal() else 0)
        self._indexed.set(passages)

    def answers_with(self, digest: str) -> None:
        """The decoder with this digest answers from now on."""
        self._decoders.add(digest)
        for seen in self._decoders:
            self._decoder.labels(seen).set(seen == digest)

    def behind(self, seconds: float) -> None:
        """For so long a published generation could not be served; 0 where the newest is."""
        self._behind.set(seconds)

    def swapped(self) -> None:
        """A new generation replaced the old one."""
        self._swaps.labels("ok").inc()

    def swap_failed(self) -> None:
        """A new generation could not be opened; the one before goes on."""
        self._swaps.labels("failed").inc()

    def runs(self, version: str, model: str) -> None:
        """What this service is."""
        self._info.labels(version, model).set(1)

    def render(self) -> bytes:
        """All numbers, of all worker processes, as `CONTENT_TYPE`."""
        from prometheus_client import generate_latest

        return generate_latest(_of_all_workers() if MULTIPROC_DIR in os.environ else self._registry)

    def _show_zeros(self) -> None:
        """Let counters be seen before they first count, so that a rate over their first step is right."""
        self.passages({})
        self.text_cache(is_off=False, counts=dict.fromkeys(TEXT_CACHE_EVENTS, 0))
        self.truncated()
        self.prefix_cache(0, 0)
        for outcome in ("ok", "failed"):
            self._swaps.labels(outcome)
        for stage in get_args(Stage):
            self._stage_seconds.labels(stage)
        for reason in get_args(Rejection):
            self._rejected.labels(reason)


class RequestMetrics:
    """Counts requests by method, route template and status, and times them; metrics and probes included."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """`metrics`: where they are counted."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_LEFT

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        started = time.perf_counter()
        with self._metrics.in_flight():
            try:
                await self._app(scope, receive, noting)
            finally:
                seconds = time.perf_counter() - started
                self._metrics.request(scope["method"], path_template(scope), status, seconds)


def share_between_workers(folder: Path) -> None:
    """Let worker processes that start from here on count together. Call before anything made a `Metrics`.

    Args:
        folder: of this run alone; what an earlier run left there is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.db"):
        stale.unlink()
    os.environ[MULTIPROC_DIR] = str(folder)


def forget_worker(pid: int) -> None:
    """A worker process ended: its gauges no longer count, its counters do."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(pid)


def count_restart() -> None:
    """The parent of the workers starts one again."""
    _restarts().inc()


@functools.cache
def _restarts() -> Counter:
    from prometheus_client import CollectorRegistry, Counter

    return Counter(*RESTARTS, registry=CollectorRegistry())


def _of_all_workers() -> CollectorRegistry:
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry
