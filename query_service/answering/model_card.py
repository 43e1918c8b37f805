"""The model that is served, in words: what clients are told of it, and what texts must have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kalm_cache.calibration import FittedCalibration
from kalm_cache.errors import UsageError
from kalm_cache.generations.fingerprint import ServingDecoder
from kalm_cache.model.checkpoint import ALIASES
from kalm_cache.passage import PassageTemplate
from kalm_cache.scoring.text_states import EncodedBy
from kalm_cache.settings import Settings
from query_service.answering.errors import UnknownModelError

ANY = "*"
UNSPECIFIED = "default/not-specified"  # what clients of Infinity send where no model was chosen


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A decoder, and how it takes texts.

    name: alias, folder or hub id of the checkpoint that encodes. encoded_by: its digests. decoder: which one answers.
    calibration: of that decoder over the index, if there is one. shared_prefix: `mean` or `isolated` where prompt
    tokens before the query have the same keys and values for all passages; of how many passages they are the mean.
    created: when the index was made, or the service started, seconds since 1970. max_length, query_max_length: tokens
    of a passage and of a query that count.
    chunk_size: pooling ratio of answers that say none. stored_chunk_size, codec: of states that are kept.
    """

    name: str
    encoded_by: EncodedBy
    decoder: ServingDecoder
    calibration: FittedCalibration | None
    shared_prefix: str | None
    shared_prefix_passages: int
    created: int
    passage_template: PassageTemplate
    max_length: int
    query_max_length: int
    chunk_size: int
    stored_chunk_size: int
    codec: str
    dtype: str
    device: str


def served_names(model: str, settings: Settings) -> tuple[str, ...]:
    """The names that a request's `model` may have, the one that answers carry first."""
    chosen = tuple(name for name in _chosen(settings) if name != ANY)
    if chosen:
        return chosen
    if model.startswith("/"):
        return (shown_name(model),)
    return tuple(dict.fromkeys((model, ALIASES.get(model, model), model.rpartition("/")[2])))


def shown_name(model: str) -> str:
    """A model's name as clients see it; of a local folder its last part, not where it lies."""
    return model.rstrip("/").rpartition("/")[2] if model.startswith("/") else model


def check_model(name: str | None, names: Sequence[str], settings: Settings) -> None:
    """Raise `UnknownModelError` unless the service answers for a model of this name."""
    if name and ANY not in _chosen(settings) and name not in (*names, UNSPECIFIED):
        raise UnknownModelError(name, names)


def check_queries(queries: Sequence[str], settings: Settings, what: str = "a query") -> None:
    """Raise `UsageError` when a query, or an instruction, has more characters than the service takes."""
    longest, limit = max(map(len, queries), default=0), settings.max_query_chars
    if longest > limit:
        raise UsageError(f"{what} of {longest} characters; at most {limit} are taken (max_query_chars)")


def _chosen(settings: Settings) -> list[str]:
    return [name.strip() for name in settings.served_model_name.split(",") if name.strip()]
