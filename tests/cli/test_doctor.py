"""`kalm-cache doctor` on machines, settings and indexes with real faults."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from kalm_cache.doctor import index as index_checks
from kalm_cache.doctor import machine, service
from kalm_cache.doctor.check import Report
from kalm_cache.doctor.diagnose import CHECKS
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.model.kernels.compile import compiled_library
from kalm_cache.storage.passage_store import STATES_FILE
from kalm_cache.storage.record import Record
from tests.cli.conftest import Run

Diagnosis = dict[str, dict[str, str]]


@pytest.fixture(autouse=True)
def free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 0 is always free, whatever runs on this machine."""
    monkeypatch.setenv("KALM_CACHE_PORT", "0")


def diagnosis(run: Run, *arguments: object, exit_code: int = 0) -> Diagnosis:
    result = run("doctor", "--json", *arguments)
    assert result.exit_code == exit_code, result.output
    report = json.loads(result.stdout)
    assert report["ok"] is (exit_code == 0)
    return {check["name"]: check for check in report["checks"]}


def test_a_sound_index_and_machine_give_no_failure(run: Run, index: Path) -> None:
    checks = diagnosis(run, "--index", index)
    assert list(checks) == [name for name in CHECKS if name != "speed"]  # which takes ten seconds
    assert {"threads", "dtype", "openmp", "kernels", "disk", "model", "index", "port", "limits", "settings"} <= set(
        checks
    )
    assert (checks["index"]["status"], checks["records"]["status"], checks["model"]["status"]) == ("ok", "ok", "ok")
    assert checks["index"]["found"].startswith("generation 000001: 4 passages")
    assert "passages made by '{title} {text}'" in checks["index"]["found"]
    assert checks["records"]["found"] == "4 of 4 read, 0 damaged"
    assert {check["status"] for check in checks.values() if not check["advice"]} == {"ok"}


def test_the_files_of_an_index_are_held_against_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (1024, 1024))
    assert machine.check_limits(64, 1, index_files=0).advice == ""
    report = machine.check_limits(64, 1, index_files=500)
    assert report.found.startswith("1,024 open files (the index takes 2 × 500 at a swap)")
    assert report.advice.endswith("ulimit -n 2024, or fold the segments: kalm-cache fold")


def test_an_index_of_many_segments_is_to_be_folded(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_checks, "MANY_SEGMENTS", 0)
    assert index_checks.check_index(index).advice.endswith(f"kalm-cache fold --index {index}")


def test_without_an_index_the_machine_alone_is_checked(run: Run) -> None:
    checks = diagnosis(run)
    assert set(CHECKS) - set(checks) == {"disk", "index", "records", "page cache", "speed"}
    assert checks["model"]["found"].endswith("passages made by '{title} {text}'")


def test_people_get_a_table(run: Run, index: Path) -> None:
    result = run("doctor", "--index", index)
    assert result.exit_code == 0
    assert "records" in result.stdout
    assert "4 of 4 read" in result.stdout


def test_a_folder_without_an_index_is_one_failure_that_says_what_to_run(run: Run, tmp_path: Path) -> None:
    checks = diagnosis(run, "--index", tmp_path / "none", exit_code=1)
    assert [name for name, check in checks.items() if check["status"] == "fail"] == ["index"]
    assert "kalm-cache index" in checks["index"]["found"]


def test_a_damaged_record_is_found_and_the_way_out_named(run: Run, index: Path) -> None:
    (file,) = index.rglob(STATES_FILE)
    content = bytearray(file.read_bytes())
    with SegmentSet(open_current(index)) as store, store.snapshot() as records:
        (bees,) = records.records(["bees"])
        assert isinstance(bees, Record)
        content[content.index(bytes(bees.payload))] ^= 1
    file.write_bytes(content)
    checks = diagnosis(run, "--index", index, exit_code=1)
    assert checks["records"]["status"] == "fail"
    assert "kalm-cache verify --repair" in checks["records"]["advice"]


