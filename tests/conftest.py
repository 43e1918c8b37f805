"""Checkpoints and their slow references, made once a session. Nothing here reaches the network."""

from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: it reads the variable once
os.environ.setdefault("IR_DATASETS_HOME", f"{tempfile.gettempdir()}/ir_datasets")  # else in ~, when it is imported
os.environ.setdefault("MTEB_CACHE", f"{tempfile.gettempdir()}/mteb")  # likewise
# without a GPU Triton's kernels run in its interpreter; it reads the variable when it is imported
os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidiactl") else "1")  # noqa: PTH110

import gc
import logging
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.reference import MarginOracle, SlowReference, load_slow_reference
from kalm_cache.model import precision
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.process.stderr_log import StderrHandler
from kalm_cache.reranker import KaLMReranker
from tests.checkpoints import MINI, NANO, SMALL, make_checkpoint
from tests.indexes import make_embedder
from tests.object_store.faults import Faults
from tests.object_store.places import BUCKET, Place, S3Place, file_place, memory_place, proxied, s3_server
from tests.ray_cluster import start_cluster

IN_MEMORY, ROOM_BYTES = Path("/dev/shm"), 4 << 30  # a run fills a third of this


def pytest_configure() -> None:
    """`tmp_path` lies in memory where there is room: a disk is waited for dozens of times an index."""
    if not os.access(IN_MEMORY, os.W_OK) or shutil.disk_usage(IN_MEMORY).free < ROOM_BYTES:
        return
    if not os.statvfs(IN_MEMORY).f_flag & os.ST_NOEXEC:  # kernels are compiled there, and loaded
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))


def pytest_collection_finish() -> None:
    """No later collection looks at the modules: they are most objects of a run, and stay."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end they may be collected: Triton's bindings call what is left of them a leak."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def no_log_lines_between_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """A server in a thread logs behind the last byte of its answer: the test that asked may be over by then."""
    emit = StderrHandler.emit

    def emit_within_tests(self: StderrHandler, record: logging.LogRecord) -> None:
        if sys.stderr is not sys.__stderr__:  # captured
            emit(self, record)

    with pytest.MonkeyPatch.context() as patch:
        if request.config.option.capture != "no":
            patch.setattr(StderrHandler, "emit", emit_within_tests)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The matrices are small: on a busy machine, threads that wait for each other cost far more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def no_native_bfloat16() -> Iterator[None]:
    """`auto` is float32 on every CPU: what tests expect must not depend on the machine that runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "has_native_bfloat16", lambda: False)
        yield


@pytest.fixture(scope="session")
def mini_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("mini"), MINI)


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("nano"), NANO, dtype=torch.bfloat16)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("small"), SMALL, dtype=torch.bfloat16)


@pytest.fixture(scope="session")
def embedder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_embedder(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="session")
def mini(mini_folder: Path) -> Checkpoint:
    return open_checkpoint(str(mini_folder))


@pytest.fixture(scope="session")
def mini_reference(mini_folder: Path) -> SlowReference:
    return load_slow_reference(mini_folder)


@pytest.fixture(scope="session")
def mini_oracle(mini_reference: SlowReference) -> MarginOracle:
    return MarginOracle(mini_reference)


@pytest.fixture(scope="session")
def nano_oracle(nano_folder: Path) -> MarginOracle:
    return MarginOracle(load_slow_reference(nano_folder))


@pytest.fixture(scope="session")
def small_oracle(small_folder: Path) -> MarginOracle:
    return MarginOracle(load_slow_reference(small_folder))


@pytest.fixture(scope="session")
def mini_reranker(mini_folder: Path) -> KaLMReranker:
    return KaLMReranker(str(mini_folder), device="cpu")


@pytest.fixture(scope="session")
def s3() -> Iterator[tuple[str, int]]:
    """S3 over HTTP: its host and port."""
    pytest.importorskip("moto.moto_server.threaded_moto_server")
    with s3_server() as address:
        yield address


@pytest.fixture(params=["memory", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty place in a store of each kind."""
    if request.param == "memory":
        yield memory_place()
    elif request.param == "file":
        yield file_place(tmp_path / "store")
    else:
        faults = Faults()
        host, port = request.getfixturevalue("s3")
        with proxied((host, port), faults) as proxy:
            yield S3Place(f"s3://{BUCKET}/{uuid.uuid4().hex}", faults, f"http://{host}:{port}", proxy)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A real cluster of two nodes on this machine, one for all tests. Skipped where Ray is not installed."""
    ray = pytest.importorskip("ray")
    cluster = start_cluster()
    ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
