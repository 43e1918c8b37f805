"""The harness itself: calls are counted, torn, refused where they should be, and power cuts keep what was synced."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from tests.torture.pool import Pool
from tests.torture.powercut import Replay
from tests.torture.shim import Fault, Mode

STEP = "tests.torture.steps:write_and_rename"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "watched"
    made.mkdir()
    return made


def test_every_call_that_changes_a_file_is_counted(pool: Pool, folder: Path):
    calls = pool.workers[0].run(STEP, folder=folder, fault=Fault(Mode.COUNT), watched=folder).calls
    assert [(call.kind, call.path, call.detail) for call in calls] == [
        ("open", "beside", "create,truncate"),
        ("write", "beside", ""),
        ("sync", "beside", ""),
        ("rename", "file", "beside"),
        ("sync", "", ""),
    ]


def test_other_folders_are_not_watched(pool: Pool, folder: Path, tmp_path: Path):
    fault = Fault(Mode.KILL_BEFORE, 1)
    assert pool.workers[0].run(STEP, folder=folder, fault=fault, watched=tmp_path / "other").problem is None


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        (Fault(Mode.KILL_BEFORE, 1), {}),
        (Fault(Mode.KILL_BEFORE, 2), {"beside": b""}),
        (Fault(Mode.TORN, 2), {"beside": b"01234"}),
        (Fault(Mode.KILL_AFTER, 2), {"beside": b"0123456789"}),
        (Fault(Mode.KILL_BEFORE, 4), {"beside": b"0123456789"}),
        (Fault(Mode.KILL_AFTER, 4), {"file": b"0123456789"}),
    ],
)
def test_a_kill_leaves_what_was_done_before_it(pool: Pool, folder: Path, fault: Fault, left: dict[str, bytes]):
    assert pool.workers[0].run(STEP, folder=folder, fault=fault, watched=folder).signal == signal.SIGKILL
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == left


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        (Fault(Mode.FAIL, 1, errno.EROFS), {}),
        (Fault(Mode.FAIL, 2, errno.ENOSPC), {"beside": b""}),
        (Fault(Mode.SHORT, 2, errno.ENOSPC), {"beside": b"01234"}),
        (Fault(Mode.FAIL_ONCE, 4, errno.EIO), {"beside": b"0123456789"}),
    ],
)
def test_a_refused_call_is_an_error_and_not_done(pool: Pool, folder: Path, fault: Fault, left: dict[str, bytes]):
    outcome = pool.workers[0].run(STEP, folder=folder, fault=fault, watched=folder)
    assert outcome.problem is not None and f"[Errno {fault.error}]" in outcome.problem
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == left


def test_the_clock_jumps_to_and_fro(pool: Pool, folder: Path):
    step = "tests.torture.steps:seconds_since_epoch"
    first, second = pool.workers[0].run(step, fault=Fault(clock=3600), watched=folder).result
    assert 7100 < abs(first - second) < 7300


def test_power_cuts_keep_what_was_synced(pool: Pool, folder: Path, tmp_path: Path):
    start, shadow = tmp_path / "start", tmp_path / "shadow"
    for made in (start, shadow):
        made.mkdir()
    fault = Fault(Mode.COUNT)
    calls = pool.workers[0].run(STEP, folder=folder, fault=fault, watched=folder, shadow=shadow).calls
    assert list(Replay(start, shadow).states(calls, "strict")) == [(1, {}), (5, {"file": str(shadow / "3")})]
    assert list(Replay(start, shadow).states(calls, "hasty")) == [
        (1, {"beside": ""}),
        (3, {"beside": str(shadow / "3")}),
        (4, {"file": str(shadow / "3")}),
    ]
    assert (shadow / "3").read_bytes() == b"0123456789"