def test_a_file_that_was_cut_is_found_before_it_is_mapped(run: Run, index: Path) -> None:
    (file,) = index.rglob(STATES_FILE)
    os.truncate(file, file.stat().st_size // 2)
    checks = diagnosis(run, "--index", index, exit_code=1)
    assert STATES_FILE in checks["index"]["found"]


def test_a_damaged_first_stage_is_found(run: Run, index: Path) -> None:
    file = max((path for path in index.rglob("first_stage/*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert diagnosis(run, "--index", index, exit_code=1)["index"]["status"] == "fail"


def test_deleted_passages_are_no_damage(run: Run, index: Path) -> None:
    assert run("delete", "bees", "--index", index).exit_code == 0
    assert run("gc", "--index", index, "--keep", 0).exit_code == 0
    assert diagnosis(run, "--index", index)["records"]["found"].endswith("0 damaged")


def test_an_unfinished_build_is_reported(run: Run, index: Path) -> None:
    (index / "generations" / "000002.building").mkdir()
    check = diagnosis(run, "--index", index)["index"]
    assert check["status"] == "warn"
    assert "000002.building" in check["advice"]


def test_an_index_of_another_model_fails_and_names_both_ways_out(
    run: Run, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KALM_CACHE_MODEL", "tiny")
    check = diagnosis(run, "--index", index, exit_code=1)["model"]
    assert open_current(index).manifest.fingerprint.model[:12] in check["advice"]
    assert "reindex" in check["advice"]


def test_a_model_that_is_not_there_fails(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KALM_CACHE_MODEL", str(tmp_path))
    assert "config.json" in diagnosis(run, exit_code=1)["model"]["found"]


def test_an_unknown_variable_is_warned_of_with_the_nearest_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KALM_CACHE_CODEK", "int8")
    monkeypatch.setenv("KALM_CACHE_KERNELS", "auto")
    check = diagnosis(run)["settings"]
    assert (check["status"], check["found"]) == ("warn", "1 unknown variables")
    assert "KALM_CACHE_CODEK (did you mean KALM_CACHE_CODEC?)" in check["advice"]


def test_a_wrong_value_is_a_failure_among_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KALM_CACHE_CHUNK_SIZE", "many")
    checks = diagnosis(run, exit_code=1)
    assert "chunk_size from KALM_CACHE_CHUNK_SIZE" in checks["settings"]["advice"]
    assert checks["model"]["status"] == "ok"


def test_a_public_address_without_keys_is_warned_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert diagnosis(run)["access"]["status"] == "ok"
    monkeypatch.setenv("KALM_CACHE_HOST", "0.0.0.0")
    assert diagnosis(run)["access"]["status"] == "warn"
    monkeypatch.setenv("KALM_CACHE_API_KEYS", "a-secret")
    result = run("doctor", "--json")
    assert "a-secret" not in result.output
    assert '"binds 0.0.0.0, asks for a key"' in result.output


@pytest.fixture
def answering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Something that answers every GET with `request.param`, on the port that `serve` would bind."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(request.param)

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("KALM_CACHE_PORT", str(server.server_port))
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


HEALTH = b'{"status": "ok", "index_version": "000007", "model": "tiny", "passages": 2067}'


@pytest.mark.parametrize("answering", [HEALTH], indirect=True)
def test_a_port_on_which_kalm_cache_answers_is_no_failure(run: Run, answering: None) -> None:
    assert diagnosis(run)["port"]["found"].endswith("by kalm-cache: model tiny, generation 000007, 2,067 passages")


@pytest.mark.parametrize("answering", [b"<html>", b"[]", b"{}"], indirect=True)
def test_a_port_on_which_something_else_answers_fails(run: Run, answering: None) -> None:
    assert "not by kalm-cache" in diagnosis(run, exit_code=1)["port"]["found"]


def test_a_port_on_which_nobody_answers_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("KALM_CACHE_PORT", str(silent.getsockname()[1]))
        assert diagnosis(run, exit_code=1)["port"]["status"] == "fail"


def test_an_address_of_another_machine_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KALM_CACHE_HOST", "192.0.2.1")  # for documentation: nobody's
    monkeypatch.setenv("KALM_CACHE_PORT", "8080")
    assert "not this machine's" in diagnosis(run, exit_code=1)["port"]["advice"]


@pytest.fixture
def forgotten_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels are looked for again, and afterwards once more; native ones, whatever the run is under."""
    monkeypatch.delenv("KALM_CACHE_KERNELS", raising=False)
    compiled_library.cache_clear()
    yield
    compiled_library.cache_clear()


@pytest.mark.usefixtures("forgotten_library")
def test_a_cache_folder_that_cannot_be_written_is_warned_of(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # not even root can make a folder in it
    check = diagnosis(run)["kernels"]
    assert check["status"] == "warn"
    assert "XDG_CACHE_HOME" in check["advice"]


@pytest.mark.usefixtures("forgotten_library")
def test_a_missing_compiler_is_warned_of(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "no C++ compiler" in diagnosis(run)["kernels"]["advice"]


def test_kernels_that_are_no_choice_fail(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KALM_CACHE_KERNELS", "fast")
    assert diagnosis(run, exit_code=1)["kernels"]["status"] == "fail"


def test_threads_beyond_the_cores_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 2.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert "OMP_NUM_THREADS=2" in machine.check_threads(1).advice
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert machine.check_threads(4).advice == "8 threads share 2 cores and wait for each other: set --workers 2"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert machine.check_threads(1).status == "ok"


def test_a_quota_of_the_control_group_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert machine.usable_cores() == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cores() == 8.0


def test_openmp_runtimes_of_two_kinds_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.openmp_runtimes()  # torch has loaded one
    monkeypatch.setattr(machine, "openmp_runtimes", lambda: [Path("/a/lib/libgomp.so.1"), Path("/b/lib/libiomp5.so")])
    assert machine.check_openmp().status == "warn"
    monkeypatch.setattr(machine, "openmp_runtimes", lambda: [Path("/a/lib/libgomp.so.1"), Path("/b/libgomp-e9.so.1")])
    assert machine.check_openmp().status == "ok"


@pytest.mark.parametrize(("kind", "status"), [("nfs4", "warn"), ("tmpfs", "warn"), ("overlay", "warn"), ("ext4", "ok")])
def test_file_systems_that_do_not_suit_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, status: str
) -> None:
    monkeypatch.setattr(index_checks, "file_system_of", lambda _: kind)
    assert index_checks.check_disk(tmp_path / "index").status == status


def test_the_kind_of_a_file_system_is_read_from_the_kernel() -> None:
    assert index_checks.file_system_of(Path("/proc/self")) == "proc"


def test_the_worst_problem_decides() -> None:
    assert Report("found").status == "ok"
    assert Report("found", warn=["w"]).status == "warn"
    assert Report("found", fail=["f"], warn=["w"]).status == "fail"
    assert Report("found", fail=["f"], warn=["w"]).advice == "f; w"
