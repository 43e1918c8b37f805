"""Log lines for people or for machines, on stderr, with the id of the request they belong to. Knows nothing of HTTP."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from kalm_cache.process.stderr_log import StderrHandler
from query_service.middleware.request_log import current_request_id

LOGGERS = ("kalm_cache", "indexer", "query_service", "uvicorn")
REPEATED = 10  # equal warnings of the server that are logged in a window
WINDOW_SECONDS = 60.0


def configure_logging(log_format: Literal["text", "json"], level: int = logging.INFO) -> None:
    """Log on stderr: our lines, the server's, and of all libraries the warnings. The server's own access log is off."""
    handler = _handler(JsonFormatter() if log_format == "json" else TextFormatter())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [handler]
    for name in ("uvicorn.error", "uvicorn.asgi"):
        logging.getLogger(name).handlers = []  # they pass it on to `uvicorn`
    logging.getLogger("uvicorn.error").filters = [Repetitions()]
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate = [], False
    last = _handler(handler.formatter)
    last.setLevel(logging.WARNING)
    logging.lastResort = last  # for libraries, whose loggers have no handler


class Repetitions(logging.Filter):
    """Passes the first `REPEATED` equal warnings of a window: whoever sends what is no HTTP does not fill the disk.

    The first one of the next window says how many were left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._since: dict[str, float] = {}
        self._seen: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log it."""
        if record.levelno != logging.WARNING or record.args:
            return True
        message = str(record.msg)
        now, left_out = self._clock(), 0
        if now - self._since.get(message, -WINDOW_SECONDS) >= WINDOW_SECONDS:
            left_out = self._seen.get(message, 0) - REPEATED
            self._since[message], self._seen[message] = now, 0
        self._seen[message] = self._seen.get(message, 0) + 1
        if left_out > 0:
            record.msg = f"{message} ({left_out:,} more like this were not logged)"
        return self._seen[message] <= REPEATED


def _handler(formatter: logging.Formatter | None) -> StderrHandler:
    handler = StderrHandler()
    handler.setFormatter(formatter)
    handler.addFilter(_add_request_id)
    return handler


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = current_request_id()
    return True


class TextFormatter(logging.Formatter):
    """`2026-11-21 13:40:19,123 INFO message [request id]`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line before a traceback; its line breaks are escaped, so that no request writes lines of its own."""
        line = super().formatMessage(record).replace("\r", "\\r").replace("\n", "\\n")
        request_id = getattr(record, "request_id", None)
        return line if request_id is None else f"{line} [{request_id}]"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, request_id, an access line's fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := getattr(record, "request_id", None)) is not None:
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
