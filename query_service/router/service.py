"""`Router`: an `AnswerService` whose answers are those of services that hold the shards of an index."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from kalm_cache import __version__
from kalm_cache.errors import KalmCacheError
from kalm_cache.settings import Settings
from query_service.answering.errors import BusyError, DeadlineError, NotReadyError
from query_service.answering.model_card import served_names
from query_service.answering.notes import AnswerNotes
from query_service.answering.service import ServiceFacts
from query_service.middleware.bound import bound_filter
from query_service.middleware.metrics import Metrics
from query_service.middleware.request_log import current_request_id
from query_service.middleware.tracing import start_tracing, trace_headers
from query_service.router import messages as m
from query_service.router.context import ShardsContext
from query_service.router.errors import (
    GenerationLostError,
    NoShardsError,
    ReplicaFailedError,
    ShardsMissingError,
)
from query_service.router.fleet import Fleet, Part, Pin
from query_service.router.hedging import HedgeDelay, first_answer
from query_service.router.replica import Replica
from query_service.router.transport import Transport

SPREAD_SECONDS = 10.0  # a generation has reached all services of shards by then
PAUSE_SECONDS = 0.05  # between two looks for one that all have
_Result = TypeVar("_Result")


class Router:
    """Scatters each request over the services of a fleet, and gathers their answers."""

    def __init__(self, transport: Transport, settings: Settings) -> None:
        """Ask the services that the transport finds.

        Raises:
            MissingExtraError: traces are wanted, and the extra `otel` is not installed.
        """
        self.settings, self.metrics = settings, Metrics()
        self.metrics.routes()
        self.tracing = start_tracing() if settings.tracing else None
        self._fleet = Fleet(transport, settings.watch_seconds or 1.0)
        hedge_seconds = None if settings.hedge_ms is None else settings.hedge_ms / 1000
        self._delays: defaultdict[str, HedgeDelay] = defaultdict(lambda: HedgeDelay(hedge_seconds))
        self._under_way = 0
        self._is_open = False

    async def start(self) -> None:
        """Look for the services, and begin to watch them. Without any, the router waits for them."""
        await self._fleet.open()
        self._is_open = True

    async def close(self) -> None:
        """Leave them."""
        self._is_open = False
        await self._fleet.close()
        if self.tracing is not None:
            self.tracing.close()

    def require_ready(self) -> None:
        """Raise unless every shard is served, or some are, and answers without the others are wanted.

        Raises:
            NotReadyError: the router is starting or stopping.
            NoShardsError: nobody answers.
            ShardsMissingError: nobody serves these.
        """
        if not self._is_open:
            raise NotReadyError
        self._accepted(self._fleet.pin())

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a request's `model` may have, the one that answers carry first."""
        return served_names(self._fleet.pin().status.model.name, self.settings)

    def reload(self) -> bool:
        """Nothing: the services of shards look for new generations themselves."""
        return False

    def facts(self) -> ServiceFacts:
        """What the services say of themselves, added up. Raises `NoShardsError` where nobody answers."""
        pin = self._fleet.pin()
        statuses = [part.replicas[0].status or pin.status for part in pin.parts]
        return ServiceFacts(
            version=pin.generation.partition("-")[0],
            passages=sum(status.passages for status in statuses) if bound_filter() is None else None,
            model=pin.status.model,
            first_stage=list(pin.status.first_stage),
            encodes_documents=all(status.encodes_documents for status in statuses),
            waiting=0,
            under_way=self._under_way,
            damaged_reads=sum(status.damaged_reads for status in statuses),
            missing_shards=pin.missing,
        )

    async def answer(
        self, timeout_ms: int | None, make: Callable[[ShardsContext], Awaitable[_Result]]
    ) -> tuple[_Result, ShardsContext]:
        """See `AnswerService.answer`. Where a generation goes while it answers, the request begins again with another.

        Raises:
            ShardsMissingError: nobody serves some shards, and answers without them are not wanted.
        """
        if not self._is_open:
            raise NotReadyError
        limit_ms = min(timeout_ms or self.settings.timeout_ms, self.settings.timeout_ms)
        started = time.monotonic()
        with self._entered():
            try:
                async with asyncio.timeout(limit_ms / 1000):
                    while True:
                        pin = await self._pin(started)
                        notes = AnswerNotes(settings=self.settings, model_name=self.names[0], started=started)
                        context = ShardsContext(pin, notes, limit_ms, self._ask, bound_filter())
                        try:
                            result = await make(context)
                        except GenerationLostError:
                            await self._fleet.look()
                            continue
                        self._count(notes)
                        return result, context
            except (TimeoutError, DeadlineError) as exc:
                self.metrics.rejected("deadline")
                raise DeadlineError(limit_ms) from exc

    def measure(self) -> None:
        """Bring the gauges up to date."""
        living = len(self._fleet.living)
        silent = self._fleet.known - living
        try:
            facts = self.facts()
        except NoShardsError:
            self.metrics.fleet(living=living, silent=silent, missing_shards=0)
            return
        self.metrics.fleet(living=living, silent=silent, missing_shards=len(facts.missing_shards))
        self.metrics.runs(__version__, self.names[0])
        self.metrics.serves(facts.version, facts.passages or 0)

    async def _pin(self, started: float) -> Pin:
        """A generation that all shards have: while a new one spreads there may be none for a moment."""
        pin = self._fleet.pin()
        while pin.spreading and time.monotonic() - started < SPREAD_SECONDS:
            await asyncio.sleep(PAUSE_SECONDS)
            await self._fleet.look()
            pin = self._fleet.pin()
        return self._accepted(pin)

    def _accepted(self, pin: Pin) -> Pin:
        if pin.missing and not self.settings.partial_answers:
            raise ShardsMissingError(pin.missing)
        return pin

    async def _ask(self, part: Part, exchange: m.Exchange[Any, Any], question: m.Question) -> Any:
        """A part's answer: of the service that has least to do, or of another one where that is slow or fails."""
        body = exchange.question.dump_json(question)
        headers = trace_headers(self.tracing)
        if (request_id := current_request_id()) is not None:
            headers["X-Request-Id"] = request_id
        ask = partial(self._ask_replica, exchange.path, body, question.timeout_ms / 1000, headers)
        hedged = partial(self.metrics.question, exchange.path, "hedged")
        content = await first_answer(part.least_busy_first(), ask, self._delays[exchange.path], hedged)
        return exchange.answer.validate_json(content)

    async def _ask_replica(
        self, path: str, body: bytes, seconds: float, headers: dict[str, str], replica: Replica
    ) -> bytes:
        try:
            content = await replica.ask(path, body, seconds, headers)
        except ReplicaFailedError:
            self.metrics.question(path, "failed")
            self._fleet.look_soon()
            raise
        except KalmCacheError:
            self.metrics.question(path, "refused")
            raise
        self.metrics.question(path, "answered")
        return content

    @contextmanager
    def _entered(self) -> Iterator[None]:
        if self._under_way >= self.settings.queue_limit:
            self.metrics.rejected("queue_full")
            raise BusyError(self._under_way, 0.0)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _count(self, notes: AnswerNotes) -> None:
        counts = notes.counts
        for stage in ("queue", "first_stage", "read", "decode", "encode"):
            if stage in notes.timings_ms:
                self.metrics.observe_stage(stage, notes.timings_ms[stage] / 1000)
        self.metrics.passages(counts.sources, missing=counts.missing)
        self.metrics.read(counts.read_bytes)
        self.metrics.truncated(queries=counts.queries_cut, documents=counts.documents_cut)
        self.metrics.damaged(counts.damaged)
