"""`serve --index URL`: a service follows what is live in an object store, and so do workers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytest.importorskip("obstore")

from indexer.change.add_delete import delete_passages
from kalm_cache.errors import StoreError
from kalm_cache.generations.remote.copies import CopyCache, RemoteCopy
from kalm_cache.generations.remote.push import push
from kalm_cache.object_store.location import parse_location
from kalm_cache.object_store.store import open_store
from kalm_cache.settings import load_settings
from query_service.app import create_app
from query_service.server import open_service
from tests.query_service.conftest import running
from tests.waiting import wait_for

QUERY = {"query": "Beijing", "top_n": 1}


@contextmanager
def served(url: str, home: Path, *options: str) -> Iterator[httpx.Client]:
    """A client of `kalm-cache serve --index URL`, in a process of its own."""
    log = home / "log.txt"
    command = [sys.executable, "-c", "from kalm_cache.cli import main; main()", "serve", "--index", url, "--port", "0"]
    environment = os.environ | {
        "KALM_CACHE_CACHE_FOLDER": str(home / "cache"),
        "KALM_CACHE_DEVICE": "cpu",
        "KALM_CACHE_WATCH_SECONDS": "0.05",
    }
    with log.open("wb") as output:
        process = subprocess.Popen([*command, *options], stdout=output, stderr=output, env=environment)
    try:
        wait_for(lambda: " on http://" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        address = log.read_text().split(" on ")[1].split()[0]
        with httpx.Client(base_url=address, timeout=60) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()


def test_a_service_follows_what_is_live_in_the_store(index_folder: Path, tmp_path: Path) -> None:
    location = parse_location(f"memory://{tmp_path.name}")
    index = Path(shutil.copytree(index_folder, tmp_path / "index"))
    push(open_store(location), index)
    remote = RemoteCopy(location, CopyCache(tmp_path / "cache", 1 << 40))
    remote.refresh()
    settings = load_settings(device="cpu", dtype="float32", watch_seconds=0.02)
    with running(create_app(open_service(remote.reading, settings, refresh=remote.refresh))) as client:
        first = client.post("/search", json=QUERY).raise_for_status().json()
        gone = first["results"][0]["doc_id"]
        delete_passages([gone], index)
        push(open_store(location), index)
        wait_for(lambda: client.post("/search", json=QUERY).json()["index_version"] == "000002")
        results = client.post("/search", json=QUERY).raise_for_status().json()["results"]
    assert first["index_version"] == "000001"
    assert gone not in [result["doc_id"] for result in results]


def test_a_store_that_cannot_be_reached_leaves_the_service_as_it_is(index_folder: Path, tmp_path: Path) -> None:
    def refresh() -> None:
        raise StoreError("s3://bucket/index/CURRENT: the store failed 4 times")

    settings = load_settings(device="cpu", dtype="float32", watch_seconds=0.02)
    with running(create_app(open_service(index_folder, settings, refresh=refresh))) as client:
        wait_for(lambda: "the store failed" in client.get("/health").text)
        assert client.post("/search", json=QUERY).status_code == 200


@pytest.mark.slow
def test_workers_follow_what_is_live_in_the_store(index_folder: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'store'}"
    store = open_store(parse_location(url), create=True)
    index = Path(shutil.copytree(index_folder, tmp_path / "index"))
    push(store, index)
    with served(url, tmp_path, "--workers", "2") as client:
        first = client.post("/search", json=QUERY).raise_for_status().json()
        assert first["index_version"] == "000001"
        gone = first["results"][0]["doc_id"]
        delete_passages([gone], index)
        push(store, index)

        def has_followed() -> bool:
            with httpx.Client(base_url=client.base_url, timeout=60) as another:  # that another worker may accept
                versions = {another.post("/search", json=QUERY).json()["index_version"] for _ in range(3)}
            return versions == {"000002"}

        wait_for(has_followed)
        after = client.post("/search", json=QUERY).raise_for_status().json()
        assert after["index_version"] == "000002"
        assert gone not in [result["doc_id"] for result in after["results"]]
    reading = next((tmp_path / "cache" / "remote").glob("*/reading/generations"))
    assert "000002" in [path.name for path in reading.iterdir()]
