"""Stores that fail when a test says so: each fault meets the next call that it is meant for, once."""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock
from typing import Any

from kalm_cache.object_store.backend import Backend, Found

KINDS = ("500", "time-out", "truncated", "lost")  # lost: it was done, and the answer did not arrive


@dataclass(frozen=True, slots=True)
class Fault:
    method: str  # GET or PUT
    path: str  # a part of it
    kind: str


class Faults:
    """What is to fail, in any order; `met` counts what did."""

    def __init__(self) -> None:
        self._planned: list[Fault] = []
        self._lock = Lock()
        self.met = 0

    def plan(self, method: str, path: str, *kinds: str) -> None:
        self._planned += [Fault(method, path, kind) for kind in kinds]

    def __bool__(self) -> bool:
        return bool(self._planned)

    def next(self, method: str, path: str) -> str | None:
        with self._lock:
            for fault in self._planned:
                if fault.method == method and fault.path in path:
                    self._planned.remove(fault)
                    self.met += 1
                    return fault.kind
        return None


class FaultyBackend(Backend):
    """A store of this machine between which and its user things go wrong."""

    def __init__(self, inner: Backend, faults: Faults) -> None:
        self._inner, self._faults = inner, faults

    def read(self, path: str, max_bytes: int) -> Found:
        found = self._call("GET", path, lambda: self._inner.read(path, max_bytes))
        return Found(found[: len(found) // 2], None) if isinstance(found, bytes) else found

    def read_range(self, path: str, start: int, length: int, tag: str | None = None) -> bytes:
        return bytes(self._call("GET", path, lambda: self._inner.read_range(path, start, length, tag)))

    def write(self, path: str, content: bytes) -> None:
        self._call("PUT", path, lambda: self._inner.write(path, content))

    def write_file(self, path: str, file: Path) -> None:
        self._call("PUT", path, lambda: self._inner.write_file(path, file))

    def swap(self, path: str, content: bytes, expected: Found | None) -> None:
        self._call("PUT", path, lambda: self._inner.swap(path, content, expected))

    def list(self, folder: str) -> Any:
        return self._inner.list(folder)

    def info(self, path: str) -> Any:
        return self._inner.info(path)

    def delete(self, paths: Sequence[str]) -> None:
        self._inner.delete(paths)

    def _call(self, method: str, path: str, operation: Any) -> Any:
        from obstore.exceptions import GenericError

        kind = self._faults.next(method, path)
        if kind == "500":
            raise GenericError(f"Server error: 500 for http://user:secret@host/{path}?sig=secret\nmore of it")
        if kind == "time-out":
            raise TimeoutError("the operation timed out")
        result = operation()
        if kind == "truncated" and isinstance(result, bytes):
            return result[: len(result) // 2]
        if kind in ("lost", "truncated"):
            raise ConnectionError("the connection was closed")
        return result


class FaultyProxy(ThreadingHTTPServer):
    """An HTTP server that hands requests on to another one, and fails where it is told to."""

    daemon_threads = True

    def __init__(self, target: tuple[str, int], faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.faults, self.closing = target, faults, Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that closes first is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.server.faults.next(self.command, self.path)
        if kind == "time-out":
            self.server.closing.wait(30)  # longer than the client does
        if kind == "500":
            self._answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
        if kind in ("time-out", "500"):
            self.close_connection = True
            return
        connection = http.client.HTTPConnection(*self.server.target)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if kind == "lost":
            self.close_connection = True
        elif kind == "truncated":
            self._answer(response.status, dict(response.headers), content[: len(content) // 2], length=len(content))
            self.close_connection = True
        else:
            self._answer(response.status, dict(response.headers), content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        size = headers.get("Content-Length", "0") if self.command == "HEAD" else str(length or len(content))
        self.send_header("Content-Length", size)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def log_message(self, *_: object) -> None:
        """Nothing."""
