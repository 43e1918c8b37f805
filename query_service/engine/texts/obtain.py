"""Texts → pooled states: from a request that has them under way, from the text cache, else from the encoder.

Each piece of work is short, and others run between two of them: a request that is long holds up nobody, and one that
was given up ends.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.pooling import PooledPassage
from query_service.engine.documents import DocumentEncoder, EncodingOptions
from query_service.engine.engine import Step
from query_service.engine.request_context import RequestContext
from query_service.engine.texts.flights import Claim, Flights, Obtained, Wanted
from query_service.middleware.metrics import Source

# what other requests wait for at most: of the engine's thread, as predicted, and of a reader thread
ENCODE_MS = 100.0
LEAST_ENCODE_TOKENS, ENCODE_TOKENS = 256, 16_384  # of a batch, however slow or fast the device is
TOKENIZED_CHARS = 1 << 17


async def obtain(
    context: RequestContext, encoder: DocumentEncoder, texts: Collection[str], options: EncodingOptions
) -> dict[str, Obtained]:
    """The states of each text. What another request has under way is waited for, and taken over if that one gives up.

    What the text cache neither has nor gets, as private texts, is shared with no request.
    """
    flights, shared = context.flights if encoder.caches(options) else Flights(), encoder.shared(options)
    obtained: dict[Wanted, Obtained] = {}
    left: list[Wanted] = [(text, shared) for text in dict.fromkeys(texts)]
    while left:
        with flights.claim(left) as claim:
            if claim.mine:
                await _land(context, encoder, [text for text, _ in claim.mine], shared, claim)
                obtained |= claim.landed
        theirs, left = await claim.wait()
        obtained |= {wanted: _of_another_request(each) for wanted, each in theirs.items()}
    context.counts.add_texts([each.source for each in obtained.values()])
    return await _pooled(context, encoder, {text: each for (text, _), each in obtained.items()}, options)


async def _pooled(
    context: RequestContext, encoder: DocumentEncoder, obtained: dict[str, Obtained], options: EncodingOptions
) -> dict[str, Obtained]:
    """At the ratio that was asked for: texts are encoded once for all ratios."""
    if not obtained or not encoder.pools(options):
        return obtained
    passages = {text: each.passage for text, each in obtained.items()}
    pooled = await context.read("read", partial(encoder.pool, passages, options))
    return {text: replace(each, passage=pooled[text]) for text, each in obtained.items()}


def _of_another_request(obtained: Obtained) -> Obtained:
    return replace(obtained, source="in_flight") if obtained.source == "encoded" else obtained


async def _land(
    context: RequestContext, encoder: DocumentEncoder, texts: Sequence[str], options: EncodingOptions, claim: Claim
) -> None:
    """Look up every text, and encode those that are nowhere; each lands as soon as it is there."""
    missing: dict[str, Tokens] = {}
    for some in _parts(texts):
        looked_up = await context.read("read", partial(encoder.look_up, some, options))
        claim.land(_obtained(looked_up.found, "text_cache", options))
        missing |= looked_up.missing
    if missing:
        await _encode(context, encoder, missing, options, claim)


async def _encode(
    context: RequestContext,
    encoder: DocumentEncoder,
    tokens: Mapping[str, Tokens],
    options: EncodingOptions,
    claim: Claim,
) -> None:
    """Encode in batches of like length, each a step of the engine."""
    loop = asyncio.get_running_loop()

    def encode(batch: Mapping[str, Tokens]) -> None:
        encoded = _obtained(encoder.encode(batch, options), "encoded", options)
        loop.call_soon_threadsafe(claim.land, encoded)  # who waits for these need not wait for the other batches

    if not encoder.loaded:  # on a thread of its own: others go on to be read and decoded
        await asyncio.to_thread(encoder.load)
    longest_first = dict(sorted(tokens.items(), key=lambda item: -len(item[1].ids)))
    most = min(max(LEAST_ENCODE_TOKENS, context.encoding_engine.tokens_within(ENCODE_MS)), ENCODE_TOKENS)
    steps = [Step(partial(encode, batch), _size(batch)) for batch in _batches(longest_first, most)]
    await context.encode(steps)


def _obtained(
    passages: Mapping[str, PooledPassage], source: Source, options: EncodingOptions
) -> dict[Wanted, Obtained]:
    return {(text, options): Obtained(passage, source) for text, passage in passages.items()}


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many as have `TOKENIZED_CHARS` characters together, or one that has more."""
    left = texts
    while left:
        chars = itertools.accumulate(min(len(text), TOKENIZED_CHARS) for text in left)
        count = max(1, sum(so_far <= TOKENIZED_CHARS for so_far in chars))
        yield left[:count]
        left = left[count:]


def _batches(longest_first: Mapping[str, Tokens], most: int) -> Iterator[dict[str, Tokens]]:
    """As many as have `most` tokens together, padding included, or one that has more."""
    batch: dict[str, Tokens] = {}
    longest = 0
    for text, tokens in longest_first.items():
        if batch and (len(batch) + 1) * longest > most:
            yield batch
            batch = {}
        longest = longest if batch else len(tokens.ids)
        batch[text] = tokens
    if batch:
        yield batch


def _size(batch: Mapping[str, Tokens]) -> int:
    """Tokens of a batch, padding included."""
    return len(batch) * max(len(tokens.ids) for tokens in batch.values())
