"""Why a router cannot answer, or not yet. What they are in HTTP, `api/errors.py` says."""

from __future__ import annotations

from collections.abc import Sequence

from kalm_cache.errors import KalmCacheError
from query_service.answering.errors import NotReadyError


class ReplicaFailedError(KalmCacheError):
    """A service of shards does not answer, or is starting or stopping: another one with the same shards may."""


class GenerationLostError(KalmCacheError):
    """A service of shards has gone on to another generation: the request begins again, with one that all have."""


class RelayedError(KalmCacheError):
    """What a service of shards refuses, handed on as it is. ids: those that the error names, if any."""

    def __init__(self, status: int, kind: str, message: str, ids: list[str] | None, retry_after: str | None) -> None:
        self.status, self.kind, self.ids, self.retry_after = status, kind, ids, retry_after
        super().__init__(message)


class ShardsMissingError(KalmCacheError):
    """Nobody serves some of the shards now, and answers without them are not wanted."""

    def __init__(self, shards: Sequence[int]) -> None:
        self.shards = list(shards)
        names = f"shard {shards[0]}" if len(shards) == 1 else f"shards {', '.join(map(str, shards))}"
        super().__init__(
            f"no service with {names} answers now: start one, or let answers do without (--partial-answers)"
        )


class NoShardsError(NotReadyError):
    """No service of shards answers."""

    def __init__(self) -> None:
        super().__init__("no service of shards answers; is one started, with --shards, at an address that is given?")
