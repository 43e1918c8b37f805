"""Lets the system refuse what an operation asks for: full disks, failing ones, no permission, no locks, odd clocks."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.torture.client import Outcome, Worker
from tests.torture.copying import copy_index
from tests.torture.killing import ACT, LOOK, RECOVER, Tally, Undisturbed, problems_of, result_of, unnumbered
from tests.torture.shim import Call, Fault, Mode

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
JUMPS = (86_400, 40 * 365 * 86_400)  # seconds to and fro at every look: a day, and behind the beginning of time


def refusals(calls: Sequence[Call]) -> Iterator[Fault]:
    """Every error from every call on; a disk that is full in the middle of a write; an error that passes."""
    for nth, call in enumerate(calls, start=1):
        for error in ERRORS:
            yield Fault(Mode.FAIL, nth, error)
        if call.kind == "write":
            yield Fault(Mode.SHORT, nth, errno.ENOSPC)
        yield Fault(Mode.FAIL_ONCE, nth, errno.EIO)


def refuse(worker: Worker, folder: Path, valid: Undisturbed, fault: Fault, tally: Tally) -> None:
    """Refuse at one point: a clear error or none, and nothing is lost."""
    index = copy_index(valid.start, folder / "index")
    refused = worker.run(ACT, name=valid.name, index=index, fault=fault, watched=index)
    tally.points += 1
    call = valid.calls[fault.nth - 1]
    where = f"{valid.name}, {fault}, {call.name} {call.path}"
    if refused.problem is None:
        tally.kinds["finished all the same"] += 1
        found = result_of(worker.run(LOOK, index=index))
        if found["content"] != valid.after["content"] or found["damage"]:
            tally.problems.append(f"{where}: it said that it finished, and found is something else: {found['damage']}")
    else:
        tally.kinds[errno.errorcode[fault.error]] += 1
        tally.problems += [f"{where}: {problem}" for problem in unclear(refused, index)]
    recovered = worker.run(RECOVER, name=valid.name, index=index)
    tally.problems += [f"{where}: {problem}" for problem in problems_of(valid, recovered, unnumbered)]


def unclear(refused: Outcome, index: Path) -> Iterator[str]:
    """What is wrong with how an operation said that it was refused: it names a file, and the command line exits with 1.

    The command line turns `KalmCacheError` and `OSError` into one line and exit code 1.
    """
    if refused.signal:
        yield f"it was killed by signal {refused.signal}"
        return
    assert refused.error is not None
    if not (refused.error["on_purpose"] or refused.error["is_os_error"]):
        yield f"{refused.error['type']} is no error that the command line knows: {refused.error.get('traceback')}"
    if str(index) not in refused.error["message"]:
        yield f"its message names no file: {refused.error['type']}: {refused.error['message']}"


def refuse_locks(worker: Worker, folder: Path, valid: Undisturbed, error: int, tally: Tally) -> None:
    """On a file system without locks the operation is refused, and nothing is changed."""
    index = copy_index(valid.start, folder / "index")
    refused = worker.run(ACT, name=valid.name, index=index, fault=Fault(locks=error), watched=index)
    tally.points += 1
    where = f"{valid.name}, locks fail with {errno.errorcode[error]}"
    if refused.problem is None:
        tally.problems.append(f"{where}: it went on")
    else:
        tally.problems += [f"{where}: {problem}" for problem in unclear(refused, index)]
    if result_of(worker.run(LOOK, index=index)) != valid.before:
        tally.problems.append(f"{where}: and something was changed")


def jump_clock(worker: Worker, folder: Path, valid: Undisturbed, seconds: int, tally: Tally) -> None:
    """A wall clock that jumps changes nothing."""
    index = copy_index(valid.start, folder / "index")
    outcome = worker.run(ACT, name=valid.name, index=index, fault=Fault(clock=seconds), watched=index)
    tally.points += 1
    if outcome.problem is not None or result_of(worker.run(LOOK, index=index)) != valid.after:
        tally.problems.append(f"{valid.name}, the clock jumps by {seconds} s: {outcome.problem or 'another result'}")


def race(first: Worker, second: Worker, folder: Path, valid: Undisturbed, tally: Tally) -> None:
    """The same operation twice at the same moment: at least one does it, and one that does not is refused clearly."""
    from concurrent.futures import ThreadPoolExecutor

    index = copy_index(valid.start, folder / "index")
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda worker: worker.run(ACT, name=valid.name, index=index), (first, second)))
    tally.points += 1
    refused = [outcome for outcome in both if outcome.problem is not None]
    tally.kinds["refused" if refused else "one after the other"] += 1
    odd = [one.problem for one in refused if one.error is None or one.error["type"] != "IndexLockedError"]
    if len(refused) == 2 or odd:
        tally.problems.append(f"{valid.name}, two at once: {[outcome.problem for outcome in both]}")
    found = result_of(first.run(LOOK, index=index))
    if found["damage"] or (refused and found["content"] != valid.after["content"]):
        tally.problems.append(f"{valid.name}, two at once: {found['damage'] or 'another result'}")
