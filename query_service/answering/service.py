"""`AnswerService`: what an application serves: requests answered, and what it says of itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from kalm_cache.scoring.prefix_cache import PrefixCacheStats
from kalm_cache.settings import Settings
from kalm_cache.storage.text_cache.text_cache import TextCacheCounts
from query_service.answering.context import AnswerContext
from query_service.answering.model_card import ModelCard
from query_service.middleware.metrics import Metrics
from query_service.middleware.tracing import Tracing

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Behind:
    """A published generation (`None`: which one is not known) that is not served, for how long, and why."""

    generation: str | None
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What a service says of itself now.

    text_cache: its counts; `None` = there is none. first_stage: modes of the index. waiting, under_way: pairs
    that wait for the decoder, and requests. missing_shards: that nobody serves now. passages: that the one who asks
    sees; `None`: they are not counted.
    """

    version: str
    passages: int | None
    model: ModelCard
    first_stage: list[str]
    encodes_documents: bool
    waiting: int
    under_way: int
    damaged_reads: int = 0
    behind: Behind | None = None
    prefix_cache: PrefixCacheStats | None = None
    text_cache: TextCacheCounts | None = None
    missing_shards: list[int] = field(default_factory=list)


class AnswerService(Protocol):
    """Starts what answers, and gives each request its `AnswerContext`."""

    settings: Settings
    metrics: Metrics
    tracing: Tracing | None

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a request's `model` may have, the one that answers carry first."""

    async def start(self) -> None:
        """Begin."""

    async def close(self) -> None:
        """Finish what has begun."""

    def require_ready(self) -> None:
        """Raise `NotReadyError`, or what it is that is missing, unless requests are answered now."""

    async def answer(
        self, timeout_ms: int | None, make: Callable[[AnswerContext], Awaitable[_Result]]
    ) -> tuple[_Result, AnswerContext]:
        """Let a request in, and make its answer; `timeout_ms` may only shorten the service's own.

        Raises:
            NotReadyError: the service is starting or stopping.
            BusyError: too much is under way.
            DeadlineError: the time was over before the answer was made, which was then cancelled.
        """

    def reload(self) -> bool:
        """Serve the newest generation now; false where it is served."""

    def facts(self) -> ServiceFacts:
        """What the service says of itself now. Raises `NotReadyError` where it cannot tell yet."""

    def measure(self) -> None:
        """Bring the gauges up to date."""
