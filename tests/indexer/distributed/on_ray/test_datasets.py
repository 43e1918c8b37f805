"""Ray datasets into an index and out of one: every row once, whatever was written twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer.build.index_job import Encoders
from indexer.change.add_delete import delete_passages
from kalm_cache.generations.generation import open_current
from kalm_cache.settings import Settings
from tests.indexer.changes import add, texts_of, valid
from tests.indexer.sharded import MANY
from tests.indexes import build

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]


def rows_of(index: str | Path, settings: Settings | None = None) -> dict[str, str]:
    from indexer.distributed.on_ray.source import read_passages

    rows = read_passages(index, settings).take_all()
    assert len(rows) == len({row["id"] for row in rows})
    return {row["id"]: row["text"] for row in rows}


def test_a_dataset_becomes_an_index_and_an_index_a_dataset(tmp_path: Path, settings: Settings):
    import ray.data

    from indexer.distributed.on_ray.sink import PassageIndexSink

    index = tmp_path / "index"
    rows = [{"id": one, "text": text} for one, text in MANY.items()]
    sink = PassageIndexSink(index, settings, shards=2, encoders=1)
    ray.data.from_items([*rows, {"id": "m3", "text": "again"}], override_num_blocks=3).write_datasink(sink)
    assert sink.report is not None
    assert (sink.report.passages, sink.report.rejected, len(open_current(index).manifest.segments)) == (len(MANY), 1, 2)
    assert [line.doc_id for line in sink.rejected] == ["m3"]
    assert texts_of(index) == MANY
    assert valid(index)
    assert list((tmp_path / "index.arriving").iterdir()) == []
    assert rows_of(index) == MANY


def test_what_an_attempt_at_a_write_left_behind_is_not_read(tmp_path: Path, settings: Settings):
    import pyarrow
    from ray.data._internal.execution.interfaces import TaskContext
    from ray.data.datasource.datasink import WriteResult

    from indexer.distributed.on_ray.sink import PassageIndexSink

    index, settings = f"file://{tmp_path}/bucket", settings.model_copy(update={"cache_folder": str(tmp_path)})
    sink = PassageIndexSink(index, settings, encoders=1)
    table, task = pyarrow.table({"id": ["a"], "text": ["what counts"]}), TaskContext(0, "write")
    sink.write([pyarrow.table({"id": ["a"], "text": ["of an attempt that died"]})], task)
    sink.on_write_complete(WriteResult(1, 1, [sink.write([table], task)]))
    assert rows_of(index, settings) == {"a": "what counts"}


def test_a_dataset_has_what_the_index_shows(tmp_path: Path, settings: Settings, encoders: Encoders):
    index = tmp_path / "index"
    build(index, settings, MANY, encoders=encoders, shards=2)
    add(index, settings, encoders, {"m1": "another text", "new": "a new one"})
    delete_passages(["m2"], index)
    assert rows_of(index) == {one: text for one, text in MANY.items() if one != "m2"} | {
        "m1": "another text",
        "new": "a new one",
    }
