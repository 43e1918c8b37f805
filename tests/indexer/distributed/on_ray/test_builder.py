"""Partitions built by actors on a cluster of two nodes: the same generation as in one process, whoever is killed."""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from indexer.build.counts import BuildCounts
from indexer.build.index_job import Encoders
from indexer.distributed.on_ray.builder import ray_builder
from indexer.distributed.on_ray.cluster import workforce
from indexer.distributed.places.folder import FolderPlace
from indexer.distributed.plan_job import plan_partitions
from kalm_cache.cli.app import app
from kalm_cache.errors import StoreError, UsageError
from kalm_cache.generations.build_folders import unfinished_builds
from kalm_cache.generations.generation import open_current
from kalm_cache.settings import Settings
from tests.indexer.changes import texts_of, valid
from tests.indexer.distributed.on_ray.jobs import (
    SHARDS,
    StallingEncoder,
    TellingEncoder,
    encoder_processes,
    index_on_ray,
    killing,
)
from tests.indexer.sharded import MANY, answers_of, files_of, shards_of
from tests.indexes import build, lines_of
from tests.ray_cluster import NODE
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    """An index of `MANY` in three shards, built by `index --shards 3`."""
    folder = tmp_path_factory.mktemp("one process") / "index"
    build(folder, settings, MANY, encoders=encoders, shards=SHARDS)
    return folder


def same_as(index: Path, expected: Path) -> bool:
    """Whether two indexes have the same segments, byte for byte, and answer alike."""
    assert files_of(index) == files_of(expected)
    assert answers_of(index) == answers_of(expected)
    assert [path.name for path in (index / "generations").iterdir()] == [open_current(index).name]
    return valid(index)


def test_actors_make_byte_for_byte_what_one_process_makes_though_one_of_them_is_killed(
    tmp_path: Path, settings: Settings, encoders: Encoders, in_one_process: Path
):
    index, seen, killed = tmp_path / "index", [], []

    def watch(counts: BuildCounts) -> None:
        seen.append(counts.done)
        if counts.done and not killed:
            killed.append(encoder_processes()[0])
            os.kill(killed[0], signal.SIGKILL)

    report = index_on_ray(index, settings, encoders, on_progress=watch)
    assert len(killed) == 1
    assert seen[-1] == report.passages == report.encoded + report.resumed == len(MANY)
    assert same_as(index, in_one_process)
    wait_for(lambda: encoder_processes() == [])


def test_a_node_that_is_lost_costs_only_what_it_had_not_stored(
    tmp_path: Path, settings: Settings, encoders: Encoders, in_one_process: Path, cluster: Any
):
    index, lost = tmp_path / "index", []

    def watch(counts: BuildCounts) -> None:
        if counts.done and not lost:
            lost.extend(cluster.worker_nodes)
            cluster.remove_node(lost[0], allow_graceful=False)

    assert index_on_ray(index, settings, encoders, on_progress=watch).passages == len(MANY)
    cluster.add_node(**NODE)
    assert len(lost) == 1
    assert same_as(index, in_one_process)


@pytest.mark.slow  # two builds
def test_ctrl_c_ends_the_encoders_and_the_same_again_goes_on(
    tmp_path: Path, settings: Settings, encoders: Encoders, in_one_process: Path
):
    index = tmp_path / "index"

    def interrupt(counts: BuildCounts) -> None:
        if counts.done:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        index_on_ray(index, settings, encoders, on_progress=interrupt, actor=StallingEncoder)
    wait_for(lambda: encoder_processes() == [])
    assert unfinished_builds(index)
    report = index_on_ray(index, settings, encoders)
    assert report.resumed > 0
    assert report.encoded + report.resumed == report.passages == len(MANY)
    assert same_as(index, in_one_process)


@pytest.mark.slow  # a node more
def test_an_actor_has_its_part_of_the_gpus_builds_on_scratch_and_its_warnings_reach_the_log(
    tmp_path: Path,
    settings: Settings,
    encoders: Encoders,
    in_one_process: Path,
    cluster: Any,
    caplog: pytest.LogCaptureFixture,
):
    scratch = tmp_path / "scratch"
    node = cluster.add_node(**NODE, num_gpus=2)  # Ray believes what it is told
    wait_for(lambda: workforce(None, None).gpus == 1.0)
    assert (workforce(None, None).encoders, workforce(None, 0.5).encoders) == (2, 4)
    with pytest.raises(UsageError, match="--gpus-per-encoder 3: the machine with the most GPUs has 2"):
        workforce(None, 3.0)
    with caplog.at_level(logging.INFO, logger="indexer"):
        index_on_ray(
            *(tmp_path / "index", settings, encoders),
            **{"workers": 1, "gpus_per_encoder": 0.5, "scratch": scratch, "actor": TellingEncoder},
        )
    cluster.remove_node(node)
    heard = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    expected = [f"partition {number}, on {platform.node()}: GPUs [0], below {scratch}" for number in range(SHARDS)]
    assert [line for line in heard if "below" in line] == expected
    assert list(scratch.iterdir()) == []
    assert same_as(tmp_path / "index", in_one_process)


