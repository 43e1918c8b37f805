"""What the service answers about itself: alive, ready, what it is, which models. Knows nothing of routes."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel

from kalm_cache import __version__
from kalm_cache.scoring.batching import BATCH_TOKENS, DECODE_BATCH
from query_service.answering.errors import NotReadyError
from query_service.answering.model_card import shown_name
from query_service.answering.service import AnswerService, ServiceFacts


class PrefixCache(BaseModel):
    """The prefix cache: counts since the start, and what is cached now."""

    hits: int
    misses: int
    evicted: int
    passages: int
    bytes: int
    capacity_bytes: int


class Behind(BaseModel):
    """A published generation that is not served, for how long, and why; null: which one is not known."""

    index_version: str | None
    seconds: float
    reason: str


class TextCacheHealth(BaseModel):
    """The text cache: counts of this process since its start; `off`: why nothing is written any more, or empty."""

    hits: int
    misses: int
    expired: int
    damaged: int
    written: int
    dropped: int
    evicted: int
    off: str


class Health(BaseModel):
    """The service is alive, and what it serves; `prefix_cache` and `text_cache` are null where there is none.

    Without an index, `index_version` is `none`. `passages`: that the one who asks sees; null where keys are bound to
    filters, and none was sent.
    `damaged_reads` counts passages that answers had to do without: above 0, run kalm-cache verify --repair.
    `reload_failure` says why the newest generation is not the one that is served, `behind` which one that is and since
    when; null where the newest is served. `missing_shards`: of a router, those that nobody serves now.
    """

    status: Literal["ok"] = "ok"
    index_version: str
    model: str
    passages: int | None
    damaged_reads: int = 0
    reload_failure: str | None = None
    behind: Behind | None = None
    prefix_cache: PrefixCache | None = None
    text_cache: TextCacheHealth | None = None
    missing_shards: list[int] = []


class Ready(BaseModel):
    """Requests are answered; 503 in its place while the service warms up or stops.

    `stale`: right answers, but of an older generation than the one that is published, which cannot be opened. That is
    no 503: every replica meets the same trouble, and taking all of them away would help nobody.
    """

    status: Literal["ready", "stale"] = "ready"
    index_version: str
    behind: Behind | None = None


class Reloaded(BaseModel):
    """What is served now, and whether that is another generation than before."""

    index_version: str
    swapped: bool


class Model(BaseModel):
    """One name that `model` may have."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["kalm-cache"] = "kalm-cache"
    root: str
    parent: None = None
    max_model_len: int


class Models(BaseModel):
    """The names that `model` may have."""

    object: Literal["list"] = "list"
    data: list[Model]


class InfinityHealth(BaseModel):
    """The service is alive, and the time there, in seconds since 1970, as Infinity has it."""

    unix: float


class InfinityModel(BaseModel):
    """One name that `model` may have, and how busy the service is, as Infinity has it."""

    id: str
    stats: dict[str, float]
    object: Literal["model"] = "model"
    owned_by: Literal["infinity"] = "infinity"
    created: int
    backend: Literal["torch"] = "torch"
    capabilities: list[Literal["rerank"]] = ["rerank"]


class InfinityModels(BaseModel):
    """The names that `model` may have."""

    object: Literal["list"] = "list"
    data: list[InfinityModel]


class Info(BaseModel):
    """What this service is, holds and allows; lengths in tokens. Names as other rerank services have them.

    `model_sha` is of the encoder, tokenizer included, which made the stored states; `decoder` answers over them.
    `shared_prefix`: `mean` where prompt tokens before the query have the same keys and values for all passages, the
    mean over `shared_prefix_passages` of the index; `isolated` where the decoder was trained so; else null.
    `text_cache_gib` is null where there is no text cache. `max_batch_requests`, `sha` and `docker_label` are null: Text
    Embeddings Inference has them.
    """

    version: str
    model_id: str
    served_model_name: str
    model_sha: str
    decoder: str
    decoder_sha: str
    model_dtype: str
    model_type: dict[str, Any]
    device: str
    index_version: str
    passages: int | None
    codec: str
    chunk_size: int
    first_stage: list[str]
    shared_prefix: str | None
    shared_prefix_passages: int
    encodes_documents: bool
    text_cache_gib: float | None
    max_input_length: int
    max_query_length: int
    max_query_chars: int
    max_instruction_tokens: int
    max_documents: int
    max_client_batch_size: int
    max_batch_tokens: int
    max_batch_requests: int | None = None
    auto_truncate: bool = True
    tokenization_workers: int
    sha: str | None = None
    docker_label: str | None = None
    max_body_bytes: int
    timeout_ms: int
    queue_limit: int
    max_concurrent_requests: int
    workers: int


