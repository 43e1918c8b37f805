"""`decoder set`: a generation over the same files, which every other change keeps, and a rollback undoes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from indexer.build.index_job import Encoders, load_encoders
from indexer.change.add_delete import delete_passages
from indexer.change.gc import collect_garbage
from indexer.change.rollback import roll_back
from indexer.change.set_decoder import set_decoder, show_decoder
from kalm_cache import PassageIndex
from kalm_cache.errors import CheckpointError, IndexMismatchError
from kalm_cache.generations.generation import open_current
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.digests import decoder_digest, encoder_digest
from kalm_cache.settings import Settings
from tests.checkpoints import MINI, make_checkpoint, with_other_decoder
from tests.earlier import with_one_digest
from tests.indexer.changes import add, reindex
from tests.indexer.jobs import interrupt, passing
from tests.indexes import TEXTS, build


@pytest.fixture(scope="module")
def tuned(mini_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_other_decoder(mini_folder, tmp_path_factory.mktemp("tuned") / "checkpoint")


def inodes(index: Path) -> dict[str, int]:
    folder = open_current(index).folder / "shards"
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def decoder_named(index: Path) -> str:
    decoder = open_current(index).manifest.decoder
    assert decoder is not None
    return decoder.name


def test_a_decoder_is_set_over_the_very_same_files(index: Path, mini_folder: Path, tuned: Path):
    before, files = open_current(index).manifest, inodes(index)
    report = set_decoder(index, str(tuned))
    after = open_current(index).manifest
    assert inodes(index) == files
    assert (report.generation, report.decoder, report.before) == ("000002", str(tuned), str(mini_folder))
    assert report.decoder_digest == decoder_digest(open_checkpoint(str(tuned))) != report.before_digest
    assert (after.fingerprint, after.model, after.operation) == (before.fingerprint, before.model, "decoder")
    assert passing(index)


def test_a_decoder_that_answers_already_publishes_nothing(index: Path, tuned: Path):
    set_decoder(index, str(tuned))
    assert set_decoder(index, str(tuned)).generation == "000002"
    assert open_current(index).name == "000002"


def test_a_rollback_brings_the_decoder_before_back(index: Path, mini_folder: Path, tuned: Path):
    set_decoder(index, str(tuned))
    roll_back(index)
    assert show_decoder(index).decoder == str(mini_folder)
    roll_back(index, "2")
    assert show_decoder(index).decoder == str(tuned)


def test_an_encoder_that_differs_is_refused_and_nothing_is_published(index: Path, tmp_path: Path):
    other = make_checkpoint(tmp_path / "other", MINI, seed=1)
    with pytest.raises(IndexMismatchError) as raised:
        set_decoder(index, str(other))
    assert open_current(index).manifest.fingerprint.model[:12] in str(raised.value)
    assert encoder_digest(open_checkpoint(str(other)))[:12] in str(raised.value)
    with pytest.raises(CheckpointError):
        set_decoder(index, str(tmp_path / "nothing"))
    assert open_current(index).name == "000001"
    assert not list((index / "generations").glob("*.building"))


def test_small_changes_and_gc_keep_the_decoder(index: Path, settings: Settings, encoders: Encoders, tuned: Path):
    set_decoder(index, str(tuned))
    add(index, settings, encoders, {"new": "a new passage"})
    assert decoder_named(index) == str(tuned)
    delete_passages(["d1"], index)
    assert decoder_named(index) == str(tuned)
    collect_garbage(index, 0)  # writes a new base
    assert decoder_named(index) == str(tuned)
    assert passing(index)


def test_gc_keeps_the_generation_before_for_a_rollback(index: Path, tuned: Path):
    set_decoder(index, str(tuned))
    assert [one.generation for one in collect_garbage(index, 1).kept] == ["000001"]
    roll_back(index)
    assert open_current(index).name == "000001"


def test_reindex_and_index_with_the_same_model_keep_the_decoder_and_encode_nothing(
    index: Path, settings: Settings, encoders: Encoders, tuned: Path
):
    set_decoder(index, str(tuned))
    assert reindex(index, settings, encoders, TEXTS).encoded == 0
    assert decoder_named(index) == str(tuned)
    assert build(index, settings, TEXTS, encoders=encoders).copied == len(TEXTS)
    assert decoder_named(index) == str(tuned)


def test_a_model_that_is_named_brings_its_own_decoder(index: Path, settings: Settings, tuned: Path, tmp_path: Path):
    set_decoder(index, str(with_other_decoder(tuned, tmp_path / "third")))
    named = settings.model_copy(update={"model": str(tuned)})
    assert reindex(index, named, load_encoders(named), TEXTS).encoded == 0
    assert decoder_named(index) == str(tuned)


def test_an_index_of_an_earlier_version_gets_a_decoder_without_being_encoded(
    index: Path, mini_folder: Path, tuned: Path
):
    with_one_digest(index, mini_folder)
    set_decoder(index, str(tuned))
    manifest = open_current(index).manifest
    assert manifest.fingerprint.model == encoder_digest(open_checkpoint(str(mini_folder)))
    assert manifest.fingerprint.sensitivity == ""
    with PassageIndex.open(index, device="cpu") as opened:
        assert opened.decoder.name == str(tuned)


def test_an_index_of_an_earlier_version_is_changed_without_being_encoded(
    index: Path, settings: Settings, encoders: Encoders, mini_folder: Path
):
    with_one_digest(index, mini_folder)
    assert build(index, settings, TEXTS, encoders=encoders).encoded == 0
    with_one_digest(index, mini_folder)
    assert reindex(index, settings, encoders, TEXTS).encoded == 0
    with_one_digest(index, mini_folder)
    assert add(index, settings, encoders, TEXTS | {"new": "a new passage"}).encoded == 1
    assert passing(index)


def test_a_build_that_an_earlier_version_began_goes_on(
    tmp_path: Path, settings: Settings, encoders: Encoders, small_windows: None
):
    whole = encoders.checkpoint.digest()
    earlier = replace(encoders, fingerprint=replace(encoders.fingerprint, model=whole, sensitivity=None))
    interrupt(tmp_path / "index", settings, earlier, TEXTS, after=8)
    assert build(tmp_path / "index", settings, TEXTS, encoders=encoders).resumed >= 8


def test_what_is_not_at_hand_is_not_known(index: Path, mini_folder: Path, tmp_path: Path):
    shown = show_decoder(index)
    assert shown.encoder_digest == open_current(index).manifest.fingerprint.model
    with_one_digest(index, mini_folder)
    live = open_current(index)
    gone = replace(live.manifest, model=str(tmp_path / "gone"))
    (live.folder / "manifest.json").write_bytes(gone.to_json())
    shown = show_decoder(index)
    assert (shown.decoder, shown.encoder_digest, shown.decoder_digest) == (gone.model, None, None)
