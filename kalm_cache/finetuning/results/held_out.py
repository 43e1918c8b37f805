"""Held-out queries with their candidates → nDCG@10 of any decoder, query by query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, cast

from kalm_cache.evaluation.measures.metrics import measure_queries
from kalm_cache.finetuning.data.example import Example, Item
from kalm_cache.model.prompts import Prompt, PromptTokens
from kalm_cache.scoring.query_side import QuerySide
from kalm_cache.scoring.ranking import best_first

if TYPE_CHECKING:
    from kalm_cache.first_stage import Mode
    from kalm_cache.index.passage_index import PassageIndex

MEASURE = "ndcg@10"


@dataclass(frozen=True, slots=True)
class HeldOutQuery:
    """A query, its candidates as a search finds them, and the grades of its judged passages."""

    prompt: PromptTokens
    candidates: list[Item]
    grades: dict[Item, int]

    def is_relevant(self) -> list[bool]:
        """Of each candidate, whether it is judged relevant."""
        return [self.grades.get(item, 0) > 0 for item in self.candidates]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Queries → tokens, under a run's instruction or an example's own."""

    side: QuerySide
    instruction: str
    system: str

    def tokens(self, query: str, instruction: str | None) -> PromptTokens:
        """The whole prompt."""
        return self.side.tokenize(Prompt(query, instruction or self.instruction, self.system))


def held_out_queries(
    index: PassageIndex, prompts: Prompts, examples: Sequence[Example], depth: int, first_stage: str | None
) -> list[HeldOutQuery]:
    """The first stage's `depth` best passages of each query are its candidates, and the texts that came with it.

    A relevant passage of the index that the first stage misses stays missed, as in a search.
    """
    queries = []
    for example in examples:
        found = index.find(example.query, depth, cast("Mode | None", first_stage))
        candidates = [Item(doc_id, is_id=True) for doc_id in found.doc_ids]
        texts = [item for item in example.items if not item.is_id]
        grades = dict(zip(example.items, example.labels, strict=True))
        prompt = prompts.tokens(example.query, example.instruction)
        queries.append(HeldOutQuery(prompt, list(dict.fromkeys([*candidates, *texts])), grades))
    return queries


def ndcg_of(queries: Sequence[HeldOutQuery], margins: Sequence[Sequence[float]]) -> list[float]:
    """nDCG@10 of each query, its candidates in the order of their margins; equal ones keep their order."""
    qrels, run = {}, {}
    for number, (query, of_query) in enumerate(zip(queries, margins, strict=True)):
        qrels[str(number)] = {_name(item): grade for item, grade in query.grades.items()}
        run[str(number)] = [_name(query.candidates[i]) for i in best_first(of_query, None)]
    return [measures[MEASURE] for measures in measure_queries(qrels, run, [MEASURE]).values()]


def mean_ndcg(
    queries: Sequence[HeldOutQuery],
    chunk_sizes: Sequence[int],
    margins: Callable[[HeldOutQuery, int], Sequence[float]],
) -> float:
    """Mean nDCG@10 with each query at one of the chunk sizes in turn: all of them count, at the price of one."""
    ranked = [margins(query, chunk_sizes[number % len(chunk_sizes)]) for number, query in enumerate(queries)]
    return fmean(ndcg_of(queries, ranked))


def _name(item: Item) -> str:
    return f"{'id' if item.is_id else 'text'}:{item.value}"
