"""One pass over a corpus: each passage taken from where it is stored already, or encoded; then the shard is sealed."""

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
from indexer.reuse.origins import SealedShard
from indexer.reuse.recode import RecodedShard
from kalm_cache.errors import DamagedRecordError
from kalm_cache.generations.generation import Counts
from kalm_cache.model.prompts import Tokens
from kalm_cache.passage import Passage
from kalm_cache.scoring.passage_side import PassageSide
from kalm_cache.storage.passage_store import Identity, PassageStore, doc_id_of
from kalm_cache.storage.record import Record

if TYPE_CHECKING:
    from indexer.build.shard import ShardBuilder

RECODED = 256  # passages recoded together, in one transaction


class Origin(Protocol):
    """Where states can be taken from: the working file, or a sealed shard."""

    def identities(self, doc_ids: Sequence[str]) -> list[Identity | None]:
        """Of each id; `None` where it is not there, or not whole."""


class ShardPass:
    """The state that the steps of a pass share."""

    def __init__(
        self,
        builder: ShardBuilder,
        folder: Path,
        working: WorkingFile,
        staging: Staging,
        own: PassageStore | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.builder, self.folder, self.working, self.staging, self.own = builder, folder, working, staging, own
        self.on_progress, self.progress, self.taken = on_progress, Progress(), TakenPostings()
        self.shards = [SealedShard(own, None)] if own is not None else []
        self.shards += builder.sources
        stores = [shard.store for shard in self.shards] + [shard.store for shard in builder.recoded]
        self.next_number = max(working.next_number(), builder.first_number, *(one.next_number() for one in stores))

    def run(self, lines: Iterable[CorpusLine | RejectedLine], on_reject: Reject) -> Counts:
        """The whole pass."""

        def reject(line: RejectedLine) -> None:
            self.progress.rejected += 1
            on_reject(line)

        for passages in accepted_windows(lines, self.staging, reject):
            self._take_window(passages, {passage.doc_id: passage.content_hash() for passage in passages})
        for shard in self.builder.kept:
            self._keep(shard)
        self.progress.deleted = count_dropped(self.working.keys(), self.staging)
        if self.own is not None:
            self.progress.deleted += count_dropped(self.own.keys(), self.staging)
        counts = seal(
            self.folder,
            self.working,
            self.staging,
            self.shards,
            store_text=self.builder.store_text,
            next_number=self.next_number,
        )
        self._build_first_stage()
        return counts

    def _build_first_stage(self) -> None:
        build = FirstStageBuild(self.folder, self.working, self.staging, self.shards)
        build.build_dense(self.builder.embedder.dimension, self.builder.dense_index)
        if self.builder.bm25:
            build.build_bm25(self.taken, self.builder.statistics_of, store_text=self.builder.store_text)

    def _keep(self, shard: SealedShard) -> None:
        """Take in what the corpus does not have."""
        for keys in batched(shard.keys(), WINDOW):
            doc_ids = [doc_id_of(key) for key in self.staging.unseen(keys)]
            texts = shard.store.find_texts(doc_ids)
            passages, hashes = [], {}
            for doc_id, text, identity in zip(doc_ids, texts, shard.store.identities(doc_ids), strict=True):
                if isinstance(text, DamagedRecordError) or not isinstance(identity, Identity):
                    self.builder.on_lost(doc_id)
                    continue
                passages.append(Passage(doc_id, text or ""))
                self.progress.kept += 1
                hashes[doc_id] = identity.content_hash
            self._take_window(passages, hashes, has_texts=any(text is not None for text in texts))

    def _take_window(self, passages: list[Passage], hashes: dict[str, bytes], has_texts: bool = True) -> None:
        numbers: dict[str, int] = {}  # of other texts that this build has already encoded under these ids
        rest = passages
        origins: list[Origin] = [self.working, *self.shards]
        for place, origin in enumerate(origins):
            rest = self._reuse(rest, place, origin, hashes, numbers if place == WORKING else {})
        for recoded in self.builder.recoded:
            rest = self._recode(rest, recoded, hashes)
        if not has_texts or (rest and self.builder.passage_side is None):
            for passage in rest:
                self.builder.on_lost(passage.doc_id)
            rest = []
        self._encode_all(rest, hashes, numbers)
        self.on_progress(self.progress)

    def _encode_all(self, passages: list[Passage], hashes: dict[str, bytes], numbers: dict[str, int]) -> None:
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
            self._encode(side, batch, hashes, numbers)
            self.progress.encoding_seconds += time.perf_counter() - started
            self.on_progress(self.progress)

    def _recode(self, passages: list[Passage], shard: RecodedShard, hashes: dict[str, bytes]) -> list[Passage]:
        """Take from a shard, in the form that this one stores, what it has with the same text; return the rest."""
        left: list[Passage] = []
        for some in batched(passages, RECODED):
            identities = shard.identities([passage.doc_id for passage in some])
            pairs = zip(some, identities, strict=True)
            same = [(one, at) for one, at in pairs if at is not None and at.content_hash == hashes[one.doc_id]]
            found = {passage.doc_id for passage, _ in same}
            left += [passage for passage in some if passage.doc_id not in found]
            if not same:
                continue
            records = shard.records([passage.doc_id for passage, _ in same])
            numbers = [identity.number for _, identity in same]
            taken = [passage for passage, _ in same]
            vectors = shard.vectors(np.array(numbers, np.int64)) if shard.vectors else self._embed(taken)
            recoded = [
                Encoded(passage.doc_id, identity, record, vector)
                for (passage, identity), record, vector in zip(same, records, vectors, strict=True)
            ]
            self.working.write(recoded, self.next_number)
            self._accept(WORKING, taken, numbers)
            self.taken.take(shard.source.postings, numbers)
            if shard.changes_states:
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
        numbers: dict[str, int],
    ) -> list[Passage]:
        """Accept from an origin what it has with the same text, and return the rest; their numbers go to `numbers`."""
        same, rest = [], []
        for passage, identity in zip(passages, origin.identities([one.doc_id for one in passages]), strict=True):
            if identity is not None and identity.content_hash == hashes[passage.doc_id]:
                same.append((passage, identity.number))
                continue
            rest.append(passage)
            if identity is not None:
                numbers[passage.doc_id] = identity.number
        if same:
            self._accept(place, [passage for passage, _ in same], [number for _, number in same])
            if place != WORKING and self.shards[place - 1].store is not self.own:
                self.progress.copied += len(same)
            else:
                self.progress.resumed += len(same)
        return rest

    def _accept(self, place: int, passages: list[Passage], numbers: list[int]) -> None:
        doc_ids = [passage.doc_id for passage in passages]
        if place == WORKING or not self.builder.store_text:  # else the shard has the text
            self.staging.put_texts(doc_ids, [passage.text for passage in passages])
        if place != WORKING:
            self.taken.take(self.shards[place - 1].postings, numbers)
            if self.shards[place - 1].vectors is None:
                self.staging.put_vectors(doc_ids, self._embed(passages))
        self.staging.accept(place, numbers, doc_ids)

    def _encode(
        self,
        side: PassageSide,
        batch: list[tuple[Passage, Tokens]],
        hashes: dict[str, bytes],
        numbers: dict[str, int],
    ) -> None:
        passages = [passage for passage, _ in batch]
        pooled = side.encode([tokens for _, tokens in batch])
        vectors = self._embed(passages)
        given = [self._number(passage.doc_id, numbers) for passage in passages]
        encoded = [
            Encoded(
                passage.doc_id,
                Identity(number, hashes[passage.doc_id]),
                self._record(tokens, side.chunk_size, states.float().cpu().numpy()),
                vector,
            )
            for (passage, tokens), number, states, vector in zip(batch, given, pooled, vectors, strict=True)
        ]
        self.working.write(encoded, self.next_number)
        self._accept(WORKING, passages, given)
        self.progress.encoded += len(batch)
        self.progress.tokens += sum(len(tokens.ids) for _, tokens in batch)

    def _number(self, doc_id: str, numbers: dict[str, int]) -> int:
        if doc_id in numbers:
            return numbers[doc_id]
        self.next_number += 1
        return self.next_number - 1

    def _record(self, tokens: Tokens, ratio: int, pooled: NDArray[np.float32]) -> Record:
        """Tokens and pooled states (P, D) -> what is stored."""
        return Record(
            codec=self.builder.codec.number,
            ratio=ratio,
            width=pooled.shape[1],
            tokens=len(tokens.ids),
            truncated=tokens.truncated,
            payload=self.builder.codec.encode(pooled),
        )

    def _embed(self, passages: list[Passage]) -> NDArray[np.float32]:
        return self.builder.embedder.embed_passages([passage.text for passage in passages])
