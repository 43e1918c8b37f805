"""What a job computes with: the codec, which rounds by a checkpoint's sensitivity or not, and the size of batches."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from indexer.build.index_job import load_encoders
from indexer.change.set_decoder import set_decoder
from indexer.models import batch_tokens_of
from kalm_cache import PassageIndex
from kalm_cache.codec import Codec, get_codec
from kalm_cache.codec.sensitivity import TENSOR, load_sensitivity
from kalm_cache.errors import CheckpointError
from kalm_cache.generations.generation import open_current
from kalm_cache.model.checkpoint import SENSITIVITY_FILE
from kalm_cache.scoring.batching import encode_tokens
from kalm_cache.settings import Settings
from tests.checkpoints import with_other_decoder
from tests.indexer.changes import add, payloads_of, reindex
from tests.indexes import TEXTS, build, settings_for

FEW_DIRECTIONS = np.random.default_rng(5).normal(size=(12, 64)).astype(np.float32)  # of the small model's 64


@pytest.fixture(scope="module")
def sensitive_folder(mini_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with a sensitivity beside its weights."""
    folder = Path(shutil.copytree(mini_folder, tmp_path_factory.mktemp("sensitive") / "model"))
    save_file({TENSOR: FEW_DIRECTIONS.T @ FEW_DIRECTIONS}, folder / SENSITIVITY_FILE)
    return folder


@pytest.fixture(scope="module")
def settings_by_codec(sensitive_folder: Path, embedder_folder: Path) -> dict[str, Settings]:
    return {codec: settings_for(sensitive_folder, embedder_folder, codec=codec) for codec in ("fp32", "int4")}


