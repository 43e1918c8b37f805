"""`kalm-cache serve` in a process of its own: started, looked at from outside, stopped."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 300
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Running:
    """A service that answers at `host:port`; `log` is where its standard error goes."""

    process: subprocess.Popen[bytes]
    host: str
    port: int
    log: Path

    @property
    def rss_mib(self) -> float:
        """Resident memory of the process and its workers; what workers share counts once for each."""
        return sum(one.memory_info().rss for one in self._all()) / MIB

    @property
    def descriptors(self) -> int:
        """Open files and sockets of the process and its workers."""
        return sum(one.num_fds() for one in self._all())

    @property
    def cpu_s(self) -> float:
        """Processor time of the process and its workers so far."""
        return sum(one.cpu_times().user + one.cpu_times().system for one in self._all())

    def _all(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]


@contextlib.contextmanager
def serving(index: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """The real service over an index, until the end of the block; then it must end with 0."""
    command = [sys.executable, "-c", "from kalm_cache.cli import main; main()", "serve", "--index", str(index)]
    with running([*command, "--port", "0", *options], environment) as service:
        yield service


@contextlib.contextmanager
def running(command: list[str], environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """A server whose standard error names its address, until the end of the block; then it must end with 0."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=sink, env={**os.environ, **(environment or {})}
            )
        try:
            yield Running(process, *_address(process, log), log)
        finally:
            process.terminate()
            code = process.wait()
        if code != 0:
            raise RuntimeError(f"the service ended with {code}: {log.read_text('utf-8')[-2000:]}")


def _address(process: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if found := re.search(r"http://([\d.]+):(\d+)", log.read_text("utf-8")):
            return found[1], int(found[2])
        time.sleep(0.01)
    process.kill()
    raise RuntimeError(f"the service named no address: {log.read_text('utf-8')[-2000:]}")
