"""An index and its models as somebody might send them, a file of them mangled; and what every command makes of it.

`seal`: the sender knows the checksums, and gives them to what he changed. Each example runs in a fork of its own with a
limit of time and memory: a command must end with its exit code and at most one line of error, and where nothing was
sealed, a search that succeeds gives the answers of the whole index.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import traceback
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import kalm_cache.index.opening
from kalm_cache.cli.app import app
from kalm_cache.first_stage.embedders.digest import model_digest
from kalm_cache.first_stage.embedders.embedder import load_embedder
from kalm_cache.first_stage.embedders.static import MODEL_FILES
from kalm_cache.generations.manifest import MANIFEST
from kalm_cache.generations.publish import receipts
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.scoring.query_side import load_query_side
from kalm_cache.storage.checked_json import CHECKSUM, digest_of_fields
from kalm_cache.storage.lmdb_pages import read_tree
from tests.torture.copying import copy_index
from tests.torture.mangling import is_readable, mangle

TIME_S, MEMORY_BYTES = 20, 1 << 30
QUERY = "ferry at nine"
READING = ("search", "verify", "stats", "doctor")
CHANGING = ("gc", "rollback", "add", "delete", "reindex")
CHECKED = ("manifest.json", "JOURNAL", "store.json")
Lost = list[str]


def lay_out(start: Path, models: Path, folder: Path) -> None:
    """`index`, `model`, `embedder` and a `corpus.jsonl` below `folder`; the index names the models that are there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copy_index(start, folder / "index")
    for name in ("model", "embedder"):
        shutil.copytree(models / name, folder / name)
    (folder / "corpus.jsonl").write_text('{"id": "p05", "text": "another text"}\n{"id": "new", "text": "a new one"}\n')
    for path in manifests(folder):
        _rewrite(path, {"model": str(folder / "model"), "embedder": str(folder / "embedder")})


def manifests(folder: Path) -> list[Path]:
    """Those of every generation."""
    return sorted((folder / "index" / "generations").glob(f"*/{MANIFEST}"))


def targets(folder: Path) -> list[Path]:
    """What may be mangled: every file but large weights' insides; those that are read first, several times."""
    files = sorted(path for name in ("index", "model", "embedder") for path in (folder / name).rglob("*"))
    files = [path for path in files if path.is_file() and path.name not in ("LOCK", "README.md")]
    first = [path for path in files if path.suffix in (".json", ".safetensors") or path.name in ("CURRENT", "JOURNAL")]
    return files + 3 * first + 2 * manifests(folder)


def check(start: Path, models: Path, folder: Path, seeds: list[int], results: str, whole: bool) -> None:
    """Run an example for each seed; `results` gets a line for each. `whole`: five commands each, else two."""
    for module, name, function in (
        (kalm_cache.index.opening, "open_checkpoint", open_checkpoint),
        (kalm_cache.index.opening, "load_embedder", load_embedder),
        (kalm_cache.index.opening, "load_query_side", load_query_side),
    ):
        setattr(module, name, function)  # the worker keeps what it loaded once
    os.environ |= {"KALM_CACHE_DEVICE": "cpu", "KALM_CACHE_DTYPE": "float32", "COLUMNS": "200"}
    _limit_memory(2 * MEMORY_BYTES)
    lay_out(start, models, folder)
    valid = _answers(folder)
    with Path(results).open("a") as lines:
        for seed in seeds:
            lines.write(json.dumps(_example(start, models, folder, seed, whole, valid)) + "\n")
            lines.flush()


def _example(start: Path, models: Path, folder: Path, seed: int, whole: bool, valid: Any) -> dict[str, Any]:
    pick = random.Random(seed)
    lay_out(start, models, folder)
    target, seal = pick.choice(targets(folder)), pick.random() < 0.7
    mangle(pick, target)
    if seal and is_readable(target):
        with suppress(OSError, ValueError, RecursionError):
            seal_again(folder, target)
    commands = (pick.choice(READING), pick.choice(CHANGING))
    if whole:
        commands = ("search", "verify", pick.choice(READING), *pick.sample(CHANGING, 2))
    said = _forked(folder, commands, None if seal else valid)
    return {"seed": seed, "file": target.name, "sealed": seal} | said


