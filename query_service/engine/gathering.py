"""The passages of a request, whether stored or as text → what the decoder takes. Knows nothing of HTTP.

Each piece of work is short, and others run between two of them: a request that is long holds up nobody, and one that
was given up ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from kalm_cache.errors import DamagedRecordError, UnknownIdError, UsageError
from kalm_cache.model.prompts import Prompt, PromptTokens
from kalm_cache.passage import Passage
from kalm_cache.scoring.pooling import PooledPassage
from kalm_cache.scoring.prefix_cache import CachedPrefix
from kalm_cache.scoring.state_reader import DamagedPassage
from kalm_cache.storage.passage_store import PassageMeta
from query_service.answering.errors import EncoderOffError, NoIndexError
from query_service.answering.passages import AnyPassage, RawPassage, ScoringOptions, StoredPassage
from query_service.engine.documents import EncodingOptions
from query_service.engine.request_context import RequestContext
from query_service.engine.texts.obtain import obtain
from query_service.middleware.metrics import Source

PROMPTS_TOGETHER = 32  # other requests wait for these at most on a reader thread


@dataclass(slots=True)
class Gathered:
    """Passages ready for the decoder with the sources of their states, and those on the way there: stored ones, texts.

    `stored`: the id under which the index holds each. `damaged` and `missing` ones cannot be had. `encodes`: some text
    is likely to be encoded.
    """

    stored: dict[AnyPassage, str] = field(default_factory=dict)
    texts: list[AnyPassage] = field(default_factory=list)
    encodes: bool = False
    ready: dict[AnyPassage, PooledPassage | CachedPrefix] = field(default_factory=dict)
    sources: dict[AnyPassage, Source] = field(default_factory=dict)
    damaged: list[DamagedPassage] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


async def tokenize_prompts(context: RequestContext, prompts: Sequence[Prompt]) -> dict[Prompt, PromptTokens]:
    """The tokens of each distinct prompt, some at a time: other requests read between two of these."""
    side, tokens = context.model.query_side, dict[Prompt, PromptTokens]()
    distinct = list(dict.fromkeys(prompts))
    for start in range(0, len(distinct), PROMPTS_TOGETHER):
        some = distinct[start : start + PROMPTS_TOGETHER]
        tokens.update(zip(some, await context.read("read", partial(_each, side.tokenize, some)), strict=True))
    return tokens


def _each(tokenize: Callable[[Prompt], PromptTokens], prompts: Sequence[Prompt]) -> list[PromptTokens]:
    return [tokenize(prompt) for prompt in prompts]


async def gather(
    context: RequestContext, prompts: Sequence[PromptTokens], options: ScoringOptions, gathered: Gathered
) -> None:
    """Make ready what was found. Raises `UsageError`: a ratio that is no multiple of the stored one."""
    if gathered.stored:  # a ratio that does not fit the stored states is no error where none are asked for
        await _read_stored(context, prompts, options, gathered)
    if gathered.texts:
        await _obtain_texts(context, options, gathered)


async def _obtain_texts(context: RequestContext, options: ScoringOptions, gathered: Gathered) -> None:
    assert context.documents is not None  # `find_passages` had it
    texts = [passage.text or "" for passage in gathered.texts]
    obtained = await obtain(context, context.documents, texts, _encoding(options))
    for passage, text in zip(gathered.texts, texts, strict=True):
        gathered.ready[passage] = obtained[text].passage
        gathered.sources[passage] = obtained[text].source


async def _read_stored(
    context: RequestContext, prompts: Sequence[PromptTokens], options: ScoringOptions, gathered: Gathered
) -> None:
    stored, present, doc_ids = context.index.stored, list(gathered.stored), list(gathered.stored.values())
    lookup = await context.read("read", lambda: stored.look_up(doc_ids, prompts, options.chunk_size))
    read = await context.prepare(stored, lookup)
    unfit = [doc_ids[i] for i, each in zip(read.positions, read.passages, strict=True) if not _fits(each, options)]
    if unfit:
        raise UsageError(
            f"{len(unfit)} stored passages, as {unfit[0]!r}, are longer than asked for or cut at their end; send their "
            "texts to have them cut otherwise, or leave max_tokens_per_doc and truncation_side out"
        )
    gathered.ready |= {present[i]: passage for i, passage in zip(read.positions, read.passages, strict=True)}
    gathered.sources |= {each: _source(each, doc_id) for each, doc_id in gathered.stored.items()}
    by_text = {doc_id for each, doc_id in gathered.stored.items() if _source(each, doc_id) == "index_text"}
    context.counts.found_by_text(
        sum(gathered.sources[each] == "index_text" for each in present if each in gathered.ready)
    )
    if context.documents is not None:  # whose text is at hand is encoded rather than left out
        gathered.texts += [each for each in present if gathered.stored[each] in by_text and each not in gathered.ready]
        read.damaged[:] = [record for record in read.damaged if record.doc_id not in by_text]
    gathered.damaged += read.damaged


def _source(passage: AnyPassage, doc_id: str) -> Source:
    """Whether the index was asked for the passage by this id, or found it by its text."""
    return "index_id" if isinstance(passage, StoredPassage) and passage.doc_id == doc_id else "index_text"


def find_passages(
    context: RequestContext, passages: Sequence[AnyPassage], options: ScoringOptions, gathered: Gathered
) -> None:
    """Put each distinct passage where it belongs in `gathered`; missing ones as `options.on_missing` says.

    Raises:
        UnknownIdError, NoIndexError: ids that are not stored, where that is an error.
        EncoderOffError: texts, and no encoder.
    """
    distinct, index = dict.fromkeys(passages), context.served.index
    wanted = [passage for passage in distinct if isinstance(passage, StoredPassage)]
    doc_ids = [passage.doc_id for passage in wanted]
    metas = [None] * len(wanted) if index is None else index.store.metas(doc_ids)
    found = {passage: None for passage, meta in zip(wanted, metas, strict=True) if _is_stored(passage, meta)}
    cut = {each for each in found if each.text is not None and _cut_otherwise(context, each.text, options)}
    gathered.stored = {passage: passage.doc_id for passage in found if passage not in cut}
    missing = [passage for passage in wanted if passage not in found]
    gathered.texts = [passage for passage in distinct if isinstance(passage, RawPassage) or passage in cut]
    if options.on_missing == "encode":
        gathered.texts += [passage for passage in missing if passage.text is not None]
        missing = [passage for passage in missing if passage.text is None]
    if missing and options.on_missing != "skip":
        raise NoIndexError if index is None else UnknownIdError([passage.doc_id for passage in missing])
    gathered.stored |= _find_by_text(context, gathered.texts, options)
    gathered.texts = [passage for passage in gathered.texts if passage not in gathered.stored]
    gathered.encodes = bool(gathered.texts) and not _are_cached(context, gathered.texts, options)
    gathered.missing = [passage.doc_id for passage in missing]
    context.counts.missing += len(missing)


def _find_by_text(
    context: RequestContext, texts: Sequence[AnyPassage], options: ScoringOptions
) -> dict[AnyPassage, str]:
    """The ids of passages of the index that have these very texts, cut as the options ask; none for private texts."""
    index, chunk_size = context.served.index, options.chunk_size or context.model.chunk_size
    if index is None or not options.cache or chunk_size % context.model.stored_chunk_size:
        return {}
    contents = [Passage("", passage.text or "").content_hash() for passage in texts]
    return {
        passage: doc_id
        for passage, doc_id in zip(texts, index.store.find_contents(contents), strict=True)
        if doc_id is not None and not _cut_otherwise(context, passage.text or "", options)
    }


def _are_cached(context: RequestContext, texts: Sequence[AnyPassage], options: ScoringOptions) -> bool:
    if context.documents is None:
        raise EncoderOffError
    return context.documents.holds([passage.text or "" for passage in texts], _encoding(options))


def _cut_otherwise(context: RequestContext, text: str, options: ScoringOptions) -> bool:
    """Whether the options cut a text in another way than its stored states were cut."""
    stored = context.model.max_length
    limit = min(options.max_tokens or stored, stored)
    if limit == stored and options.cut_side == "right":
        return False
    return context.model.query_side.tokenizer.passage(text, limit).truncated


def _is_stored(passage: StoredPassage, meta: PassageMeta | DamagedRecordError | None) -> bool:
    """Whether the index has the id, with this text where one is given. A damaged entry counts: reading it says so."""
    if meta is None:
        return False
    if passage.text is None or isinstance(meta, DamagedRecordError):
        return True
    return Passage(passage.doc_id, passage.text).content_hash() == meta.content_hash


def _encoding(options: ScoringOptions) -> EncodingOptions:
    """The part of the options that holds for texts."""
    return EncodingOptions(options.chunk_size, options.max_tokens, options.cut_side, options.cache)


def _fits(passage: PooledPassage | CachedPrefix, options: ScoringOptions) -> bool:
    """Whether a stored passage is cut as the options would cut it."""
    cut_as_asked = options.cut_side == "right" or not passage.truncated
    return cut_as_asked and (options.max_tokens is None or passage.tokens <= options.max_tokens)
