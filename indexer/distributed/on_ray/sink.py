"""A Ray dataset -> an index: workers write its rows as Parquet beside it, and the driver indexes what arrived."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ray.data import Datasink
from ray.data.block import Block, BlockAccessor

from indexer.build.counts import BuildCounts
from indexer.build.index_job import IndexReport
from indexer.corpus import RejectedLine, read_corpus
from indexer.distributed.jobs import index_in_partitions, place_of
from indexer.distributed.on_ray.builder import ray_builder
from indexer.models import load_encoders
from kalm_cache.object_store.location import is_remote, parse_location
from kalm_cache.object_store.store import open_store
from kalm_cache.passage import PassageTemplate
from kalm_cache.settings import Settings, load_settings

if TYPE_CHECKING:
    from ray.data._internal.execution.interfaces import TaskContext
    from ray.data.datasource.datasink import WriteResult

logger = logging.getLogger(__name__)
SHOWN = 10


class PassageIndexSink(Datasink[list[str]]):
    """For `Dataset.write_datasink`: its rows become the next generation of an index, published once.

    Rows have the fields of a corpus: an id, and what the passage template asks for. What an attempt at a write left
    that did not count is not read. `report` says what was done; `rejected` has the rows that make no passage.
    """

    def __init__(
        self,
        index: str | Path,
        settings: Settings | None = None,
        *,
        shards: int | None = None,
        encoders: int | None = None,
        gpus_per_encoder: float | None = None,
    ) -> None:
        """Arguments as of `kalm-cache index --engine ray`.

        Args:
            index: a folder that all machines see, or a URL.
            settings: `None` = those of the environment.
            shards: as in `index_in_partitions`.
            encoders: as in `workforce`.
            gpus_per_encoder: as in `workforce`.
        """
        self._index = str(index) if is_remote(str(index)) else str(Path(index).absolute())
        self._settings = settings or load_settings()
        self._shards, self._encoders, self._gpus = shards, encoders, gpus_per_encoder
        self._arriving = f"{self._index}.arriving/{uuid.uuid4().hex}"
        self.report: IndexReport | None = None
        self.rejected: list[RejectedLine] = []

    def write(self, blocks: Iterable[Block], ctx: TaskContext) -> list[str]:
        """Write rows in a worker; returns the files, in their order."""
        files: list[str] = []
        for block in blocks:
            table = BlockAccessor.for_block(block).to_arrow()
            if table.num_rows:
                files.append(self._put(table, f"{ctx.task_idx:06d}-{len(files):06d}-{uuid.uuid4().hex}.parquet"))
        return files

    def _put(self, table: object, name: str) -> str:
        import pyarrow.parquet

        with TemporaryDirectory() as folder:
            written = Path(folder) / name
            pyarrow.parquet.write_table(table, written, compression="zstd")
            if is_remote(self._arriving):
                open_store(parse_location(self._arriving), create=True).put(name, written)
            else:
                Path(self._arriving).mkdir(parents=True, exist_ok=True)
                shutil.move(written, Path(self._arriving) / name)
        return f"{self._arriving}/{name}"

    def on_write_complete(self, write_result: WriteResult[list[str]]) -> None:
        """Index what the writes returned, on the driver. Errors as of `index_in_partitions`."""
        files = sorted(chain.from_iterable(write_result.write_returns))
        template = PassageTemplate(self._settings.passage_template)
        lines = chain.from_iterable(
            read_corpus(file, template=template, metadata=self._settings.metadata) for file in files
        )
        with ray_builder(None, encoders=self._encoders, gpus_per_encoder=self._gpus) as builder:
            self.report = index_in_partitions(
                *(lines, place_of(self._index, self._settings), self._settings, load_encoders(self._settings), builder),
                on_reject=self.rejected.append,
                on_progress=_log,
                shards=self._shards,
            )
        for line in self.rejected[:SHOWN]:
            logger.warning("rejected %s: %s", line.location, line.reason)
        self._forget()

    def on_write_failed(self, error: Exception) -> None:
        """Remove what was written."""
        self._forget()

    def _forget(self) -> None:
        if is_remote(self._arriving):
            store = open_store(parse_location(self._arriving), create=True)
            store.delete(list(store.list("")))
        else:
            shutil.rmtree(self._arriving, ignore_errors=True)


def _log(counts: BuildCounts) -> None:
    logger.debug("%d passages", counts.done)
