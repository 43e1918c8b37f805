"""Why the service refuses a request. What they are in HTTP, `api/errors.py` says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kalm_cache.errors import KalmCacheError, UsageError


class EncoderOffError(UsageError):
    """Raw documents came, but the service runs without the encoder."""

    def __init__(self) -> None:
        super().__init__(
            "this service scores stored passages only: it was started without the encoder; send ids of the index, "
            "or start it with: kalm-cache serve --with-encoder"
        )


class NoIndexError(UsageError):
    """Something of an index was asked for, but the service has none."""

    def __init__(self) -> None:
        super().__init__(
            "this service has no index: it scores texts (POST /rerank and /score); "
            "to search, or to score by id, start it with: kalm-cache serve --index FOLDER"
        )


class OtherGenerationError(KalmCacheError):
    """A generation was asked for that is not open here (any more, or yet). `generations`: those that are."""

    def __init__(self, wanted: str, generations: Sequence[str]) -> None:
        self.generations = list(generations)
        super().__init__(f"generation {wanted} is not open here; {' and '.join(generations)} are")


class KeyFilterError(KalmCacheError):
    """A key is bound to a filter that does not fit the index: its holder sees nothing until one of them is mended."""

    def __init__(self) -> None:
        super().__init__("this key is bound to a filter that the index does not fit; tell who runs the service")


class UnknownModelError(UsageError):
    """A request for a model that this service does not have."""

    def __init__(self, name: str, names: Sequence[str]) -> None:
        super().__init__(f"model {name!r} is not served here; use {' or '.join(map(repr, names))}, or leave it out")


class TooManyError(UsageError):
    """More documents, ids, candidates or values than a request may have. `count` `None` = they were not all counted."""

    def __init__(self, what: str, count: int | None, limit: int) -> None:
        shown = f"more than {limit}" if count is None else count
        super().__init__(f"{shown} {what} in one request, at most {limit} are served; send fewer, or several requests")


class EmptyError(UsageError):
    """Nothing to score, in a dialect whose services refuse that."""

    def __init__(self, field: str) -> None:
        super().__init__(f"`{field}` cannot be empty")


class BusyError(KalmCacheError):
    """Too much is under way; come again in `retry_after_seconds`."""

    def __init__(self, under_way: int, wait_ms: float) -> None:
        self.retry_after_seconds = max(1, math.ceil(wait_ms / 1000))
        super().__init__(
            f"{under_way} requests are under way, and those before this one take another {wait_ms:.0f} ms; "
            f"try again in {self.retry_after_seconds} s"
        )


class DeadlineError(KalmCacheError):
    """A request was not answered in its time."""

    def __init__(self, limit_ms: float) -> None:
        super().__init__(f"not answered within {limit_ms:.0f} ms; ask for less, or allow more time (timeout_ms)")


class NotReadyError(KalmCacheError):
    """The service is starting or stopping."""

    def __init__(self, why: str = "the service is starting or stopping; try again") -> None:
        super().__init__(why)
