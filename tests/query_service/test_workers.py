"""Two processes behind one port, in a service of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from kalm_cache.model.decoder import QueryDecoder
from tests.query_service.conftest import serving
from tests.query_service.test_server import served
from tests.waiting import wait_for

BODY = {"query": "bees", "ids": ["s1", "s2"]}
REQUESTS = 12


def workers_of(process: subprocess.Popen[str]) -> set[int]:
    return {one.pid for one in psutil.Process(process.pid).children() if one.status() != psutil.STATUS_ZOMBIE}


def ask(url: str) -> dict[str, float]:
    """From a connection of its own, so that any worker may answer."""
    answer = httpx.post(f"{url}/rerank", json=BODY, timeout=60)
    assert answer.status_code == 200, answer.text
    return {one["doc_id"]: one["relevance_score"] for one in answer.json()["results"]}


def wait_until_ready(url: str) -> None:
    for _ in range(4):  # whichever worker it meets
        wait_for(lambda: httpx.get(f"{url}/ready", timeout=60).status_code == 200)


def counted(url: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=60).text
    found = re.search(r'^kalm_cache_requests_total\{.*path="/rerank".*status="200".*\} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_two_workers_answer_alike_count_together_are_restarted_and_drain(index_folder: Path) -> None:
    with served(index_folder, workers=2) as (process, host, port):
        url = f"http://{host}:{port}"
        wait_until_ready(url)
        before = workers_of(process)
        assert len(before) == 2
        answers = [ask(url) for _ in range(REQUESTS)]
        assert all(one.keys() == answers[0].keys() for one in answers)
        assert all(abs(one["s1"] - answers[0]["s1"]) < 1e-5 for one in answers)
        assert {counted(url) for _ in range(4)} == {REQUESTS}

        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: len(workers_of(process) - {killed}) == 2)
        wait_until_ready(url)
        assert [ask(url).keys() for _ in range(4)] == [answers[0].keys()] * 4
        assert counted(url) == REQUESTS + 4  # those of the killed one included
        assert "kalm_cache_worker_restarts_total 1.0" in httpx.get(f"{url}/metrics").text

        after = workers_of(process)
        with ThreadPoolExecutor(8) as clients:
            asking = [clients.submit(ask_until_refused, url, keeps=number % 2 == 0) for number in range(8)]
            wait_for(lambda: counted(url) > REQUESTS + 40)
            process.send_signal(signal.SIGTERM)
            ends = [client.result() for client in asking]
        assert ends == ["refused"] * 8
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert not any(psutil.pid_exists(pid) for pid in after)


def ask_until_refused(url: str, *, keeps: bool) -> str:
    """Ask over one connection, or over a new one each time, until none can be made. Says how it ended."""
    with httpx.Client(timeout=60) as client:
        while True:
            try:
                answer = client.post(f"{url}/rerank", json=BODY, headers={} if keeps else {"Connection": "close"})
            except httpx.ConnectError:
                return "refused"
            except httpx.HTTPError as exc:
                return repr(exc)  # a reset, as a rule
            if answer.status_code != 200:
                return answer.text


SUPERVISED = """
import os, sys, time
from pathlib import Path
import torch  # as in a service: the workers need not load it

from query_service import workers
from query_service.middleware.metrics import share_between_workers

folder = Path(sys.argv[1])
workers.FIRST_PAUSE_SECONDS, workers.PATIENCE_SECONDS = 0.01, float(sys.argv[2])

def serve(number):
    for name in ("first", "second"):  # the first one serves; another one waits for the index
        if name == "second" and not (folder / "index").exists():
            with (folder / "failures").open("a") as failures:
                failures.write("x")
            raise workers.KalmCacheError("the index is away")
        try:
            (folder / name).touch(exist_ok=False)
        except FileExistsError:
            continue
        (folder / f"{name}.pid").write_text(str(os.getpid()))
        (folder / f"{name}.number").write_text(str(number))
        time.sleep(600)

share_between_workers(folder / "metrics")
try:
    workers._Supervisor(2, lambda number: workers._work(2, lambda: serve(number)), lambda: None).run()
except workers.KalmCacheError as exc:
    sys.exit(f"gave up: {exc}")
"""


@contextmanager
def supervised(folder: Path, patience_seconds: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SUPERVISED, str(folder), str(patience_seconds)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_worker_that_cannot_start_is_tried_again_and_never_stops_one_that_serves(tmp_path: Path) -> None:
    failures = tmp_path / "failures"
    with supervised(tmp_path, patience_seconds=0.0) as process:
        wait_for(lambda: failures.exists() and len(failures.read_text()) >= 6)
        serves = int((tmp_path / "first.pid").read_text())
        assert psutil.Process(serves).ppid() == process.pid
        (tmp_path / "index").touch()
        wait_for((tmp_path / "second.pid").exists)
        assert workers_of(process) == {serves, int((tmp_path / "second.pid").read_text())}
        wait_for((tmp_path / "second.number").exists)
        numbers = {(tmp_path / f"{name}.number").read_text() for name in ("first", "second")}
        assert numbers == {"0", "1"}  # the one that came later has its predecessor's
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0
    pauses = [float(pause) for pause in re.findall(r"1 others live, and another one starts in ([\d.]+) s", log)]
    assert pauses[:6] == [0.0, 0.0, 0.0, 0.1, 0.2, 0.3]  # 0.01 s, doubled each time, as the log rounds it


def test_where_no_worker_can_be_kept_alive_the_service_gives_up_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "first").touch()  # as if one had been there: all that start fail
    with supervised(tmp_path, patience_seconds=0.2) as process:
        _, log = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "gave up: no worker could be kept alive" in log
        assert len((tmp_path / "failures").read_text()) > 2  # it was tried again before


LOSING = """
from pathlib import Path
from kalm_cache.model.decoder import QueryDecoder

decode, flag = QueryDecoder.margins, Path({flag!r})

def margins(self, prompts, pooled, counts, *shared):
    if len(counts) == 2 and flag.exists():  # the request's pairs: a service that starts decodes one, and many
        flag.unlink()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return decode(self, prompts, pooled, counts, *shared)

QueryDecoder.margins = margins
"""


def test_a_worker_whose_device_is_lost_ends_and_another_one_serves(index_folder: Path, tmp_path: Path) -> None:
    flag = tmp_path / "lose"
    with served(index_folder, workers=2, before=LOSING.format(flag=str(flag))) as (process, host, port):
        url = f"http://{host}:{port}"
        wait_until_ready(url)
        before = workers_of(process)
        flag.touch()
        answer = httpx.post(f"{url}/rerank", json=BODY, timeout=60)
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "DeviceLostError"
        wait_for(lambda: len(workers_of(process) & before) == 1 and len(workers_of(process)) == 2)
        wait_until_ready(url)
        assert ask(url).keys() == {"s1", "s2"}


def test_a_service_without_its_device_is_not_ready(index_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: QueryDecoder, *_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with serving(index_folder) as client:
        assert client.get("/ready").status_code == 200
        monkeypatch.setattr(QueryDecoder, "margins", fail)
        assert client.post("/rerank", json=BODY).status_code == 503
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
