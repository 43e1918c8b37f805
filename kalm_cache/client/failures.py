"""Replies that are no answers -> the project's exceptions. Knows nothing of sockets or of trying again."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

from kalm_cache.client.reply import NoReply, Reply
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

SHOWN_CHARS = 200

# what a service calls its errors, where the class here takes the message alone
BY_TYPE: dict[str, Callable[[str], KalmCacheError]] = {
    "IndexMismatchError": IndexMismatchError,
    "DamagedRecordError": DamagedRecordError,
}
BY_STATUS: dict[int, Callable[[str], KalmCacheError]] = {
    400: UsageError,
    401: AccessDeniedError,
    403: AccessDeniedError,
    409: IndexMismatchError,
    413: UsageError,
    422: UsageError,
    504: DeadlineExceededError,
}


def failure_of(reply: Reply) -> KalmCacheError:
    """The exception that a reply with another status than 200 stands for."""
    error = _error_of(reply)
    kind, message = str(error.get("type", "")), str(error.get("message") or _first_words(reply))
    if kind == "UnknownIdError" and isinstance(error.get("ids"), list):
        return UnknownIdError([str(one) for one in error["ids"]])
    if reply.status in (429, 503):
        return ServiceUnavailableError(_at(reply, message), retry_after_seconds(reply))
    if reply.status in (401, 403):
        return AccessDeniedError(_at(reply, f"{message}; give the client another api_key (KALM_CACHE_API_KEY)"))
    if reply.status == 504:
        return DeadlineExceededError(_at(reply, message))
    made = BY_TYPE.get(kind) or BY_STATUS.get(reply.status)
    return made(message) if made else ServiceError(_at(reply, message))


def failure_without_reply(nothing: NoReply) -> KalmCacheError:
    """The exception that a request without a reply stands for."""
    if nothing.timed_out:
        return DeadlineExceededError(f"{nothing.url} did not answer in time ({nothing.reason}); allow more (timeout)")
    return ServiceUnavailableError(
        f"{nothing.url} cannot be reached ({nothing.reason}); start it with: kalm-cache serve, or give another base_url"
    )


def foreign_reply(reply: Reply) -> ServiceError:
    """The exception for a 200 whose body says nothing that is known here."""
    return ServiceError(_at(reply, f"no answer of a kalm-cache service: {_first_words(reply)!r}; is base_url right?"))


def retry_after_seconds(reply: Reply) -> float | None:
    """What `Retry-After` asks for, in seconds or as a date; `None` where it is missing or neither."""
    value = reply.headers.get("retry-after", "").strip()
    try:
        seconds = float(value) if value[:1].isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _error_of(reply: Reply) -> dict[str, Any]:
    try:
        body = json.loads(reply.content)
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _first_words(reply: Reply) -> str:
    text = " ".join(reply.content[: 4 * SHOWN_CHARS].decode("utf-8", "replace").split())
    return text[:SHOWN_CHARS] or "an empty body"


def _at(reply: Reply, message: str) -> str:
    """Where an operator has to look: the address, the status, and the request's id in the service's log."""
    request_id = reply.headers.get("x-request-id")
    return f"{message} (HTTP {reply.status} from {reply.url}{f', request {request_id}' if request_id else ''})"
