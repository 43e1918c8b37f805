"""`KaLMReranker`: the reference implementation's interface, encoding passages on the fly."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, overload

import torch
from torch import Tensor

from kalm_cache.arguments import (
    as_list,
    check_count,
    check_document,
    check_limit,
    check_pairs,
    check_text,
    check_texts,
)
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.precision import resolve_device, resolve_dtype
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION, Prompt
from kalm_cache.passage import DEFAULT_TEMPLATE, PassageTemplate
from kalm_cache.scoring.passage_side import PassageSide, load_passage_side
from kalm_cache.scoring.query_side import QuerySide, load_query_side, score_of
from kalm_cache.scoring.ranking import best_first

HUB_OPTIONS = frozenset({"revision", "token", "cache_dir", "local_files_only", "force_download"})
DocumentLike = str | Mapping[str, Any]
logger = logging.getLogger(__name__)


class Scored(TypedDict):
    """One pair's scores: `score` = P(yes), `margin` = yes_logit − no_logit (float32)."""

    score: float
    margin: float


class Ranked(TypedDict, total=False):
    """One document of a ranking: its position in the input, P(yes), and the margin where asked for."""

    corpus_id: int
    score: float
    margin: float


class KaLMReranker:
    """A KaLM-Reranker-V1 checkpoint behind the reference's constructor, `predict` and `rank`."""

    def __init__(
        self,
        model_name_or_path: str,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = 32,
        query_max_length: int = 512,
        max_length: int = 1024,
        chunk_size: int | None = 4,
        instruction: str = DEFAULT_INSTRUCTION,
        system_instruction: str = DEFAULT_SYSTEM_INSTRUCTION,
        passage_template: str = DEFAULT_TEMPLATE,
        **model_kwargs: Any,
    ) -> None:
        """Load both sides of a model.

        Args:
            model_name_or_path: alias (`tiny nano small large …`), folder or Hugging Face id.
            device: `None` = CUDA when there is one, else the CPU.
            dtype: `None` = bfloat16 where the device multiplies it natively (CUDA, Intel AMX), else float32.
            batch_size: pairs encoded and decoded together.
            query_max_length: tokens of the query that count; the rest is cut.
            max_length: tokens of a passage that count, its prefix included.
            chunk_size: pooling ratio r; `None` and 1 turn pooling off.
            instruction: what the query asks for; `predict` and `rank` may override it.
            system_instruction: the first line of the prompt.
            passage_template: how the fields of a document that is a mapping make its text.
            model_kwargs: `revision, token, cache_dir, local_files_only, force_download` for the download; others,
                which the reference hands to transformers, are ignored with a warning.

        Raises:
            CheckpointError: the model is missing or incomplete.
            UsageError: a value that cannot be served.
        """
        self.batch_size, chunk_size = check_count(batch_size, "batch_size"), check_limit(chunk_size, "chunk_size")
        query_max_length = check_count(query_max_length, "query_max_length")
        max_length = check_count(max_length, "max_length")
        self.instruction = check_text(instruction, "instruction")
        self.system_instruction = check_text(system_instruction, "system_instruction")
        self.passage_template = PassageTemplate(check_text(passage_template, "passage_template"))
        checkpoint = open_checkpoint(model_name_or_path, **_hub_options(model_kwargs))
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.query_side: QuerySide = load_query_side(
            checkpoint, device=self.device, dtype=self.dtype, query_max_length=query_max_length
        )
        self.passage_side: PassageSide = load_passage_side(
            checkpoint,
            device=self.device,
            dtype=self.dtype,
            max_length=max_length,
            chunk_size=chunk_size or 1,
            tokenizer=self.query_side.tokenizer,
        )

    @overload
    def predict(
        self,
        pairs: Iterable[tuple[str, DocumentLike]],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        return_margin: Literal[False] = False,
    ) -> list[float]: ...

    @overload
    def predict(
        self,
        pairs: Iterable[tuple[str, DocumentLike]],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        return_margin: Literal[True],
    ) -> list[Scored]: ...

    def predict(
        self,
        pairs: Iterable[tuple[str, DocumentLike]],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        return_margin: bool = False,
    ) -> list[float] | list[Scored]:
        """P(yes) of each (query, document) pair, in input order.

        Args:
            pairs: (query, document); a document is a text, or a mapping with a text and maybe a title.
            instruction: `None` = the constructor's.
            batch_size: `None` = the constructor's.
            return_margin: return `{"score", "margin"}` for each pair instead of the score alone.

        Raises:
            UsageError: a pair that is no query and document, named by its position; a batch size below 1.
            NonFiniteLogitsError: the model overflowed in this dtype.
        """
        checked = [
            (query, self._text_of(document, f"pairs[{i}]")) for i, (query, document) in enumerate(check_pairs(pairs))
        ]
        instruction = self.instruction if instruction is None else check_text(instruction, "instruction")
        margins = self._margins(checked, instruction, self._step(batch_size))
        if return_margin:
            return [Scored(score=score_of(margin), margin=margin) for margin in margins]
        return [score_of(margin) for margin in margins]

    def rank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        *,
        instruction: str | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
        return_margin: bool = False,
    ) -> list[Ranked]:
        """Documents by falling margin: `[{"corpus_id", "score"}]`, the `top_k` first ones (`None` = all).

        Equal margins keep their input order. With `return_margin` each entry also holds `margin`.

        Raises:
            UsageError: as `predict`; `documents` is no list, or `top_k` below 0.
            NonFiniteLogitsError: the model overflowed in this dtype.
        """
        query, top_k = check_text(query, "query"), check_limit(top_k, "top_k", least=0)
        texts = [
            self._text_of(document, f"documents[{i}]") for i, document in enumerate(as_list(documents, "documents"))
        ]
        scored = self.predict(
            [(query, text) for text in texts],
            instruction=instruction,
            batch_size=batch_size,
            return_margin=True,
        )
        order = best_first([pair["margin"] for pair in scored], top_k)
        if return_margin:
            return [Ranked(corpus_id=i, score=scored[i]["score"], margin=scored[i]["margin"]) for i in order]
        return [Ranked(corpus_id=i, score=scored[i]["score"]) for i in order]

    def encode(self, documents: Sequence[str], *, batch_size: int | None = None) -> list[Tensor]:
        """Pooled states (P, D) of each document, in input order. Raises `UsageError` as `rank`."""
        texts = check_texts(documents, "documents")
        return [passage.states for passage in self.passage_side.encode_documents(texts, self._step(batch_size))]

    def _text_of(self, document: Any, name: str) -> str:
        return check_document(document, name, self.passage_template)

    def _margins(self, pairs: list[tuple[str, str]], instruction: str, batch_size: int) -> list[float]:
        """Each distinct query is tokenised once, each distinct document encoded once."""
        prompts = {
            query: self.query_side.tokenize(Prompt(query, instruction, self.system_instruction))
            for query in dict.fromkeys(query for query, _ in pairs)
        }
        documents = list(dict.fromkeys(document for _, document in pairs))
        pooled = dict(zip(documents, self.encode(documents, batch_size=batch_size), strict=True))
        return self.query_side.margins(
            [prompts[query] for query, _ in pairs], [pooled[document] for _, document in pairs], batch_size
        )

    def _step(self, batch_size: int | None) -> int:
        return check_limit(batch_size, "batch_size") or self.batch_size


def _hub_options(model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The options that the download takes; others are ignored with a warning."""
    ignored = sorted(model_kwargs.keys() - HUB_OPTIONS)
    if ignored:
        logger.warning("ignored options, which this runtime has no use for: %s", ", ".join(ignored))
    return {name: value for name, value in model_kwargs.items() if name in HUB_OPTIONS}
