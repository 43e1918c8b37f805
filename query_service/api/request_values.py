"""Request bodies → what the engine takes: prompts, passages, options. What a request leaves out, the settings say."""

from __future__ import annotations

from kalm_cache.model.prompts import Prompt, require_short
from kalm_cache.passage import OnMissing
from kalm_cache.settings import Settings
from query_service.api.requests import Document, PairOptions
from query_service.engine.errors import TooManyError
from query_service.engine.gathering import AnyPassage, RawPassage, ScoringOptions, StoredPassage
from query_service.engine.request_context import RequestContext


def prompt_of(query: str, instruction: str | None, settings: Settings) -> Prompt:
    """The prompt of a query; `instruction` `None` = the service's."""
    return Prompt(query, settings.instruction if instruction is None else instruction, settings.system_instruction)


def document_of(document: str | Document) -> Document:
    """A plain string as a document without an id."""
    return document if isinstance(document, Document) else Document(text=document)


def passage_of(document: Document) -> AnyPassage:
    """A document with an id may be stored; one without is text alone."""
    doc_id = document.stored_id
    return RawPassage(document.text) if doc_id is None else StoredPassage(doc_id, document.text)


def scoring_options(request: PairOptions, *, on_missing: OnMissing) -> ScoringOptions:
    """How a request's pairs are scored; `on_missing` holds where the request does not say."""
    return ScoringOptions(
        chunk_size=request.chunk_size,
        on_missing=request.on_missing or on_missing,
        truncate=request.truncate,
        max_tokens=request.max_tokens,
        cut_side=request.cut_side,
    )


async def check_instruction(instruction: str | None, context: RequestContext) -> None:
    """Raise `UsageError` when a request's own instruction has too many tokens: every passage would pay for them."""
    if instruction is not None:
        tokenizer, limit = context.index.query_side.tokenizer, context.settings.max_instruction_tokens
        await context.read("read", lambda: require_short(tokenizer, instruction, limit))


def check_count(count: int, what: str, context: RequestContext) -> None:
    """Raise `TooManyError` when a request has more of something than the service takes."""
    limit = context.settings.max_documents
    if count > limit:
        raise TooManyError(what, count, limit)
