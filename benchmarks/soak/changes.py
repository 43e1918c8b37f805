"""The steps that change an index under a soak: add, delete, roll back, collect garbage."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.soak.tally import Expected
from indexer.build.index_job import load_encoders, run_index_job
from indexer.change.add_delete import add_passages, delete_passages
from indexer.change.gc import collect_garbage
from indexer.change.rollback import roll_back
from indexer.corpus import CorpusLine, read_corpus
from kalm_cache.generations.current import current_name
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.passage import Passage
from kalm_cache.settings import load_settings

DTYPE = "float32"
K = 20


class Changes:
    """The steps that change an index, round and round, and what its generations answer."""

    def __init__(self, index: Path, queries: list[str]) -> None:
        self._index, self._queries = index, queries
        self._settings = load_settings(device="cpu")
        self._encoders = load_encoders(self._settings)
        self._first = current_name(index)
        self._open = PassageIndex.open(index, device="cpu", dtype=DTYPE)
        hits = dict(enumerate(self.answers()))
        self._replaced = sorted({max(one, key=lambda doc_id: one[doc_id]) for one in hits.values()})
        self.made: Counter[str] = Counter()

    @property
    def live(self) -> str:
        """The name of the live generation."""
        return current_name(self._index)

    def answers(self) -> Expected:
        """What the live generation answers, every result."""
        if self._open.generation.name != self.live:
            before, self._open = self._open, PassageIndex.open(self._index, reuse_from=self._open)
            before.close()  # or gc could not have it
        found = [self._open.search(query, k=K, top_n=None, with_text=False) for query in self._queries]
        return [{one.doc_id: one.margin for one in answer.results} for answer in found]

    def steps(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Names and functions, without end."""
        for turn in itertools.count():
            yield "add", partial(self._add, turn)
            yield "delete", partial(delete_passages, self._new_ids(turn), self._index)
            yield "rollback", lambda: roll_back(self._index, self._first)
            yield "gc", lambda: collect_garbage(self._index, keep=1)

    def _new_ids(self, turn: int) -> list[str]:
        return [f"soak-{turn}-{number}" for number in range(len(self._queries))]

    def _add(self, turn: int) -> object:
        """A passage for each query that it should find, and another text for what was its best one."""
        new = [
            Passage(one, f"{query} Turn {turn}.") for one, query in zip(self._new_ids(turn), self._queries, strict=True)
        ]
        edited = [Passage(one, f"Turn {turn} of passage {one}.") for one in self._replaced]
        lines = [CorpusLine(one, one.doc_id) for one in (*new, *edited)]
        return add_passages(
            lines, self._index, self._settings, self._encoders, on_reject=_no_reject, on_progress=_silent
        )


def build(corpus: Path, index: Path) -> None:
    """Index a corpus with the default settings."""
    settings = load_settings(device="cpu")
    encoders = load_encoders(settings)
    run_index_job(read_corpus(corpus), index, settings, encoders, on_reject=_no_reject, on_progress=_silent)


def _no_reject(line: object) -> None:
    raise AssertionError(line)


def _silent(state: object) -> None:
    pass
