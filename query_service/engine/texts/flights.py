"""Single flight: what one request looks up or encodes now, others wait for. Knows nothing of how.

A request whose client left, or whose time is up, gives up what it has claimed, and one of those that wait claims it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from kalm_cache.scoring.pooling import PooledPassage
from query_service.engine.documents import EncodingOptions
from query_service.middleware.metrics import Source

Wanted = tuple[str, EncodingOptions]  # a text, and how it is encoded


@dataclass(frozen=True, slots=True)
class Obtained:
    """The states of a text, and where they came from."""

    passage: PooledPassage
    source: Source


@dataclass(frozen=True, slots=True)
class Claim:
    """`mine`: what this request has to land. `others`: what other requests are about to land."""

    mine: dict[Wanted, asyncio.Future[Obtained]]
    others: dict[Wanted, asyncio.Future[Obtained]]

    def land(self, results: Mapping[Wanted, Obtained]) -> None:
        """Hand results to this request and to all that wait for them; nothing happens to what was given up."""
        for wanted, result in results.items():
            if not self.mine[wanted].done():
                self.mine[wanted].set_result(result)

    @property
    def landed(self) -> dict[Wanted, Obtained]:
        """What this request has landed."""
        return {wanted: future.result() for wanted, future in self.mine.items()}

    async def wait(self) -> tuple[dict[Wanted, Obtained], list[Wanted]]:
        """What the others landed, and what they gave up. Land your own first, or two may wait for each other."""
        if self.others:
            await asyncio.wait(self.others.values())
        landed = {wanted: future.result() for wanted, future in self.others.items() if not future.cancelled()}
        return landed, [wanted for wanted in self.others if wanted not in landed]


class Flights:
    """What requests have claimed. Used on one event loop alone."""

    def __init__(self) -> None:
        self._under_way: dict[Wanted, asyncio.Future[Obtained]] = {}

    @contextmanager
    def claim(self, wanted: Collection[Wanted]) -> Iterator[Claim]:
        """Claim what nobody has; what has not landed when the block ends is given up."""
        loop = asyncio.get_running_loop()
        others = {each: self._under_way[each] for each in wanted if each in self._under_way}
        mine: dict[Wanted, asyncio.Future[Obtained]] = {e: loop.create_future() for e in wanted if e not in others}
        self._under_way |= mine
        try:
            yield Claim(mine, others)
        finally:
            for each, future in mine.items():
                del self._under_way[each]
                future.cancel()  # does nothing to one that has landed
