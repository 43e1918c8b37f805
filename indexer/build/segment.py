"""Build one segment: a plain function of passages, configuration and folder. Resumable after any kind of death.

Two phases. While it is built, what is encoded goes into `working.lmdb`, in the order of its arrival: progress lives
there, and a passage that is there, whole and of the same text, is not encoded again. When the corpus has been read, the
segment is sealed: everything is merged, in order of keys, into the files that are published.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from indexer.build.accepted_ids import Staging
from indexer.build.intake import Reject
from indexer.build.progress import Progress
from indexer.build.resume_log import WorkingFile
from indexer.build.segment_pass import SegmentPass
from indexer.corpus import CorpusLine, RejectedLine
from indexer.reuse.origins import SealedSegment
from indexer.reuse.recode import RecodedSegment
from kalm_cache.codec import Codec
from kalm_cache.errors import StoreError
from kalm_cache.first_stage import BM25Index, DenseChoice, Embedder
from kalm_cache.generations.manifest import Counts
from kalm_cache.scoring.passage_side import PassageSide
from kalm_cache.storage.durable import rename_durably
from kalm_cache.storage.passage_store import SEAL_FILE, PassageStore
from kalm_cache.storage.store_writer import unseal

__all__ = ["Progress", "SegmentBuilder", "refuse_to_lose"]
WORKING_FILE, STAGING_FILE = "working.lmdb", "staging.lmdb"
EARLIER = ".earlier"  # suffix of the folder of a segment that was finished and not published


def refuse_to_lose(doc_id: str) -> None:
    """What `SegmentBuilder` does of itself with a passage that it cannot keep."""
    raise StoreError(f"passage {doc_id!r} is damaged, and the corpus does not have it: run kalm-cache verify --repair")


@dataclass(frozen=True, slots=True)
class SegmentBuilder:
    """What a segment is built with.

    passage_side: `None` where nothing may have to be encoded.
    sources: sealed segments whose passages are copied as bytes where the text is the same.
    recoded: sealed segments whose states are stored in another form; these are recoded where the text is the same.
    kept: sealed segments whose passages go in even if the corpus has none of that id.
    on_lost: called for every id of `kept` that is damaged, and of which no text is at hand.
    first_ordinal: no passage gets a lower number, unless it is copied with it.
    statistics_of: what BM25 scores with, see `BM25Index.build`.
    """

    passage_side: PassageSide | None
    embedder: Embedder
    codec: Codec
    batch_tokens: int
    store_text: bool
    bm25: bool
    sources: Sequence[SealedSegment] = ()
    recoded: Sequence[RecodedSegment] = ()
    kept: Sequence[SealedSegment] = ()
    on_lost: Callable[[str], None] = refuse_to_lose
    first_ordinal: int = 0
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
        """Fill `folder` with a sealed segment and `first_stage/`; run again after an interruption, it goes on.

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
            build = SegmentPass(self, folder, working, staging, own, on_progress)
            counts = build.run(lines, on_reject)
        _drop_leftovers(folder)
        return build.progress, counts


def _set_aside(folder: Path) -> Path | None:
    """Make the folder ready for a pass, and return that of a segment which an earlier one finished, if any.

    Its working file is dropped when a segment is finished; if it was not published then, it is taken for a source.
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
