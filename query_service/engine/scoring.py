"""Query-passage pairs -> margins, whether a passage is stored or raw. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kalm_cache.errors import DamagedRecordError, UnknownIdError, UsageError
from kalm_cache.model.prompts import Tokens
from kalm_cache.passage import Passage
from kalm_cache.scoring.pooling import PooledPassage
from kalm_cache.scoring.prefix_cache import CachedPrefix
from kalm_cache.scoring.state_reader import Damaged
from kalm_cache.storage.passage_store import PassageMeta
from query_service.api.errors import EncoderOffError
from query_service.engine.documents import ENCODE_BATCH
from query_service.engine.request_context import RequestContext

OnMissing = Literal["error", "skip", "encode"]
Origin = Literal["hit", "encoded"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A passage by its id; with a `text`, the index must hold this very text, or else it counts as missing."""

    doc_id: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Raw:
    """A passage that came with the request."""

    text: str


@dataclass(frozen=True, slots=True)
class Score:
    """One pair's margin, where its passage came from, and whether the passage was cut."""

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
    damaged: list[Damaged]
    missing: list[str]

    @property
    def cut(self) -> list[int]:
        """Positions of passages that were cut."""
        return [i for i, score in enumerate(self.scores) if score is not None and score.truncated]

    def require_valid(self) -> list[Score]:
        """The scores, where every pair must have one. Raises `DamagedRecordError`."""
        if self.damaged:
            raise DamagedRecordError(self.damaged[0].problem)
        return [score for score in self.scores if score is not None]


@dataclass(frozen=True, slots=True)
class Options:
    """How pairs are scored. `max_tokens`: of a raw document; `truncate` false: what would be cut is an error."""

    instruction: str
    chunk_size: int | None = None
    on_missing: OnMissing = "error"
    truncate: bool = True
    max_tokens: int | None = None


@dataclass(slots=True)
class _Found:
    """Passages ready for the decoder, by what was asked for; what must be encoded; what cannot be had."""

    ready: dict[Stored | Raw, PooledPassage | CachedPrefix] = field(default_factory=dict)
    raw: list[Stored | Raw] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


async def score_pairs(
    work: RequestContext, queries: Sequence[str], passages: Sequence[Stored | Raw], options: Options
) -> Scores:
    """The score of each (query, passage) pair. Equal queries are tokenised once, equal passages read once.

    Raises:
        EncoderOffError: a raw passage, and no encoder.
        UnknownIdError: ids that the index does not hold, where that is an error.
        UsageError: a chunk size that is no multiple of the stored one; a cut, where none is allowed.
    """
    prompts = await work.read("read", lambda: _prompts(work, queries, options))
    async with work.holding_states():
        found = await _look_up(work, list(dict.fromkeys(passages)), list(prompts.values()), options)
        if found.raw:
            found.ready.update(await _encode(work, found.raw, options))
        _count_cuts(work, prompts, found, options)
        pairs = [(prompts[query], passage) for query, passage in zip(queries, passages, strict=True)]
        whole = [(prompt, found.ready[passage]) for prompt, passage in pairs if passage in found.ready]
        margins = iter(await work.margins([prompt for prompt, _ in whole], [one.states for _, one in whole]))
    encoded = frozenset(found.raw)
    scores = Scores(
        [
            Score(next(margins), "encoded" if passage in encoded else "hit", found.ready[passage].truncated)
            if passage in found.ready
            else None
            for _, passage in pairs
        ],
        prompt_tokens=sum(len(prompt.ids) for prompt, _ in whole),
        passage_tokens=sum(passage.tokens for _, passage in whole),
        query_truncated=any(prompt.truncated for prompt in prompts.values()),
        damaged=found.damaged,
        missing=found.missing,
    )
    work.cut = scores.cut
    return scores


def _prompts(work: RequestContext, queries: Sequence[str], options: Options) -> dict[str, Tokens]:
    side, system = work.index.query_side, work.settings.system_instruction
    return {query: side.prompt(query, options.instruction, system) for query in dict.fromkeys(queries)}


async def _look_up(
    work: RequestContext, passages: Sequence[Stored | Raw], prompts: Sequence[Tokens], options: Options
) -> _Found:
    stored = [passage for passage in passages if isinstance(passage, Stored)]
    found = _Found(raw=[passage for passage in passages if isinstance(passage, Raw)])
    if not stored:  # a ratio that does not fit the stored states is no error where none are asked for
        return found
    hits = await work.read("read", lambda: _sort_out(work, stored, options, found))
    ids = [passage.doc_id for passage in hits]
    system = work.settings.system_instruction
    lookup = await work.read(
        "read",
        lambda: work.index.look_up(ids, prompts, options.instruction, system, chunk_size=options.chunk_size),
    )
    work.counts.add_read(lookup)
    read = await work.prepared(lookup)
    found.ready.update({hits[i]: passage for i, passage in zip(read.positions, read.passages, strict=True)})
    found.damaged += read.damaged
    return found


def _sort_out(work: RequestContext, stored: Sequence[Stored], options: Options, found: _Found) -> list[Stored]:
    """Those that the index holds; the others go to `found` as `options.on_missing` says, or are an error."""
    metas = work.index.store.metas([passage.doc_id for passage in stored])
    hits = [passage for passage, one in zip(stored, metas, strict=True) if _is_held(passage, one)]
    absent = [passage for passage in stored if passage not in set(hits)]
    if options.on_missing == "encode":
        found.raw += [passage for passage in absent if passage.text is not None]
        absent = [passage for passage in absent if passage.text is None]
    if absent and options.on_missing != "skip":
        raise UnknownIdError([passage.doc_id for passage in absent])
    found.missing += [passage.doc_id for passage in absent]
    work.counts.missing += len(absent)
    return hits


def _is_held(passage: Stored, meta: PassageMeta | DamagedRecordError | None) -> bool:
    """Whether the index has the id, with this text where one is given. A damaged entry is held: reading it says so."""
    if meta is None:
        return False
    if passage.text is None or isinstance(meta, DamagedRecordError):
        return True
    return Passage(passage.doc_id, passage.text).content_hash() == meta.content_hash


async def _encode(
    work: RequestContext, passages: Sequence[Stored | Raw], options: Options
) -> Mapping[Stored | Raw, PooledPassage]:
    documents = work.documents
    if documents is None:
        raise EncoderOffError
    encoded: dict[Stored | Raw, PooledPassage] = {}
    for start in range(0, len(passages), ENCODE_BATCH):  # other requests may compute between two of these
        some = passages[start : start + ENCODE_BATCH]
        texts = [passage.text or "" for passage in some]
        pooled = await work.compute(
            "encode",
            lambda: documents.pooled(texts, chunk_size=options.chunk_size, max_length=options.max_tokens),  # noqa: B023
        )
        encoded.update(zip(some, pooled, strict=True))
    work.counts.encoded += len(encoded)
    return encoded


def _count_cuts(work: RequestContext, prompts: Mapping[str, Tokens], found: _Found, options: Options) -> None:
    work.counts.queries_cut += sum(prompt.truncated for prompt in prompts.values())
    work.counts.documents_cut += sum(passage.truncated for passage in found.ready.values())
    if options.truncate:
        return
    if work.counts.queries_cut:
        raise UsageError("the query has more tokens than count, and `truncate` is false; shorten it, or allow the cut")
    cut = work.counts.documents_cut
    if cut:
        raise UsageError(f"{cut} passages have more tokens than count, and `truncate` is false; allow the cut")
