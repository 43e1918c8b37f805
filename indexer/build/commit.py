"""Commit: computed batches, in order -> the resume log and the accepted passages. Counts them.

What was computed is in the resume log before its passages are accepted: a build that is killed in between finds it.
"""

from __future__ import annotations

from indexer.build.compute import ComputedBatch
from indexer.build.counts import BuildCounts
from indexer.build.first_stage import ReusedPostings
from indexer.build.plan import Batch, EncodeBatch, RecodeBatch, ReuseBatch
from indexer.build.spec import BuildSpec, Ordinals
from indexer.build.unfinished.accepted_passages import RESUME_LOG, AcceptedPassages, Origins
from indexer.build.unfinished.resume_log import EncodedPassage
from kalm_cache.first_stage import BM25Index
from kalm_cache.storage.passage_store import PassageMeta


class Commit:
    """Takes the batches of one build. `postings`: which passages' postings an index elsewhere holds."""

    def __init__(
        self, spec: BuildSpec, accepted: AcceptedPassages, origins: Origins, counts: BuildCounts, ordinals: Ordinals
    ) -> None:
        """`ordinals`: where the planner had those of the batches from."""
        self._spec, self._accepted, self._origins, self._counts = spec, accepted, origins, counts
        self._ordinals, self.postings = ordinals, ReusedPostings()

    def write(self, computed: ComputedBatch) -> None:
        """Write one batch: each of the two files gets all of it, or nothing. Raises `StoreError`."""
        ordinals = [wanted.ordinal for wanted in computed.batch.wanted if wanted.ordinal is not None]
        if computed.records:
            self._origins.resume_log.write(_encoded(computed, ordinals), self._ordinals.next)
        self._accept(computed, ordinals)
        self.postings.reuse(self._postings_of(computed.batch), ordinals)
        self._count(computed)

    def _accept(self, computed: ComputedBatch, ordinals: list[int]) -> None:
        batch = computed.batch
        origin = batch.origin if isinstance(batch, ReuseBatch) else RESUME_LOG
        has_texts = origin != RESUME_LOG and self._spec.fingerprint.store_text
        self._accepted.accept(
            origin,
            ordinals,
            [wanted.passage.doc_id for wanted in batch.wanted],
            texts=() if has_texts else [wanted.passage.text for wanted in batch.wanted],
            vectors=None if computed.records else computed.vectors,  # else the resume log has them
            metadata=[wanted.metadata for wanted in batch.wanted],
        )

    def _postings_of(self, batch: Batch) -> BM25Index | None:
        """The index that has the batch's postings, if there is one."""
        if isinstance(batch, RecodeBatch):
            return self._spec.sources.recoded[batch.segment].source.postings
        segment = self._origins.segment(batch.origin) if isinstance(batch, ReuseBatch) else None
        return None if segment is None else segment.postings

    def _count(self, computed: ComputedBatch) -> None:
        counts, batch, passages = self._counts, computed.batch, len(computed.batch.wanted)
        counts.stage_bytes["plan"] += sum(len(wanted.passage.text.encode()) for wanted in batch.wanted)
        counts.stage_bytes["encode"] += computed.state_bytes
        vector_bytes = 0 if computed.vectors is None else computed.vectors.nbytes
        counts.stage_bytes["finish"] += sum(len(record.payload) for record in computed.records) + vector_bytes
        match batch:
            case EncodeBatch():
                counts.encoded += passages
                counts.tokens += sum(len(tokens.ids) for tokens in batch.tokens)
                counts.encoding_seconds += sum(computed.seconds.values())
            case RecodeBatch() if batch.recoding.changes_states:
                counts.recoded += passages
            case ReuseBatch() if self._origins.is_resumed(batch.origin):
                counts.resumed += passages
            case _:
                counts.copied += passages


def _encoded(computed: ComputedBatch, ordinals: list[int]) -> list[EncodedPassage]:
    assert computed.vectors is not None
    return [
        EncodedPassage(wanted.passage.doc_id, PassageMeta(ordinal, wanted.content_hash), record, vector)
        for wanted, ordinal, record, vector in zip(
            computed.batch.wanted, ordinals, computed.records, computed.vectors, strict=True
        )
    ]
