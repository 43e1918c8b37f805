"""Retries: which failed calls are tried again and after how long, and what exception the rest become.

Opens no socket and does not sleep: the loops are `Client`'s and `AsyncClient`'s, in client.py.

An outcome is what one try came to: httpx's response, or httpx's error where there was none.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from kalm_cache.errors import (
    AccessDeniedError,
    DamagedRecordError,
    DeadlineExceededError,
    IndexMismatchError,
    KalmCacheError,
    ServiceError,
    ServiceUnavailableError,
    UnknownIdError,
    UsageError,
)

Outcome = httpx.Response | httpx.RequestError
RETRIED_STATUSES = (429, 503)
JITTER = 0.25  # so that clients that were turned away together do not come back together
SHOWN_CHARS = 200

# exceptions made of the service's message alone: by the name that the service gives the error, then by status
BY_TYPE: dict[str, Callable[[str], KalmCacheError]] = {
    "IndexMismatchError": IndexMismatchError,
    "DamagedRecordError": DamagedRecordError,
}
BY_STATUS: dict[int, Callable[[str], KalmCacheError]] = {
    400: UsageError,
    409: IndexMismatchError,
    413: UsageError,
    422: UsageError,
}


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how long to wait for a service that is busy (429), not ready (503) or out of reach.

    Every request of the service only reads, so that sending it twice does no harm.

    Attributes:
        attempts: further tries after the first; 0 = none.
        first_wait_seconds: before the second try, doubled for each later one, where the service asks for no wait.
        max_wait_seconds: no single wait is longer; where `Retry-After` asks for more, there is no further try.
        random: a number in [0, 1), from which the jitter is taken.
    """

    attempts: int = 3
    first_wait_seconds: float = 0.25
    max_wait_seconds: float = 10.0
    random: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.attempts < 0:
            raise UsageError(f"retries is {self.attempts}; it must be 0 or more")

    def wait_seconds(self, tries: int, outcome: Outcome) -> float | None:
        """How long to wait after `tries` tries, the last of which had this outcome; `None` = do not try again."""
        if tries > self.attempts or not _may_change(outcome):
            return None
        asked = retry_after_seconds(outcome) if isinstance(outcome, httpx.Response) else None
        wait = self.first_wait_seconds * 2 ** (tries - 1) if asked is None else asked
        if asked is not None and asked > self.max_wait_seconds:
            return None
        return min(wait * (1 + JITTER * self.random()), self.max_wait_seconds)


def failure_of(response: httpx.Response) -> KalmCacheError:
    """The exception that a response with another status than 200 stands for."""
    error = _error_of(response)
    kind, message = str(error.get("type", "")), str(error.get("message") or _start_of(response))
    if kind == "UnknownIdError" and isinstance(error.get("ids"), list):
        return UnknownIdError([str(doc_id) for doc_id in error["ids"]])
    if response.status_code in (429, 503):
        return ServiceUnavailableError(_located(response, message), retry_after_seconds(response))
    if response.status_code in (401, 403):
        return AccessDeniedError(_located(response, f"{message}; give the client another api_key (KALM_CACHE_API_KEY)"))
    if response.status_code == 504:
        return DeadlineExceededError(_located(response, message))
    exception = BY_TYPE.get(kind) or BY_STATUS.get(response.status_code)
    return exception(message) if exception else ServiceError(_located(response, message))


def failure_without_response(error: httpx.RequestError) -> KalmCacheError:
    """The exception that a request without a response stands for."""
    url, reason = error.request.url, f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceededError(f"{url} did not answer in time ({reason}); allow more (timeout)")
    return ServiceUnavailableError(
        f"{url} cannot be reached ({reason}); start it with: kalm-cache serve, or give another base_url"
    )


def foreign_response(response: httpx.Response) -> ServiceError:
    """The exception for a 200 whose body is none that is known here."""
    text = _start_of(response)
    return ServiceError(_located(response, f"no answer of a kalm-cache service: {text!r}; is base_url right?"))


def retry_after_seconds(response: httpx.Response) -> float | None:
    """What `Retry-After` asks for, in seconds or as a date; `None` where it is missing or neither."""
    value = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(value) if value[:1].isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _may_change(outcome: Outcome) -> bool:
    """Whether another try may end differently. A timeout may not: the caller's time is up."""
    if isinstance(outcome, httpx.Response):
        return outcome.status_code in RETRIED_STATUSES
    return not isinstance(outcome, httpx.TimeoutException)


def _error_of(response: httpx.Response) -> dict[str, Any]:
    try:
        body = json.loads(response.content)
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _start_of(response: httpx.Response) -> str:
    text = " ".join(response.content[: 4 * SHOWN_CHARS].decode("utf-8", "replace").split())
    return text[:SHOWN_CHARS] or "an empty body"


def _located(response: httpx.Response, message: str) -> str:
    """The message and where to look further: the address, the status, and the request's id in the service's log."""
    request_id = response.headers.get("x-request-id")
    request = f", request {request_id}" if request_id else ""
    return f"{message} (HTTP {response.status_code} from {response.url}{request})"