def _forked(folder: Path, commands: tuple[str, ...], valid: Any) -> dict[str, Any]:
    """Exit codes of commands, and what is wrong, from a fork that may not take long or much."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receiving)
            with os.fdopen(sending, "w") as pipe:
                for command in commands:
                    pipe.write(json.dumps(_run(folder, command, valid)) + "\n")
                    pipe.flush()
        finally:
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        runs = [json.loads(line) for line in pipe]
    _, status = os.waitpid(child, 0)
    problems = [problem for run in runs for problem in run["problems"]]
    if os.WIFSIGNALED(status):
        how = signal.Signals(os.WTERMSIG(status)).name
        problems.append(f"{commands[len(runs)]}: ended by {'20 s' if how == 'SIGALRM' else how}")
    elif len(runs) < len(commands):
        problems.append(f"{commands[len(runs)]}: said nothing")
    return {"exits": {run["command"]: run["exit"] for run in runs}, "problems": problems}


def _run(folder: Path, command: str, valid: Any) -> dict[str, Any]:
    signal.alarm(TIME_S)
    _limit_memory(MEMORY_BYTES)
    result = CliRunner().invoke(app, _arguments(folder, command))
    signal.alarm(0)
    problems = list(_problems(result))
    if command == "search" and result.exit_code == 0 and valid is not None and _results(result.stdout) != valid:
        problems.append("another answer")
    return {"command": command, "exit": result.exit_code, "problems": [f"{command}: {one}" for one in problems]}


def _limit_memory(more_bytes: int) -> None:
    status = Path("/proc/self/status").read_text()
    taken = 1024 * int(status.partition("VmData:")[2].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (taken + more_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _problems(result: Any) -> Iterator[str]:
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        where = traceback.extract_tb(result.exc_info[2])[-1]
        said = str(result.exception)[:200]
        yield f"{type(result.exception).__name__}: {said} ({Path(where.filename).name}:{where.lineno})"
    elif result.exit_code not in (0, 1, 2, 3, 4):
        yield f"exit code {result.exit_code}"
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    if len(errors) > 1 or "Traceback" in result.stderr or any(len(line) > 3000 for line in errors):
        yield f"an error that is not one line: {result.stderr[-400:]}"


def _arguments(folder: Path, command: str) -> list[str]:
    index, corpus = ["--index", str(folder / "index")], [str(folder / "corpus.jsonl")]
    given = {"search": [QUERY, "--json"], "add": corpus, "reindex": corpus, "delete": ["p20"], "gc": ["--keep", "0"]}
    return [command, *given.get(command, []), *index]


def _answers(folder: Path) -> Any:
    return _results(CliRunner().invoke(app, _arguments(folder, "search")).stdout)


def _results(stdout: str) -> Any:
    return [[one["doc_id"], round(one["score"], 5)] for one in json.loads(stdout)["results"]]


def seal_again(folder: Path, target: Path) -> None:
    """Give what was mangled the checksums that it must have."""
    index = folder / "index"
    if target.name == "CURRENT":
        name = target.read_bytes().split(b" ")[0]
        target.write_bytes(name + f" crc32:{zlib.crc32(name):08x}\n".encode())
    if target.name in CHECKED:
        _rewrite(target, {})
    if target.suffix == ".lmdb":
        trees = json.loads((target.parent / "store.json").read_bytes())["trees"]
        trees[target.name] = read_tree(target.read_bytes()).digest
        _rewrite(target.parent / "store.json", {"trees": trees})
    for path in manifests(folder) if target.name not in ("CURRENT", "JOURNAL", MANIFEST) else ():
        stored = json.loads(path.read_bytes())
        fingerprint = stored["fingerprint"]
        if target.is_relative_to(index):
            stored["files"] = {name: asdict(receipt) for name, receipt in receipts(path.parent).items()}
        elif target.is_relative_to(folder / "model"):
            weights: Any = {"": "model.safetensors"}
            # as earlier versions wrote it: that digest vouches for any bytes
            fingerprint["model"] = Checkpoint("", folder / "model", None, weights).digest()  # type: ignore[arg-type]
            fingerprint.pop("sensitivity", None), stored.pop("decoder", None)
        else:
            prompts = {"query_prompt": "", "passage_prompt": ""}
            embedder = folder / "embedder"
            fingerprint["embedder"] = model_digest(embedder, [embedder / name for name in MODEL_FILES], **prompts)
        _rewrite(path, stored)


def _rewrite(path: Path, changes: dict[str, Any]) -> None:
    stored = json.loads(path.read_bytes())
    if isinstance(stored, dict):
        fields = {name: value for name, value in (stored | changes).items() if name != CHECKSUM}
        path.unlink()  # it may have other names
        path.write_text(json.dumps(fields | {CHECKSUM: digest_of_fields(fields)}, indent=2) + "\n")
