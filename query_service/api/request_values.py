"""Request bodies → what the engine takes: prompts, passages, options. What a request leaves out, the settings say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kalm_cache.arguments import check_record
from kalm_cache.errors import UsageError
from kalm_cache.model.prompts import Prompt
from kalm_cache.passage import TEXT, TEXT_NAMES, OnMissing, PassageTemplate, first_present
from kalm_cache.settings import Settings
from query_service.answering.context import AnswerContext
from query_service.answering.errors import TooManyError
from query_service.answering.passages import AnyPassage, RawPassage, ScoringOptions, StoredPassage
from query_service.api.body.document import Document
from query_service.api.body.limits import SHOWN_NAMES, shown
from query_service.api.requests import PairOptions, RerankRequest


def prompt_of(query: str, instruction: str | None, settings: Settings) -> Prompt:
    """The prompt of a query; `instruction` `None` = the service's."""
    return Prompt(query, settings.instruction if instruction is None else instruction, settings.system_instruction)


def template_of(request: PairOptions, context: AnswerContext) -> PassageTemplate:
    """How the request's documents make passages: by its `rank_fields`, or as the index's records did.

    Raises:
        UsageError: a name that no template can hold.
    """
    rank_fields = _rank_fields(request)
    try:
        return PassageTemplate.joining(rank_fields) if rank_fields else context.model.passage_template
    except UsageError as exc:
        names = shown(", ".join(rank_fields or ()))
        raise UsageError(f"rank_fields: expected names without any of . [ ] {{ }} ! :, got {names}") from exc


def text_of(document: str | Document, template: PassageTemplate, name: str) -> str:
    """The passage that a document makes, a string being one as it is; `name`: where it is in the request.

    Raises:
        UsageError: the fields make no passage.
    """
    if isinstance(document, str):
        return document
    if not document.record and document.stored_id:
        raise UsageError(f"{name} has an id and no text; to rank what the index holds, send ids as `ids`")
    return check_record(document.record, name, template)


def passage_of(document: str | Document, template: PassageTemplate, name: str) -> AnyPassage:
    """A document with an id may be stored; one without is text alone. Arguments and errors as in `text_of`."""
    doc_id, text = None if isinstance(document, str) else document.stored_id, text_of(document, template, name)
    return RawPassage(text) if doc_id is None else StoredPassage(doc_id, text)


def unused_fields(request: PairOptions, documents: Sequence[str | Document], template: PassageTemplate) -> list[str]:
    """Names of what was sent and is no part of the answer, 20 at most.

    Request fields, then `rank_fields[].NAME` where no document has it, then `documents[].NAME`.
    """
    names = dict.fromkeys(request.model_extra or ())
    if rank_fields := _rank_fields(request):
        absent = set(rank_fields).difference(*map(_names_of, documents))
        names |= dict.fromkeys(f"rank_fields[].{name}" for name in rank_fields if name in absent)
    for document in documents:
        if isinstance(document, Document):
            names |= dict.fromkeys(f"documents[].{name}" for name in template.unused(document.record))
        if len(names) > SHOWN_NAMES:
            break
    return [shown(name) for name in list(names)[:SHOWN_NAMES]]


def _rank_fields(request: PairOptions) -> list[str]:
    return request.rank_fields or [] if isinstance(request, RerankRequest) else []


def _names_of(document: str | Document) -> Iterable[str]:
    """The fields of a document; a string is a text, and `contents` another name of it."""
    if isinstance(document, str):
        return (TEXT,)
    return (*document.record, TEXT) if first_present(TEXT_NAMES, document.record) else document.record


def scoring_options(request: PairOptions, *, on_missing: OnMissing) -> ScoringOptions:
    """How a request's pairs are scored; `on_missing` holds where the request does not say."""
    return ScoringOptions(
        chunk_size=request.chunk_size,
        on_missing=request.on_missing or on_missing,
        truncate=request.truncate,
        max_tokens=request.max_tokens,
        cut_side=request.cut_side,
        cache=request.cache,
    )


def check_count(count: int, what: str, context: AnswerContext) -> None:
    """Raise `TooManyError` when a request has more of something than the service takes."""
    limit = context.settings.max_documents
    if count > limit:
        raise TooManyError(what, count, limit)
