"""Plan: passages of the corpus -> batches, each with all that computing it takes. Reads stores, and computes no states.

A passage is looked up by id in the resume log, then in sealed segments of the same form, then in those that can be
recoded. Where its text is the same, what is stored is taken; all others are tokenised, and batched by length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.build.batching import batch_by_tokens, batched
from indexer.build.counts import BuildCounts
from indexer.build.spec import BuildSpec, Ordinals
from indexer.build.unfinished.accepted_passages import AcceptedPassages, Origins
from indexer.corpus import CorpusLine, RejectedLine
from indexer.reuse.origins import SealedSegment
from indexer.reuse.recode import RecodedSegment, Recoding
from kalm_cache.errors import DamagedRecordError
from kalm_cache.metadata import Value
from kalm_cache.model.prompts import Tokens
from kalm_cache.passage import Passage
from kalm_cache.storage.passage_store import PassageMeta, doc_id_of
from kalm_cache.storage.record import Record

WINDOW = 2048  # lines looked up together; passages sorted by length together
RECODED = 256  # passages recoded together, in one transaction

Reject = Callable[[RejectedLine], None]


class PlannedPassage(NamedTuple):
    """A passage that the segment shall have. `ordinal`: the one that it has already, `None` where it gets a new one.

    `metadata`: typed values by column.
    """

    passage: Passage
    content_hash: bytes
    ordinal: int | None = None
    metadata: Mapping[str, Value] = {}

    @staticmethod
    def of(line: CorpusLine) -> PlannedPassage:
        """What a line of a corpus asks for."""
        return PlannedPassage(line.passage, line.passage.content_hash(), line.ordinal, line.metadata)


@dataclass(frozen=True, slots=True)
class ReuseBatch:
    """Passages whose records are stored already, and stay as they are. `lacks_vectors`: these must be embedded."""

    wanted: list[PlannedPassage]
    origin: int
    lacks_vectors: bool


@dataclass(frozen=True, slots=True)
class RecodeBatch:
    """Passages whose records are stored in another form. `segment`: place among the spec's recoded ones.

    `vectors` (n, E): those of the first stage, `None` where the passages must be embedded.
    """

    wanted: list[PlannedPassage]
    segment: int
    recoding: Recoding
    records: list[Record]
    vectors: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class EncodeBatch:
    """Passages that must be encoded, as tokens: a batch of the encoder."""

    wanted: list[PlannedPassage]
    tokens: list[Tokens]


Batch = ReuseBatch | RecodeBatch | EncodeBatch


class MetaSource(Protocol):
    """Where records are looked up: the resume log, or a sealed segment."""

    def metas(self, doc_ids: Sequence[str]) -> list[PassageMeta | None]:
        """Of each id; `None` where it is not there, or damaged."""


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """What becomes of each passage of a window: by origin, by place among the recoded segments, and the rest."""

    reused: list[tuple[int, list[PlannedPassage]]]
    recoded: list[tuple[int, list[PlannedPassage]]]
    to_encode: list[PlannedPassage]


class BatchPlanner:
    """The batches of one build."""

    def __init__(
        self, spec: BuildSpec, accepted: AcceptedPassages, origins: Origins, counts: BuildCounts, ordinals: Ordinals
    ) -> None:
        """`counts`: what is rejected, and what is kept without being in the corpus, is counted there."""
        self._spec, self._accepted, self._origins, self._counts = spec, accepted, origins, counts
        self._ordinals = ordinals

    def batches(self, lines: Iterable[CorpusLine | RejectedLine], on_reject: Reject) -> Iterator[Batch]:
        """Every batch, planned as it is asked for; first of the corpus, read once, then of what is kept beside it."""

        def reject(line: RejectedLine) -> None:
            self._counts.rejected += 1
            on_reject(line)

        for window in accepted_windows(lines, self._accepted, reject):
            yield from self._batches([PlannedPassage.of(line) for line in window])
        if self._spec.keep_missing:
            for segment in self._spec.sources.every:
                yield from self._batches_kept(segment)

    def _batches_kept(self, segment: SealedSegment) -> Iterator[Batch]:
        """What a segment has and the corpus has not."""
        for keys in batched(filter(self._is_of_shard, segment.keys()), WINDOW):
            doc_ids = [doc_id_of(key) for key in self._accepted.unseen(keys)]
            texts, metas = segment.store.find_texts(doc_ids), segment.store.metas(doc_ids)
            metadata, wanted = segment.metadata(metas, self._spec.columns), []
            for doc_id, text, meta, values in zip(doc_ids, texts, metas, metadata, strict=True):
                if isinstance(text, DamagedRecordError) or not isinstance(meta, PassageMeta):
                    self._spec.on_lost(doc_id)
                else:
                    wanted.append(PlannedPassage(Passage(doc_id, text or ""), meta.content_hash, metadata=values))
            self._counts.kept += len(wanted)
            yield from self._batches(wanted, has_texts=any(text is not None for text in texts))

    def _is_of_shard(self, key: bytes) -> bool:
        return self._spec.shard is None or self._spec.shard.holds(key)

    def _batches(self, wanted: list[PlannedPassage], *, has_texts: bool = True) -> Iterator[Batch]:
        sources: list[MetaSource] = [self._origins.resume_log, *self._origins.sealed]
        window = plan_window(wanted, enumerate(sources), self._spec.sources.recoded)
        for origin, stored in window.reused:
            segment = self._origins.segment(origin)
            yield ReuseBatch(stored, origin, lacks_vectors=segment is not None and segment.vectors is None)
        for place, stored in window.recoded:
            for some in batched(stored, RECODED):
                yield _read_to_recode(some, place, self._spec.sources.recoded[place])
        yield from self._batches_to_encode(window.to_encode, has_texts=has_texts)

    def _batches_to_encode(self, wanted: list[PlannedPassage], *, has_texts: bool) -> Iterator[EncodeBatch]:
        sides = self._spec.models.passage_sides
        if not sides or not has_texts:
            for passage, *_ in wanted:
                self._spec.on_lost(passage.doc_id)
            return
        tokens = sides[0].tokenize([passage.text for passage, *_ in wanted]) if wanted else []
        for batch in batch_by_tokens(
            zip(self._with_ordinals(wanted), tokens, strict=True),
            length=lambda pair: len(pair[1].ids),
            budget_tokens=self._spec.batch_tokens,
            window=WINDOW,
        ):
            yield EncodeBatch([passage for passage, _ in batch], [tokens for _, tokens in batch])

    def _with_ordinals(self, wanted: list[PlannedPassage]) -> list[PlannedPassage]:
        """Each with its ordinal: new ones rise as the corpus goes on, however it is batched."""
        new = [item.passage.doc_id for item in wanted if item.ordinal is None]
        given = iter(self._ordinals.reserve(new))
        return [item._replace(ordinal=next(given)) if item.ordinal is None else item for item in wanted]


def plan_window(
    wanted: list[PlannedPassage], origins: Iterable[tuple[int, MetaSource]], recoded: Sequence[RecodedSegment]
) -> WindowPlan:
    """Look each passage up in one place after the other until it is stored there with the same text."""
    plan = WindowPlan([], [], [])
    for origin, source in origins:
        stored, wanted = _split(wanted, source)
        if stored:
            plan.reused.append((origin, stored))
    for place, segment in enumerate(recoded):
        stored, wanted = _split(wanted, segment)
        if stored:
            plan.recoded.append((place, stored))
    plan.to_encode.extend(wanted)
    return plan


def _split(wanted: list[PlannedPassage], source: MetaSource) -> tuple[list[PlannedPassage], list[PlannedPassage]]:
    """What a source has with the same text, under its ordinals there, and the rest.

    What must have another ordinal than it has there is not taken from it: stored bytes hold theirs.
    """
    stored, rest = [], []
    for item, meta in zip(wanted, source.metas([passage.doc_id for passage, *_ in wanted]), strict=True):
        fits = meta is not None and item.ordinal in (None, meta.ordinal)
        if meta is not None and fits and meta.content_hash == item.content_hash:
            stored.append(item._replace(ordinal=meta.ordinal))
        else:
            rest.append(item)
    return stored, rest


def _read_to_recode(wanted: list[PlannedPassage], place: int, segment: RecodedSegment) -> RecodeBatch:
    records = segment.records([passage.doc_id for passage, *_ in wanted])
    ordinals = np.array([item.ordinal for item in wanted], np.int64)
    vectors = None if segment.vectors is None else segment.vectors(ordinals)
    return RecodeBatch(wanted, place, segment.recoding, records, vectors)


def accepted_windows(
    lines: Iterable[CorpusLine | RejectedLine], accepted: AcceptedPassages, on_reject: Reject
) -> Iterator[list[CorpusLine]]:
    """One pass over a corpus: its passages, `WINDOW` lines at a time; rejected lines and duplicate ids to `on_reject`.

    Duplicates are found on disk, so that memory does not grow with the corpus.
    """
    for window in batched(lines, WINDOW):
        good = [line for line in window if isinstance(line, CorpusLine)]
        firsts = dict(zip([line.location for line in good], accepted.claim(good), strict=True))
        lines_kept = []
        for line in window:
            if isinstance(line, RejectedLine):
                on_reject(line)
            elif (first := firsts[line.location]) is not None:
                on_reject(duplicate(line, first))
            else:
                lines_kept.append(line)
        yield lines_kept


def duplicate(line: CorpusLine, first: str) -> RejectedLine:
    """The report of a line whose id was first met elsewhere."""
    reason = f"duplicate id, first at {first}; the first one is kept: give each passage an id of its own"
    return RejectedLine(line.location, reason, line.passage.doc_id, line.passage.text[:200])
