"""A collection: judged queries, the corpus they are asked of, and what the benchmark says of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kalm_cache.evaluation.collections.beir import BeirTask, load_beir
from kalm_cache.evaluation.collections.qrels import GUESSED, QrelsFormat
from kalm_cache.evaluation.collections.trec import ScoredRun
from kalm_cache.passage import Passage, PassageTemplate

_QUERIES_ARE_PASSAGES = ("arguana", "quora")  # how the names of such collections begin


@dataclass(frozen=True, slots=True)
class Collection:
    """What is evaluated.

    Attributes:
        task: queries and judgments.
        corpus: a file or folder that `kalm-cache index` takes, or what yields the passages anew by a template.
        instruction: what the benchmark's queries ask for; `None` = it does not say.
        instructions: of single queries, by query id, where the benchmark gives each its own; they come first.
        drop_own_id: leave the passage with the query's own id out of the candidates (ArguAna and Quora, whose queries
            are passages); `None` = nobody says: it stays, with a warning.
        given: candidates that the benchmark itself hands to rerankers, by query id.
    """

    task: BeirTask
    corpus: Path | Callable[[PassageTemplate], Iterable[Passage]]
    instruction: str | None = None
    instructions: Mapping[str, str] = field(default_factory=dict)
    drop_own_id: bool | None = None
    given: ScoredRun | None = None


def load_beir_collection(folder: Path, split: str = "test", qrels_format: QrelsFormat = GUESSED) -> Collection:
    """A BEIR folder as a collection. Takes and raises what `load_beir` does."""
    task = load_beir(folder, split, qrels_format)
    return Collection(task, folder, drop_own_id=drops_own_id(task.name))


def drops_own_id(name: str) -> bool | None:
    """Whether a collection of this name is known to have passages for queries, whose own ones do not count.

    BEIR's own script leaves them out. `None` = the name says nothing.
    """
    return True if name.lower().removeprefix("beir-").startswith(_QUERIES_ARE_PASSAGES) else None