def answer_health(service: AnswerService) -> Health:
    """Alive, and what is served."""
    try:
        facts = service.facts()
    except NotReadyError:  # a router that has found no shards lives all the same
        return Health(index_version="none", model="none", passages=0)
    return Health(
        index_version=facts.version,
        model=service.names[0],
        passages=facts.passages,
        damaged_reads=facts.damaged_reads,
        reload_failure=facts.behind.reason if facts.behind else None,
        behind=_behind(facts),
        prefix_cache=None if facts.prefix_cache is None else PrefixCache(**asdict(facts.prefix_cache)),
        text_cache=None if facts.text_cache is None else TextCacheHealth(**asdict(facts.text_cache)),
        missing_shards=facts.missing_shards,
    )


def answer_ready(service: AnswerService) -> Ready:
    """Ready. Raises as `AnswerService.require_ready`."""
    service.require_ready()
    facts = service.facts()
    behind = _behind(facts)
    return Ready(status="stale" if behind else "ready", index_version=facts.version, behind=behind)


def _behind(facts: ServiceFacts) -> Behind | None:
    behind = facts.behind
    if behind is None:
        return None
    return Behind(index_version=behind.generation, seconds=round(behind.seconds, 1), reason=behind.reason)


def answer_info(service: AnswerService) -> Info:
    """What the service is, holds and allows."""
    facts, settings, name = service.facts(), service.settings, service.names[0]
    model = facts.model
    return Info(
        version=__version__,
        model_id=name,
        served_model_name=name,
        model_sha=model.encoded_by.encoder,
        decoder=shown_name(model.decoder.name),
        decoder_sha=model.decoder.digest,
        model_dtype=model.dtype,
        model_type={"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        device=model.device,
        index_version=facts.version,
        passages=facts.passages,
        codec=model.codec,
        chunk_size=model.chunk_size,
        first_stage=facts.first_stage,
        shared_prefix=model.shared_prefix,
        shared_prefix_passages=model.shared_prefix_passages,
        encodes_documents=facts.encodes_documents,
        text_cache_gib=None if facts.text_cache is None else settings.text_cache_gib,
        max_input_length=model.max_length,
        max_query_length=model.query_max_length,
        max_query_chars=settings.max_query_chars,
        max_instruction_tokens=settings.max_instruction_tokens,
        max_documents=settings.max_documents,
        max_client_batch_size=settings.max_documents,
        max_batch_tokens=BATCH_TOKENS,
        tokenization_workers=settings.reader_threads,
        max_body_bytes=settings.max_body_bytes,
        timeout_ms=settings.timeout_ms,
        queue_limit=settings.queue_limit,
        max_concurrent_requests=settings.queue_limit,
        workers=settings.workers,
    )


def answer_models(service: AnswerService) -> Models:
    """Every name that a request's `model` may have."""
    model, names = service.facts().model, service.names
    return Models(
        data=[Model(id=name, created=model.created, root=names[0], max_model_len=model.max_length) for name in names]
    )


def answer_infinity_health() -> InfinityHealth:
    """Alive."""
    return InfinityHealth(unix=time.time())


def answer_infinity_models(service: AnswerService) -> InfinityModels:
    """Every name that a request's `model` may have, with the pairs that wait and the requests under way."""
    facts = service.facts()
    stats = {
        "queue_fraction": facts.under_way / service.settings.queue_limit,
        "queue_absolute": facts.waiting,
        "results_pending": facts.under_way,
        "batch_size": DECODE_BATCH,
    }
    models = answer_models(service).data
    return InfinityModels(data=[InfinityModel(id=one.id, stats=stats, created=one.created) for one in models])
