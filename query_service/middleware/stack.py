"""The middleware in its order, around an application. Knows nothing of what each part does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from kalm_cache.errors import UsageError
from kalm_cache.settings import Settings
from query_service.middleware.body_limit import BodyLimit
from query_service.middleware.http.content import CodedBodies
from query_service.middleware.http.hosts import HostCheck, allowed_hosts
from query_service.middleware.http.spelling import PlainSpelling
from query_service.middleware.keys import BearerKeys, KeyRing
from query_service.middleware.metrics import Metrics, RequestMetrics
from query_service.middleware.request_log import RequestLog
from query_service.middleware.security_headers import SecurityHeaders, allow_origins
from query_service.middleware.tracing import RequestTracing, Tracing

Wrap = Callable[[ASGIApp], ASGIApp]


def middleware_stack(settings: Settings, metrics: Metrics, tracing: Tracing | None = None) -> Wrap:
    """What puts an application behind all parts, as the settings say. Keys are read now, not at the first request.

    Raises:
        UsageError: a file of keys that cannot be read or holds none.
    """
    keys = KeyRing.load("api_keys", settings.api_keys, settings.api_keys_file)
    admin_keys = KeyRing.load("admin_keys", settings.admin_keys, settings.admin_keys_file)
    if admin_keys.has_filters:
        raise UsageError("admin_keys_file: an admin key sees everything; bind keys of api_keys_file to filters")
    hosts = allowed_hosts(settings, has_keys=bool(keys))

    def wrap(app: ASGIApp) -> ASGIApp:
        app = BodyLimit(app, settings.max_body_bytes)  # as they are
        app = CodedBodies(app)
        app = BodyLimit(app, settings.max_body_bytes)  # as they are sent
        app = BearerKeys(app, keys, admin_keys)
        app = allow_origins(app, settings.cors_origins)  # before keys: a browser's preflight brings none
        app = HostCheck(app, hosts)
        app = PlainSpelling(app)  # before hosts: an absolute target names one in place of the header
        app = SecurityHeaders(app)
        app = RequestMetrics(app, metrics)
        if tracing is not None:
            app = RequestTracing(app, tracing)
        return RequestLog(app, log_queries=settings.log_queries)  # what a request meets first

    return wrap


class WrappedFastAPI(FastAPI):
    """A FastAPI application behind a middleware stack.

    Parts added by `add_middleware` run inside of Starlette's handler of unexpected errors, and never see the answers
    that it makes. The stack stands outside of it, so that a 500 is counted and logged, and names its request, too.
    """

    def __init__(self, wrap: Wrap, **options: Any) -> None:
        super().__init__(**options)
        self._wrap = wrap

    def build_middleware_stack(self) -> ASGIApp:
        """FastAPI's own parts, behind the stack."""
        return self._wrap(super().build_middleware_stack())
