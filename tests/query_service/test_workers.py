"""Two processes behind one port, in a service of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import httpx
import psutil

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

        after = workers_of(process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert not any(psutil.pid_exists(pid) for pid in after)
