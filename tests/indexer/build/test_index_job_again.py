"""Indexing into a published index: what is copied, what is encoded anew."""

from __future__ import annotations

import json
import logging
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexer.build.index_job import Encoders, load_encoders
from kalm_cache import PassageIndex
from kalm_cache.generations.current import write_current
from kalm_cache.generations.generation import open_current
from kalm_cache.model.digests import encoder_digest
from kalm_cache.settings import Settings
from tests import stores
from tests.indexer.jobs import LONGER, content, interrupt, passing, stored_ids
from tests.indexer.killed import run_until_killed
from tests.indexes import TEXTS, build, settings_for, shard_of
from tests.stores import read_contents

pytestmark = pytest.mark.usefixtures("small_windows")


def test_indexing_again_copies_unchanged_records_and_encodes_the_others(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    changed = {doc_id: text for doc_id, text in LONGER.items() if doc_id != "p4"} | {"p6": "edited", "new": "a new one"}
    report = build(index, settings, changed, encoders=encoders)
    assert (report.generation, report.passages, report.copied, report.encoded) == ("000002", 30, 28, 2)
    assert (report.resumed, report.deleted) == (0, 0)
    assert open_current(index).manifest.parent == "000001"
    before, after = content(undisturbed), content(index)
    same = [doc_id.encode() for doc_id in changed if changed[doc_id] == LONGER.get(doc_id)]
    for database in ("blocks", "passages"):
        assert {key: after[database][key] for key in same} == {key: before[database][key] for key in same}
        assert b"p4" not in after[database]
    new = {read_contents(open_current(index).segment).meta(doc_id).ordinal for doc_id in ("p6", "new")}
    assert new == {30, 31}  # numbers are not given again, not even for an edited text
    assert passing(index)


def test_indexing_the_same_corpus_again_gives_the_same_content(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.copied, report.encoded) == (30, 0)
    assert content(index) == content(undisturbed)


def test_a_published_index_serves_while_the_next_generation_is_built(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    with PassageIndex.open(index, device="cpu") as serving:
        before = serving.margins("ferry", ["p1", "p2"])
        assert build(index, settings, LONGER | {"new": "a new one"}, encoders=encoders).copied == 30
        assert serving.margins("ferry", ["p1", "p2"]) == before
        with PassageIndex.open(index, device="cpu") as newer:
            assert (len(serving), len(newer)) == (30, 31)
            assert newer.margins("ferry", ["p1", "p2"]) == before


def test_a_killed_reindex_copies_and_encodes_nothing_twice(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    changed = LONGER | {f"n{i}": f"a new passage, number {i}" for i in range(10)}
    run_until_killed(index, settings, changed, "indexer.build.unfinished.resume_log:ResumeLog.write", 2, signal.SIGKILL)
    assert open_current(index).manifest.generation == "000001"
    stored = stored_ids(index)
    report = build(index, settings, changed, encoders=encoders)
    assert report.resumed == len(stored)
    assert 0 < len(stored) < 10
    assert (report.copied, report.encoded) == (30, 10 - len(stored))
    assert passing(index)


def test_a_text_edited_and_edited_back_during_a_reindex_has_one_number(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    interrupt(index, settings, encoders, LONGER | {"p0": "edited"}, after=30)
    report = build(
        index, settings, LONGER, encoders=encoders
    )  # "p0" is stored with the edited text, under a new number
    assert (report.copied, report.encoded) == (30, 0)
    assert content(index) | {"next_ordinal": 30} == content(undisturbed)
    assert passing(index)


def test_a_rollback_between_kill_and_resumption_does_not_mix_numbers(
    tmp_path: Path, settings: Settings, encoders: Encoders, mini_folder: Path, embedder_folder: Path
):
    index = tmp_path / "index"
    build(index, settings, TEXTS, encoders=encoders)
    build(index, settings_for(mini_folder, embedder_folder, chunk_size=8), TEXTS)
    interrupt(index, settings, encoders, LONGER | TEXTS, after=8)
    write_current(index, "000001")
    report = build(index, settings, LONGER | TEXTS, encoders=encoders)
    assert report.copied + report.resumed + report.encoded == 42
    assert passing(index)


def test_a_source_that_went_away_between_kill_and_resumption_is_no_obstacle(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path, caplog: pytest.LogCaptureFixture
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    interrupt(index, settings, encoders, LONGER, after=8)
    shutil.rmtree(index / "generations" / "000001")
    with caplog.at_level(logging.WARNING):
        report = build(index, settings, LONGER, encoders=encoders)
    assert (report.resumed, report.copied, report.encoded) == (0, 0, 30)
    assert "nothing is copied from the live generation" in caplog.text
    assert passing(index)


def test_other_settings_encode_everything_anew_into_the_next_generation(
    tmp_path: Path, undisturbed: Path, mini_folder: Path, embedder_folder: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    report = build(index, settings_for(mini_folder, embedder_folder, chunk_size=8), LONGER)
    assert (report.generation, report.copied, report.encoded) == ("000002", 0, 30)
    assert passing(index)


def test_damaged_records_of_a_published_index_are_encoded_again(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    stores.damage_record(shard_of(index), "p3")
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.copied, report.encoded) == (29, 1)
    assert passing(index)


@pytest.mark.parametrize("damage", ["manifest", "schema", "cut"])
def test_a_published_index_beyond_reading_is_no_obstacle_to_the_next(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path, damage: str
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    manifest, data = index / "generations/000001/manifest.json", shard_of(index) / "states.lmdb"
    if damage == "manifest":
        manifest.write_text("{")
    elif damage == "schema":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 0}))
    else:
        data.write_bytes(data.read_bytes()[:5000])  # mapping it would end the process
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.generation, report.copied, report.encoded) == ("000002", 0, 30)
    assert passing(index)


def test_a_model_folder_is_kept_as_an_absolute_path(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(mini_folder.parent)
    build(tmp_path / "index", settings_for(Path(mini_folder.name), embedder_folder), {"a": "text"})
    monkeypatch.chdir(tmp_path)
    with PassageIndex.open(tmp_path / "index", device="cpu") as index:
        assert index.generation.manifest.model == str(mini_folder.resolve())


def test_a_folder_called_static_is_not_taken_for_the_bundled_embedder(
    tmp_path: Path, mini_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "static").mkdir()
    build(tmp_path / "index", settings_for(mini_folder, Path("static")), {"a": "text"})
    assert open_current(tmp_path / "index").manifest.embedder == "static"
    PassageIndex.open(tmp_path / "index", device="cpu").close()


def test_fingerprints_name_what_the_records_were_made_with(settings: Settings, encoders: Encoders):
    fingerprint = encoders.fingerprint
    assert (fingerprint.chunk_size, fingerprint.codec, fingerprint.dtype) == (4, "fp16", "float32")
    assert (fingerprint.model, fingerprint.sensitivity) == (encoder_digest(encoders.checkpoint), "")
    assert fingerprint.embedder == encoders.embedder.digest
    assert replace(fingerprint) == load_encoders(settings).fingerprint
    assert np.isfinite(encoders.embedder.embed_passages(["text"])).all()
