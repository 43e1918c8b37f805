"""Partitions -> receipts: who builds which, and what becomes of those whose actor is lost. Knows no models.

An actor gets a partition when its models are loaded. When it is lost, with its process or its machine, the partition
goes to whoever is free next, who takes up what is stored; and another actor is started in its place.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.build.counts import BuildCounts
from indexer.distributed.on_ray.cluster import Workforce, workforce
from indexer.distributed.on_ray.encoder import PartitionEncoder
from indexer.distributed.on_ray.remarks import Told
from indexer.distributed.places.place import Place
from indexer.distributed.receipt import Receipt
from kalm_cache.errors import DeviceLostError, StoreError
from kalm_cache.process.ray_connection import connected
from kalm_cache.settings import Settings

LOOK_SECONDS = 0.5  # between two looks at how far the encoders are
HEAR_SECONDS = 5.0  # for an answer that must be there at once
WAITING_SECONDS = 30.0  # until it is said that no encoder has a machine
LOSSES = 10  # of one partition's encoders: then it is the partition
logger = logging.getLogger(__name__)
Reference = Any  # to what an actor will answer


@contextmanager
def ray_builder(
    address: str | None,
    *,
    encoders: int | None = None,
    gpus_per_encoder: float | None = None,
    scratch: Path | None = None,
    actor: type[PartitionEncoder] = PartitionEncoder,
) -> Iterator[RayBuilder]:
    """Builds partitions on Ray while this lasts.

    Args:
        address: as in `connected`.
        encoders: as in `workforce`.
        gpus_per_encoder: as in `workforce`.
        scratch: as in `build_partition`; on every machine.
        actor: what builds; benchmarks replace the models.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: there is no such cluster, or it has not so many GPUs.
    """
    with connected(address):
        yield RayBuilder(workforce(encoders, gpus_per_encoder), scratch, actor)


class RayBuilder:
    """A `PartitionBuilder` of actors, each with the models and its part of the cluster."""

    def __init__(self, workers: Workforce, scratch: Path | None, actor: type[PartitionEncoder]) -> None:
        self._workers, self._scratch, self._actor = workers, scratch, actor

    @property
    def encoders(self) -> int:
        """See `PartitionBuilder.encoders`."""
        return self._workers.encoders

    def build(
        self, place: Place, partitions: int, overrides: Settings, on_progress: Callable[[BuildCounts], None]
    ) -> list[Receipt]:
        """See `PartitionBuilder.build`."""
        import ray

        workers = self._workers
        resources: dict[str, Any] = {"num_cpus": workers.cpus, "num_gpus": workers.gpus, "max_concurrency": 2}
        actor = ray.remote(self._actor).options(scheduling_strategy="SPREAD", max_restarts=0, **resources)

        def start() -> Any:
            return actor.remote(place, overrides, self._scratch, workers.cpus)

        needs = f"{workers.cpus} CPUs and {workers.gpus:g} GPUs"
        with _Building(start, needs, partitions, on_progress) as building:
            return building.run(min(workers.encoders, partitions))


@dataclass(slots=True, eq=False)
class _Worker:
    """An actor: the partition that it builds (`None`: it loads its models, or is free), and how far that is."""

    actor: Any
    machine: str = "a machine"
    partition: int | None = None
    counts: BuildCounts = field(default_factory=BuildCounts)
    asked: Reference | None = None

    def pass_on(self, told: Told) -> None:
        """Log here what was logged there."""
        where = self.machine if self.partition is None else f"partition {self.partition}, on {self.machine}"
        for remark in told.remarks:
            logger.log(remark.level, "%s: %s", where, remark.message)


class _Building:
    """One run over all partitions. Its actors end with it."""

    def __init__(
        self, start: Callable[[], Any], needs: str, partitions: int, on_progress: Callable[[BuildCounts], None]
    ) -> None:
        """`start`: makes an actor; `needs`: of its machine, in words."""
        self._start, self._needs, self._on_progress = start, needs, on_progress
        self._waiting, self._partitions = deque(range(partitions)), partitions
        self._receipts: dict[int, Receipt] = {}
        self._actors: list[Any] = []
        self._busy: dict[Reference, _Worker] = {}
        self._free: list[_Worker] = []
        self._losses: Counter[int | None] = Counter()  # by partition; `None`: before there was one
        self._heard = time.monotonic()

    def __enter__(self) -> _Building:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def run(self, workers: int) -> list[Receipt]:
        """Build them all; receipts by partition."""
        import ray

        for _ in range(workers):
            self._hire()
        while len(self._receipts) < self._partitions:
            ready, _ = ray.wait(list(self._busy), timeout=LOOK_SECONDS)
            for reference in ready:
                self._take(self._busy.pop(reference), reference)
            self._look()
            self._on_progress(self._counts())
        return [self._receipts[partition] for partition in range(self._partitions)]

    def _hire(self) -> None:
        worker = _Worker(self._start())
        self._actors.append(worker.actor)
        self._busy[worker.actor.tell.remote("load")] = worker

    def _take(self, worker: _Worker, reference: Reference) -> None:
        """What a worker answered: where it is, or a receipt; or that it is lost."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        self._heard = time.monotonic()
        try:
            told: Any = ray.get(reference)
        except RayTaskError as exc:
            if not isinstance(exc.cause, DeviceLostError):
                raise exc.cause from exc
            ray.kill(worker.actor)
            self._replace(worker, exc.cause)
        except RayError as exc:
            self._replace(worker, exc)
        else:
            if isinstance(told.answer, Receipt):
                self._receipts[told.answer.partition] = told.answer
                logger.info("partition %d: built on %s", told.answer.partition, worker.machine)
            else:
                worker.machine = told.answer
            worker.pass_on(told)
            self._employ(worker)

    def _employ(self, worker: _Worker) -> None:
        """Give a worker the next partition; without one, it waits for what a lost one leaves."""
        self._hear(worker, HEAR_SECONDS)
        worker.partition, worker.counts, worker.asked = None, BuildCounts(), None
        if self._waiting:
            worker.partition = self._waiting.popleft()
            self._busy[worker.actor.tell.remote("build", worker.partition)] = worker
        else:
            self._free.append(worker)

    def _replace(self, worker: _Worker, why: BaseException) -> None:
        """Give what a lost worker had to another one. Raises `StoreError` where that went wrong too often."""
        partition, reason = worker.partition, str(why).strip().partition("\n")[0]
        what = "an encoder, before it was ready" if partition is None else f"the encoder of partition {partition}"
        self._losses[partition] += 1
        if self._losses[partition] > LOSSES:
            raise StoreError(f"{what}, was lost {LOSSES} times, on {worker.machine} at last: {reason}")
        logger.warning("%s, is lost on %s: %s", what, worker.machine, reason)
        if partition is not None:
            self._waiting.appendleft(partition)
        if self._free:
            self._employ(self._free.pop())
        else:
            self._hire()

    def _look(self) -> None:
        """Ask every worker how far it is, and take what those say that were asked before. Waits for nobody."""
        building = [worker for worker in self._busy.values() if worker.partition is not None]
        for worker in building:
            if worker.asked is None:
                worker.asked = worker.actor.tell.remote("counts")
            else:
                self._hear(worker, 0.0)
        if not building and time.monotonic() - self._heard > WAITING_SECONDS:
            self._heard = time.monotonic()
            logger.warning("no encoder is ready yet; each needs %s of one machine", self._needs)

    def _hear(self, worker: _Worker, seconds: float) -> None:
        """Take what a worker says of how far it is, if it was asked and answers in so many seconds."""
        import ray
        from ray.exceptions import RayError

        if worker.asked is not None and ray.wait([worker.asked], timeout=seconds)[0]:
            with suppress(RayError):  # of a lost worker, which its partition's reference tells
                told: Any = ray.get(worker.asked)
                worker.counts = told.answer
                worker.pass_on(told)
            worker.asked = None

    def _counts(self) -> BuildCounts:
        """Of all partitions, as far as they are."""
        finished = [receipt.build_counts() for receipt in self._receipts.values()]
        return BuildCounts.total([BuildCounts(), *finished, *(worker.counts for worker in self._busy.values())])
