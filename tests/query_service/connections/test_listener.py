from __future__ import annotations

import logging
import resource
import socket
import subprocess
import sys
from contextlib import ExitStack
from threading import Thread

import pytest

from query_service.connections.limits import ConnectionLimits, SeldomLog
from query_service.connections.listener import turn_away
from query_service.server import bind
from tests.query_service.connections.served import Served, make_server, read_ok, read_to_the_end, serving
from tests.query_service.connections.test_connection import CLOSING, GET, status_of
from tests.waiting import wait_for

HALF = b"GET /hea"


def test_who_is_silent_for_longest_makes_room_for_a_new_client() -> None:
    with serving(max_connections=8) as served, ExitStack() as held:
        silent = [held.enter_context(served.connect(sent)) for sent in (b"", *[HALF] * 29)]  # unread, it were a reset
        assert status_of(served.ask(CLOSING)) == 200
        assert len(served.server.server_state.connections) <= 8
        assert silent[0].recv(100) == b""  # given up
        silent[-1].sendall(CLOSING.removeprefix(HALF))
        assert status_of(read_to_the_end(silent[-1])) == 200


def test_an_idle_connection_that_was_used_can_make_room_too() -> None:
    with serving(max_connections=2) as served, served.connect(GET) as idle:
        assert status_of(read_ok(idle)) == 200
        with served.connect(GET) as other:
            assert status_of(read_ok(other)) == 200
            assert status_of(served.ask(CLOSING)) == 200
            assert idle.recv(1000) == b""


def test_there_are_fewer_connections_than_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (128, 128))
    assert ConnectionLimits(max_connections=1000).connections() < 128 - 32
    assert ConnectionLimits(max_connections=9).connections() <= 9
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert ConnectionLimits(max_connections=1000).connections() == 1000


STARVED = """
import os, resource, threading, time
from query_service.connections.limits import ConnectionLimits
from query_service.server import bind
from tests.query_service.connections.served import make_server

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
server = make_server(ConnectionLimits())
with bind("127.0.0.1", 0) as listener:
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    time.sleep(0.1)
    held = []
    try:
        while True:
            held.append(os.dup(0))  # what the limit was computed for is gone
    except OSError:
        for number in held[:10]:
            os.close(number)
    print(listener.getsockname()[1], flush=True)
    input()
"""


def test_without_descriptors_the_log_is_short_and_a_new_client_is_answered() -> None:
    with (
        subprocess.Popen(
            [sys.executable, "-c", STARVED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        ExitStack() as held,
    ):
        assert process.stdout is not None
        served = Served(make_server(ConnectionLimits()), int(process.stdout.readline()))
        for _ in range(100):
            held.enter_context(served.connect(HALF))
        assert status_of(served.ask(CLOSING)) == 200
        _, log = process.communicate("\n", timeout=60)
    assert "Too many open files" in log
    assert "Traceback" not in log
    assert len(log.splitlines()) < 5


def test_what_the_kernel_let_in_before_the_service_stops_is_answered() -> None:
    server = make_server(ConnectionLimits())
    server.should_exit = True  # it stops as soon as it has started
    with bind("127.0.0.1", 0) as listener, ExitStack() as held:
        served = Served(server, listener.getsockname()[1])
        waiting = [held.enter_context(served.connect(GET)) for _ in range(50)]
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        answers = [read_to_the_end(connection) for connection in waiting]
        thread.join()
        assert {status_of(answer) for answer in answers} == {200}
        assert all(b"connection: close" in answer for answer in answers)
        with pytest.raises(ConnectionRefusedError):
            served.connect()


def test_an_idle_connection_may_ask_once_more_when_the_service_stops() -> None:
    with serving() as served, served.connect(GET) as idle, served.connect(HALF) as half:
        assert b"connection: close" not in read_ok(idle)
        wait_for(lambda: len(served.server.server_state.connections) == 2)
        served.server.should_exit = True
        wait_for(lambda: all(one._draining for one in served.server.server_state.connections))
        idle.sendall(GET)
        assert b"connection: close" in read_to_the_end(idle)
        half.sendall(GET.removeprefix(HALF))
        assert status_of(read_to_the_end(half)) == 200


def test_a_socket_that_turns_away_still_gives_what_it_has() -> None:
    with bind("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address, 60), socket.socket() as late:
            turn_away(listener)
            late.settimeout(0.2)
            with pytest.raises(TimeoutError):
                late.connect(address)
            listener.accept()[0].close()


def test_a_warning_that_comes_often_is_one_line_with_its_count(caplog: pytest.LogCaptureFixture) -> None:
    log = SeldomLog(logging.getLogger("test"), seconds=60)
    for _ in range(1000):
        log.warning("full")
    assert caplog.messages == ["full (1 times since the last such line)"]
