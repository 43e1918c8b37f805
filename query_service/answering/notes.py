"""What is noted of an answer while it is made: where its milliseconds went, what it used, and what it lacks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from kalm_cache.settings import Settings
from query_service.middleware.metrics import Source


@dataclass(slots=True)
class Counts:
    """What a request used, and what its answer lacks, for the metrics."""

    sources: dict[Source, int] = field(default_factory=dict)
    missing: int = 0
    damaged: int = 0
    read_bytes: int = 0
    queries_cut: int = 0
    documents_cut: int = 0

    def found(self, passages: int, *, damaged: int, read_bytes: int) -> None:
        """So many stored passages were looked up, besides damaged ones."""
        self.count("index_id", passages)
        self.damaged += damaged
        self.read_bytes += read_bytes

    def found_by_text(self, passages: int) -> None:
        """So many of those that were looked up were found by their texts, and not by the ids of the request."""
        if passages:
            self.count("index_id", -passages)
            self.count("index_text", passages)

    def add_texts(self, sources: Sequence[Source]) -> None:
        """States of texts came from these."""
        for source in sources:
            self.count(source, 1)

    def add(self, other: Counts) -> None:
        """What another service used for this request."""
        for source, passages in other.sources.items():
            self.count(source, passages)
        self.missing += other.missing
        self.damaged += other.damaged
        self.read_bytes += other.read_bytes
        self.queries_cut = max(self.queries_cut, other.queries_cut)  # each was given all queries
        self.documents_cut += other.documents_cut

    def count(self, source: Source, passages: int) -> None:
        """So many passages had their states from a source."""
        self.sources[source] = self.sources.get(source, 0) + passages


@dataclass(slots=True, kw_only=True)
class AnswerNotes:
    """Of one request.

    model_name: as clients see it.
    timings_ms: `queue`, then a name a stage, `total` at the end. Header, log, spans, metrics and bodies have it from
        here.
    truncated: positions of passages that were cut.
    unused_fields: names of what the request says and nobody heeded.
    cache_hits: how many of the pairs had states already; `None` where no pairs were asked for.
    missing_shards: whose passages are not in the answer, as nobody serves them now.
    """

    settings: Settings
    model_name: str
    started: float = field(default_factory=time.monotonic)
    timings_ms: dict[str, float] = field(default_factory=lambda: {"queue": 0.0})
    counts: Counts = field(default_factory=Counts)
    truncated: list[int] = field(default_factory=list)
    unused_fields: list[str] = field(default_factory=list)
    cache_hits: int | None = None
    missing_shards: list[int] = field(default_factory=list)

    def finished(self) -> dict[str, float]:
        """The timings, with `total`."""
        self.timings_ms["total"] = self.elapsed_ms
        return self.timings_ms

    @property
    def elapsed_ms(self) -> float:
        """Since the request began."""
        return (time.monotonic() - self.started) * 1000
