"""Build one shard: a plain function of passages, configuration and folder. Resumable after any kind of death.

Two phases. While it is built, what is encoded goes into `working.lmdb`, in the order of its arrival: progress lives
there, and a passage that is there, whole and of the same text, is not encoded again. When the corpus has been read, the
shard is sealed: everything is merged, in order of keys, into the files that are published.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.batching import batch_by_tokens
from indexer.corpus import CorpusLine, RejectedLine
from indexer.intake import WINDOW, Reject, accepted_windows, batched
from indexer.origins import SealedShard
from indexer.recode import RecodedShard
from indexer.seal import SCAN, WORKING, count_dropped, seal
from indexer.staging import Staging
from indexer.working import Encoded, WorkingFile
from kalm_cache.codec import Codec
from kalm_cache.durable import rename_durably
from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.first_stage import BM25Index, DenseChoice, DenseIndex, Embedder
from kalm_cache.generation import Counts
from kalm_cache.model.prompts import Tokens
from kalm_cache.passage import Passage
from kalm_cache.passage_side import PassageSide
from kalm_cache.record import Record
from kalm_cache.store import SEAL_FILE, Identity, PassageStore, doc_id_of
from kalm_cache.store_writer import unseal

WORKING_FILE, STAGING_FILE = "working.lmdb", "staging.lmdb"
RECODED = 256  # passages recoded together, in one transaction
EARLIER = ".earlier"  # suffix of the folder of a shard that was finished and not published


@dataclass(slots=True)
class Progress:
    """Counts of one pass, as they stand now. `tokens` counts those of passages encoded in this pass."""

    encoded: int = 0
    resumed: int = 0
    copied: int = 0
    recoded: int = 0
    kept: int = 0
    deleted: int = 0
    rejected: int = 0
    tokens: int = 0
    encoding_seconds: float = 0.0

    @property
    def done(self) -> int:
        """Passages that need no more encoding."""
        return self.encoded + self.resumed + self.copied + self.recoded


def refuse_to_lose(doc_id: str) -> None:
    """What `ShardBuilder` does of itself with a passage that it cannot keep."""
    raise StoreError(f"passage {doc_id!r} is damaged, and the corpus does not have it: run kalm-cache verify --repair")


class Origin(Protocol):
    """Where states can be taken from: the working file, or a sealed shard."""

    def identities(self, doc_ids: Sequence[str]) -> list[Identity | None]:
        """Of each id; `None` where it is not there, or not whole."""


@dataclass(frozen=True, slots=True)
class ShardBuilder:
    """What a shard is built with.

    passage_side: `None` where nothing may have to be encoded.
    sources: sealed shards whose passages are copied as bytes where the text is the same.
    recoded: sealed shards whose states are stored in another form; these are recoded where the text is the same.
    kept: sealed shards whose passages go in even if the corpus has none of that id.
    on_lost: called for every id of `kept` that is damaged, and of which no text is at hand.
    first_number: no passage gets a lower number, unless it is copied with it.
    statistics_of: what BM25 scores with, see `BM25Index.build`.
    """

    passage_side: PassageSide | None
    embedder: Embedder
    codec: Codec
    batch_tokens: int
    store_text: bool
    bm25: bool
    sources: Sequence[SealedShard] = ()
    recoded: Sequence[RecodedShard] = ()
    kept: Sequence[SealedShard] = ()
    on_lost: Callable[[str], None] = refuse_to_lose
    first_number: int = 0
    statistics_of: BM25Index | None = None
    dense_index: DenseChoice = "auto"

    def build(
        self,
        lines: Iterable[CorpusLine | RejectedLine],
        folder: Path,
        *,
        on_reject: Reject,
        on_progress: Callable[[Progress], None],
    ) -> tuple[Progress, Counts]:
        """Fill `folder` with a sealed shard and `first_stage/`; run again after an interruption, it goes on.

        Args:
            lines: the corpus from its beginning, read once.
            folder: the shard's folder; whatever an interrupted run left in it is verified and kept.
            on_reject: called for every line that is left out, duplicates included.
            on_progress: called after every batch with the counts so far.

        Raises:
            StoreError: the disk is full or cannot be written; what is stored stays.
        """
        earlier = _set_aside(folder)
        with ExitStack() as stack:
            working = stack.enter_context(WorkingFile(folder / WORKING_FILE))
            staging = stack.enter_context(Staging(folder / STAGING_FILE))
            own = stack.enter_context(PassageStore(earlier)) if earlier else None
            build = _Build(self, folder, working, staging, own, on_progress)
            counts = build.run(lines, on_reject)
        _drop_leftovers(folder)
        return build.progress, counts


class _Build:
    """One pass: the state that its steps share."""

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
        self.on_progress, self.progress = on_progress, Progress()
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
        self._build_first_stage(self.folder / "first_stage")
        return counts

    def _keep(self, shard: SealedShard) -> None:
        """Take in what the corpus does not have."""
        for keys in batched(shard_keys(shard), WINDOW):
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
        if place != WORKING and self.shards[place - 1].vectors is None:
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

    def _build_first_stage(self, folder: Path) -> None:
        def numbered() -> Iterator[tuple[list[int], list[bytes]]]:
            for pairs in batched(self.staging.numbers(), SCAN):
                yield [number for number, _ in pairs], [key for _, key in pairs]

        DenseIndex.build(
            ((np.array(numbers, np.int64), self._vectors(numbers, keys)) for numbers, keys in numbered()),
            self.builder.embedder.dimension,
            folder,
            self.builder.dense_index,
        )
        if self.builder.bm25:
            with PassageStore(self.folder) as store:
                texts = ((numbers, self._texts(keys, store)) for numbers, keys in numbered())
                pairs = (pair for both in texts for pair in zip(*both, strict=True))
                BM25Index.build(pairs, folder, self.builder.statistics_of)

    def _vectors(self, numbers: list[int], keys: list[bytes]) -> NDArray[np.float32]:
        """The first stage's vectors (n, E) of accepted passages, each from where it is."""
        vectors = np.empty((len(keys), self.builder.embedder.dimension), np.float32)
        origins = self.staging.origins_of(keys)
        for place in set(origins):
            rows = [i for i, origin in enumerate(origins) if origin == place]
            here = [keys[i] for i in rows]
            copied = self.shards[place - 1].vectors if place else None
            if place == WORKING:
                vectors[rows] = self.working.vectors(here)
            elif copied is not None:
                vectors[rows] = copied(np.array([numbers[i] for i in rows], np.int64))
            else:
                vectors[rows] = self.staging.vectors(here)
        return vectors

    def _texts(self, keys: list[bytes], store: PassageStore) -> Iterable[str]:
        if not self.builder.store_text:
            return self.staging.texts(keys)
        return (text or "" for text in store.texts([doc_id_of(key) for key in keys]))


def shard_keys(shard: SealedShard) -> Iterator[bytes]:
    """The key of every passage of a shard that is not hidden, in order."""
    return (key for key in shard.store.keys() if key not in shard.hidden)  # noqa: SIM118 (not a dict)


def _set_aside(folder: Path) -> Path | None:
    """Make the folder ready for a pass, and return that of a shard which an earlier one finished, if any.

    Its working file is dropped when a shard is finished; if it was not published then, it is taken for a source.
    """
    earlier = folder.with_name(folder.name + EARLIER)
    if (folder / SEAL_FILE).exists() and not (folder / WORKING_FILE).exists():
        shutil.rmtree(earlier, ignore_errors=True)  # the finished one holds all that it held
        rename_durably(folder, earlier)
    folder.mkdir(parents=True, exist_ok=True)
    unseal(folder)
    return earlier if earlier.exists() else None


def _drop_leftovers(folder: Path) -> None:
    for name in (WORKING_FILE, f"{WORKING_FILE}-lock", STAGING_FILE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder.with_name(folder.name + EARLIER), ignore_errors=True)
