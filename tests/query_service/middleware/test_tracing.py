from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from kalm_cache.errors import MissingExtraError
from query_service.middleware.request_log import RequestLog
from query_service.middleware.tracing import RequestTracing, Tracing, start_tracing
from tests.query_service.middleware.served import serving, small_app


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    started = start_tracing(SimpleSpanProcessor(exporter))
    yield started
    started.close()


Get = Callable[..., list[ReadableSpan]]


@pytest.fixture
def get(tracing: Tracing, exporter: InMemorySpanExporter) -> Get:
    """GET a path of the small application; the spans that were finished when the service had ended."""

    def spans_of(path: str, **headers: str) -> list[ReadableSpan]:
        with serving(RequestLog(RequestTracing(small_app(), tracing))) as client:
            client.get(path, headers=headers)
        return finished(exporter)

    return spans_of


def finished(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return list(exporter.get_finished_spans())


def test_a_request_is_a_span_with_its_template_status_id_and_timings(get: Get) -> None:
    (span,) = get("/items/7?query=secret", **{"X-Request-Id": "the-id"})
    assert (span.name, span.kind, span.parent) == ("GET /items/{id}", SpanKind.SERVER, None)
    assert span.attributes == {
        "http.request.method": "GET",
        "http.route": "/items/{id}",
        "http.response.status_code": 200,
        "kalm_cache.request_id": "the-id",
        "kalm_cache.index_version": "000007",
        "kalm_cache.queue_ms": 1.5,
        "kalm_cache.decode_ms": 20.0,
    }
    assert span.resource.attributes["service.name"] == "kalm-cache"


def test_a_callers_trace_goes_on(get: Get) -> None:
    (span,) = get("/health", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert span.parent is not None
    assert span.context is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (
        "0af7651916cd43dd8448eb211c80319c",
        "b7ad6b7169203331",
    )


def test_stages_are_spans_below_their_request_with_the_time_they_took(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    async def search(request: Request) -> Response:
        started = time.perf_counter() - 0.5
        tracing.stage("read", started, 0.1)
        tracing.stage("decode", started + 0.1, 0.4)
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/search", search)])
    with serving(RequestTracing(app, tracing)) as client:
        client.get("/search")
    read, decode, request = finished(exporter)
    assert [span.name for span in (read, decode, request)][:2] == ["read", "decode"]
    for span, seconds in ((read, 0.1), (decode, 0.4)):
        assert span.parent is not None
        assert span.parent == request.context
        assert span.start_time is not None and span.end_time is not None
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(seconds, abs=1e-3)
    assert read.end_time is not None and decode.start_time is not None
    assert decode.start_time - read.end_time == pytest.approx(0, abs=5e7)


def test_a_failure_marks_the_span(get: Get) -> None:
    (span,) = get("/fail")
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 500
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kalm-cache\[otel\]'"):
        start_tracing()


def test_the_processs_global_tracer_stays_as_it_is(tracing: Tracing) -> None:
    from opentelemetry.trace import ProxyTracerProvider, get_tracer_provider

    assert isinstance(get_tracer_provider(), ProxyTracerProvider)


def test_the_standard_variable_names_the_service(
    monkeypatch: pytest.MonkeyPatch, exporter: InMemorySpanExporter
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "reranker-eu")
    tracing = start_tracing(SimpleSpanProcessor(exporter))
    with tracing.request("one", {}):
        pass
    assert finished(exporter)[0].resource.attributes["service.name"] == "reranker-eu"
