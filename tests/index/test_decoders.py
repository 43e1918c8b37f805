"""Which decoder answers over an index: the one that is set, another one for a trial, that of an earlier version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from indexer.change.set_decoder import set_decoder
from kalm_cache import PassageIndex
from kalm_cache.errors import IndexMismatchError
from kalm_cache.generations.generation import open_current
from kalm_cache.index.decoders import updated_generation
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.digests import decoder_digest, encoder_digest
from tests.checkpoints import MINI, make_checkpoint, with_other_decoder
from tests.earlier import with_one_digest

IDS = ["d1", "d4", "d8"]


@pytest.fixture(scope="module")
def tuned(mini_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same encoder with another decoder."""
    return with_other_decoder(mini_folder, tmp_path_factory.mktemp("tuned") / "checkpoint")


def margins(index: Path, **options: object) -> list[float]:
    with PassageIndex.open(index, device="cpu", **options) as opened:
        return opened.margins("honey bees", IDS)


def test_the_manifest_holds_a_digest_of_each_side(folders: dict[str, Path], mini_folder: Path):
    manifest, checkpoint = open_current(folders["fp16"]).manifest, open_checkpoint(str(mini_folder))
    assert manifest.fingerprint.model == encoder_digest(checkpoint)
    assert manifest.decoder is not None
    assert (manifest.decoder.name, manifest.decoder.digest) == (str(mini_folder), decoder_digest(checkpoint))


def test_another_decoder_can_be_tried_without_being_set(copied: Path, tuned: Path):
    before, tried = margins(copied), margins(copied, decoder=str(tuned))
    assert tried != pytest.approx(before, abs=1e-3)
    assert margins(copied) == before
    set_decoder(copied, str(tuned))
    assert margins(copied) == tried


def test_a_trial_and_what_is_set_share_no_entry_of_a_prefix_cache(copied: Path, tuned: Path):
    with PassageIndex.open(copied, device="cpu", prefix_cache_gib=0.01, prefix_cache_dtype="float32") as first:
        before = first.margins("honey bees", IDS)
        with PassageIndex.open(copied, device="cpu", decoder=str(tuned), reuse_from=first) as trial:
            assert trial.prefix_cache is first.prefix_cache
            assert trial.margins("honey bees", IDS) == pytest.approx(margins(copied, decoder=str(tuned)), abs=1e-4)
        assert first.margins("honey bees", IDS) == before


def test_a_decoder_over_another_encoder_is_refused_with_both_digests(copied: Path, tmp_path: Path):
    other = make_checkpoint(tmp_path / "other", MINI, seed=1)
    with pytest.raises(IndexMismatchError) as raised:
        PassageIndex.open(copied, device="cpu", decoder=str(other))
    assert open_current(copied).manifest.fingerprint.model[:12] in str(raised.value)
    assert encoder_digest(open_checkpoint(str(other)))[:12] in str(raised.value)


def test_a_model_with_another_decoder_is_refused_with_the_command_that_sets_it(copied: Path, tuned: Path):
    with pytest.raises(IndexMismatchError, match=f"kalm-cache decoder set {tuned} --index {copied}"):
        PassageIndex.open(copied, device="cpu", model=str(tuned))


def test_a_moved_model_does_not_hide_the_decoder_that_is_set(
    copied: Path, mini_folder: Path, tuned: Path, tmp_path: Path
):
    moved = shutil.copytree(mini_folder, tmp_path / "moved")
    set_decoder(copied, str(tuned))
    assert margins(copied, model=str(moved)) == margins(copied)
    moved_decoder = shutil.copytree(tuned, tmp_path / "moved decoder")
    assert margins(copied, model=str(moved_decoder)) == margins(copied)


def test_a_decoder_that_changed_in_its_place_is_refused(copied: Path, tuned: Path, tmp_path: Path):
    own = Path(shutil.copytree(tuned, tmp_path / "own"))
    set_decoder(copied, str(own))
    shutil.rmtree(own)
    with_other_decoder(tuned, own)
    with pytest.raises(IndexMismatchError, match=r"answers with decoder .* has digest"):
        PassageIndex.open(copied, device="cpu")


def test_an_index_of_an_earlier_version_answers_as_before(copied: Path, mini_folder: Path):
    before = margins(copied)
    with_one_digest(copied, mini_folder)
    stored = json.loads((open_current(copied).folder / "manifest.json").read_bytes())
    assert "decoder" not in stored
    assert "sensitivity" not in stored["fingerprint"]
    assert margins(copied) == before
    with PassageIndex.open(copied, device="cpu") as index:
        assert index.generation.manifest.fingerprint.model == encoder_digest(open_checkpoint(str(mini_folder)))
        assert index.decoder.digest == decoder_digest(open_checkpoint(str(mini_folder)))


def test_the_model_of_an_earlier_version_is_read_once_for_all_its_generations(
    copied: Path, mini_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    with_one_digest(copied, mini_folder)
    with PassageIndex.open(copied, device="cpu") as first:
        monkeypatch.setattr("kalm_cache.index.decoders.open_checkpoint", lambda name: pytest.fail(f"read {name}"))
        with PassageIndex.open(copied, device="cpu", reuse_from=first) as second:
            assert second.query_side is first.query_side


def test_an_index_of_an_earlier_version_is_not_taken_for_another_models(copied: Path, mini_folder: Path, tuned: Path):
    with_one_digest(copied, mini_folder)
    with pytest.raises(IndexMismatchError, match="open it with the model that built it"):
        updated_generation(open_current(copied), copied, str(tuned))
