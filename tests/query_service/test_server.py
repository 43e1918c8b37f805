from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from kalm_cache.errors import UsageError
from query_service.server import address_of, bind
from tests.waiting import wait_for

SERVE = """
import sys
from pathlib import Path
from kalm_cache.settings import load_settings
from query_service.server import run_server

run_server(Path(sys.argv[1]), load_settings(port=0, device="cpu", dtype="float32", workers=int(sys.argv[2])))
"""


@contextmanager
def served(
    index_folder: Path, workers: int = 1, descriptors: int = 1024, before: str = ""
) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A service in a process of its own, with the host and port that its log names; `before` it, other code runs."""
    limited = ["sh", "-c", 'ulimit -n "$0"; exec "$@"', str(descriptors)]
    command = [*limited, sys.executable, "-c", before + SERVE, str(index_folder), str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, *logged_address(process)
        finally:
            process.kill()


def logged_address(process: subprocess.Popen[str]) -> tuple[str, int]:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"serving 18 passages on http://([\d.]+):(\d+)", line):
            return found[1], int(found[2])
    raise AssertionError("the service ended without naming its address")


def test_sigint_ends_an_idle_service_with_0_and_an_empty_standard_output(index_folder: Path) -> None:
    with served(index_folder) as (process, host, port):
        assert httpx.get(f"http://{host}:{port}/health", timeout=60).json()["passages"] == 18
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, "")


def test_sigterm_lets_a_request_that_has_begun_finish_and_exits_0(index_folder: Path) -> None:
    body = b'{"query": "bees", "ids": ["s1", "s2"]}'
    head = (
        f"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    with served(index_folder) as (process, host, port), socket.create_connection((host, port), 60) as connection:
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")  # the application waits for the body
        process.send_signal(signal.SIGTERM)
        wait_until_refused(host, port)
        connection.sendall(body)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))  # until the server closes
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"object":"rerank"' in answer
        process.communicate(timeout=60)
        assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_half_open_connections_make_nobody_deaf(index_folder: Path, workers: int) -> None:
    halves = [b"GET /hea", b"", b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"]
    with served(index_folder, workers, descriptors=128) as (process, host, port), ExitStack() as held:
        client = held.enter_context(httpx.Client(base_url=f"http://{host}:{port}", timeout=60))
        client.headers["Connection"] = "close"
        wait_for(lambda: client.get("/ready").status_code == 200)
        for number in range(400):
            connection = held.enter_context(socket.create_connection((host, port), 60))
            connection.sendall(halves[number % 3])
            if number % 25 == 0:
                assert client.get("/health").status_code == 200
                assert client.post("/search", json={"query": "bees"}).status_code in (200, 503)  # or not ready yet
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0
    assert "Traceback" not in log
    assert log.count("connections are open, as many as may be") in range(1, 20)


def wait_until_refused(host: str, port: int) -> None:
    while True:
        try:
            socket.create_connection((host, port), 60).close()
        except OSError:
            return


def test_port_0_is_any_free_port_and_a_taken_port_is_an_error_that_says_so() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(UsageError, match=f"127.0.0.1:{port} cannot be bound.*choose another"):
            bind("127.0.0.1", port)


def test_a_host_that_is_no_address_is_an_error_that_says_so() -> None:
    with pytest.raises(UsageError, match=r"host 'no\.such\.host\.invalid' is not an address"):
        bind("no.such.host.invalid", 0)
