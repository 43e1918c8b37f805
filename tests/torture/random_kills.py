"""Kills real `kalm-cache` commands at random moments, again and again, and runs each to its end at last."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.texts import long_text
from tests.torture.client import ONE_THREAD, REPOSITORY, Worker
from tests.torture.copying import copy_index
from tests.torture.killing import LOOK, difference, result_of

PASSAGES = 240
SETTINGS = ("--device", "cpu", "--dtype", "float32", "--batch-tokens", "150")
FEW_BATCHES = ("--device", "cpu", "--batch-tokens", "150")
BEFORE_WORK = 0.1  # of the kills come while the program still starts
POLL_S = 0.0005


@dataclass(frozen=True, slots=True)
class Command:
    """One command line; `ends_with`: the exit codes of a run that did it, or found it done by one that was killed."""

    arguments: tuple[str, ...]
    ends_with: tuple[int, ...] = (0,)

    @property
    def name(self) -> str:
        """`index`, `add`, …"""
        return self.arguments[0]


@dataclass(slots=True)
class KillTally:
    """Counts of killed commands."""

    kills: int = 0
    runs: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def commands(folder: Path, models: Path, seed: int) -> Iterator[Command]:
    """An endless life of an index, with corpora written to `folder`."""
    pick = random.Random(seed)
    texts = {f"p{i:03}": long_text(5 + 7 * i % 40, seed=i) for i in range(PASSAGES)}
    named = ("--model", str(models / "model"), "--embedder", str(models / "embedder"))
    for turn in range(1000):
        changed = pick.sample(sorted(texts), PASSAGES // 4)
        news = {doc_id: f"{texts[doc_id]} of turn {turn}" for doc_id in changed}
        news |= {f"t{turn}n{i}": long_text(10 + i % 20, seed=1000 + 50 * turn + i) for i in range(20)}
        gone = pick.sample(sorted(texts.keys() - news.keys()), 6)
        if turn == 0:
            yield Command(("index", write_corpus(folder / "first.jsonl", texts), *named, *SETTINGS))
        yield Command(("add", write_corpus(folder / f"add{turn}.jsonl", news), *FEW_BATCHES))
        yield Command(("delete", *gone), (0, 1))  # 1: all of them are gone already
        kept = {doc_id: text for doc_id, text in (texts | news).items() if doc_id not in gone}
        texts = {doc_id: kept[doc_id] for doc_id in pick.sample(sorted(kept), PASSAGES)}
        edited = texts | {doc_id: f"{texts[doc_id]} again" for doc_id in pick.sample(sorted(texts), PASSAGES // 4)}
        if turn % 2:
            yield Command(("fold", "--all"))
            yield Command(("gc", "--keep", "1"))
        yield Command(("reindex", write_corpus(folder / f"reindex{turn}.jsonl", edited), *FEW_BATCHES))
        texts = edited
        if turn % 2 == 0:
            yield Command(("gc", "--keep", "0"))


def kill_at_random(worker: Worker, folder: Path, models: Path, kills: int, seed: int, tally: KillTally) -> None:
    """So many kills of one index's commands, in a folder of their own."""
    pick, index = random.Random(seed), folder / "index"
    index.mkdir()
    left = kills
    for ordinal, command in enumerate(commands(folder, models, seed)):
        if left <= 0:
            return
        before = result_of(worker.run(LOOK, index=index))["content"]
        after, working_s = _whole_run(worker, folder, index, command, tally)
        for _ in range(min(left, 8)):
            killed = _kill_once(index, command, pick, working_s)
            tally.runs += 1
            if not killed:
                break  # it was done before its time had come
            left -= 1
            tally.kills += 1
            tally.commands[command.name] += 1
            where = f"seed {seed}, command {ordinal}, {command.name}, kill {kills - left}"
            found = worker.run(LOOK, index=index)
            if found.problem is not None:
                tally.problems.append(f"{where}: it does not open: {found.problem}")
                return
            if found.result["content"] not in (before, after):
                tally.problems.append(f"{where}: what was found is neither the old generation nor the new one")
            tally.problems += [f"{where}: verify finds damage: {damage}" for damage in found.result["damage"]]
        _finish(worker, index, command, after, f"seed {seed}, command {ordinal}, {command.name}", tally)


def _whole_run(worker: Worker, folder: Path, index: Path, command: Command, tally: KillTally) -> tuple[Any, float]:
    """What a copy of the index holds after the command, and how long it worked there."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy_index(index, copy)
    process = _start(copy, command)
    _wait_for_work(process, copy)
    started = time.monotonic()
    said = process.communicate()[1].decode(errors="replace")
    working_s = time.monotonic() - started
    tally.runs += 1
    if process.returncode not in command.ends_with:
        raise RuntimeError(f"{command.arguments} exits with {process.returncode}: {said}")
    return result_of(worker.run(LOOK, index=copy))["content"], working_s


def _finish(worker: Worker, index: Path, command: Command, after: Any, where: str, tally: KillTally) -> None:
    process = _start(index, command)
    said = process.communicate()[1].decode(errors="replace")
    tally.runs += 1
    if process.returncode not in command.ends_with:
        tally.problems.append(f"{where}: it does not resume: exit code {process.returncode}: {said[-500:]}")
    final = result_of(worker.run(LOOK, index=index))
    tally.problems += [f"{where}: verify finds damage at the end: {damage}" for damage in final["damage"]]
    if final["content"] != after:
        tally.problems.append(f"{where}: the result differs: {difference(final['content'], after)}")


def _kill_once(index: Path, command: Command, pick: random.Random, working_s: float) -> bool:
    """Start the command and kill it, mostly while it works on the index; whether it died of that."""
    process = _start(index, command)
    if pick.random() < BEFORE_WORK:
        time.sleep(pick.uniform(0, 2.0))
    else:
        _wait_for_work(process, index)
        time.sleep(pick.uniform(0, working_s))
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def _start(index: Path, command: Command) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-c", "from kalm_cache.cli import main; main()"]
    name, *rest = command.arguments
    return subprocess.Popen(
        [*program, name, *rest, "--index", str(index)],
        cwd=REPOSITORY,
        env=os.environ | ONE_THREAD,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _wait_for_work(process: subprocess.Popen[bytes], index: Path) -> None:
    """Until the process holds the lock of the index, or has ended."""
    lock = index / "LOCK"
    while process.poll() is None:
        if lock.exists() and f":{lock.stat().st_ino} " in Path("/proc/locks").read_text():
            return
        time.sleep(POLL_S)


def write_corpus(path: Path, texts: dict[str, str]) -> str:
    """Write a corpus, and return its name."""
    path.write_text("".join(json.dumps({"id": doc_id, "text": text}) + "\n" for doc_id, text in texts.items()))
    return str(path)
