"""What a router and a service of shards say to each other: values as JSON, each read once. Knows nothing of who sends.

Every question names the generation that is to answer it, and how many milliseconds are left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from kalm_cache.first_stage import Mode
from kalm_cache.model.prompts import Prompt
from query_service.answering.context import BudgetPlan, Described, Explanation
from query_service.answering.model_card import ModelCard
from query_service.answering.notes import Counts
from query_service.answering.passages import ScoringOptions
from query_service.answering.scores import Score

FOLDER = "/shard"


@dataclass(frozen=True, slots=True)
class Status:
    """What a service of shards is: which ones it has, of an index of `count`, and which generations are open.

    numbers: of its shards, rising. generations: their signatures, the live one first. passages: of its shards,
    in the live one.
    """

    numbers: list[int]
    count: int
    buckets: int
    generations: list[str]
    passages: int
    damaged_reads: int
    first_stage: list[Mode]
    encodes_documents: bool
    model: ModelCard
    ready: bool = True


@dataclass(frozen=True, slots=True)
class Question:
    """What all questions have. `bound`: the filter of what the one who asks sees; `None` = everything."""

    generation: str
    timeout_ms: int
    bound: dict[str, Any] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Find(Question):
    """The first stage's lists for a query; `mode` `None` = the best that the index has."""

    query: str
    k: int
    mode: Mode | None
    filter: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """A list of candidates, best first."""

    ordinals: list[int]
    scores: list[float]


@dataclass(frozen=True, slots=True)
class Lists:
    """The answer to `Find`: `FirstStage.lists` of the shards."""

    mode: Mode
    lists: list[Ranking]
    timings_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Rank(Question):
    """Margins of candidates, best first.

    texts: so many of the best come with their text; best by margin + `bonus` (one a candidate, or empty = 0).
    """

    prompt: Prompt
    ordinals: list[int]
    chunk_size: int | None
    budget_ms: float | None
    texts: int
    bonus: list[float]


@dataclass(frozen=True, slots=True)
class Ranked:
    """The answer to `Rank`: of each candidate its id (`None` = cannot be read) and its margin (`None` = it has none).

    texts: by id; `None` = the index keeps none. damaged: ids whose states, or whose texts among those that were wanted,
    are damaged.
    """

    doc_ids: list[str | None]
    margins: list[float | None]
    texts: dict[str, str | None]
    damaged: list[str]
    query_truncated: bool
    plan: BudgetPlan | None
    counts: Counts
    timings_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Pair:
    """The place of a prompt among those of the question, and a passage: by its id, as a text, or both."""

    prompt: int
    doc_id: str | None
    text: str | None


@dataclass(frozen=True, slots=True)
class ScorePairs(Question):
    """The scores of pairs."""

    prompts: list[Prompt]
    pairs: list[Pair]
    options: ScoringOptions


@dataclass(frozen=True, slots=True)
class PairScores:
    """The answer to `ScorePairs`: `Scores`, and what it took. `damaged`: ids, each with its problem."""

    scores: list[Score | None]
    prompt_tokens: int
    passage_tokens: int
    query_truncated: bool
    damaged: list[tuple[str, str]]
    missing: list[str]
    counts: Counts
    timings_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Locate(Question):
    """Which contents (`Passage.content_hash`, in hexadecimal digits) the shards have."""

    contents: list[str]


@dataclass(frozen=True, slots=True)
class Located:
    """The answer to `Locate`, in its order."""

    present: list[bool]


@dataclass(frozen=True, slots=True)
class FindTexts(Question):
    """The texts of stored passages."""

    doc_ids: list[str]


@dataclass(frozen=True, slots=True)
class Texts:
    """The answer to `FindTexts`, in its order; `None` = none is kept, or it is damaged."""

    texts: list[str | None]


@dataclass(frozen=True, slots=True)
class Describe(Question):
    """The metadata of stored passages: which match a filter, and the values of some fields."""

    doc_ids: list[str]
    filter: dict[str, Any] | None
    fields: list[str]


@dataclass(frozen=True, slots=True)
class Explain(Question):
    """How a query's tokens attend to a stored passage."""

    prompt: Prompt
    doc_id: str
    chunk_size: int | None


_Asked = TypeVar("_Asked", bound=Question)
_Answered = TypeVar("_Answered")


@dataclass(frozen=True, slots=True)
class Exchange(Generic[_Asked, _Answered]):
    """A kind of question and its answer, and the path that takes it."""

    path: str
    question: TypeAdapter[_Asked]
    answer: TypeAdapter[_Answered]


STATUS_PATH = f"{FOLDER}/status"
STATUS: TypeAdapter[Status] = TypeAdapter(Status)
FIND: Exchange[Find, Lists] = Exchange(f"{FOLDER}/find", TypeAdapter(Find), TypeAdapter(Lists))
RANK: Exchange[Rank, Ranked] = Exchange(f"{FOLDER}/rank", TypeAdapter(Rank), TypeAdapter(Ranked))
SCORE: Exchange[ScorePairs, PairScores] = Exchange(f"{FOLDER}/score", TypeAdapter(ScorePairs), TypeAdapter(PairScores))
LOCATE: Exchange[Locate, Located] = Exchange(f"{FOLDER}/locate", TypeAdapter(Locate), TypeAdapter(Located))
TEXTS: Exchange[FindTexts, Texts] = Exchange(f"{FOLDER}/texts", TypeAdapter(FindTexts), TypeAdapter(Texts))
DESCRIBE: Exchange[Describe, Described] = Exchange(f"{FOLDER}/describe", TypeAdapter(Describe), TypeAdapter(Described))
EXPLAIN: Exchange[Explain, Explanation] = Exchange(f"{FOLDER}/explain", TypeAdapter(Explain), TypeAdapter(Explanation))
EXCHANGES: tuple[Exchange[Any, Any], ...] = (FIND, RANK, SCORE, LOCATE, TEXTS, DESCRIBE, EXPLAIN)
