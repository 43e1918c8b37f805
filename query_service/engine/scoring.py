"""Prompt-passage pairs → scores, whether a passage is stored or comes as text. Knows nothing of HTTP.

Stored passages take the steps of `kalm_cache.scoring.pipeline`, texts are encoded; all pairs are decoded together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from kalm_cache.errors import DamagedRecordError, UnknownIdError, UsageError
from kalm_cache.model.prompts import CutSide, Prompt, PromptTokens
from kalm_cache.passage import OnMissing, Passage
from kalm_cache.scoring.pooling import PooledPassage
from kalm_cache.scoring.prefix_cache import CachedPrefix
from kalm_cache.scoring.state_reader import DamagedPassage
from kalm_cache.storage.passage_store import PassageMeta
from query_service.engine.documents import ENCODE_BATCH
from query_service.engine.errors import EncoderOffError
from query_service.engine.request_context import RequestContext

Origin = Literal["hit", "encoded"]


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
class Score:
    """One pair's margin, where its passage's states came from, and whether the passage was cut."""

    margin: float
    cache: Origin
    truncated: bool


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores in the order asked for, and what they cost in real tokens (a prompt counts for each of its pairs).

    A score is `None` where the stored passage is damaged, or missing and skipped; `damaged` and `missing` name these.
    """

    scores: list[Score | None]
    prompt_tokens: int
    passage_tokens: int
    query_truncated: bool
    damaged: list[DamagedPassage]
    missing: list[str]

    @property
    def by_position(self) -> dict[int, Score]:
        """The scores of the pairs that have one."""
        return {i: score for i, score in enumerate(self.scores) if score is not None}

    @property
    def truncated(self) -> list[int]:
        """Positions of passages that were cut."""
        return [i for i, score in self.by_position.items() if score.truncated]

    def require_undamaged(self) -> None:
        """Raise `DamagedRecordError` if a passage is damaged: for answers that must not leave one out."""
        if self.damaged:
            raise DamagedRecordError(self.damaged[0].problem)


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
class _Gathered:
    """Passages ready for the decoder, those whose text must be encoded, and those that cannot be had."""

    ready: dict[AnyPassage, PooledPassage | CachedPrefix] = field(default_factory=dict)
    to_encode: list[AnyPassage] = field(default_factory=list)
    damaged: list[DamagedPassage] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


async def score_pairs(
    context: RequestContext, prompts: Sequence[Prompt], passages: Sequence[AnyPassage], options: ScoringOptions
) -> Scores:
    """The score of each (prompt, passage) pair. Equal prompts are tokenised once, equal passages read once.

    Raises:
        EncoderOffError: a raw passage, and no encoder.
        UnknownIdError: ids that the index does not hold, where that is an error.
        UsageError: a chunk size that is no multiple of the stored one; a cut, where none is allowed.
    """
    side = context.index.query_side
    tokens = await context.read("read", lambda: {prompt: side.tokenize(prompt) for prompt in dict.fromkeys(prompts)})
    async with context.holding_states():
        gathered = await _gather(context, list(dict.fromkeys(passages)), list(tokens.values()), options)
        _count_cuts(context, tokens.values(), gathered.ready.values(), options)
        pairs = [
            (tokens[prompt], gathered.ready[passage])
            for prompt, passage in zip(prompts, passages, strict=True)
            if passage in gathered.ready
        ]
        margins = await context.margins(side, [prompt for prompt, _ in pairs], [ready.states for _, ready in pairs])
    scores = Scores(
        _scores(passages, gathered, margins),
        prompt_tokens=sum(len(prompt.ids) for prompt, _ in pairs),
        passage_tokens=sum(ready.tokens for _, ready in pairs),
        query_truncated=any(prompt.truncated for prompt in tokens.values()),
        damaged=gathered.damaged,
        missing=gathered.missing,
    )
    context.truncated = scores.truncated
    return scores


def _scores(passages: Sequence[AnyPassage], gathered: _Gathered, margins: Sequence[float]) -> list[Score | None]:
    """Margins of the pairs that are ready → a score or `None` for each pair."""
    encoded, rest = frozenset(gathered.to_encode), iter(margins)
    return [
        Score(next(rest), "encoded" if passage in encoded else "hit", gathered.ready[passage].truncated)
        if passage in gathered.ready
        else None
        for passage in passages
    ]


