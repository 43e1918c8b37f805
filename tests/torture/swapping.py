"""Generations swapped under a service while clients ask: every answer must be that of the generation that it names.

`CURRENT` is moved by `roll_back` between generations that hold other texts under the same ids; every so often `add`
publishes a new one. The service is the real one, on loopback, and watches `CURRENT`.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from indexer.build.index_job import load_encoders
from indexer.change.add_delete import add_passages, delete_passages
from indexer.change.rollback import roll_back
from indexer.change.set_decoder import set_decoder
from indexer.models import Encoders
from kalm_cache import PassageIndex
from kalm_cache.generations.current import current_name
from query_service.app import create_app
from query_service.server import address_of, bind, make_server, open_service
from tests.checkpoints import with_other_decoder
from tests.indexes import TEXTS, build, lines_of, settings_for

QUERIES = ("When does the ferry leave?", "honey bees dance", "the capital in the north")
KEPT = ("d1", "d4", "d8")  # in every generation, under other texts
PUBLISH_EVERY = 25
TOLERANCE = 1e-4  # pairs that share a batch differ in their last bits; other texts differ by far more
WATCH_SECONDS = 0.005
SWAP_SECONDS = 60.0

Margins = dict[str, float]


@dataclass(slots=True)
class Said:
    """One answer: what was asked, for which generation it says it is, and its margins."""

    asked: str
    version: str
    margins: Margins


@dataclass(slots=True)
class SwapTally:
    """What was done, what came of it, and what is wrong with it."""

    swaps: int = 0
    answers: int = 0
    published: int = 0
    generations: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Swapped:
    """An index of several generations, and what each of them answers."""

    def __init__(self, folder: Path, model: Path, embedder: Path) -> None:
        self.index, self._settings = folder / "index", settings_for(model, embedder)
        self._encoders: Encoders = load_encoders(self._settings)
        self.expected: dict[str, dict[str, Margins]] = {}
        self._opened: PassageIndex | None = None
        build(self.index, self._settings, TEXTS, encoders=self._encoders)
        self.first = self._note()
        self.add(0)
        delete_passages(["d2", "d9"], self.index)
        self._note()
        build(
            self.index, self._settings, {one: f"{text} again" for one, text in TEXTS.items()}, encoders=self._encoders
        )
        self._note()
        set_decoder(self.index, str(with_other_decoder(model, folder / "decoder")))
        self._note()
        self.names = sorted(self.expected)

    def add(self, turn: int) -> str:
        """Publish the first generation with other texts under some ids; the new one's name."""
        roll_back(self.index, self.first)
        texts = {one: f"{TEXTS[one]} turn {turn}" for one in KEPT} | {f"n{turn}": QUERIES[0]}
        lines = lines_of(texts)
        add_passages(
            lines, self.index, self._settings, self._encoders, on_reject=_no_reject, on_progress=lambda state: None
        )
        return self._note()

    @contextmanager
    def served(self) -> Iterator[str]:
        """The URL of a service over the index."""
        settings = self._settings.model_copy(update={"watch_seconds": WATCH_SECONDS})
        server = make_server(create_app(open_service(self.index, settings)))
        with bind("127.0.0.1", 0) as listener:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                yield address_of(listener)
            finally:
                server.should_exit = True
                thread.join()

    def _note(self) -> str:
        """Remember what the live generation answers; its name."""
        like, name = self._opened, current_name(self.index)
        opened = PassageIndex.open(self.index, device="cpu", dtype="float32", reuse_from=like)
        searched = {query: opened.search(query, k=len(TEXTS), top_n=None).results for query in QUERIES}
        ranked = {f"{query} of ids": opened.rerank(query, KEPT).results for query in QUERIES}
        self.expected[name] = {
            asked: {one.doc_id: one.margin for one in results} for asked, results in (searched | ranked).items()
        }
        if like is not None:
            like.close()
        self._opened = opened
        return name

    def close(self) -> None:
        """Let go of the generation that was asked last."""
        if self._opened is not None:
            self._opened.close()


