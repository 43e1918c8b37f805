"""Build one shard: a plain function of passages, configuration and folder. Resumable after any kind of death.

Progress lives in the shard itself: a passage whose record is stored, whole and of the same text, is not encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.batching import batch_by_tokens
from indexer.corpus import CorpusLine, RejectedLine
from indexer.intake import WINDOW, Reject, accepted_windows, batched
from indexer.staging import Staging
from kalm_cache.codec import Codec
from kalm_cache.errors import DamagedRecordError
from kalm_cache.first_stage import BM25Index, DenseIndex, Embedder
from kalm_cache.generation import Counts
from kalm_cache.model.prompts import Tokens
from kalm_cache.passage import Passage
from kalm_cache.passage_side import PassageSide
from kalm_cache.record import Record, pack_record, unpack_record
from kalm_cache.store import Entry, PassageStore, key_of

SCAN = 4096  # keys handled together in the closing passes


@dataclass(slots=True)
class Progress:
    """Counts of one pass, as they stand now. `tokens` counts those of passages encoded in this pass."""

    encoded: int = 0
    resumed: int = 0
    copied: int = 0
    deleted: int = 0
    rejected: int = 0
    tokens: int = 0

    @property
    def done(self) -> int:
        """Passages that are stored for good."""
        return self.encoded + self.resumed + self.copied


@dataclass(frozen=True, slots=True)
class ShardBuilder:
    """What a shard is built with. `source`: an earlier shard of equal fingerprint; its records are copied as bytes."""

    passage_side: PassageSide
    embedder: Embedder
    codec: Codec
    batch_tokens: int
    store_text: bool
    bm25: bool
    source: PassageStore | None = None

    def build(
        self,
        lines: Iterable[CorpusLine | RejectedLine],
        folder: Path,
        *,
        on_reject: Reject,
        on_progress: Callable[[Progress], None],
    ) -> tuple[Progress, Counts]:
        """Fill `folder` with `passages.lmdb` and `first_stage/`; run again after an interruption, it goes on.

        Args:
            lines: the corpus from its beginning, read once.
            folder: the shard's folder; whatever an interrupted run left in it is verified and kept.
            on_reject: called for every line that is left out, duplicates included.
            on_progress: called after every batch with the counts so far.

        Raises:
            StoreError: the disk is full or cannot be written; what is stored stays.
        """
        folder.mkdir(parents=True, exist_ok=True)
        progress = Progress()

        def reject(line: RejectedLine) -> None:
            progress.rejected += 1
            on_reject(line)

        with (
            PassageStore(folder / "passages.lmdb", writable=True) as store,
            Staging(folder / "staging.lmdb") as staging,
        ):
            for passages in accepted_windows(lines, staging, reject):
                self._store_window(passages, store, staging, progress, on_progress)
            _drop_unseen(store, staging, progress)
            self._build_first_stage(store, staging, folder / "first_stage")
            counts = _count(store)
        for leftover in ("staging.lmdb", "staging.lmdb-lock", "passages.lmdb-lock"):
            (folder / leftover).unlink(missing_ok=True)
        return progress, counts

    def _store_window(
        self,
        passages: list[Passage],
        store: PassageStore,
        staging: Staging,
        progress: Progress,
        on_progress: Callable[[Progress], None],
    ) -> None:
        stored, damaged = _stored(passages, store)
        if damaged:
            store.delete(damaged)  # with their numbers, which the new records would not know to be theirs
        resumed, missing = _split_by_text(passages, stored)
        self._stage(staging.unstaged(resumed), staging)
        progress.resumed += len(resumed)
        numbers = {doc_id: record.number for doc_id, record in stored.items()}
        missing = self._copy_from_source(missing, numbers, store, staging, progress)
        tokens = self.passage_side.tokenize([passage.text for passage in missing])
        for batch in batch_by_tokens(
            zip(missing, tokens, strict=True),
            length=lambda pair: len(pair[1].ids),
            budget_tokens=self.batch_tokens,
            window=WINDOW,
        ):
            self._store_batch(batch, numbers, store, staging)
            progress.encoded += len(batch)
            progress.tokens += sum(len(tokens.ids) for _, tokens in batch)
            on_progress(progress)
        on_progress(progress)

    def _store_batch(
        self, batch: list[tuple[Passage, Tokens]], numbers: dict[str, int], store: PassageStore, staging: Staging
    ) -> None:
        next_number = self._next_number(store)
        entries = []
        pooled = self.passage_side.encode([tokens for _, tokens in batch])
        for (passage, tokens), states in zip(batch, pooled, strict=True):
            number = numbers.get(passage.doc_id, next_number)
            next_number += number == next_number
            record = self._record(passage, tokens, number, states.float().cpu().numpy())
            entries.append(self._entry(passage, number, pack_record(key_of(passage.doc_id), record)))
        self._stage([passage for passage, _ in batch], staging)
        store.write(entries, next_number)

    def _copy_from_source(
        self,
        passages: list[Passage],
        numbers: dict[str, int],
        store: PassageStore,
        staging: Staging,
        progress: Progress,
    ) -> list[Passage]:
        """Copy what the source holds with the same text, payloads as bytes; return the rest."""
        if self.source is None:
            return passages
        stored, _ = _stored(passages, self.source)
        same, rest = _split_by_text(passages, stored)
        if same:
            self._stage(same, staging)
            store.write([self._copied(one, stored[one.doc_id], numbers) for one in same], self._next_number(store))
            progress.copied += len(same)
        return rest

    def _copied(self, passage: Passage, record: Record, numbers: dict[str, int]) -> Entry:
        # an interrupted run may have stored another text of it, under a number of its own
        number = numbers.get(passage.doc_id, record.number)
        return self._entry(passage, number, pack_record(key_of(passage.doc_id), replace(record, number=number)))

    def _record(self, passage: Passage, tokens: Tokens, number: int, pooled: NDArray[np.float32]) -> Record:
        rows, width = pooled.shape
        return Record(
            codec=self.codec.number,
            ratio=self.passage_side.chunk_size,
            tokens=len(tokens.ids),
            rows=rows,
            width=width,
            number=number,
            content_hash=passage.content_hash(),
            truncated=tokens.truncated,
            payload=self.codec.encode(pooled),
        )

    def _entry(self, passage: Passage, number: int, record: bytes) -> Entry:
        return Entry(passage.doc_id, number, record, passage.text if self.store_text else None)

    def _stage(self, passages: list[Passage], staging: Staging) -> None:
        if passages:
            staging.put(passages, self.embedder.embed_passages([passage.text for passage in passages]))

    def _next_number(self, store: PassageStore) -> int:
        inherited = 0 if self.source is None else self.source.next_number()
        return max(store.next_number(), inherited)

    def _build_first_stage(self, store: PassageStore, staging: Staging, folder: Path) -> None:
        def numbered() -> Iterator[tuple[list[int], list[str]]]:
            for pairs in batched(store.numbers(), SCAN):
                yield [number for number, _ in pairs], [doc_id for _, doc_id in pairs]

        DenseIndex.build(
            ((np.array(numbers, np.int64), staging.vectors(doc_ids)) for numbers, doc_ids in numbered()),
            self.embedder.dimension,
            folder,
        )
        if self.bm25:
            BM25Index.build(
                (pair for numbers, doc_ids in numbered() for pair in zip(numbers, staging.texts(doc_ids), strict=True)),
                folder,
            )


def _stored(passages: Sequence[Passage], store: PassageStore) -> tuple[dict[str, Record], list[str]]:
    """The whole records that a store has of these passages, and the ids of those that are damaged."""
    doc_ids = [passage.doc_id for passage in passages]
    whole, damaged = {}, []
    for doc_id, value in zip(doc_ids, store.records(doc_ids), strict=True):
        if value is not None:
            try:
                whole[doc_id] = unpack_record(key_of(doc_id), value)
            except DamagedRecordError:
                damaged.append(doc_id)
    return whole, damaged


def _split_by_text(passages: list[Passage], stored: dict[str, Record]) -> tuple[list[Passage], list[Passage]]:
    """Passages that are stored with the very text they have, and the others."""
    same = [passage for passage in passages if _same_text(passage, stored.get(passage.doc_id))]
    other = [passage for passage in passages if not _same_text(passage, stored.get(passage.doc_id))]
    return same, other


def _same_text(passage: Passage, record: Record | None) -> bool:
    return record is not None and record.content_hash == passage.content_hash()


def _drop_unseen(store: PassageStore, staging: Staging, progress: Progress) -> None:
    """Forget what an interrupted run stored and the corpus no longer has."""
    unseen = [key.decode("utf-8") for keys in batched(store.keys(), SCAN) for key in staging.unseen(keys)]
    if unseen:
        store.delete(unseen)
    progress.deleted = len(unseen)


def _count(store: PassageStore) -> Counts:
    passages = tokens = rows = truncated = payload = 0
    for key, value in store.scan("records"):
        record = unpack_record(key, value)
        passages += 1
        tokens += record.tokens
        rows += record.rows
        truncated += record.truncated
        payload += len(record.payload)
    return Counts(passages, tokens, rows, truncated, payload)
