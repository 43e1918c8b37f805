"""`KaLMReranker`: the reference implementation's interface, over texts that it encodes or finds in a text cache."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, TypedDict, overload

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
from kalm_cache.codec import Codec
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.precision import resolve_device, resolve_dtype
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION, Prompt
from kalm_cache.passage import DEFAULT_TEMPLATE, PassageTemplate
from kalm_cache.process.progress_bar import progress_bar
from kalm_cache.scoring.batching import Pair, compute_in_batches
from kalm_cache.scoring.passage_side import PassageSide, load_passage_side
from kalm_cache.scoring.query_side import QuerySide, load_query_side, score_of
from kalm_cache.scoring.ranking import best_first
from kalm_cache.scoring.state_codec import codec_of
from kalm_cache.scoring.text_states import TextEncoder, TextStates, open_text_states
from kalm_cache.storage.text_cache.named import CacheLike, open_named
from kalm_cache.storage.text_cache.text_cache import TextCache

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
    """A KaLM-Reranker-V1 checkpoint behind the reference's constructor, `predict` and `rank`.

    With a text cache a passage is encoded once, also where another process encodes it. It can be pickled, and computes
    in a fork. `close()`, the end of a `with` block and the interpreter's write what waits for the cache.
    """

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
        cache: CacheLike = None,
        cache_gib: float | None = None,
        cache_codec: str = "fp16",
        **model_kwargs: Any,
    ) -> None:
        """Load both sides of a model.

        Args:
            model_name_or_path: alias (`tiny nano small large …`), folder or Hugging Face id.
            device: `None` = CUDA when there is one, else the CPU.
            dtype: `None` = bfloat16 where the device multiplies it natively (CUDA, AMX, AVX-512 BF16), else float32.
            batch_size: pairs encoded and decoded together.
            query_max_length: tokens of the query that count; the rest is cut.
            max_length: tokens of a passage that count, its prefix included.
            chunk_size: pooling ratio r; `None` and 1 turn pooling off.
            instruction: what the query asks for; `predict` and `rank` may override it.
            system_instruction: the first line of the prompt.
            passage_template: how the fields of a document that is a mapping make its text.
            cache: a folder for pooled states, `True` for the platform's own (`~/.cache/kalm-cache/texts`), or a
                `TextCache` that is open and stays so; `None` keeps nothing.
            cache_gib: of the cache's file at most; `None` = 4. What was least recently used leaves first.
            cache_codec: how states are stored. `fp32` is exact; `fp16` rounds each value by 2⁻¹¹ of it at most, and
                `kalm_cache.codec.get_codec` lists the smaller ones. Each has entries of its own.
            model_kwargs: `revision, token, cache_dir, local_files_only, force_download` for the download; others,
                which the reference hands to transformers, are ignored with a warning.

        Raises:
            CheckpointError: the model is missing or incomplete.
            UsageError: a value that cannot be served.
            StoreError: the cache's folder is on a network file system.
        """
        self.batch_size, chunk_size = check_count(batch_size, "batch_size"), check_limit(chunk_size, "chunk_size") or 1
        query_max_length = check_count(query_max_length, "query_max_length")
        max_length = check_count(max_length, "max_length")
        self.instruction = check_text(instruction, "instruction")
        self.system_instruction = check_text(system_instruction, "system_instruction")
        self.passage_template = PassageTemplate(check_text(passage_template, "passage_template"))
        text_cache = open_named(cache, cache_gib)
        checkpoint = open_checkpoint(model_name_or_path, **_hub_options(model_kwargs))
        codec = codec_of(checkpoint, cache_codec)
        self.device = device = resolve_device(device)
        self.dtype = dtype = resolve_dtype(dtype, device)
        self.query_side: QuerySide = load_query_side(
            checkpoint, device=device, dtype=dtype, query_max_length=query_max_length
        )
        tokenizer = self.query_side.tokenizer
        self.passage_side: PassageSide = load_passage_side(
            checkpoint, device=device, dtype=dtype, max_length=max_length, chunk_size=chunk_size, tokenizer=tokenizer
        )
        self._cached = None if text_cache is None else self._states_in(text_cache, checkpoint, codec)
        self._owns_cache = text_cache is not cache

    def _states_in(self, cache: TextCache, checkpoint: Checkpoint, codec: Codec) -> TextStates:
        return open_text_states(cache, checkpoint, codec, dtype=self.dtype, chunk_size=self.passage_side.chunk_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what waits for the cache, and leave its folder; what is encoded later is not kept."""
        if self.cache is not None:
            self.cache.close() if self._owns_cache else self.cache.flush()
        self._cached = None

    @property
    def cache(self) -> TextCache | None:
        """The text cache, whose `counts` tell hits from misses."""
        return None if self._cached is None else self._cached.namespace.cache

    @overload
    def predict(
        self,
        pairs: Iterable[tuple[str, DocumentLike]],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        return_margin: Literal[False] = False,
        max_length: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[float]: ...

    @overload
    def predict(
        self,
        pairs: Iterable[tuple[str, DocumentLike]],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        return_margin: Literal[True],
        max_length: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[Scored]: ...

    def predict(
        self,
        pairs: Iterable[tuple[str, DocumentLike]],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        return_margin: bool = False,
        max_length: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[float] | list[Scored]:
        """P(yes) of each (query, document) pair, in input order.

        Args:
            pairs: (query, document); a document is a text, or a mapping with a text and maybe a title.
            instruction: `None` = the constructor's.
            batch_size: `None` = the constructor's.
            return_margin: return `{"score", "margin"}` for each pair instead of the score alone.
            max_length: tokens of a passage that count; `None` = the constructor's.
            show_progress_bar: `None` = on a terminal, where it takes longer than 3 seconds.

        Raises:
            UsageError: a pair that is no query and document, named by its position; a batch size below 1.
            NonFiniteLogitsError: the model overflowed in this dtype.
        """
        checked = [
            (query, self._text_of(document, f"pairs[{i}]")) for i, (query, document) in enumerate(check_pairs(pairs))
        ]
        instruction = self.instruction if instruction is None else check_text(instruction, "instruction")
        margins = self._margins(checked, instruction, self._step(batch_size), self._side(max_length), show_progress_bar)
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
        max_length: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[Ranked]:
        """Documents by falling margin: `[{"corpus_id", "score"}]`, the `top_k` first ones (`None` = all).

        Equal margins keep their input order. With `return_margin` each entry also holds `margin`. The other arguments
        are those of `predict`.

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
            max_length=max_length,
            show_progress_bar=show_progress_bar,
        )
        order = best_first([pair["margin"] for pair in scored], top_k)
        if return_margin:
            return [Ranked(corpus_id=i, score=scored[i]["score"], margin=scored[i]["margin"]) for i in order]
        return [Ranked(corpus_id=i, score=scored[i]["score"]) for i in order]

    def encode(
        self, documents: Sequence[str], *, batch_size: int | None = None, show_progress_bar: bool | None = None
    ) -> list[Tensor]:
        """Pooled states (P, D) of each document, in input order. Raises `UsageError` as `rank`."""
        texts = check_texts(documents, "documents")
        states = self._states(texts, self._step(batch_size), self.passage_side, show_progress_bar)
        return [states[text] for text in texts]

    def _text_of(self, document: Any, name: str) -> str:
        return check_document(document, name, self.passage_template)

    def _margins(
        self, pairs: list[tuple[str, str]], instruction: str, batch_size: int, side: PassageSide, show: bool | None
    ) -> list[float]:
        """Each distinct query is tokenised once, each distinct document encoded once."""
        prompts = {
            query: self.query_side.tokenize(Prompt(query, instruction, self.system_instruction))
            for query in dict.fromkeys(query for query, _ in pairs)
        }
        pooled = self._states([document for _, document in pairs], batch_size, side, show)
        with progress_bar("scoring", len(pairs), show) as advance:

            def decode(batch: list[Pair]) -> list[float]:
                margins = self.query_side.decode(batch)
                advance(len(batch))
                return margins

            return compute_in_batches(
                [prompts[query] for query, _ in pairs], [pooled[text] for _, text in pairs], batch_size, decode
            )

    def _states(self, texts: list[str], batch_size: int, side: PassageSide, show: bool | None) -> dict[str, Tensor]:
        with progress_bar("encoding", len(set(texts)), show) as advance:
            return TextEncoder(side, self._cached).states(texts, batch_size, advance)

    def _side(self, max_length: int | None) -> PassageSide:
        limit = check_limit(max_length, "max_length")
        return self.passage_side if limit is None else replace(self.passage_side, max_length=limit)

    def _step(self, batch_size: int | None) -> int:
        return check_limit(batch_size, "batch_size") or self.batch_size


def _hub_options(model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The options that the download takes; others are ignored with a warning."""
    ignored = sorted(model_kwargs.keys() - HUB_OPTIONS)
    if ignored:
        logger.warning("ignored options, which this runtime has no use for: %s", ", ".join(ignored))
    return {name: value for name, value in model_kwargs.items() if name in HUB_OPTIONS}
