"""The services of shards that live, which generations they have, and the one that a request is answered by."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from kalm_cache.errors import UsageError
from kalm_cache.generations.sharding import Sharding
from query_service.router.errors import NoShardsError
from query_service.router.messages import Status
from query_service.router.replica import Replica
from query_service.router.transport import Transport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some shards, and the services that have exactly these, one of the pinned generation each."""

    numbers: tuple[int, ...]
    replicas: list[Replica]

    def least_busy_first(self) -> list[Replica]:
        """The services, in the order in which they are asked."""
        return sorted(self.replicas, key=lambda replica: replica.asked)


@dataclass(frozen=True, slots=True)
class Pin:
    """A generation, and who answers for it; one request is answered by one pin.

    status: of one of the services. missing: shards that nobody serves in this generation. spreading: of these, those
    that somebody serves in another one.
    """

    generation: str
    status: Status
    parts: list[Part]
    missing: list[int]
    spreading: list[int]

    @property
    def sharding(self) -> Sharding:
        """Which shard an id is in."""
        return Sharding(self.status.count, self.status.buckets)


class Fleet:
    """The services that a transport finds, looked at again and again. Used on one event loop; `open` it, `close` it."""

    def __init__(self, transport: Transport, every_seconds: float) -> None:
        """The transport is opened and closed with the fleet."""
        self._transport, self._every = transport, every_seconds
        self._replicas: dict[str, Replica] = {}
        self._watching: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._complaint = self._dtypes = ""

    async def open(self) -> None:
        """Look once, and begin to watch."""
        await self._transport.open()
        await self.look()
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Leave the services."""
        for task in (self._watching, self._looking):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await self._transport.close()

    async def look(self) -> None:
        """Look at all services now; who asks while a look is under way gets that one."""
        await asyncio.shield(self.look_soon())

    def look_soon(self) -> asyncio.Task[None]:
        """Begin a look, if none is under way."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return self._looking

    @property
    def living(self) -> list[Replica]:
        """Those that answer."""
        return [replica for replica in self._replicas.values() if replica.status is not None and replica.status.ready]

    @property
    def known(self) -> int:
        """How many addresses there are."""
        return len(self._replicas)

    def pin(self) -> Pin:
        """The generation that most shards have, and of these the one that most services serve now, the newest of such.

        Raises:
            NoShardsError: nobody lives.
        """
        statuses = [(replica, replica.status) for replica in self.living if replica.status is not None]
        if not statuses:
            raise NoShardsError
        replicas: defaultdict[str, list[tuple[Replica, Status]]] = defaultdict(list)
        for replica, status in statuses:
            for generation in status.generations:
                replicas[generation].append((replica, status))
        live = Counter(status.generations[0] for _, status in statuses)
        parts = {generation: _disjoint(having) for generation, having in replicas.items()}
        best = max(parts, key=lambda name: (sum(len(part.numbers) for part in parts[name]), live[name], name))
        status = replicas[best][0][1]
        served = {number for part in parts[best] for number in part.numbers}
        missing = [number for number in range(status.count) if number not in served]
        elsewhere = {number for _, other in statuses if other.count == status.count for number in other.numbers}
        return Pin(best, status, parts[best], missing, [number for number in missing if number in elsewhere])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            await self.look()

    async def _look(self) -> None:
        try:
            addresses = await self._transport.addresses()
        except UsageError as exc:  # a file that is being written, a name server that is away: what is known goes on
            if str(exc) != self._complaint:
                logger.error("%s", exc)
            self._complaint = str(exc)
            addresses = list(self._replicas)
        else:
            self._complaint = ""
        for address in addresses:
            if address not in self._replicas:
                self._replicas[address] = Replica(address, self._transport)
        for gone in self._replicas.keys() - set(addresses):
            del self._replicas[gone]
        await asyncio.gather(*(replica.look() for replica in self._replicas.values()))
        self._compare_dtypes()

    def _compare_dtypes(self) -> None:
        """Say it where services round differently: which passage wins would depend on who scores it."""
        at: dict[str, list[str]] = {}
        for replica in self._replicas.values():
            if replica.status is not None:
                at.setdefault(replica.status.model.dtype, []).append(replica.address)
        said = " and ".join(f"{dtype} (at {', '.join(addresses)})" for dtype, addresses in at.items())
        if len(at) > 1 and said != self._dtypes:
            logger.warning(
                "margins are compared that were computed in different dtypes: %s; start all services with the same "
                "--dtype",
                said,
            )
        self._dtypes = said


def _disjoint(replicas: Sequence[tuple[Replica, Status]]) -> list[Part]:
    """Parts without a common shard. A service that has some of another part's shards, but not all, is left out."""
    parts: dict[tuple[int, ...], Part] = {}
    for replica, status in replicas:
        numbers = tuple(status.numbers)
        taken = {number for other in parts if other != numbers for number in other}
        if taken.isdisjoint(numbers):
            parts.setdefault(numbers, Part(numbers, [])).replicas.append(replica)
    return list(parts.values())
