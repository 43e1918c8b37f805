"""The index job: what it stores, and what it rejects."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer.build.index_job import Encoders, load_encoders, run_index_job
from indexer.corpus import CorpusLine, RejectedLine
from kalm_cache.errors import CheckpointError, IndexLockedError, UsageError
from kalm_cache.generations.generation import open_current
from kalm_cache.passage import Passage
from kalm_cache.settings import Settings
from kalm_cache.storage.locks import build_lock
from kalm_cache.storage.passage_store import PassageStore
from tests.indexer.jobs import LONGER, passing, records_of
from tests.indexes import TEXTS, build, settings_for, shard_of
from tests.stores import read_contents

pytestmark = pytest.mark.usefixtures("small_windows")


def test_a_job_publishes_every_passage_and_reports_what_it_did(tmp_path: Path, settings: Settings, encoders: Encoders):
    report = build(tmp_path / "index", settings, TEXTS, encoders=encoders)
    assert (report.generation, report.passages, report.encoded) == ("000001", 12, 12)
    assert (report.resumed, report.copied, report.deleted, report.rejected) == (0, 0, 0, 0)
    manifest = open_current(tmp_path / "index").manifest
    assert manifest.counts.passages == 12
    assert report.tokens == manifest.counts.tokens
    assert report.file_bytes == sum(receipt.bytes for receipt in manifest.files.values())
    assert manifest.fingerprint == encoders.fingerprint
    assert manifest.parent is None
    assert passing(tmp_path / "index")


def test_records_say_what_their_passages_are(tmp_path: Path, settings: Settings, encoders: Encoders):
    build(tmp_path / "index", settings, TEXTS, encoders=encoders)
    tokens = dict(zip(TEXTS, encoders.passage_side.tokenize(list(TEXTS.values())), strict=True))
    records = records_of(tmp_path / "index")
    assert records.keys() == TEXTS.keys()
    for doc_id, record in records.items():
        assert (record.tokens, record.chunk_size, record.width) == (len(tokens[doc_id].ids), 4, 64)
        assert record.rows == -(-record.tokens // 4)
        assert not record.truncated
        meta = read_contents(shard_of(tmp_path / "index")).meta(doc_id)
        assert meta.content_hash == Passage(doc_id, TEXTS[doc_id]).content_hash()


def test_nothing_of_the_building_is_left_behind(tmp_path: Path, settings: Settings, encoders: Encoders):
    build(tmp_path / "index", settings, TEXTS, encoders=encoders)
    found = {str(path.relative_to(tmp_path / "index")) for path in (tmp_path / "index").rglob("*") if path.is_file()}
    assert {name for name in found if "bm25" not in name} == {
        "CURRENT",
        "JOURNAL",
        "LOCK",
        "generations/000001/build.json",
        "generations/000001/manifest.json",
        "generations/000001/shards/00000/contents.bin",
        "generations/000001/shards/00000/first_stage/dense.faiss",
        "generations/000001/shards/00000/first_stage/dense.json",
        "generations/000001/shards/00000/passages.lmdb",
        "generations/000001/shards/00000/states.lmdb",
        "generations/000001/shards/00000/store.json",
    }


def test_an_empty_corpus_makes_an_empty_index(tmp_path: Path, settings: Settings, encoders: Encoders):
    report = build(tmp_path / "index", settings, {}, encoders=encoders)
    assert (report.passages, report.tokens, report.payload_bytes) == (0, 0, 0)
    assert passing(tmp_path / "index")


def test_a_corpus_of_empty_texts_is_indexed(tmp_path: Path, settings: Settings, encoders: Encoders):
    build(tmp_path / "index", settings, {"empty": "", "space": " "}, encoders=encoders)
    assert {record.rows > 0 for record in records_of(tmp_path / "index").values()} == {True}
    assert passing(tmp_path / "index")


def test_cut_passages_are_counted(tmp_path: Path, mini_folder: Path, embedder_folder: Path):
    settings = settings_for(mini_folder, embedder_folder, max_length=12)
    report = build(tmp_path / "index", settings, TEXTS)
    cut = {doc_id for doc_id, record in records_of(tmp_path / "index").items() if record.truncated}
    assert report.truncated == len(cut) > 0
    assert max(record.tokens for record in records_of(tmp_path / "index").values()) == 12


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_without_bm25_and_with_other_codecs_the_index_is_whole(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path, codec: str
):
    build(tmp_path / "index", settings_for(mini_folder, embedder_folder, codec=codec, bm25=False), TEXTS)
    assert not (shard_of(tmp_path / "index") / "first_stage" / "bm25").exists()
    assert passing(tmp_path / "index")


def test_without_texts_no_passage_text_is_anywhere_in_the_published_folder(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path
):
    texts = TEXTS | {"rare": "Gravity Rarewordx attracts bodies"}
    for store_text in (True, False):
        index = tmp_path / str(store_text)
        build(index, settings_for(mini_folder, embedder_folder, store_text=store_text), texts)
        holding = [path for path in index.rglob("*") if path.is_file() and b"rarewordx" in path.read_bytes().lower()]
        # BM25's vocabulary lists single lower-case terms, by themselves and in no order of a text
        terms = [path for path in holding if path.name == "terms.npy"]
        assert [path for path in holding if path not in terms] == (
            [shard_of(index) / "passages.lmdb"] if store_text else []
        )
        assert b"Rarewordx" not in b"".join(path.read_bytes() for path in terms)


def test_duplicates_within_and_across_windows_are_reported_with_where_the_first_one_is(
    tmp_path: Path, settings: Settings, encoders: Encoders
):
    pairs = [*LONGER.items()]
    pairs.insert(3, ("p1", "again, in the same window"))  # line 4
    pairs.append(("p2", "again, windows later"))
    pairs.append(("p29", LONGER["p29"]))  # the same text is a duplicate too
    rejected: list[RejectedLine] = []
    report = build(tmp_path / "index", settings, pairs, encoders=encoders, rejected=rejected)
    reason = "duplicate id, first at {}; the first one is kept: give each passage an id of its own"
    assert rejected == [
        RejectedLine("c:4", reason.format("c:2"), "p1", "again, in the same window"),
        RejectedLine("c:32", reason.format("c:3"), "p2", "again, windows later"),
        RejectedLine("c:33", reason.format("c:31"), "p29", LONGER["p29"][:200]),
    ]
    assert (report.passages, report.rejected) == (30, 3)
    with PassageStore(shard_of(tmp_path / "index")) as store:
        assert store.texts(["p1", "p2"]) == [LONGER["p1"], LONGER["p2"]]


def test_rejected_lines_are_handed_on_in_order_and_counted(tmp_path: Path, settings: Settings, encoders: Encoders):
    bad = [RejectedLine(f"c:{i}", "no id", None, "{}") for i in (2, 4)]
    lines = [CorpusLine(Passage("a", "x"), "c:1"), bad[0], CorpusLine(Passage("b", "y"), "c:3"), bad[1]]
    rejected: list[RejectedLine] = []
    report = run_index_job(
        lines, tmp_path / "index", settings, encoders, on_reject=rejected.append, on_progress=lambda progress: None
    )
    assert rejected == bad
    assert (report.passages, report.rejected) == (2, 2)


def test_a_job_in_a_folder_where_another_one_builds_is_refused(tmp_path: Path, settings: Settings, encoders: Encoders):
    with build_lock(tmp_path / "index"), pytest.raises(IndexLockedError):
        build(tmp_path / "index", settings, TEXTS, encoders=encoders)


@pytest.mark.parametrize("changes", [{"codec": "fp8"}, {"device": "tpu9"}])
def test_an_unknown_codec_or_device_is_a_usage_error(mini_folder: Path, embedder_folder: Path, changes: dict[str, str]):
    with pytest.raises(UsageError, match=r"not known|not one that torch knows"):
        load_encoders(settings_for(mini_folder, embedder_folder, **changes))


def test_a_model_that_is_not_there_is_a_checkpoint_error(mini_folder: Path, embedder_folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        load_encoders(settings_for(tmp_path / "empty", embedder_folder))
    with pytest.raises(CheckpointError):
        load_encoders(settings_for(mini_folder, tmp_path / "empty"))