async def _gather(
    context: RequestContext, passages: Sequence[AnyPassage], prompts: Sequence[PromptTokens], options: ScoringOptions
) -> _Gathered:
    stored = [passage for passage in passages if isinstance(passage, StoredPassage)]
    gathered = _Gathered(to_encode=[passage for passage in passages if isinstance(passage, RawPassage)])
    if stored:  # a ratio that does not fit the stored states is no error where none are asked for
        await _read_stored(context, stored, prompts, options, gathered)
    if gathered.to_encode:
        await _encode(context, options, gathered)
    return gathered


async def _read_stored(
    context: RequestContext,
    wanted: Sequence[StoredPassage],
    prompts: Sequence[PromptTokens],
    options: ScoringOptions,
    gathered: _Gathered,
) -> None:
    stored = context.index.stored
    present = await context.read("read", lambda: _split_missing(context, wanted, options, gathered))
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


def _cut_otherwise(context: RequestContext, text: str, options: ScoringOptions) -> bool:
    """Whether the options cut a text in another way than its stored states were cut."""
    stored = context.index.generation.manifest.fingerprint.max_length
    limit = min(options.max_tokens or stored, stored)
    if limit == stored and options.cut_side == "right":
        return False
    return context.index.query_side.tokenizer.passage(text, limit).truncated


def _split_missing(
    context: RequestContext, stored: Sequence[StoredPassage], options: ScoringOptions, gathered: _Gathered
) -> list[StoredPassage]:
    """Those that the index holds; the others go to `gathered` as `options.on_missing` says, or are an error."""
    metas = context.index.store.metas([passage.doc_id for passage in stored])
    present = [passage for passage, meta in zip(stored, metas, strict=True) if _is_stored(passage, meta)]
    missing = [passage for passage in stored if passage not in set(present)]
    if options.on_missing == "encode":
        gathered.to_encode += [passage for passage in missing if passage.text is not None]
        missing = [passage for passage in missing if passage.text is None]
    if missing and options.on_missing != "skip":
        raise UnknownIdError([passage.doc_id for passage in missing])
    gathered.missing += [passage.doc_id for passage in missing]
    context.counts.missing += len(missing)
    cut = [each for each in present if each.text is not None and _cut_otherwise(context, each.text, options)]
    gathered.to_encode += cut
    return [passage for passage in present if passage not in set(cut)]


def _is_stored(passage: StoredPassage, meta: PassageMeta | DamagedRecordError | None) -> bool:
    """Whether the index has the id, with this text where one is given. A damaged entry counts: reading it says so."""
    if meta is None:
        return False
    if passage.text is None or isinstance(meta, DamagedRecordError):
        return True
    return Passage(passage.doc_id, passage.text).content_hash() == meta.content_hash


async def _encode(context: RequestContext, options: ScoringOptions, gathered: _Gathered) -> None:
    encoder = context.documents
    if encoder is None:
        raise EncoderOffError
    for start in range(0, len(gathered.to_encode), ENCODE_BATCH):  # other requests may compute between two of these
        batch = gathered.to_encode[start : start + ENCODE_BATCH]
        texts = [passage.text or "" for passage in batch]
        encode = partial(
            encoder.pooled,
            texts,
            chunk_size=options.chunk_size,
            max_length=options.max_tokens,
            cut_side=options.cut_side,
        )
        gathered.ready.update(zip(batch, await context.compute("encode", encode), strict=True))
    context.counts.encoded += len(gathered.to_encode)


def _count_cuts(
    context: RequestContext,
    prompts: Collection[PromptTokens],
    passages: Collection[PooledPassage | CachedPrefix],
    options: ScoringOptions,
) -> None:
    counts = context.counts
    counts.queries_cut += sum(prompt.truncated for prompt in prompts)
    counts.documents_cut += sum(passage.truncated for passage in passages)
    if options.truncate:
        return
    if counts.queries_cut:
        raise UsageError("the query has more tokens than count, and `truncate` is false; shorten it, or allow the cut")
    if counts.documents_cut:
        raise UsageError(
            f"{counts.documents_cut} passages have more tokens than count, and `truncate` is false; allow the cut"
        )