def swap(folder: Path, model: Path, embedder: Path, swaps: int, *, clients: int = 8, seed: int = 0) -> SwapTally:
    """So many swaps while so many clients ask without a pause."""
    index, tally, over = Swapped(folder, model, embedder), SwapTally(), threading.Event()
    said: list[Said] = []
    with index.served() as url:
        threads = [threading.Thread(target=_ask, args=(url, i, said, tally, over)) for i in range(clients)]
        for thread in threads:
            thread.start()
        try:
            _swap(index, url, swaps, random.Random(seed), tally)
        finally:
            over.set()
            for thread in threads:
                thread.join()
    index.close()
    tally.answers = len(said)
    for one in said:
        tally.generations[one.version] += 1
        if problem := _problem(one, index.expected):
            tally.problems.append(problem)
    return tally


def _swap(index: Swapped, url: str, swaps: int, draw: random.Random, tally: SwapTally) -> None:
    with httpx.Client(base_url=url, timeout=SWAP_SECONDS) as client:
        for ordinal in range(1, swaps + 1):
            if ordinal % PUBLISH_EVERY == 0:
                target = index.add(ordinal)
                tally.published += 1
            else:
                target = draw.choice([one for one in index.names if one != current_name(index.index)])
                roll_back(index.index, target)
            if not _is_served(client, target):
                tally.problems.append(f"{target} was not served within {SWAP_SECONDS:.0f} s")
                return
            tally.swaps += 1


def _is_served(client: httpx.Client, version: str) -> bool:
    deadline = time.monotonic() + SWAP_SECONDS
    while time.monotonic() < deadline:
        if client.get("/health").json()["index_version"] == version:
            return True
        time.sleep(WATCH_SECONDS)
    return False


def _ask(url: str, place: int, said: list[Said], tally: SwapTally, over: threading.Event) -> None:
    ordinal = place
    with httpx.Client(base_url=url, timeout=SWAP_SECONDS) as client:
        while not over.is_set():
            query = QUERIES[ordinal % len(QUERIES)]
            try:
                said.append(_searched(client, query) if ordinal % 2 else _reranked(client, query))
            except (httpx.HTTPError, KeyError, ValueError) as exc:
                tally.problems.append(f"{type(exc).__name__}: {exc}")
            ordinal += 1


def _searched(client: httpx.Client, query: str) -> Said:
    answer = _answer(client, "/search", {"query": query, "k": len(TEXTS), "top_n": 0})
    return Said(query, answer["index_version"], {one["doc_id"]: one["margin"] for one in answer["results"]})


def _reranked(client: httpx.Client, query: str) -> Said:
    answer = _answer(client, "/rerank", {"query": query, "ids": list(KEPT), "return_margin": True})
    margins = {one["doc_id"]: one["margin"] for one in answer["results"]}
    return Said(f"{query} of ids", answer["meta"]["index_version"], margins)


def _answer(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    if response.status_code != 200:
        raise ValueError(f"{path} {response.status_code}: {response.text[:200]}")
    answer: dict[str, Any] = response.json()
    if response.headers["X-Index-Version"] != answer.get("meta", answer)["index_version"]:
        raise ValueError(f"{path}: header and body name different generations")
    return answer


def _problem(said: Said, expected: dict[str, dict[str, Margins]]) -> str | None:
    if said.version not in expected:
        return f"{said.version} was never published"
    wanted = expected[said.version][said.asked]
    if said.margins.keys() != wanted.keys():
        return f"{said.asked!r} of {said.version}: {sorted(said.margins)}, expected {sorted(wanted)}"
    error = max(abs(said.margins[one] - wanted[one]) for one in wanted)
    return f"{said.asked!r} of {said.version}: margins differ by {error:.2g}" if error > TOLERANCE else None


def _no_reject(line: object) -> None:
    raise AssertionError(line)
