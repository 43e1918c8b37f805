"""Prompt-passage pairs → scores, whether a passage is stored or comes as text. Knows nothing of HTTP.

Stored passages take the steps of `kalm_cache.scoring.pipeline`, texts are encoded; all pairs are decoded together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext

from kalm_cache.errors import UsageError
from kalm_cache.model.prompts import Prompt, PromptTokens
from kalm_cache.scoring.pooling import PooledPassage
from kalm_cache.scoring.prefix_cache import CachedPrefix
from query_service.answering.passages import AnyPassage, ScoringOptions
from query_service.answering.scores import Score, Scores
from query_service.engine.gathering import Gathered, find_passages, gather, tokenize_prompts
from query_service.engine.request_context import RequestContext


async def score_pairs(
    context: RequestContext, prompts: Sequence[Prompt], passages: Sequence[AnyPassage], options: ScoringOptions
) -> Scores:
    """The score of each (prompt, passage) pair. Equal prompts are tokenised once, equal passages read once.

    Raises:
        EncoderOffError: a raw passage, and no encoder.
        UnknownIdError, NoIndexError: ids that the index does not hold, where that is an error.
        UsageError: a chunk size that is no multiple of the stored one; a cut, where none is allowed.
    """
    side = context.model.query_side
    tokens = await tokenize_prompts(context, prompts)
    gathered = Gathered()
    await context.read("read", lambda: find_passages(context, passages, options, gathered))
    async with context.encoding() if gathered.encodes else nullcontext(), context.holding_states():
        await gather(context, list(tokens.values()), options, gathered)
        _count_cuts(context, tokens.values(), gathered.ready.values(), options)
        if context.served.index is not None:
            chunk_size = options.chunk_size or context.model.chunk_size
            shared = await context.share(context.served.index.stored, list(tokens.values()), chunk_size)
            tokens = dict(zip(tokens, shared, strict=True))
        pairs = [
            (tokens[prompt], gathered.ready[passage])
            for prompt, passage in zip(prompts, passages, strict=True)
            if passage in gathered.ready
        ]
        margins = await context.margins(side, [prompt for prompt, _ in pairs], [ready.states for _, ready in pairs])
    scores = Scores(
        _scores(passages, gathered, margins),
        prompt_tokens=sum(len(prompt.ids) for prompt, _ in pairs),
        passage_tokens=sum(ready.tokens for _, ready in pairs),
        query_truncated=any(prompt.truncated for prompt in tokens.values()),
        damaged=gathered.damaged,
        missing=gathered.missing,
    )
    context.truncated, context.cache_hits = scores.truncated, scores.cache_hits
    return scores


def _scores(passages: Sequence[AnyPassage], gathered: Gathered, margins: Sequence[float]) -> list[Score | None]:
    """Margins of the pairs that are ready → a score or `None` for each pair."""
    rest = iter(margins)
    return [
        Score(next(rest), gathered.sources[passage], gathered.ready[passage].truncated)
        if passage in gathered.ready
        else None
        for passage in passages
    ]


def _count_cuts(
    context: RequestContext,
    prompts: Collection[PromptTokens],
    passages: Collection[PooledPassage | CachedPrefix],
    options: ScoringOptions,
) -> None:
    counts = context.counts
    counts.queries_cut += sum(prompt.truncated for prompt in prompts)
    counts.documents_cut += sum(passage.truncated for passage in passages)
    if options.truncate:
        return
    if counts.queries_cut:
        raise UsageError("the query has more tokens than count, and `truncate` is false; shorten it, or allow the cut")
    if counts.documents_cut:
        raise UsageError(
            f"{counts.documents_cut} passages have more tokens than count, and `truncate` is false; allow the cut"
        )
