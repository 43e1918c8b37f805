"""Shards and router on Ray Serve: the answers of one service, whoever is killed and whatever is published meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from indexer.build.index_job import load_encoders
from kalm_cache.settings import Settings
from tests import indexes
from tests.indexer.changes import add
from tests.query_service.conftest import CORPUS, serving
from tests.query_service.router.conftest import settings as settings
from tests.query_service.router.test_answers import ASKED, same
from tests.query_service.router.test_failures import CHANGED, Clients, Expected, answers_of
from tests.waiting import wait_for

SHARDS = 2
pytestmark = pytest.mark.slow  # it takes Ray Serve half a minute to start and stop


class Command:
    """`kalm-cache serve --engine ray`, in a process of its own."""

    def __init__(self, folder: Path, address: str, log: Path) -> None:
        command = [sys.executable, "-c", "from kalm_cache.cli import main; main()", "serve", "--index", str(folder)]
        engine = ["--engine", "ray", "--address", address, "--replicas", "2", "--cpus-per-replica", "0.1"]
        options = ["--port", "0", "--device", "cpu", "--dtype", "float32", "--with-encoder"]
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [*command, *engine, *options], stderr=sink, env=os.environ | {"KALM_CACHE_WATCH_SECONDS": "0.3"}
            )
        self.log = log

    @property
    def address(self) -> str:
        said = "serving 2 shards"
        wait_for(lambda: said in self.log.read_text() or self.process.poll() is not None, seconds=180)
        assert said in self.log.read_text(), self.log.read_text()
        return "http://" + self.log.read_text().split("http://", 1)[1].split()[0]


@pytest.fixture(scope="module")
def folder(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in two shards."""
    folder = tmp_path_factory.mktemp("index")
    indexes.build(folder, settings, CORPUS, shards=SHARDS)
    return folder


@pytest.fixture(scope="module")
def command(folder: Path, cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    command = Command(folder, cluster.address, tmp_path_factory.mktemp("log") / "log")
    yield command
    command.process.kill()
    command.process.wait()


@pytest.fixture(scope="module")
def served(command: Command) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=command.address, timeout=60) as client:
        yield client


def replicas() -> list[int]:
    """The processes of shards."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            if any("ray::ServeReplica:kalm-cache:shard-" in part for part in process.info["cmdline"] or ()):
                found.append(process.pid)
    return found


def test_the_application_answers_as_one_service_does(folder: Path, served: httpx.Client) -> None:
    with serving(folder, with_encoder=True) as whole:
        for path, body in ASKED:
            expected, answer = whole.post(path, json=body), served.post(path, json=body)
            assert answer.status_code == expected.status_code, answer.text
            assert same(answer.json(), expected.json()), (answer.json(), expected.json())
        for path in ("/info", "/v1/models", "/health", "/ready"):
            assert served.get(path).json() == whole.get(path).json()


def test_no_request_fails_while_replicas_die_and_a_generation_is_published(
    folder: Path, served: httpx.Client, settings: Settings, tmp_path: Path
) -> None:
    twin = tmp_path / "twin"
    indexes.build(twin, settings, CORPUS, shards=SHARDS)
    expected: Expected = {"000001": answers_of(folder)}
    encoders = load_encoders(settings)
    add(twin, settings, encoders, CHANGED)
    expected["000002"] = answers_of(twin)
    wait_for(lambda: len(replicas()) == 2 * SHARDS)
    with Clients(str(served.base_url), expected) as clients:
        clients.more(10)
        os.kill(min(replicas()), signal.SIGKILL)
        clients.more(20)
        add(folder, settings, encoders, CHANGED)
        clients.more(20, "000002")
        os.kill(max(replicas()), signal.SIGKILL)
        clients.more(20)
    assert not clients.wrong
    assert clients.answered.keys() == {"000001", "000002"}


def test_sigterm_ends_the_command_and_the_application(command: Command, served: httpx.Client) -> None:
    assert served.get("/ready").status_code == 200
    command.process.terminate()
    assert command.process.wait(120) == 0, command.log.read_text()
    assert command.log.read_text().rstrip().endswith("INFO stopped")
    wait_for(lambda: replicas() == [])
