"""The router over four processes: one is stopped, one killed, one slow, and a generation is published meanwhile.

Every answer is compared with that of the whole index in the generation that it names: none is wrong, none is mixed, and
none is missing while each shard has a replica that lives.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx

from indexer.build.index_job import load_encoders
from kalm_cache import PassageIndex
from kalm_cache.settings import Settings
from tests import indexes
from tests.indexer.changes import add
from tests.query_service.conftest import CORPUS
from tests.query_service.router.conftest import SHARDS, routing
from tests.texts import SENTENCES, long_text
from tests.waiting import wait_for

QUERIES = [*SENTENCES, "bees and flowers", "the island in the morning"]
CHANGED = {f"s{number}": f"{text} And so on." for number, text in enumerate(SENTENCES)}
CHANGED |= {"new": long_text(20, seed=99)}
IDS = [doc_id for doc_id in CORPUS if doc_id.startswith(("s", "l"))]
Expected = dict[str, dict[str, list[tuple[str, float]]]]  # by generation, then by query


class Process:
    """`kalm-cache serve` of some shards, in a process of its own."""

    def __init__(self, folder: Path, shards: str, log: Path) -> None:
        command = [sys.executable, "-c", "from kalm_cache.cli import main; main()", "serve", "--index", str(folder)]
        options = ["--shards", shards, "--port", "0", "--device", "cpu", "--dtype", "float32"]
        threads = {"OMP_NUM_THREADS": "1", "KALM_CACHE_WATCH_SECONDS": "0.2"}
        self._log = log
        with log.open("wb") as sink:
            self.process = subprocess.Popen([*command, *options], stderr=sink, env=os.environ | threads)

    @property
    def address(self) -> str:
        wait_for(lambda: "http://" in self._log.read_text() or self.process.poll() is not None, seconds=120)
        return "http://" + self._log.read_text().split("http://", 1)[1].split()[0]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def slowed(process: Process) -> Iterator[None]:
    """Let a process run a tenth of the time."""
    over = Event()

    def slow() -> None:
        while not over.wait(0.02):
            process.signal(signal.SIGSTOP)
            over.wait(0.2)
            process.signal(signal.SIGCONT)

    thread = Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Clients:
    """Ask without a pause, in turns for a search and for given ids, and check every answer."""

    def __init__(self, base_url: str, expected: Expected) -> None:
        self._url, self._expected, self._over = base_url, expected, Event()
        self.answered: dict[str, int] = {}
        self.wrong: list[Any] = []
        self._threads = [Thread(target=self._run, args=(number,)) for number in range(3)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int, generation: str | None = None) -> None:
        """Wait until so many more are answered, of any generation or of this one."""
        wanted = self.count(generation) + count
        wait_for(lambda: bool(self.wrong) or self.count(generation) >= wanted, seconds=120)
        assert not self.wrong, self.wrong[0]

    def count(self, generation: str | None) -> int:
        return sum(self.answered.values()) if generation is None else self.answered.get(generation, 0)

    def _run(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._over.is_set() and not self.wrong:
                query = QUERIES[number % len(QUERIES)]
                self._ask(client, query, by_id=bool(number % 2))
                number += 1

    def _ask(self, client: httpx.Client, query: str, *, by_id: bool) -> None:
        asked: dict[str, Any] = {"top_n": 0, "return_documents": False}
        if by_id:
            asked = {"ids": IDS, "return_margin": True}
        response = client.post("/rerank" if by_id else "/search", json={"query": query} | asked)
        generation = response.headers.get("x-index-version", "")
        if response.status_code != 200:
            self.wrong.append((response.status_code, response.text))
            return
        answer = [(one["doc_id"], one["margin"]) for one in response.json()["results"]]
        expected = self._expected[generation][f"{by_id}{query}"]
        if [doc_id for doc_id, _ in answer] != [doc_id for doc_id, _ in expected] or any(
            abs(one[1] - other[1]) > 1e-5 for one, other in zip(answer, expected, strict=True)
        ):
            self.wrong.append((generation, query, answer, expected))
        self.answered[generation] = self.answered.get(generation, 0) + 1


def answers_of(folder: Path) -> dict[str, list[tuple[str, float]]]:
    """What the whole index answers to every query: by search, and for `IDS`."""
    with PassageIndex.open(folder, device="cpu", dtype="float32") as index:
        found = {f"False{query}": index.search(query, top_n=None, with_text=False).results for query in QUERIES}
        ranked = {f"True{query}": index.rerank(query, IDS, with_text=False).results for query in QUERIES}
    return {key: [(one.doc_id, one.margin) for one in results] for key, results in (found | ranked).items()}


def test_no_answer_is_wrong_mixed_or_missing_whatever_happens_to_replicas(settings: Settings, tmp_path: Path) -> None:
    folder, twin = tmp_path / "index", tmp_path / "twin"
    for each in (folder, twin):  # the twin is one generation ahead
        indexes.build(each, settings, CORPUS, shards=SHARDS)
    expected = {"000001": answers_of(folder)}
    encoders = load_encoders(settings)
    add(twin, settings, encoders, CHANGED)
    expected["000002"] = answers_of(twin)
    with ExitStack() as stack:
        served = enumerate(("0,1", "0,1", "2,3", "2,3"))
        processes = [Process(folder, shards, tmp_path / f"{number}.log") for number, shards in served]
        for process in processes:
            stack.callback(process.close)
        stopped, _, killed, slow = processes
        addresses = [process.address for process in processes]
        client = stack.enter_context(routing(addresses, tmp_path))
        partial = stack.enter_context(routing(addresses, tmp_path, partial_answers=True))
        wait_for(lambda: client.get("/ready").status_code == 200, seconds=60)
        with Clients(str(client.base_url), expected) as clients, slowed(slow):
            clients.more(10)
            stopped.signal(signal.SIGSTOP)
            clients.more(20)
            killed.signal(signal.SIGKILL)
            clients.more(20)
            add(folder, settings, encoders, CHANGED)
            clients.more(20, "000002")
            stopped.signal(signal.SIGCONT)
            clients.more(20)
        assert clients.answered.keys() == {"000001", "000002"}

        killed_too = slow  # nobody has shards 2 and 3 now
        killed_too.signal(signal.SIGKILL)
        killed_too.process.wait()
        refused = client.post("/rerank", json={"query": QUERIES[0], "ids": IDS})
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "ShardsMissingError")
        wait_for(lambda: client.get("/ready").status_code == 503, seconds=60)
        answer = partial.post("/rerank", json={"query": QUERIES[0], "ids": IDS, "return_margin": True})
        assert answer.json()["meta"]["partial"] and answer.json()["meta"]["missing_shards"] == [2, 3]
        assert answer.headers["X-Missing-Shards"] == "2,3"
        there = [one["doc_id"] for one in answer.json()["results"]]
        assert there == [doc_id for doc_id, _ in expected["000002"][f"True{QUERIES[0]}"] if doc_id in there]
        assert 0 < len(there) < len(IDS)
        found = partial.post("/search", json={"query": QUERIES[0]}).json()
        assert found["partial"] and found["missing_shards"] == [2, 3] and found["results"]
        assert partial.get("/health").json()["missing_shards"] == [2, 3]
