"""What a call may be told beside its arguments; names and meanings are those of `PassageIndex` where it has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from kalm_cache.passage import OnMissing

if TYPE_CHECKING:
    from kalm_cache.first_stage import Mode


class SearchOptions(TypedDict, total=False):
    """Options of `search`: those of `PassageIndex.search`, and what a service adds.

    k: candidates that are reranked; 100.
    top_n: results; 10, `None` = all.
    first_stage: `dense`, `bm25`, `fused`; `None` = the service's.
    first_stage_weight: results are ordered by margin + this · the first stage's z-score; `auto` = as the index is
        calibrated, `None` = the service's.
    min_probability: results with a lower `probability` are left out; takes a calibrated index.
    filter: which passages count, by their metadata, as of `PassageIndex.search`.
    fields: metadata that results have in `metadata`; `*` = all.
    instruction: what the query asks for; `None` = the service's.
    chunk_size: pooling ratio of this answer; `None` = the service's.
    with_text: fill `text` of the results; true.
    budget_ms: the service takes fewer candidates or a coarser ratio to answer in this time, and says so in `plan`.
    timeout_ms: the service answers by then, or with an error.
    """

    k: int
    top_n: int | None
    first_stage: Mode | None
    first_stage_weight: float | Literal["auto"] | None
    min_probability: float | None
    filter: Mapping[str, Any] | None
    fields: Sequence[str]
    instruction: str | None
    chunk_size: int | None
    with_text: bool
    budget_ms: float | None
    timeout_ms: int | None


class RerankOptions(TypedDict, total=False):
    """Options of `rerank`: those of `PassageIndex.rerank`, and what a service adds.

    top_n: results; `None` = all, the default.
    instruction, chunk_size, min_probability, with_text, timeout_ms: as for a search; and so, of `ids` alone, filter and
        fields.
    on_missing: what becomes of what the index does not hold: `error`, `skip`, or `encode` (where there is a text, and
        the service has the encoder); `None` = error for ids, encode for documents.
    truncate: false makes too long a text an error; true cuts it, and the answer says so.
    cache: false: the texts are private; the service neither looks them up nor keeps their states.
    """

    top_n: int | None
    instruction: str | None
    chunk_size: int | None
    min_probability: float | None
    filter: Mapping[str, Any] | None
    fields: Sequence[str]
    with_text: bool
    on_missing: OnMissing | None
    truncate: bool
    cache: bool
    timeout_ms: int | None


class ExplainOptions(TypedDict, total=False):
    """Options of `explain`; each as for `rerank`."""

    instruction: str | None
    chunk_size: int | None
    filter: Mapping[str, Any] | None
    timeout_ms: int | None


class ScoreOptions(TypedDict, total=False):
    """Options of `score`; each as for `rerank`. `batch_size`: pairs of one request; 256."""

    instruction: str | None
    chunk_size: int | None
    truncate: bool
    cache: bool
    timeout_ms: int | None
    batch_size: int | None
