"""Real `kalm-cache` commands on a disk that refuses: one line on stderr names a file, exit code 1, nothing is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

from tests.torture.client import ONE_THREAD, REPOSITORY, Worker
from tests.torture.copying import copy_index
from tests.torture.killing import LOOK, Tally, result_of
from tests.torture.operations import BASE, NEW
from tests.torture.pool import Pool
from tests.torture.random_kills import write_corpus
from tests.torture.shim import Fault, Mode, preloaded

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)
CALLS = (2, 40, 120)  # the first is refused before there is anything


def refuse_commands(pool: Pool, tally: Tally) -> None:
    """`index` and `add` under every error, from several calls on."""
    models = pool.folder / "models"
    named = ["--model", str(models / "model"), "--embedder", str(models / "embedder"), "--device", "cpu"]
    corpus, more = (
        write_corpus(pool.folder / f"{name}.jsonl", texts) for name, texts in (("base", BASE), ("new", NEW))
    )
    index = pool.folder / "commanded"
    _run(["index", corpus, *named], index, {})
    valid = result_of(pool.workers[0].run(LOOK, index=index))
    points = [
        (arguments, error, nth)
        for arguments in (["index", corpus, *named], ["add", more])
        for error in ERRORS
        for nth in CALLS
    ]

    def check(worker: Worker, folder: Path, point: tuple[list[str], int, int]) -> None:
        arguments, error, nth = point
        victim = folder / "index"
        copy_index(index, victim)
        fault = Fault(Mode.FAIL, nth, error)
        said = _run(arguments, victim, preloaded() | fault.at_start(victim))
        tally.points += 1
        where = f"kalm-cache {arguments[0]}, {fault}"
        if said.returncode != 1 or f"error: {victim}" not in said.stderr:  # FAISS may have said something before
            tally.problems.append(f"{where}: exit code {said.returncode}: {said.stderr[-500:]}")
        if result_of(worker.run(LOOK, index=victim))["content"] != valid["content"]:
            tally.problems.append(f"{where}: the index is another one")

    pool.each(points, check)


def _run(arguments: list[str], index: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from kalm_cache.cli import main; main()", *arguments, "--index", str(index)],
        cwd=REPOSITORY,
        env=os.environ | ONE_THREAD | environment,
        capture_output=True,
        text=True,
        check=False,
    )
