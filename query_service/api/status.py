"""What the service says of itself: alive, ready, what it is, which models. Knows nothing of routes."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from kalm_cache import __version__
from kalm_cache.model.precision import dtype_name
from query_service.api.errors import NotReadyError
from query_service.api.responses import Health, Info, Model, Models, PrefixCache, Ready
from query_service.engine.service import Service


def answer_health(service: Service) -> Health:
    """Alive, and what is served."""
    index, prefix_cache = service.live.served.index, service.live.served.index.prefix_cache
    return Health(
        index_version=service.live.served.version,
        model=service.model,
        passages=len(index),
        damaged_reads=index.damaged_reads,
        reload_failure=service.live.last_failure,
        prefix_cache=None if prefix_cache is None else PrefixCache(**asdict(prefix_cache.stats())),
    )


def answer_ready(service: Service) -> Ready:
    """Ready. Raises `NotReadyError` while the service warms up or stops."""
    if not service.ready:
        raise NotReadyError
    return Ready(index_version=service.live.served.version)


def answer_info(service: Service) -> Info:
    """What the service is, holds and allows."""
    served, settings = service.live.served, service.settings
    built, side = served.index.generation.manifest.fingerprint, served.index.query_side
    return Info(
        version=__version__,
        model_id=service.model,
        model_sha=built.model,
        model_dtype=dtype_name(side.dtype),
        model_type={"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        device=str(side.device),
        index_version=served.version,
        passages=len(served.index),
        codec=built.codec,
        chunk_size=served.index.chunk_size,
        first_stage=list(served.index.first_stage.modes),
        encodes_documents=served.documents is not None,
        max_input_length=built.max_length,
        max_query_length=side.query_max_length,
        max_query_chars=settings.max_query_chars,
        max_documents=settings.max_documents,
        max_client_batch_size=settings.max_documents,
        max_body_bytes=settings.max_body_bytes,
        timeout_ms=settings.timeout_ms,
        queue_limit=settings.queue_limit,
        max_concurrent_requests=settings.queue_limit,
        workers=settings.workers,
    )


def answer_models(service: Service) -> Models:
    """Every name that a request's `model` may have."""
    created = int(datetime.fromisoformat(service.live.served.index.generation.manifest.created_at).timestamp())
    built = service.live.served.index.generation.manifest.fingerprint
    return Models(
        data=[
            Model(id=name, created=created, root=service.names[0], max_model_len=built.max_length)
            for name in service.names
        ]
    )
