"""Metadata from a corpus to a search, and through every change of an index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from indexer.build.counts import BuildCounts
from indexer.build.index_job import Encoders, IndexReport, run_index_job
from indexer.change.add_delete import AddReport, add_passages, delete_passages
from indexer.change.fold_job import run_fold
from indexer.change.gc import collect_garbage
from indexer.change.reindex import ReindexReport, run_reindex
from indexer.corpus import CorpusLine, RejectedLine, TypedMetadata
from indexer.distributed.build_job import build_partition
from indexer.distributed.commit_job import commit_partitions
from indexer.distributed.places.folder import FolderPlace
from indexer.distributed.plan_job import plan_partitions
from indexer.integrity.repair import repair_index
from indexer.integrity.verify import verify_index
from kalm_cache import PassageIndex
from kalm_cache.errors import StoreError, UnknownIdError, UsageError
from kalm_cache.generations.generation import open_current
from kalm_cache.passage import Passage
from kalm_cache.settings import Settings
from tests.indexer.changes import payloads_of, valid
from tests.indexes import TEXTS

METADATA: dict[str, dict[str, Any]] = {
    doc_id: {"lang": ("de", "en", "fr")[i % 3], "year": 2015 + i} | ({"tags": ["even"]} if i % 2 == 0 else {})
    for i, doc_id in enumerate(TEXTS)
}
GERMAN = [doc_id for doc_id, values in METADATA.items() if values["lang"] == "de"]


def lines(metadata: Mapping[str, Mapping[str, Any]], texts: Mapping[str, str] = TEXTS) -> list[Any]:
    return [
        CorpusLine(Passage(doc_id, text), f"c:{i}", metadata=metadata.get(doc_id, {}))
        for i, (doc_id, text) in enumerate(texts.items(), start=1)
    ]


class Job:
    """Index jobs over one folder, with one model."""

    def __init__(self, index: Path, settings: Settings, encoders: Encoders) -> None:
        self.index, self.settings, self.encoders = index, settings.model_copy(update={"metadata": "all"}), encoders
        self.rejected: list[RejectedLine] = []

    def _options(self) -> dict[str, Any]:
        def on_progress(counts: BuildCounts) -> None: ...

        return {"on_reject": self.rejected.append, "on_progress": on_progress}

    def build(self, corpus: list[Any], shards: int | None = None) -> IndexReport:
        return run_index_job(corpus, self.index, self.settings, self.encoders, shards=shards, **self._options())

    def reindex(self, corpus: list[Any], metadata: str = "all", **more: Any) -> ReindexReport:
        settings = self.settings.model_copy(update={"metadata": metadata})
        return run_reindex(corpus, self.index, settings, self.encoders, **self._options(), **more)

    def add(self, corpus: list[Any]) -> AddReport:
        return add_passages(corpus, self.index, self.settings, self.encoders, **self._options())

    def metadata(self) -> dict[str, Any]:
        """Of every passage that the live generation shows."""
        with PassageIndex.open(self.index, device="cpu") as opened:
            ids = [doc_id for _, doc_id in opened.store.ordinals()]
            return dict(zip(ids, opened.metadata.values(ids, list(opened.metadata.schema)), strict=True))

    def found(self, filter: dict[str, Any], query: str = "the ferry", k: int = 100) -> dict[str, list[str]]:
        """The ids that each mode finds."""
        with PassageIndex.open(self.index, device="cpu") as opened:
            checked = opened.metadata.parse(filter)
            modes = opened.first_stage.modes
            return {mode: sorted(opened.find(query, k, mode, checked).doc_ids) for mode in modes}


@pytest.fixture
def job(tmp_path: Path, settings: Settings, encoders: Encoders) -> Job:
    return Job(tmp_path / "index", settings, encoders)


@pytest.fixture
def built(job: Job) -> Job:
    job.build(lines(METADATA))
    return job


def test_metadata_is_kept_counted_and_returned_and_a_search_stays_within_its_filter(built: Job) -> None:
    assert open_current(built.index).manifest.columns == {"lang": "text", "tags": "text[]", "year": "number"}
    assert built.metadata() == METADATA
    assert verify_index(built.index).checked["metadata"] == len(TEXTS)
    found = built.found({"lang": "de"})
    assert found["dense"] == sorted(GERMAN)
    assert set(found["bm25"]) <= set(GERMAN)
    with PassageIndex.open(built.index, device="cpu") as index:
        answer = index.search("the ferry", k=2, filter={"lang": "de"}, fields=["lang", "year"])
        assert [one.doc_id in GERMAN for one in answer.results] == [True, True]
        expected = [{name: METADATA[one.doc_id][name] for name in ("lang", "year")} for one in answer.results]
        assert [one.metadata for one in answer.results] == expected
        ranked = index.rerank("the ferry", list(TEXTS), filter={"lang": "de"}, fields=["*"]).results
        assert {one.doc_id: one.metadata for one in ranked} == {one: METADATA[one] for one in GERMAN}
        assert index.search("the ferry", k=2).results[0].metadata is None
        with pytest.raises(UnknownIdError, match="nobody"):
            index.rerank("the ferry", ["nobody", "d1"], filter={"lang": "de"})
        with pytest.raises(UsageError, match="no field 'colour'"):
            index.search("the ferry", fields=["colour"])


@pytest.mark.parametrize("shared_prefix", [None, "mean"])
def test_a_view_has_and_knows_the_passages_alone_that_match(built: Job, shared_prefix: Literal["mean"] | None) -> None:
    with PassageIndex.open(built.index, device="cpu", shared_prefix=shared_prefix) as index:
        german, nobodys = index.within({"lang": "de"}), index.within({"lang": "it"})
        assert (len(german), len(nobodys)) == (len(GERMAN), 0)
        assert sorted(one.doc_id for one in german.search("the ferry", k=100).results) == sorted(GERMAN)
        assert nobodys.search("the ferry").results == nobodys.rerank("the ferry", []).results == []
        for view in (german, nobodys):
            with pytest.raises(UnknownIdError):
                view.rerank("the ferry", [next(one for one in TEXTS if one not in GERMAN)])


def test_a_line_whose_value_does_not_fit_its_column_is_rejected(job: Job) -> None:
    report = job.build(lines(METADATA | {"d3": {"lang": "de", "year": "unknown"}}))
    (line,) = job.rejected
    assert (report.passages, line.location, line.doc_id) == (len(TEXTS) - 1, "c:4", "d3")
    assert "the field 'year' holds 'unknown', and the column is number" in line.reason


def test_the_types_that_are_stored_hold_for_what_is_added(built: Job) -> None:
    report = built.add(lines({"n": {"year": "soon"}, "m": {"colour": "red"}}, {"n": "new", "m": "newer"}))
    assert (report.added, report.rejected) == (1, 1)
    assert open_current(built.index).manifest.columns["colour"] == "text"
    assert built.found({"colour": "red"})["dense"] == ["m"]
    assert built.found({"colour": {"$exists": False}})["dense"] == sorted(TEXTS)


@pytest.mark.parametrize("how", ["add", "reindex"])
def test_nothing_is_encoded_again_where_only_metadata_changed(built: Job, how: str) -> None:
    payloads, changed = payloads_of(built.index), METADATA | {"d2": {"lang": "it", "new": True}, "d4": {}}
    corpus = lines(changed)
    if how == "add":
        report = built.add(corpus)
        assert (report.updated, report.unchanged, report.encoded, report.new_bytes) == (2, 10, 0, 0)
    else:
        assert built.reindex(corpus).encoded == 0
    assert payloads_of(built.index) == payloads
    assert built.metadata() == changed
    assert built.found({"lang": "it", "new": True})["dense"] == ["d2"]
    assert valid(built.index)


def test_metadata_goes_with_its_passages_when_an_index_is_changed_folded_and_compacted(built: Job) -> None:
    expected = dict(METADATA)
    for i in range(9):  # more than a tier holds, so that they are folded
        metadata = {f"n{i}": {"lang": "nl", "year": i}}
        built.add(lines(metadata, {f"n{i}": f"new passage {i}"}))
        expected |= metadata
    built.add(lines({"n3": {"lang": "be"}}, {"n3": "new passage 3"}))
    expected["n3"] = {"lang": "be"}
    delete_passages(["d0", "n8"], built.index)
    del expected["d0"], expected["n8"]
    assert built.metadata() == expected
    assert built.found({"lang": "nl"})["dense"] == [f"n{i}" for i in range(8) if i != 3]
    run_fold(built.index, everything=True, on_progress=lambda counts: None)
    assert built.metadata() == expected
    collect_garbage(built.index)
    assert built.metadata() == expected
    assert valid(built.index)


def test_what_a_corpus_does_not_have_keeps_its_metadata(built: Job) -> None:
    corpus = lines({"d1": {"lang": "it"}}, {"d1": TEXTS["d1"]})
    built.reindex(corpus, keep_missing=True)
    assert built.metadata() == METADATA | {"d1": {"lang": "it"}}
    built.reindex(corpus, "lang", keep_missing=True)
    assert built.metadata() == {one: {"lang": values["lang"]} for one, values in METADATA.items()} | {
        "d1": {"lang": "it"}
    }
    with pytest.raises(UsageError, match="metadata 'lang' becomes number, and passages that stay have text"):
        built.reindex(lines({}, {"d1": TEXTS["d1"]}), "lang:number", keep_missing=True)


def test_shards_answer_as_one_segment(built: Job, tmp_path: Path) -> None:
    sharded = Job(tmp_path / "sharded", built.settings, built.encoders)
    sharded.build(lines(METADATA), shards=3)
    assert sharded.metadata() == METADATA
    partitioned = Job(tmp_path / "partitioned", built.settings, built.encoders)
    plan_partitions(
        *(lines(METADATA), partitioned.index, built.settings, built.encoders), shards=3, **partitioned._options()
    )
    for partition in range(3):
        place = FolderPlace(partitioned.index)
        build_partition(place, partition, built.settings, encoders=built.encoders, on_progress=lambda counts: None)
    commit_partitions(partitioned.index)
    assert partitioned.metadata() == METADATA
    for filter in ({"lang": "de"}, {"year": {"$gt": 2020}, "tags": "even"}):
        assert built.found(filter, k=2) == sharded.found(filter, k=2) == partitioned.found(filter, k=2)
    sharded.add(lines(METADATA | {"d5": {"lang": "it"}}))
    assert sharded.found({"lang": "it"})["dense"] == ["d5"]
    assert valid(sharded.index)


def test_an_index_without_columns_works_as_before_and_gets_some_without_encoding(job: Job) -> None:
    job.settings = job.settings.model_copy(update={"metadata": ""})
    job.build(lines(METADATA))
    assert "columns" not in (open_current(job.index).folder / "manifest.json").read_text()
    assert not list(job.index.rglob("columns"))
    with pytest.raises(UsageError, match="the index keeps no metadata"):
        job.found({"lang": "de"})
    assert job.reindex(lines(METADATA)).encoded == 0
    assert job.found({"lang": "de"})["dense"] == sorted(GERMAN)


def test_damaged_metadata_is_found_refused_and_left_out_by_a_repair(built: Job) -> None:
    path = next(built.index.rglob("columns/0/codes.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert [damage.file for damage in verify_index(built.index).damaged] == ["shards/00000/columns/0/codes.npy"]
    with pytest.raises(StoreError, match=r"columns/0/codes\.npy: its SHA-256 is not that of its receipt"):
        PassageIndex.open(built.index, device="cpu")
    report = repair_index(built.index, built.settings)
    assert (report.copied, report.without_metadata) == (len(TEXTS), len(TEXTS))
    assert valid(built.index)
    assert built.found({"lang": "de"})["dense"] == []
    assert built.add(lines(METADATA)).updated == len(TEXTS)
    assert built.metadata() == METADATA


def test_fields_that_come_late_are_typed_by_the_lines_that_have_them(caplog: pytest.LogCaptureFixture) -> None:
    early = [replace(line, metadata={"a": 1}) for line in lines({}, {f"p{i}": "t" for i in range(2048)})]
    typed = TypedMetadata("a,b,c")
    read = list(typed.watch([*early, *lines({"q": {"b": "2024-01-01"}}, {"q": "t"})]))
    assert typed.schema == {"a": "number", "b": "date"}
    assert isinstance(read[-1], CorpusLine)
    assert read[-1].metadata == {"b": "2024-01-01"}
    assert "no line of the corpus has the field 'c'" in caplog.text