@pytest.fixture(scope="module")
def exact(settings_by_codec: dict[str, Settings], tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = tmp_path_factory.mktemp("exact") / "index"
    build(index, settings_by_codec["fp32"], TEXTS)
    return index


def encoded(exact: Path, codec: Codec) -> dict[str, bytes]:
    with PassageIndex.open(exact, device="cpu") as opened:
        return {
            one: codec.encode(found.states.numpy())
            for one, found in zip(TEXTS, opened.pooled(list(TEXTS)), strict=True)
        }


def test_indexing_adding_and_recoding_round_by_the_sensitivity(
    exact: Path, sensitive_folder: Path, settings_by_codec: dict[str, Settings], tmp_path: Path
):
    settings = settings_by_codec["int4"]
    encoders, expected = (
        load_encoders(settings),
        encoded(exact, get_codec("int4", load_sensitivity(sensitive_folder / SENSITIVITY_FILE))),
    )
    assert expected != encoded(exact, get_codec("int4"))
    build(tmp_path / "built", settings, TEXTS, encoders=encoders)
    assert payloads_of(tmp_path / "built") == expected
    one = dict([next(iter(TEXTS.items()))])
    build(tmp_path / "grown", settings, one, encoders=encoders)
    add(tmp_path / "grown", settings, encoders, TEXTS)
    assert payloads_of(tmp_path / "grown") == expected
    shutil.copytree(exact, tmp_path / "recoded")
    assert reindex(tmp_path / "recoded", settings, encoders, TEXTS).recoded == len(TEXTS)
    assert payloads_of(tmp_path / "recoded") == expected


def test_a_checkpoint_without_a_sensitivity_rounds_to_nearest(
    exact: Path, mini_folder: Path, embedder_folder: Path, tmp_path: Path
):
    build(tmp_path / "index", settings_for(mini_folder, embedder_folder, codec="int4"), TEXTS)
    assert payloads_of(tmp_path / "index") == encoded(exact, get_codec("int4"))


@pytest.mark.parametrize("codec", ["fp32", "bf16", "fp16", "int8"])
def test_codecs_of_eight_bits_and_more_are_the_plain_ones(sensitive_folder: Path, embedder_folder: Path, codec: str):
    assert load_encoders(settings_for(sensitive_folder, embedder_folder, codec=codec)).codec is get_codec(codec)


def test_a_sensitivity_of_another_width_is_refused_before_anything_is_encoded(
    sensitive_folder: Path, embedder_folder: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(sensitive_folder, tmp_path / "model"))
    save_file({TENSOR: np.eye(44, dtype=np.float32)}, folder / SENSITIVITY_FILE)
    with pytest.raises(CheckpointError, match=f"{SENSITIVITY_FILE}: is of states 44 wide, the model's are 64"):
        load_encoders(settings_for(folder, embedder_folder, codec="int4"))


def test_payloads_stay_rounded_by_what_encoded_them_whichever_decoder_is_set(
    exact: Path, sensitive_folder: Path, settings_by_codec: dict[str, Settings], tmp_path: Path
):
    settings, encoders = settings_by_codec["int4"], load_encoders(settings_by_codec["int4"])
    tuned = with_other_decoder(sensitive_folder, tmp_path / "tuned")
    (tuned / SENSITIVITY_FILE).unlink()
    one = dict([next(iter(TEXTS.items()))])
    build(tmp_path / "index", settings, one, encoders=encoders)
    before = open_current(tmp_path / "index").manifest.fingerprint
    assert before.sensitivity == hashlib.sha256((sensitive_folder / SENSITIVITY_FILE).read_bytes()).hexdigest()
    set_decoder(tmp_path / "index", str(tuned))
    assert open_current(tmp_path / "index").manifest.fingerprint == before
    add(tmp_path / "index", settings, encoders, TEXTS)
    by_sensitivity = get_codec("int4", load_sensitivity(sensitive_folder / SENSITIVITY_FILE))
    assert payloads_of(tmp_path / "index") == encoded(exact, by_sensitivity)


def test_payloads_that_were_rounded_by_another_sensitivity_are_encoded_again(
    sensitive_folder: Path,
    mini_folder: Path,
    embedder_folder: Path,
    settings_by_codec: dict[str, Settings],
    tmp_path: Path,
):
    settings = settings_by_codec["int4"]
    build(tmp_path / "index", settings, TEXTS)
    plain = settings_for(mini_folder, embedder_folder, codec="int4")  # the same weights, no sensitivity
    report = reindex(tmp_path / "index", plain, load_encoders(plain), TEXTS)
    assert (report.encoded, report.reused) == (len(TEXTS), 0)
    assert report.why_encoded == "states stored as int4 were rounded by another sensitivity"


def test_a_codec_that_rounds_by_none_has_the_same_fingerprint_with_a_sensitivity_as_without(
    sensitive_folder: Path, mini_folder: Path, embedder_folder: Path
):
    one, other = (
        load_encoders(settings_for(folder, embedder_folder, codec="fp16")) for folder in (sensitive_folder, mini_folder)
    )
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint.sensitivity == ""


@pytest.mark.parametrize(("threads", "tokens"), [(1, 4096), (4, 4096), (12, 12_288), (64, 16_384)])
def test_batches_of_a_cpu_grow_with_its_threads(threads: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert encode_tokens(torch.device("cpu")) == tokens


@pytest.mark.parametrize(("gib", "tokens"), [(4, 8192), (24, 16_384), (79, 65_536), (139, 131_072), (288, 131_072)])
def test_batches_of_a_gpu_grow_with_its_memory(gib: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(total_memory=gib << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert encode_tokens(torch.device("cuda", 1)) == tokens


def test_batch_tokens_that_are_set_are_taken_and_auto_is_logged(
    mini_folder: Path, embedder_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(mini_folder, embedder_folder)
    side = load_encoders(settings).passage_side
    with caplog.at_level(logging.INFO, logger="indexer.models"):
        assert batch_tokens_of(settings.model_copy(update={"batch_tokens": 77}), side) == 77
        assert caplog.messages == []
        tokens = batch_tokens_of(settings.model_copy(update={"batch_tokens": "auto"}), side)
    assert caplog.messages == [f"batch_tokens auto is {tokens} on cpu"]
