"""Kills what is done to a text cache at every call, cuts its power, refuses its calls, and kills one of two writers."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tests.torture import caching
from tests.torture.client import REPOSITORY, Outcome, Worker
from tests.torture.copying import copy_index
from tests.torture.killing import Cut, Tally, result_of
from tests.torture.powercut import Disk, Replay, restore
from tests.torture.shim import Call, Fault, Mode

FILL, USE, ANSWER, LOOK = (f"tests.torture.caching:{name}" for name in ("fill", "use", "answer", "look"))
STARTS = ("full", "new")
PAGE = 4096
WRITER_SECONDS = 0.6  # at most, from one kill to the next


@dataclass(frozen=True, slots=True)
class Cached:
    """A step in one go: the names that were there after each part of it, and every call."""

    name: str
    step: str
    start: Path
    shadow: Path
    states: list[set[str]]
    calls: list[Call]


def undisturbed_cache(worker: Worker, folder: Path, name: str, step: str = USE) -> Cached:
    """Run the step on a copy of a full cache, or where there is none yet; all of it is below `folder`."""
    start, cache, shadow = (folder / part for part in ("start", "cache", "shadow"))
    for made in (start, shadow):
        made.mkdir(parents=True)
    if name == "full":
        result_of(worker.run(FILL, folder=start))
    copy_index(start, cache)
    outcome = worker.run(step, folder=cache, fault=Fault(Mode.COUNT), watched=cache, shadow=shadow)
    states = [set(names) for names in result_of(outcome).get("states", [])]
    return Cached(f"{name} cache", step, start, shadow, states, outcome.calls)


def kill_cache(worker: Worker, folder: Path, valid: Cached, fault: Fault, tally: Tally) -> None:
    """Kill the step at one point, and check what is found there."""
    cache = copy_index(valid.start, folder / "cache")
    killed = worker.run(valid.step, folder=cache, fault=fault, watched=cache)
    where = _count(valid, fault, fault.nth, tally)
    if killed.signal != signal.SIGKILL:
        tally.problems.append(f"{where}: was not killed there: {killed.problem}")
    tally.problems += [f"{where}: {problem}" for problem in problems_of(worker.run(LOOK, folder=cache), valid.states)]


def cache_cuts(valid: Cached) -> Iterator[Cut]:
    """Every state that a power cut can leave on either disk."""
    for disk in get_args(Disk):
        for nth, left in Replay(valid.start, valid.shadow).states(valid.calls, disk):
            yield Cut(nth, disk, left)


def cut_cache(worker: Worker, folder: Path, valid: Cached, cut: Cut, tally: Tally) -> None:
    """Put down what a power cut leaves, and check what is found there."""
    cache = folder / "cache"
    restore(cut.left, cache)
    where = _count(valid, f"{cut.disk} disk cut", cut.nth, tally)
    tally.problems += [f"{where}: {problem}" for problem in problems_of(worker.run(LOOK, folder=cache), valid.states)]


def mixed_cuts(valid: Cached) -> Iterator[Cut]:
    """After every write, what was synced by then: of what was not, a disk that orders nothing has any pages."""
    lefts = dict(Replay(valid.start, valid.shadow).states(valid.calls, "hasty"))
    left: dict[str, object] = {}
    for nth, call in enumerate(valid.calls, start=1):
        left = lefts.get(nth, left)
        if call.kind == "write" and nth < len(valid.calls):
            yield Cut(nth, "hasty", left)


def mix_cache(worker: Worker, folder: Path, valid: Cached, cut: Cut, tally: Tally) -> None:
    """Let each page be as it was written, or as it was synced last, and check what is found there."""
    cache, draw = copy_index(valid.start, folder / "cache"), random.Random(cut.nth)
    worker.run(valid.step, folder=cache, fault=Fault(Mode.KILL_BEFORE, cut.nth + 1), watched=cache)
    for path in cache.rglob("data.mdb"):
        kept: Any = cut.left
        for part in path.relative_to(cache).parts:
            kept = kept.get(part, "") if isinstance(kept, dict) else ""
        _mix(path, Path(kept).read_bytes() if kept else b"", draw)
    where = _count(valid, "mixed pages", cut.nth, tally)
    tally.problems += [f"{where}: {problem}" for problem in problems_of(worker.run(LOOK, folder=cache), valid.states)]


def _mix(path: Path, synced: bytes, draw: random.Random) -> None:
    written = path.read_bytes()
    pages = range(0, len(written), PAGE)
    path.write_bytes(
        b"".join(
            (written if draw.random() < 0.5 else synced)[at : at + PAGE].ljust(min(PAGE, len(written) - at), b"\0")
            for at in pages
        )
    )


def refuse_cache(worker: Worker, folder: Path, valid: Cached, fault: Fault, tally: Tally) -> None:
    """Refuse at one point: answers go on, a job says clearly why not, one warning at most, and the file opens later."""
    cache = copy_index(valid.start, folder / "cache")
    refused = worker.run(valid.step, folder=cache, fault=fault, watched=cache)
    where = _count(valid, fault, fault.nth, tally)
    tally.problems += [f"{where}: {problem}" for problem in _unsaid(refused, valid)]
    looked = worker.run(LOOK, folder=cache)
    tally.problems += [f"{where}: {problem}" for problem in problems_of(looked)]


def _unsaid(refused: Outcome, valid: Cached) -> Iterator[str]:
    if refused.error is not None and valid.step != ANSWER:
        if not (refused.error["on_purpose"] or refused.error["is_os_error"]):
            yield f"{refused.problem} is no error that the command line knows"
    elif refused.problem is not None:
        yield f"answers do not go on: {refused.problem}"
    elif valid.step == ANSWER:
        said = refused.result
        if said["wrong"] or len(said["warnings"]) != bool(said["off"]):
            yield f"it found {said['wrong']} and warned {said['warnings']}"


def problems_of(looked: Outcome, states: list[set[str]] | None = None, *, shared: bool = False) -> Iterator[str]:
    """Everything that is not as it should be in a cache that was disturbed.

    `states`: what it may hold. `shared`: somebody writes to it, so that what was put may leave, and files come and go.
    """
    if looked.problem is not None:
        yield f"it does not open: {looked.problem}"
        return
    said = looked.result
    if said["off"] or not (said["kept"] or shared):
        yield f"it takes nothing more: {said['off']}"
    if said["wrong"] or said["damaged"] or said["problems"]:
        yield f"{said['wrong']} are wrong, {said['damaged']} damaged: {said['problems'][:3]}"
    if said["strays"] and not shared:
        yield f"{said['strays']} are left behind"
    if said["bytes"] > caching.LIMIT and not shared:
        yield f"it takes {said['bytes']} bytes"
    if states is not None and set(said["names"]) not in [set(), *states]:
        yield f"it holds {len(said['names'])} records, which it never did"


def _count(valid: Cached, what: object, nth: int, tally: Tally) -> str:
    call = valid.calls[nth - 1]
    tally.points += 1
    tally.kinds[call.kind] += 1
    return f"{valid.name}, {what} at call {nth}, {call.name} {call.path}"


def kill_writers(worker: Worker, folder: Path, kills: int, seed: int, tally: Tally) -> None:
    """Two processes write, read and trim at once; one of them is killed at a random moment, again and again."""
    cache, draw = folder / "cache", random.Random(seed)
    cache.mkdir()
    writers = [_writer(cache, f"{seed}-{i}") for i in range(2)]
    for kill in range(kills):
        time.sleep(draw.uniform(0.1, WRITER_SECONDS))  # how long is chance on purpose: any moment will do
        struck = draw.randrange(2)
        writers[struck].kill()
        tally.points += 1
        tally.problems += _ended(writers[struck], f"kill {kill}")
        looked = worker.run(LOOK, folder=cache, universe=True)
        tally.problems += [f"kill {kill}: {problem}" for problem in problems_of(looked, shared=True)]
        writers[struck] = _writer(cache, f"{seed}-{kill}-again")
    for writer in writers:
        writer.kill()
        tally.problems += _ended(writer, "at the end")
    tally.problems += list(problems_of(worker.run(LOOK, folder=cache, universe=True)))


def _writer(cache: Path, seed: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.torture.caching", str(cache), seed]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _ended(writer: subprocess.Popen[str], when: str) -> list[str]:
    """Nothing, unless it ended before it was killed."""
    said = writer.communicate()[0]
    return [] if writer.returncode == -signal.SIGKILL else [f"{when}: a writer had ended by itself: {said[-2000:]}"]
