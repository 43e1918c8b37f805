"""The warm job: a corpus → the text cache, so that its passages are hits when they come as texts. Publishes nothing.

Interrupted, it goes on where it stopped when run again: what was written is found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from indexer.build.batching import batch_by_tokens, batched
from indexer.build.counts import BuildCounts
from indexer.build.plan import Reject
from indexer.corpus import CorpusLine, RejectedLine, UnusedFields
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.precision import resolve_device, resolve_dtype
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.passage_side import PassageSide, load_passage_side
from kalm_cache.scoring.state_codec import codec_of
from kalm_cache.scoring.text_states import TextStates, open_text_states
from kalm_cache.settings import Settings
from kalm_cache.storage.text_cache.text_cache import TextCache

WINDOW = 512  # passages that are looked up together


@dataclass(frozen=True, slots=True)
class WarmReport:
    """What a warm job did. `cached`: passages that were there already; `dropped`: not written, as there was no room.

    `unused_fields`: how many lines of the corpus have each field that is no part of a passage.
    """

    text_cache: str
    passages: int
    encoded: int
    cached: int
    rejected: int
    truncated: int
    tokens: int
    dropped: int
    seconds: float
    unused_fields: dict[str, int]


def warm_cache(
    lines: Iterable[CorpusLine | RejectedLine],
    states: TextStates,
    side: PassageSide,
    *,
    batch_tokens: int,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
) -> WarmReport:
    """Encode what the cache lacks of a corpus, batch by batch, and wait until each batch is written.

    Args:
        lines: of the corpus, read once.
        states: the part of the cache that the model fills.
        side: the model's encoder.
        batch_tokens: encoded together, padding included.
        on_reject: gets each line that holds no passage.
        on_progress: gets the counts after each batch.

    Raises:
        StoreError: the cache cannot be written.
    """
    started, counts, cache = time.perf_counter(), BuildCounts(), states.namespace.cache
    truncated, unused = 0, UnusedFields()
    for passages in batched(_accepted(unused.watch(lines), counts, on_reject), WINDOW):
        texts = list(dict.fromkeys(line.passage.text for line in passages))
        looked_up = states.look_up(side, texts)
        counts.resumed += len(passages) - len(looked_up.missing)
        truncated += sum(passage.truncated for passage in looked_up.found.values())
        missing = list(looked_up.missing.items())
        for batch in batch_by_tokens(missing, length=_length, budget_tokens=batch_tokens, window=WINDOW):
            states.encode(side, dict(batch))
            cache.flush()
            cache.require_writable()
            counts.encoded += len(batch)
            counts.tokens += sum(len(tokens.ids) for _, tokens in batch)
            truncated += sum(tokens.truncated for _, tokens in batch)
            on_progress(counts)
    on_progress(counts)
    return WarmReport(
        text_cache=str(cache.options.folder),
        passages=counts.done,
        encoded=counts.encoded,
        cached=counts.resumed,
        rejected=counts.rejected,
        truncated=truncated,
        tokens=counts.tokens,
        dropped=cache.counts.dropped,
        seconds=time.perf_counter() - started,
        unused_fields=unused.counts(),
    )


def _length(item: tuple[str, Tokens]) -> int:
    return len(item[1].ids)


def _accepted(
    lines: Iterable[CorpusLine | RejectedLine], counts: BuildCounts, on_reject: Reject
) -> Iterator[CorpusLine]:
    for line in lines:
        if isinstance(line, RejectedLine):
            counts.rejected += 1
            on_reject(line)
        else:
            yield line


def open_states(cache: TextCache, settings: Settings) -> tuple[TextStates, PassageSide]:
    """The part of a cache that the settings' model fills, and the model's encoder.

    Raises:
        CheckpointError: the model is missing or incomplete.
        UsageError: an unknown codec, device or dtype.
    """
    checkpoint = open_checkpoint(settings.model)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    codec, chunk_size = codec_of(checkpoint, settings.codec), settings.chunk_size
    side = load_passage_side(
        checkpoint, device=device, dtype=dtype, max_length=settings.max_length, chunk_size=chunk_size
    )
    return open_text_states(cache, checkpoint, codec, dtype=dtype, chunk_size=chunk_size), side
