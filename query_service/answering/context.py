"""`AnswerContext`: what an endpoint makes the answer to one request with. Knows nothing of who scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from kalm_cache.first_stage import Mode
from kalm_cache.model.prompts import Prompt
from kalm_cache.scoring.ranking import Answer
from kalm_cache.settings import Settings
from query_service.answering.model_card import ModelCard
from query_service.answering.notes import AnswerNotes
from query_service.answering.passages import AnyPassage, ScoringOptions
from query_service.answering.scores import Scores


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched: a query, and how; the fields are those of `PassageIndex.search`.

    weight: of the first stage's z-scores. min_probability: results below it are left out. filter: which passages count,
    as JSON; `None` = all. budget_ms: of the whole answer; `None` = no budget.
    """

    prompt: Prompt
    k: int
    mode: Mode | None
    chunk_size: int | None
    top_n: int | None
    weight: float | Literal["auto"]
    min_probability: float | None
    filter: Mapping[str, Any] | None
    fields: Sequence[str]
    with_text: bool
    budget_ms: float | None


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """The first `k` candidates at `chunk_size`; `reduced`: less than was asked for."""

    k: int
    chunk_size: int
    predicted_ms: float
    reduced: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a search, and the plan of its time budget; `None` = it had none."""

    answer: Answer
    plan: BudgetPlan | None


@dataclass(frozen=True, slots=True)
class Described:
    """Stored passages by their metadata: whether each matches a filter (`None`: it is not stored), and its values."""

    matches: list[bool | None]
    values: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Attended:
    """A piece of a passage's text, characters [start, end), and its share of the attention."""

    start: int
    end: int
    weight: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a query's tokens attended to a stored passage."""

    margin: float
    chunk_size: int
    query_truncated: bool
    truncated: bool
    text: str
    chunks: list[Attended]


class AnswerContext(Protocol):
    """One request under way, and what answers it."""

    @property
    def notes(self) -> AnswerNotes:
        """What is noted of the answer."""

    @property
    def settings(self) -> Settings:
        """What holds where a request does not say."""

    @property
    def model(self) -> ModelCard:
        """What scores."""

    @property
    def version(self) -> str:
        """The generation that answers; `none` without an index."""

    async def check_instruction(self, instruction: str) -> None:
        """Raise `UsageError` when a request's own instruction has too many tokens: every passage would pay for them."""

    async def search(self, search: Search) -> Found:
        """First stage, then cached rerank.

        Raises:
            NoIndexError: there is none.
            UsageError: a first stage that was not built; a chunk size that is no multiple of the stored one, or at
                which the decoder is not calibrated, where the search needs that.
        """

    async def score_pairs(
        self, prompts: Sequence[Prompt], passages: Sequence[AnyPassage], options: ScoringOptions
    ) -> Scores:
        """The score of each (prompt, passage) pair.

        Raises:
            EncoderOffError: a raw passage, and no encoder.
            UnknownIdError, NoIndexError: ids that the index does not hold, where that is an error.
            UsageError: a chunk size that is no multiple of the stored one; a cut, where none is allowed.
        """

    async def find_texts(self, doc_ids: Sequence[str]) -> list[str | None]:
        """The text of each stored passage; `None` where the index keeps none, or a damaged one."""

    async def describe(
        self, doc_ids: Sequence[str], filter: Mapping[str, Any] | None, fields: Sequence[str]
    ) -> Described:
        """The metadata of stored passages.

        Raises:
            NoIndexError: there is none.
            UsageError: a filter or a field that does not fit the index.
        """

    async def explain(self, prompt: Prompt, doc_id: str, chunk_size: int | None) -> Explanation:
        """Decode one pair, and say where it looked.

        Raises:
            UnknownIdError: the index does not hold the passage.
            DamagedRecordError: its states or its text are damaged.
            UsageError: the index keeps no texts, or the chunk size is no multiple of the stored one.
        """
