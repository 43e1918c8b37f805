"""`--engine ray`: who builds an index, this process or actors on many machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from indexer.distributed.jobs import PartitionBuilder


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What builds the shards of an index, side by side."""

    panel: ClassVar = "Engine"
    engine: Annotated[str | None, typer.Option("--engine", help="ray: many machines; without it, this process.")] = None
    address: Annotated[
        str | None, typer.Option("--address", help="Of a Ray cluster, or auto; without it, this machine alone.")
    ] = None
    encoders: Annotated[int | None, typer.Option("--encoders", min=1, help="Shards encoded side by side.")] = None
    gpus_per_encoder: Annotated[
        float | None, typer.Option("--gpus-per-encoder", min=0, help="1 where there are GPUs, else 0.")
    ] = None
    scratch: Annotated[
        Path | None, typer.Option("--scratch", help="Folder on a local disk of every machine to build in.")
    ] = None

    @contextmanager
    def builder(self) -> Iterator[PartitionBuilder | None]:
        """What builds partitions, as long as this lasts; `None` where this process builds the index.

        Raises:
            UsageError: an unknown engine, flags of an engine that is not named, or no such cluster.
            MissingExtraError: the engine is not installed.
        """
        if self.engine is None:
            flags = (self.address, self.encoders, self.gpus_per_encoder, self.scratch)
            if flags != (None, None, None, None):
                raise UsageError(
                    "--address, --encoders, --gpus-per-encoder and --scratch are of --engine ray; add that"
                )
            yield None
            return
        if self.engine != "ray":
            raise UsageError(f"--engine {self.engine}: must be ray; leave it out to build in this process")
        from indexer.distributed.on_ray.builder import ray_builder

        with ray_builder(
            self.address, encoders=self.encoders, gpus_per_encoder=self.gpus_per_encoder, scratch=self.scratch
        ) as builder:
            yield builder