def test_reindex_to_another_number_of_shards_moves_bytes_and_encodes_only_what_is_new(
    tmp_path: Path, settings: Settings, in_one_process: Path
):
    index, corpus = Path(shutil.copytree(in_one_process, tmp_path / "index")), tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": "m1", "text": "another text"}) + "\n")
    engine = ["--engine", "ray", "--address", "auto", "--encoders", "1", "--shards", "2", "--device", "cpu"]
    flags = ["--index", str(index), "--keep-missing", *engine, "--json"]
    result = CliRunner().invoke(app, ["reindex", str(corpus), *flags])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    counts = [report[name] for name in ("reused", "recoded", "encoded", "kept", "deleted", "generation")]
    assert counts == [len(MANY) - 1, 0, 1, len(MANY) - 1, 0, "000002"]
    assert texts_of(index) == MANY | {"m1": "another text"}
    assert list(shards_of(index)) == [0, 1]
    assert open_current(index).manifest.operation == "reindex"
    assert valid(index)


def test_the_command_builds_into_a_bucket_and_shards_are_as_many_as_encoders(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    corpus, bucket = tmp_path / "corpus.jsonl", f"file://{tmp_path}/bucket"
    corpus.write_text("".join(json.dumps({"id": one, "text": text}) + "\n" for one, text in MANY.items()))
    monkeypatch.setenv("KALM_CACHE_CACHE_FOLDER", str(tmp_path / "cache"))
    models = ["--model", settings.model, "--embedder", settings.embedder, "--device", "cpu", "--dtype", "float32"]
    flags = ["--index", bucket, "--engine", "ray", "--encoders", "1", "--json"]
    result = CliRunner().invoke(app, ["index", str(corpus), *models, *flags])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["index"], report["encoded"]) == (bucket, len(MANY))
    assert CliRunner().invoke(app, ["pull", bucket, str(tmp_path / "index")]).exit_code == 0
    assert list(shards_of(tmp_path / "index")) == [0]
    assert texts_of(tmp_path / "index") == MANY


def test_an_error_in_an_actor_is_raised_as_what_it_is(tmp_path: Path, settings: Settings, encoders: Encoders):
    index = tmp_path / "index"
    plan_partitions(
        *(lines_of(MANY), index, settings, encoders), shards=1, on_reject=print, on_progress=lambda counts: None
    )
    (texts,) = index.glob("generations/*.building/plan/*.zst")
    texts.write_bytes(b"")
    with ray_builder(None, encoders=1) as builder, pytest.raises(StoreError, match="is not what was planned") as raised:
        builder.build(FolderPlace(index), 1, settings, lambda counts: None)
    assert type(raised.value) is StoreError
    wait_for(lambda: encoder_processes() == [])


@pytest.mark.slow
def test_whoever_is_killed_at_fifty_random_moments_the_generation_is_the_same(
    tmp_path: Path, settings: Settings, encoders: Encoders, in_one_process: Path, cluster: Any
):
    chance, killed = random.Random(16), []

    def kill_node() -> None:
        node = chance.choice(sorted(cluster.worker_nodes, key=id))
        cluster.remove_node(node, allow_graceful=False)
        killed.append("node")

    def kill_actor() -> None:
        if processes := sorted(encoder_processes()):
            os.kill(chance.choice(processes), signal.SIGKILL)
            killed.append("actor")

    indexes = [tmp_path / str(run) for run in range(50)]
    for run, index in enumerate(indexes):
        with killing(chance, within_seconds=12, kill=kill_node if run % 5 == 0 else kill_actor):
            index_on_ray(index, settings, encoders)
        if not cluster.worker_nodes:
            cluster.add_node(**NODE)
        assert same_as(index, in_one_process)
        shutil.rmtree(index)
    assert {"node", "actor"} == set(killed)
