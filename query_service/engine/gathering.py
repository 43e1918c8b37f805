"""The passages of a request, whether stored or as text → what the decoder takes. Knows nothing of HTTP.

Each piece of work is short, and others run between two of them: a request that is long holds up nobody, and one that
was given up ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from kalm_cache.errors import DamagedRecordError, UnknownIdError, UsageError
from kalm_cache.model.prompts import CutSide, Prompt, PromptTokens, Tokens
from kalm_cache.passage import OnMissing, Passage
from kalm_cache.scoring.pooling import PooledPassage
from kalm_cache.scoring.prefix_cache import CachedPrefix
from kalm_cache.scoring.state_reader import DamagedPassage
from kalm_cache.storage.passage_store import PassageMeta
from query_service.engine.engine import Step
from query_service.engine.errors import EncoderOffError
from query_service.engine.request_context import RequestContext

# what other requests wait for at most: of the engine's thread, and of a reader thread
ENCODE_TOKENS = 4096
PROMPTS_TOGETHER = 32
TOKENIZED_CHARS = 1 << 17


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """A passage by its id; with a `text`, the index must hold this very text, or else it counts as missing."""

    doc_id: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class RawPassage:
    """A passage that came with the request, as text."""

    text: str


AnyPassage = StoredPassage | RawPassage


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """How pairs are scored. `truncate` false: what would be cut is an error.

    `max_tokens` (of a passage) and `cut_side` hold for stored passages, too: their states serve where they agree.
    """

    chunk_size: int | None = None
    on_missing: OnMissing = "error"
    truncate: bool = True
    max_tokens: int | None = None
    cut_side: CutSide = "right"

    def fits(self, passage: PooledPassage | CachedPrefix) -> bool:
        """Whether a stored passage is cut as these options would cut it."""
        cut_as_asked = self.cut_side == "right" or not passage.truncated
        return cut_as_asked and (self.max_tokens is None or passage.tokens <= self.max_tokens)


@dataclass(slots=True)
class Gathered:
    """Passages ready for the decoder, and those on the way there: stored ones, and texts to encode, with their tokens.

    `damaged` and `missing` ones cannot be had.
    """

    stored: list[StoredPassage] = field(default_factory=list)
    to_encode: list[AnyPassage] = field(default_factory=list)
    tokens: dict[AnyPassage, Tokens] = field(default_factory=dict)
    ready: dict[AnyPassage, PooledPassage | CachedPrefix] = field(default_factory=dict)
    damaged: list[DamagedPassage] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


async def tokenize_prompts(context: RequestContext, prompts: Sequence[Prompt]) -> dict[Prompt, PromptTokens]:
    """The tokens of each distinct prompt, some at a time: other requests read between two of these."""
    side, tokens = context.index.query_side, dict[Prompt, PromptTokens]()
    distinct = list(dict.fromkeys(prompts))
    for start in range(0, len(distinct), PROMPTS_TOGETHER):
        some = distinct[start : start + PROMPTS_TOGETHER]
        tokens.update(zip(some, await context.read("read", partial(_each, side.tokenize, some)), strict=True))
    return tokens


def _each(tokenize: Callable[[Prompt], PromptTokens], prompts: Sequence[Prompt]) -> list[PromptTokens]:
    return [tokenize(prompt) for prompt in prompts]


async def tokenize_documents(context: RequestContext, options: ScoringOptions, gathered: Gathered) -> None:
    """Tokenise what is to be encoded, some texts at a time, likewise."""
    encoder, left = context.documents, gathered.to_encode
    if left and encoder is None:
        raise EncoderOffError
    while left and encoder is not None:
        counts = itertools.accumulate(min(len(each.text or ""), TOKENIZED_CHARS) for each in left)
        count = max(1, sum(chars <= TOKENIZED_CHARS for chars in counts))
        some, left = left[:count], left[count:]
        texts = [passage.text or "" for passage in some]
        tokens = await context.read("encode", partial(encoder.tokenize, texts, options.max_tokens, options.cut_side))
        gathered.tokens.update(zip(some, tokens, strict=True))


async def gather(
    context: RequestContext, prompts: Sequence[PromptTokens], options: ScoringOptions, gathered: Gathered
) -> None:
    """Make ready what was found and tokenised. Raises `UsageError`: a ratio that is no multiple of the stored one."""
    if gathered.stored:  # a ratio that does not fit the stored states is no error where none are asked for
        await _read_stored(context, prompts, options, gathered)
    if gathered.tokens:
        await _encode(context, options, gathered)


async def _read_stored(
    context: RequestContext, prompts: Sequence[PromptTokens], options: ScoringOptions, gathered: Gathered
) -> None:
    stored, present = context.index.stored, gathered.stored
    doc_ids = [passage.doc_id for passage in present]
    lookup = await context.read("read", lambda: stored.look_up(doc_ids, prompts, options.chunk_size))
    read = await context.prepare(stored, lookup)
    unfit = [present[i].doc_id for i, each in zip(read.positions, read.passages, strict=True) if not options.fits(each)]
    if unfit:
        raise UsageError(
            f"{len(unfit)} stored passages, as {unfit[0]!r}, are longer than asked for or cut at their end; send their "
            "texts to have them cut otherwise, or leave max_tokens_per_doc and truncation_side out"
        )
    gathered.ready |= {present[i]: passage for i, passage in zip(read.positions, read.passages, strict=True)}
    gathered.damaged += read.damaged


def find_passages(
    context: RequestContext, passages: Sequence[AnyPassage], options: ScoringOptions, gathered: Gathered
) -> None:
    """Put each distinct passage where it belongs in `gathered`; missing ones as `options.on_missing` says."""
    distinct = dict.fromkeys(passages)
    wanted = [passage for passage in distinct if isinstance(passage, StoredPassage)]
    metas = context.index.store.metas([passage.doc_id for passage in wanted])
    found = {passage: None for passage, meta in zip(wanted, metas, strict=True) if _is_stored(passage, meta)}
    cut = {each for each in found if each.text is not None and _cut_otherwise(context, each.text, options)}
    gathered.stored = [passage for passage in found if passage not in cut]
    missing = [passage for passage in wanted if passage not in found]
    gathered.to_encode = [passage for passage in distinct if isinstance(passage, RawPassage) or passage in cut]
    if options.on_missing == "encode":
        gathered.to_encode += [passage for passage in missing if passage.text is not None]
        missing = [passage for passage in missing if passage.text is None]
    if missing and options.on_missing != "skip":
        raise UnknownIdError([passage.doc_id for passage in missing])
    gathered.missing = [passage.doc_id for passage in missing]
    context.counts.missing += len(missing)


def _cut_otherwise(context: RequestContext, text: str, options: ScoringOptions) -> bool:
    """Whether the options cut a text in another way than its stored states were cut."""
    stored = context.index.generation.manifest.fingerprint.max_length
    limit = min(options.max_tokens or stored, stored)
    if limit == stored and options.cut_side == "right":
        return False
    return context.index.query_side.tokenizer.passage(text, limit).truncated


def _is_stored(passage: StoredPassage, meta: PassageMeta | DamagedRecordError | None) -> bool:
    """Whether the index has the id, with this text where one is given. A damaged entry counts: reading it says so."""
    if meta is None:
        return False
    if passage.text is None or isinstance(meta, DamagedRecordError):
        return True
    return Passage(passage.doc_id, passage.text).content_hash() == meta.content_hash


async def _encode(context: RequestContext, options: ScoringOptions, gathered: Gathered) -> None:
    """Encode in batches of like length, each a step of the engine."""
    encoder, tokens = context.documents, gathered.tokens
    assert encoder is not None  # `_tokenize` had it
    longest_first = sorted(tokens, key=lambda passage: -len(tokens[passage].ids))
    batches = list(_batches(longest_first, tokens))
    steps = [
        Step(partial(encoder.encode, [tokens[each] for each in batch], options.chunk_size), _size(batch, tokens))
        for batch in batches
    ]
    for batch, pooled in zip(batches, await context.compute_all("encode", steps), strict=True):
        gathered.ready.update(zip(batch, pooled, strict=True))
    context.counts.encoded += len(tokens)


def _batches(longest_first: Sequence[AnyPassage], tokens: Mapping[AnyPassage, Tokens]) -> Iterator[list[AnyPassage]]:
    """As many as fit `ENCODE_TOKENS` together: other requests wait for one of these at most."""
    batch: list[AnyPassage] = []
    for passage in longest_first:
        if batch and (len(batch) + 1) * len(tokens[batch[0]].ids) > ENCODE_TOKENS:
            yield batch
            batch = []
        batch.append(passage)
    if batch:
        yield batch


def _size(batch: Sequence[AnyPassage], tokens: Mapping[AnyPassage, Tokens]) -> int:
    """Tokens of a batch, padding included."""
    return len(batch) * max(len(tokens[passage].ids) for passage in batch)
