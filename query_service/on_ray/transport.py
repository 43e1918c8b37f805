"""`OnRay`: services of shards that are deployments of Ray Serve, asked through handles."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from query_service.router.errors import ReplicaFailedError
from query_service.router.messages import Status
from query_service.router.transport import Reply

HEAR_SECONDS = 1.0  # until a replica that does not say what it is is not waited for


class OnRay:
    """A `Transport` to the deployments of an application.

    Which replica answers, Ray Serve decides, by their queues. So an address stands for no replica: a deployment of
    several has two, such as `shard-3/0` and `shard-3/1`, and the router asks the second where the first is slow or
    fails.
    """

    def __init__(self, handles: Mapping[str, Any]) -> None:
        """`handles`: of the deployments, by name."""
        self._handles = dict(handles)
        self._heard: dict[str, Status] = {}  # by address, what its deployment said last

    async def open(self) -> None:
        """Nothing: handles connect by themselves."""

    async def close(self) -> None:
        """Nothing: they end with the process."""

    async def addresses(self) -> list[str]:
        """Ask all replicas what they are, and say who may be asked."""
        said = await asyncio.gather(*(self._hear(name) for name in self._handles))
        addresses: list[str] = []
        self._heard = {}
        for name, statuses in zip(self._handles, said, strict=True):
            views = [f"{name}/{view}" for view in range(min(2, max(1, len(statuses))))]
            addresses += views
            if statuses:
                self._heard |= dict.fromkeys(views, joint_status(statuses))
        return addresses

    async def status(self, address: str) -> Status:
        """What its replicas said together at the last look."""
        if address not in self._heard:
            raise ReplicaFailedError("none of its replicas answers")
        return self._heard[address]

    async def ask(self, address: str, path: str, question: bytes, headers: Mapping[str, str]) -> Reply:
        """See `Transport.ask`."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        response = self._handles[address.partition("/")[0]].ask.remote(path, question, dict(headers))
        try:
            reply: Reply = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (RayError, RayServeException) as exc:  # it died, or is being replaced
            raise ReplicaFailedError(f"{address}: {str(exc).strip().partition(chr(10))[0]}") from exc
        return reply

    async def _hear(self, name: str) -> list[Status]:
        """What each replica says; where one does not answer in time, what the least busy one says."""
        handle = self._handles[name]
        try:
            said = await handle.broadcast("status").results_async(timeout_s=HEAR_SECONDS, return_exceptions=True)
        except TimeoutError:
            said = await self._hear_one(name)
        except Exception:  # Ray raises bare ones, too; who cannot be heard does not answer, which the router says
            said = []
        return [one for one in said if isinstance(one, Status)]

    async def _hear_one(self, name: str) -> list[Status]:
        try:
            async with asyncio.timeout(HEAR_SECONDS):
                return [await self._handles[name].status.remote()]
        except Exception:  # as above
            return []


def joint_status(statuses: Sequence[Status]) -> Status:
    """What replicas of a shard are together: of the generations that most of them have, those that most serve first.

    While a new generation spreads, some have it and some do not: who is asked for it and does not have it says so, and
    the router begins again.
    """
    having = Counter(generation for status in statuses for generation in status.generations)
    serving = Counter(status.generations[0] for status in statuses)
    common = [generation for generation in having if having[generation] == max(having.values())]
    generations = sorted(common, key=lambda generation: (serving[generation], generation), reverse=True)
    speaker = next(status for status in statuses if generations[0] in status.generations)
    return replace(
        speaker,
        generations=generations,
        damaged_reads=sum(status.damaged_reads for status in statuses),
        ready=any(status.ready for status in statuses),
    )
