"""Kills an operation at every call that changes a file, and says whether anything was lost."""

from __future__ import annotations

import itertools
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from indexer.build.overlap import WAITING
from tests.torture.client import Outcome, Worker
from tests.torture.copying import copy_index
from tests.torture.powercut import Disk, Replay, restore
from tests.torture.scenarios import find
from tests.torture.shim import Call, Fault, Mode

IN_FLIGHT = 1 + WAITING  # batches that a build with one encoder may have begun and not stored

ACT, PREPARE = "tests.torture.scenarios:act", "tests.torture.scenarios:prepare"
BEGIN, LOOK, RECOVER = (
    "tests.torture.scenarios:begin",
    "tests.torture.scenarios:look",
    "tests.torture.scenarios:recover",
)


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A scenario run in one go: what the index held before and after, what was encoded, and every call.

    `allowed`: what it may hold in between, too: what the operation that was killed before would have made.
    """

    name: str
    start: Path
    shadow: Path
    before: dict[str, Any]
    allowed: list[Any]
    after: dict[str, Any]
    encoded: list[list[int]]
    calls: list[Call]


@dataclass(frozen=True, slots=True)
class Cut:
    """A power cut after the nth call, and what it leaves on a disk; see powercut.py."""

    nth: int
    disk: Disk
    left: dict[str, object]


@dataclass(slots=True)
class Tally:
    """Counts of a sweep; `problems` says what went wrong, a line each, and should be empty."""

    points: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    encoded_twice: int = 0
    problems: list[str] = field(default_factory=list)


def undisturbed(worker: Worker, name: str, folder: Path) -> Undisturbed:
    """Run a scenario below `folder`; its start is kept there for copies that are disturbed, and what it synced."""
    start, index, shadow = (folder / name / part for part in ("start", "index", "shadow"))
    for made in (start, shadow):
        made.mkdir(parents=True)
    result_of(worker.run(PREPARE, name=name, index=start))
    allowed = [_kill_first(worker, name, start)] if find(name).killed is not None else []
    before = result_of(worker.run(LOOK, index=start))
    copy_index(start, index)
    outcome = worker.run(ACT, name=name, index=index, fault=Fault(Mode.COUNT), watched=index, shadow=shadow)
    result_of(outcome)
    after = result_of(worker.run(LOOK, index=index))
    assert not after["damage"], after["damage"]
    return Undisturbed(name, start, shadow, before, allowed, after, outcome.encoded, outcome.calls)


def _kill_first(worker: Worker, name: str, start: Path) -> Any:
    """Kill the operation that comes first; returns what the index would hold if it had not been killed."""
    trial = copy_index(start, start.with_name("trial"))
    calls = worker.run(BEGIN, name=name, index=trial, fault=Fault(Mode.COUNT), watched=trial).calls
    fault = Fault(Mode.KILL_BEFORE, round(find(name).killed_at * len(calls)))
    killed = worker.run(BEGIN, name=name, index=start, fault=fault, watched=start)
    assert killed.signal == signal.SIGKILL, killed.problem
    return result_of(worker.run(LOOK, index=trial))["content"]


def kill_points(calls: Sequence[Call]) -> Iterator[Fault]:
    """Before every call, in the middle of every write, and after the last call."""
    for nth, call in enumerate(calls, start=1):
        yield Fault(Mode.KILL_BEFORE, nth)
        if call.kind == "write":
            yield Fault(Mode.TORN, nth)
    yield Fault(Mode.KILL_AFTER, len(calls))


def power_cuts(valid: Undisturbed) -> Iterator[Cut]:
    """Every state that a power cut can leave on either disk."""
    for disk in get_args(Disk):
        for nth, left in Replay(valid.start, valid.shadow).states(valid.calls, disk):
            yield Cut(nth, disk, left)


def kill(worker: Worker, folder: Path, valid: Undisturbed, fault: Fault, tally: Tally) -> None:
    """Kill a copy of the scenario at one point, and check what is found there and what becomes of it."""
    index = copy_index(valid.start, folder / "index")
    killed = worker.run(ACT, name=valid.name, index=index, fault=fault, watched=index)
    call = valid.calls[fault.nth - 1]
    tally.points += 1
    tally.kinds[call.kind] += 1
    where = f"{valid.name}, {fault}, {call.name} {call.path}"
    if killed.signal != signal.SIGKILL:
        tally.problems.append(f"{where}: was not killed there: {killed.problem}")
        return
    recovered = worker.run(RECOVER, name=valid.name, index=index)
    view = unnumbered if find(valid.name).renumbers else as_it_is
    tally.problems += [f"{where}: {problem}" for problem in problems_of(valid, recovered, view)]
    twice = encoded_twice(killed, recovered)
    tally.encoded_twice += sum(twice.values())
    last = Counter(itertools.chain(*killed.encoded[-IN_FLIGHT:]))
    if twice - last:
        spent = sum((twice - last).values())
        tally.problems.append(
            f"{where}: {spent} passages were encoded twice that were not in the last {IN_FLIGHT} batches"
        )


def cut_power(worker: Worker, folder: Path, valid: Undisturbed, cut: Cut, tally: Tally) -> None:
    """Put down what a power cut leaves of the scenario, and check what is found there and what becomes of it."""
    index = folder / "index"
    restore(cut.left, index)
    tally.points += 1
    recovered = worker.run(RECOVER, name=valid.name, index=index)
    call = valid.calls[cut.nth - 1]
    where = f"{valid.name}, {cut.disk} disk cut after call {cut.nth}, {call.name} {call.path}"
    tally.problems += [f"{where}: {problem}" for problem in problems_of(valid, recovered, unnumbered)]


def as_it_is(content: Any) -> Any:
    """Contents are compared to the last byte."""
    return content


def problems_of(valid: Undisturbed, recovered: Outcome, view: Callable[[Any], Any] = as_it_is) -> Iterator[str]:
    """Everything that is not as it should be when the operation was disturbed and has been run again.

    `view`: what of the contents is compared.
    """
    if recovered.problem is not None:
        yield f"it does not recover: {recovered.problem}"
        return
    found, final = recovered.result["found"], recovered.result["final"]
    expected = [view(one) for one in (valid.before["content"], valid.after["content"], *valid.allowed)]
    if view(found["content"]) not in expected:
        yield "what was found is neither the old generation nor the new one"
    yield from (f"verify finds damage: {damage}" for damage in [*_new_damage(valid, found), *final["damage"]])
    if view(final["content"]) != expected[1]:
        yield f"the result differs from the undisturbed one: {difference(final['content'], valid.after['content'])}"
    yield from (f"{stray} is left behind" for stray in sorted(set(final["strays"]) - set(valid.after["strays"])))


def _new_damage(valid: Undisturbed, found: dict[str, Any]) -> list[str]:
    if found["content"] is None:
        return []  # verify may miss `CURRENT` where the first generation is there and not live yet
    return [damage for damage in found["damage"] if damage not in valid.before["damage"]]


def unnumbered(content: Any) -> Any:
    """A content without the numbers of its passages: of those that a cut made the disk forget, none is given again."""
    if content is None:
        return None
    doc_ids = {ordinal: doc_id for doc_id, (ordinal, *_) in content["passages"].items()}
    lists = [
        {mode: [(doc_ids[ordinal], score) for ordinal, score in found] for mode, found in one.items()}
        for one in content["first_stage"]
    ]
    passages = {doc_id: rest for doc_id, (_, *rest) in content["passages"].items()}
    return content | {"passages": passages, "first_stage": lists}


def encoded_twice(killed: Outcome, recovered: Outcome) -> Counter[int]:
    """Passages that both runs encoded."""
    first, second = (Counter(itertools.chain(*outcome.encoded)) for outcome in (killed, recovered))
    return first & second


def difference(found: Any, expected: Any) -> str:
    """Where two contents differ, in a few words."""
    if found is None or expected is None:
        return f"{'nothing' if found is None else 'something'} is published"
    for name in expected:
        if found[name] == expected[name]:
            continue
        if name != "passages":
            return name
        doc_ids = sorted(found[name].keys() | expected[name].keys())
        odd = [doc_id for doc_id in doc_ids if found[name].get(doc_id) != expected[name].get(doc_id)]
        pair = [found[name].get(odd[0]), expected[name].get(odd[0])]
        return f"{len(odd)} passages, such as {odd[:3]}, the first of them {pair}"
    return "nothing"


def result_of(outcome: Outcome) -> Any:
    """What a step returned; raises when it did not."""
    if outcome.problem is not None:
        raise RuntimeError(f"{outcome.problem}\n{(outcome.error or {}).get('traceback', '')}")
    return outcome.result
