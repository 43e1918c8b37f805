"""OpenTelemetry spans of requests and their stages (extra `otel`). Where they go, the standard `OTEL_…` variables say.

The provider is our own, not the process's global one: other instrumentation in the process does not double our spans.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kalm_cache.errors import MissingExtraError
from query_service.middleware.paths import path_template
from query_service.middleware.request_log import current_notes, current_request_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span

SERVICE_NAME = "kalm-cache"


class Tracing:
    """Makes spans, and sends them on."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE_NAME)

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """The span of a request, under the caller's span where its headers name one (W3C `traceparent`)."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(headers)
        with self._tracer.start_as_current_span(name, context=parent, kind=SpanKind.SERVER) as span:
            yield span

    def stage(self, name: str, started: float, seconds: float) -> None:
        """A stage of the request under way that is over. `started`: seconds of `time.perf_counter()`."""
        since = time.perf_counter() - started
        start_ns = time.time_ns() - int(since * 1e9)
        self._tracer.start_span(name, start_time=start_ns).end(start_ns + int(seconds * 1e9))

    def close(self) -> None:
        """Send what is still to be sent."""
        self._provider.shutdown()


def start_tracing(processor: SpanProcessor | None = None) -> Tracing:
    """Spans of this process, sent over OTLP/HTTP in the background.

    Args:
        processor: what takes the spans instead.

    Raises:
        MissingExtraError: the extra `otel` is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise MissingExtraError("opentelemetry-sdk", "otel") from exc
    provider = TracerProvider(resource=Resource({"service.name": SERVICE_NAME}).merge(OTELResourceDetector().detect()))
    provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def trace_headers(tracing: Tracing | None) -> dict[str, str]:
    """Headers for a request to another service, by which its spans are under this request's, or its caller's."""
    if tracing is None:
        notes = current_notes()
        return {} if notes is None else dict(notes.trace)
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers


class RequestTracing:
    """One span a request: `POST /search`, with status, request id, index version, and stage times as attributes."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._tracing.request(scope["method"], Headers(scope=scope)) as span:

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _describe_answer(span, message["status"])
                await send(message)

            try:
                await self._app(scope, receive, noting)
            finally:
                _describe_request(span, scope)


def _describe_request(span: Span, scope: Scope) -> None:
    template = path_template(scope)
    span.update_name(f"{scope['method']} {template}")
    span.set_attribute("http.request.method", scope["method"])
    span.set_attribute("http.route", template)
    span.set_attribute("kalm_cache.request_id", current_request_id() or "")


def _describe_answer(span: Span, status: int) -> None:
    from opentelemetry.trace import Status, StatusCode

    notes = current_notes()
    span.set_attribute("http.response.status_code", status)
    span.set_attribute("kalm_cache.index_version", (notes and notes.index_version) or "")
    for stage, ms in notes.timings_ms.items() if notes else ():
        span.set_attribute(f"kalm_cache.{stage}_ms", ms)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))
