"""One pass over a corpus: each passage taken from where it is stored already, or encoded; then it is sealed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.build.accepted_ids import Staging
from indexer.build.batching import batch_by_tokens
from indexer.build.first_stage import FirstStageBuild, TakenPostings
from indexer.build.intake import WINDOW, Reject, accepted_windows, batched
from indexer.build.progress import Progress
from indexer.build.resume_log import Encoded, WorkingFile
from indexer.build.seal import WORKING, count_dropped, seal
from indexer.corpus import CorpusLine, RejectedLine
from indexer.reuse.origins import SealedSegment
from indexer.reuse.recode import RecodedSegment
from kalm_cache.errors import DamagedRecordError
from kalm_cache.generations.manifest import Counts
from kalm_cache.model.prompts import Tokens
from kalm_cache.passage import Passage
from kalm_cache.scoring.passage_side import PassageSide
from kalm_cache.storage.passage_store import PassageMeta, PassageStore, doc_id_of
from kalm_cache.storage.record import Record

if TYPE_CHECKING:
    from indexer.build.segment import SegmentBuilder

RECODED = 256  # passages recoded together, in one transaction


class Origin(Protocol):
    """Where states can be taken from: the working file, or a sealed segment."""

    def metas(self, doc_ids: Sequence[str]) -> list[PassageMeta | None]:
        """Of each id; `None` where it is not there, or not whole."""


class SegmentPass:
    """The state that the steps of a pass share."""

    def __init__(
        self,
        builder: SegmentBuilder,
        folder: Path,
        working: WorkingFile,
        staging: Staging,
        own: PassageStore | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.builder, self.folder, self.working, self.staging, self.own = builder, folder, working, staging, own
        self.on_progress, self.progress, self.taken = on_progress, Progress(), TakenPostings()
        self.segments = [SealedSegment(own, None)] if own is not None else []
        self.segments += builder.sources
        stores = [segment.store for segment in self.segments] + [segment.store for segment in builder.recoded]
        self.next_ordinal = max(working.next_ordinal(), builder.first_ordinal, *(one.next_ordinal() for one in stores))

    def run(self, lines: Iterable[CorpusLine | RejectedLine], on_reject: Reject) -> Counts:
        """The whole pass."""

        def reject(line: RejectedLine) -> None:
            self.progress.rejected += 1
            on_reject(line)

        for passages in accepted_windows(lines, self.staging, reject):
            self._take_window(passages, {passage.doc_id: passage.content_hash() for passage in passages})
        for segment in self.builder.kept:
            self._keep(segment)
        self.progress.deleted = count_dropped(self.working.keys(), self.staging)
        if self.own is not None:
            self.progress.deleted += count_dropped(self.own.keys(), self.staging)
        counts = seal(
            self.folder,
            self.working,
            self.staging,
            self.segments,
            store_text=self.builder.store_text,
            next_ordinal=self.next_ordinal,
        )
        self._build_first_stage()
        return counts

    def _build_first_stage(self) -> None:
        build = FirstStageBuild(self.folder, self.working, self.staging, self.segments)
        build.build_dense(self.builder.embedder.dimension, self.builder.dense_index)
        if self.builder.bm25:
            build.build_bm25(self.taken, self.builder.statistics_of, store_text=self.builder.store_text)

    def _keep(self, segment: SealedSegment) -> None:
        """Take in what the corpus does not have."""
        for keys in batched(segment.keys(), WINDOW):
            doc_ids = [doc_id_of(key) for key in self.staging.unseen(keys)]
            texts = segment.store.find_texts(doc_ids)
            passages, hashes = [], {}
            for doc_id, text, meta in zip(doc_ids, texts, segment.store.metas(doc_ids), strict=True):
                if isinstance(text, DamagedRecordError) or not isinstance(meta, PassageMeta):
                    self.builder.on_lost(doc_id)
                    continue
                passages.append(Passage(doc_id, text or ""))
                self.progress.kept += 1
                hashes[doc_id] = meta.content_hash
            self._take_window(passages, hashes, has_texts=any(text is not None for text in texts))

    def _take_window(self, passages: list[Passage], hashes: dict[str, bytes], has_texts: bool = True) -> None:
        ordinals: dict[str, int] = {}  # of other texts that this build has already encoded under these ids
        rest = passages
        origins: list[Origin] = [self.working, *self.segments]
        for place, origin in enumerate(origins):
            rest = self._reuse(rest, place, origin, hashes, ordinals if place == WORKING else {})
        for recoded in self.builder.recoded:
            rest = self._recode(rest, recoded, hashes)
        if not has_texts or (rest and self.builder.passage_side is None):
            for passage in rest:
                self.builder.on_lost(passage.doc_id)
            rest = []
        self._encode_all(rest, hashes, ordinals)
        self.on_progress(self.progress)

    def _encode_all(self, passages: list[Passage], hashes: dict[str, bytes], ordinals: dict[str, int]) -> None:
        side = self.builder.passage_side
        if side is None or not passages:
            return
        tokens = side.tokenize([passage.text for passage in passages])
        for batch in batch_by_tokens(
            zip(passages, tokens, strict=True),
            length=lambda pair: len(pair[1].ids),
            budget_tokens=self.builder.batch_tokens,
            window=WINDOW,
        ):
            started = time.perf_counter()
            self._encode(side, batch, hashes, ordinals)
            self.progress.encoding_seconds += time.perf_counter() - started
            self.on_progress(self.progress)

    def _recode(self, passages: list[Passage], segment: RecodedSegment, hashes: dict[str, bytes]) -> list[Passage]:
        """Take from a segment, in the form that this one stores, what it has with the same text; return the rest."""
        left: list[Passage] = []
        for some in batched(passages, RECODED):
            metas = segment.metas([passage.doc_id for passage in some])
            pairs = zip(some, metas, strict=True)
            same = [(one, at) for one, at in pairs if at is not None and at.content_hash == hashes[one.doc_id]]
            found = {passage.doc_id for passage, _ in same}
            left += [passage for passage in some if passage.doc_id not in found]
            if not same:
                continue
            records = segment.records([passage.doc_id for passage, _ in same])
            ordinals = [meta.ordinal for _, meta in same]
            taken = [passage for passage, _ in same]
            vectors = segment.vectors(np.array(ordinals, np.int64)) if segment.vectors else self._embed(taken)
            recoded = [
                Encoded(passage.doc_id, meta, record, vector)
                for (passage, meta), record, vector in zip(same, records, vectors, strict=True)
            ]
            self.working.write(recoded, self.next_ordinal)
            self._accept(WORKING, taken, ordinals)
            self.taken.take(segment.source.postings, ordinals)
            if segment.changes_states:
                self.progress.recoded += len(same)
            else:
                self.progress.copied += len(same)
        return left

    def _reuse(
        self,
        passages: list[Passage],
        place: int,
        origin: Origin,
        hashes: dict[str, bytes],
        ordinals: dict[str, int],
    ) -> list[Passage]:
        """Accept from an origin what it has with the same text, and return the rest; their numbers go to `ordinals`."""
        same, rest = [], []
        for passage, meta in zip(passages, origin.metas([one.doc_id for one in passages]), strict=True):
            if meta is not None and meta.content_hash == hashes[passage.doc_id]:
                same.append((passage, meta.ordinal))
                continue
            rest.append(passage)
            if meta is not None:
                ordinals[passage.doc_id] = meta.ordinal
        if same:
            self._accept(place, [passage for passage, _ in same], [ordinal for _, ordinal in same])
            if place != WORKING and self.segments[place - 1].store is not self.own:
                self.progress.copied += len(same)
            else:
                self.progress.resumed += len(same)
        return rest

    def _accept(self, place: int, passages: list[Passage], ordinals: list[int]) -> None:
        doc_ids = [passage.doc_id for passage in passages]
        if place == WORKING or not self.builder.store_text:  # else the segment has the text
            self.staging.put_texts(doc_ids, [passage.text for passage in passages])
        if place != WORKING:
            self.taken.take(self.segments[place - 1].postings, ordinals)
            if self.segments[place - 1].vectors is None:
                self.staging.put_vectors(doc_ids, self._embed(passages))
        self.staging.accept(place, ordinals, doc_ids)

    def _encode(
        self,
        side: PassageSide,
        batch: list[tuple[Passage, Tokens]],
        hashes: dict[str, bytes],
        ordinals: dict[str, int],
    ) -> None:
        passages = [passage for passage, _ in batch]
        pooled = side.encode([tokens for _, tokens in batch])
        vectors = self._embed(passages)
        given = [self._ordinal(passage.doc_id, ordinals) for passage in passages]
        encoded = [
            Encoded(
                passage.doc_id,
                PassageMeta(ordinal, hashes[passage.doc_id]),
                self._record(tokens, side.chunk_size, states.float().cpu().numpy()),
                vector,
            )
            for (passage, tokens), ordinal, states, vector in zip(batch, given, pooled, vectors, strict=True)
        ]
        self.working.write(encoded, self.next_ordinal)
        self._accept(WORKING, passages, given)
        self.progress.encoded += len(batch)
        self.progress.tokens += sum(len(tokens.ids) for _, tokens in batch)

    def _ordinal(self, doc_id: str, ordinals: dict[str, int]) -> int:
        if doc_id in ordinals:
            return ordinals[doc_id]
        self.next_ordinal += 1
        return self.next_ordinal - 1

    def _record(self, tokens: Tokens, chunk_size: int, pooled: NDArray[np.float32]) -> Record:
        """Tokens and pooled states (P, D) -> what is stored."""
        return Record(
            codec=self.builder.codec.number,
            chunk_size=chunk_size,
            width=pooled.shape[1],
            tokens=len(tokens.ids),
            truncated=tokens.truncated,
            payload=self.builder.codec.encode(pooled),
        )

    def _embed(self, passages: list[Passage]) -> NDArray[np.float32]:
        return self.builder.embedder.embed_passages([passage.text for passage in passages])
