"""The middleware in its order, around an application. Knows nothing of what each part does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from kalm_cache.settings import Settings
from query_service.middleware.body_limit import BodyLimit
from query_service.middleware.keys import BearerKeys, KeyRing
from query_service.middleware.metrics import Metrics, RequestMetrics
from query_service.middleware.request_log import RequestLog
from query_service.middleware.security_headers import SecurityHeaders, allow_origins
from query_service.middleware.tracing import RequestTracing, Tracing


@dataclass(frozen=True, slots=True)
class MiddlewareStack:
    """The options of every part. Keys are read when it is made, so that a bad file ends the start, not a request."""

    keys: KeyRing
    admin_keys: KeyRing
    max_body_bytes: int
    cors_origins: str
    log_queries: bool
    metrics: Metrics
    tracing: Tracing | None = None

    @classmethod
    def from_settings(cls, settings: Settings, metrics: Metrics, tracing: Tracing | None = None) -> MiddlewareStack:
        """The stack that the settings ask for.

        Raises:
            UsageError: a file of keys that cannot be read or holds none.
        """
        return cls(
            KeyRing.load("api_keys", settings.api_keys, settings.api_keys_file),
            KeyRing.load("admin_keys", settings.admin_keys, settings.admin_keys_file),
            settings.max_body_bytes,
            settings.cors_origins,
            settings.log_queries,
            metrics,
            tracing,
        )

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application behind the stack; the last line is what a request meets first."""
        app = BodyLimit(app, self.max_body_bytes)
        app = BearerKeys(app, self.keys, self.admin_keys)
        app = allow_origins(app, self.cors_origins)  # before keys: a browser's preflight brings none
        app = SecurityHeaders(app)
        app = RequestMetrics(app, self.metrics)
        if self.tracing is not None:
            app = RequestTracing(app, self.tracing)
        return RequestLog(app, log_queries=self.log_queries)


class StackedFastAPI(FastAPI):
    """A FastAPI application behind a middleware stack.

    Parts added by `add_middleware` run inside of Starlette's handler of unexpected errors, and never see the answers
    that it makes. The stack stands outside of it, so that a 500 is counted and logged, and names its request, too.
    """

    def __init__(self, stack: MiddlewareStack, **options: Any) -> None:
        super().__init__(**options)
        self._stack = stack

    def build_middleware_stack(self) -> ASGIApp:
        """FastAPI's own parts, behind the stack."""
        return self._stack.around(super().build_middleware_stack())
