"""`Service`: what all requests share: live index or model, engine, reader threads, admission control, metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from threading import Thread
from typing import Any, TypeVar

from anyio import to_thread

from kalm_cache import __version__
from kalm_cache.errors import DeviceLostError, KalmCacheError
from kalm_cache.settings import Settings
from kalm_cache.storage.text_cache.text_cache import TextCache
from query_service.answering.errors import BusyError, DeadlineError, NotReadyError
from query_service.answering.model_card import served_names
from query_service.answering.service import Behind, ServiceFacts
from query_service.engine.admission import Admission
from query_service.engine.cost import CostModel
from query_service.engine.engine import Engine
from query_service.engine.index_context import IndexContext
from query_service.engine.live import LiveIndex, LiveModel, Watcher
from query_service.engine.request_context import RequestContext
from query_service.engine.texts.flights import Flights
from query_service.middleware.bound import HIDDEN, bound_filter
from query_service.middleware.metrics import Metrics, Stage
from query_service.middleware.tracing import start_tracing

logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")
# On a CPU texts are encoded on a thread of their own, and what is decoded comes first: while both want a processor, the
# encoder gets a quarter of its time (nice 5 weighs 335, nice 0 1024). A GPU has one queue: there both share a thread.
ENCODING_NICE = 5
STAGES: tuple[Stage, ...] = ("queue", "first_stage", "read", "decode", "encode")


class Service:
    """Starts what computes, reads and watches; hands each request its `RequestContext`. `start` it, `close` it.

    lost: why its device is lost; it is not ready any more then, and has called `on_lost`.
    """

    def __init__(self, live: LiveIndex | LiveModel, settings: Settings, text_cache: TextCache | None = None) -> None:
        """Serve `live`, which is closed with the service, as is the text cache.

        Raises:
            MissingExtraError: traces are wanted, and the extra `otel` is not installed.
        """
        self.live, self.settings, self.text_cache = live, settings, text_cache
        self.flights = Flights()
        self.metrics = Metrics()
        live.on_swap = self._count_swap
        self.lost: DeviceLostError | None = None
        self.on_lost: Callable[[], None] = lambda: None
        self.engine = Engine(CostModel(), self.metrics.batch)
        on_cpu = live.served.model.query_side.device.type == "cpu"
        self.encoding_engine = Engine(CostModel(), nice=ENCODING_NICE) if on_cpu else self.engine
        self.engine.on_lost = self.encoding_engine.on_lost = self._lose
        self.admission = Admission(settings.queue_limit, self.engine)
        self._readers = ThreadPoolExecutor(settings.reader_threads, thread_name_prefix="kalm-cache-reader")
        self._watcher: Watcher | None = None
        if isinstance(live, LiveIndex) and settings.watch_seconds:
            self._watcher = Watcher(live, settings.watch_seconds)
        self.tracing = start_tracing() if settings.tracing else None
        self.ready = False
        self._warming: Thread | None = None

    async def start(self) -> None:
        """Warm up, measure what decoding costs, and begin to watch for the next generation."""
        await to_thread.run_sync(self._start)

    def _start(self) -> None:
        for engine in self._engines:
            engine.start()
        side = self.live.served.model.query_side
        self.engine.call(side.warm_up).result()
        prompt, states = side.warm_up_pairs()
        self.engine.decode(side, prompt, states).result()
        if self._watcher is not None:
            self._watcher.start()
        self.metrics.runs(__version__, self.model)
        self.measure()
        self.ready = self.lost is None
        if self.live.served.index is None:  # without an index every answer needs it, sooner or later
            self._warming = Thread(target=self._warm_encoder, name="kalm-cache-encoder", daemon=True)
            self._warming.start()

    def _warm_encoder(self) -> None:
        documents = self.live.served.documents
        try:
            if documents is not None:
                documents.load()
        except KalmCacheError as exc:  # who sends texts is told as well
            logger.error("the encoder cannot be loaded: %s", exc)

    def _lose(self, error: DeviceLostError) -> None:
        if self.lost is None:
            logger.error("%s", error)
            self.lost, self.ready = error, False
            self.on_lost()

    async def close(self) -> None:
        """Finish what has begun, and close the index."""
        await to_thread.run_sync(self._close)

    def _close(self) -> None:
        self.ready = False
        if self._watcher is not None:
            self._watcher.close()
        self._readers.shutdown()
        for engine in self._engines:
            engine.close()
        if self._warming is not None:
            self._warming.join()
        self.live.close()
        if self.text_cache is not None:
            self.text_cache.close()
        if self.tracing is not None:
            self.tracing.close()

    def require_ready(self) -> None:
        """Raise `NotReadyError` while the service warms up or stops."""
        if not self.ready:
            raise NotReadyError

    async def answer(
        self, timeout_ms: int | None, make: Callable[[IndexContext], Awaitable[_Result]]
    ) -> tuple[_Result, IndexContext]:
        """See `AnswerService.answer`."""
        async with self.begin(timeout_ms, bound=bound_filter()) as request:
            context = IndexContext(request)
            return await make(context), context

    @asynccontextmanager
    async def begin(
        self, timeout_ms: int | None, generation: str | None = None, bound: Mapping[str, Any] | None = None
    ) -> AsyncIterator[RequestContext]:
        """Let a request in, for the length of the block; `timeout_ms` may only shorten the service's own.

        `generation`: the signature of that which is to answer it; `None` = the live one. `bound`: a filter, of what it
        sees; `None` = everything.

        Raises:
            NotReadyError: the service is starting or stopping.
            BusyError: too much is under way.
            DeadlineError: the time was over before the block ended, which was then cancelled.
            OtherGenerationError: the generation is not open.
            KeyFilterError: the filter does not fit the index.
        """
        self.require_ready()
        limit_ms = min(timeout_ms or self.settings.timeout_ms, self.settings.timeout_ms)
        try:
            with self.admission.enter(limit_ms), self.live.lease(generation) as served:
                seen = served if bound is None else await to_thread.run_sync(served.within, bound)
                context = RequestContext(
                    seen,
                    self.engine,
                    self.encoding_engine,
                    self._readers,
                    self.admission,
                    self.flights,
                    self.tracing,
                    bound,
                    settings=self.settings,
                    model_name=self.model,
                )
                async with asyncio.timeout(limit_ms / 1000):
                    yield context
                self._count(context)
        except BusyError:
            self.metrics.rejected("queue_full")
            raise
        except TimeoutError as exc:
            self.metrics.rejected("deadline")
            raise DeadlineError(limit_ms) from exc

    @property
    def depth(self) -> int:
        """Jobs that wait or are being computed."""
        return sum(engine.depth for engine in self._engines)

    @property
    def _engines(self) -> list[Engine]:
        return list(dict.fromkeys([self.engine, self.encoding_engine]))

    def measure(self) -> None:
        """Bring the gauges up to date."""
        served = self.live.served
        self.metrics.queue_depth(self.depth)
        self.metrics.behind(self.live.behind.seconds if self.live.behind else 0.0)
        self.metrics.answers_with(served.model.decoder.digest)
        if served.index is not None:
            self.metrics.serves(served.version, served.passages)
        if served.index is not None and served.index.prefix_cache is not None:
            stats = served.index.prefix_cache.stats()
            self.metrics.prefix_cache(stats.hits, stats.misses)
        if served.index is not None and served.index.stored.means is not None:
            self.metrics.shares_prefixes(served.index.stored.means.stats().kept)
        self._measure_text_cache()

    def _measure_text_cache(self) -> None:
        if self.text_cache is not None:
            counts = asdict(self.text_cache.counts)
            self.metrics.text_cache(is_off=bool(counts.pop("off")), counts=counts)

    def _count_swap(self, succeeded: bool) -> None:
        if succeeded:
            self.metrics.swapped()
            self.measure()
        else:
            self.metrics.swap_failed()

    def _count(self, context: RequestContext) -> None:
        for stage in STAGES:
            if stage in context.timings_ms:
                self.metrics.observe_stage(stage, context.timings_ms[stage] / 1000)
        counts = context.counts
        self.metrics.passages(counts.sources, missing=counts.missing)
        self._measure_text_cache()  # also in a worker that nobody asks for metrics
        self.metrics.read(counts.read_bytes)
        self.metrics.truncated(queries=counts.queries_cut, documents=counts.documents_cut)
        self.metrics.damaged(counts.damaged)
        self.metrics.queue_depth(self.depth)

    @property
    def model(self) -> str:
        """The model's name as clients see it."""
        return self.names[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a request's `model` may have, the one that answers carry first."""
        return served_names(self.live.served.model.name, self.settings)

    def reload(self) -> bool:
        """Serve the newest generation now; false where it is served. Raises as `LiveIndex.reload`."""
        return self.live.reload()

    def facts(self) -> ServiceFacts:
        """What the service says of itself now."""
        served, index, behind = self.live.served, self.live.served.index, self.live.behind
        prefix_cache = None if index is None else index.prefix_cache
        bound = bound_filter()
        return ServiceFacts(
            version=served.version,
            passages=None if bound is HIDDEN else served.within(bound).passages,
            model=served.model,
            first_stage=[] if index is None else list(index.first_stage.modes),
            encodes_documents=served.documents is not None,
            waiting=self.depth,
            under_way=self.admission.under_way,
            damaged_reads=0 if index is None else index.damaged_reads,
            behind=None if behind is None else Behind(behind.generation, behind.reason, behind.seconds),
            prefix_cache=None if prefix_cache is None else prefix_cache.stats(),
            text_cache=None if self.text_cache is None else self.text_cache.counts,
        )
