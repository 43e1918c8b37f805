"""Signals, each in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

BEGIN = """
import os, signal
from kalm_cache.process.stopping import Stopped, catch_signals, exit_code_of, stop_if_asked
ME = os.getpid()
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEGIN + body], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_that_a_library_swallows_is_found_at_the_next_step(number: int, exit_code: int) -> None:
    done = run(f"""
signal.signal({number}, signal.SIG_DFL)  # whatever the tests run in
catch_signals()
try:
    os.kill(ME, {number})
except BaseException:
    pass
try:
    stop_if_asked()
except Stopped as exc:
    os._exit(exit_code_of(exc))
""")
    assert done.returncode == exit_code, done.stderr


def test_the_exit_code_names_the_signal_where_a_library_raises_an_interrupt_of_its_own() -> None:
    done = run("""
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the tests run in
catch_signals()
try:
    try:
        os.kill(ME, signal.SIGTERM)
    except Stopped:
        raise KeyboardInterrupt from None  # as Ray does while it waits
except KeyboardInterrupt as exc:
    os._exit(exit_code_of(exc))
""")
    assert done.returncode == 143, done.stderr


def test_a_second_signal_ends_the_process_at_once() -> None:
    done = run("""
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests run in
catch_signals()
try:
    os.kill(ME, signal.SIGTERM)
except Stopped:
    os.kill(ME, signal.SIGTERM)  # as `timeout` sends it once more to the group
    os.kill(ME, signal.SIGHUP)
print("went on")
""")
    assert (done.returncode, done.stdout) == (129, "")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    done = run("""
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
catch_signals()
os.kill(ME, signal.SIGHUP)
print("went on")
""")
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
