"""A model that mteb evaluates (its `SearchProtocol`): first stage and cached rerank, or, in mteb's second stage, the
rerank of another model's candidates. The corpus is encoded once; a query costs its decoder. Extra `mteb`.

    reranker = load_mteb_reranker("mteb-index", model="tiny")             # from kalm_cache.cli.mteb
    mteb.evaluate(first_stage, task, prediction_folder="predictions")     # any model of mteb
    mteb.evaluate(reranker, task.convert_to_reranking("predictions", top_k=100))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kalm_cache.errors import MissingExtraError, UsageError
from kalm_cache.evaluation.collections.mteb_task import instruction_of, passages_of, query_instructions, query_texts
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION
from kalm_cache.passage import Passage, PassageTemplate

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex

OpenIndex = Callable[[str, Callable[[PassageTemplate], Iterable[Passage]]], "PassageIndex"]
Scores = dict[str, dict[str, float]]  # query id -> passage id -> margin


class MTEBReranker:
    """Searches and reranks with a `PassageIndex` for each corpus. Scores are margins: no ties where P(yes) is 1."""

    def __init__(
        self,
        open_index: OpenIndex,
        name: str,
        *,
        k: int = 100,
        instruction: str | None = None,
        chunk_size: int | None = None,
    ) -> None:
        """Wrap what opens indexes.

        Args:
            open_index: (name of a corpus, its passages) -> an open index that holds them, built first if need be.
            name: of the model, as mteb's results call it.
            k: candidates that are reranked where mteb gives none.
            instruction: `None` = a query's own, else the task's prompt, else the model's default.
            chunk_size: pooling ratio; `None` = the stored one.

        Raises:
            MissingExtraError: mteb is not installed.
        """
        try:
            from mteb.models.model_meta import ModelMeta
        except ImportError as exc:
            raise MissingExtraError("mteb", "mteb") from exc
        self._open_index, self._k = open_index, k
        self._instruction, self._chunk_size = instruction, chunk_size
        self._opened: PassageIndex | None = None
        settings = {"k": k, "instruction": instruction, "chunk_size": chunk_size}
        described = {"name": name, "revision": "kalm-cache", "experiment_kwargs": settings}
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=described)

    def index(self, corpus: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **ignored: Any) -> None:
        """Encode the corpus (a `datasets.Dataset` with `id`, `text` and maybe `title`), or open what has been encoded.

        `ignored`: mteb's `encode_kwargs` and `num_proc`; the index job has settings of its own.
        """
        self.close()
        name = re.sub(r"[^\w.-]+", "-", f"{task_metadata.name}-{hf_subset}-{hf_split}")
        self._opened = self._open_index(name, lambda template: passages_of(corpus, template))

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **ignored: Any,
    ) -> Scores:
        """Margins of each query's passages: of `top_ranked` where mteb gives candidates, else of the first stage's.

        Args:
            queries: a `datasets.Dataset` with `id`, `text` and maybe `instruction`.
            task_metadata: whose prompt is the instruction.
            top_k: results of each query at most.
            top_ranked: candidates by query id.
            ignored: `hf_split`, `hf_subset`, `encode_kwargs`, `num_proc`.

        Raises:
            UsageError: `index` was not called before.
            UnknownIdError: a candidate is not in the corpus.
        """
        if self._opened is None:
            raise UsageError("search was called before index: give mteb the model, and let it call both")
        texts, instructions = query_texts(queries, task_metadata.name), query_instructions(queries)
        scores: Scores = {}
        for query_id, query in texts.items():
            instruction = (
                self._instruction or instructions.get(query_id) or instruction_of(task_metadata) or DEFAULT_INSTRUCTION
            )
            options: dict[str, Any] = {"instruction": instruction, "chunk_size": self._chunk_size, "with_text": False}
            if top_ranked is None:
                answer = self._opened.search(query, k=self._k, top_n=top_k, **options)
            else:
                answer = self._opened.rerank(query, list(top_ranked.get(query_id, ())), top_n=top_k, **options)
            scores[query_id] = {hit.doc_id: hit.margin for hit in answer.results}
        return scores

    def close(self) -> None:
        """Leave the index that is open, if one is."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
