"""What a command does not import: each of these takes longer than the command's own work, or as long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TO_COMPUTE = {"torch", "faiss", "Stemmer"}
NEVER = {"transformers", "model2vec", "huggingface_hub", "sentence_transformers", "scipy", "pyarrow", "obstore"}
SERVERS = {"fastapi", "uvicorn", "httpx"}
AT_EXIT = """
import atexit, sys
from kalm_cache.cli import entry

def run(run=entry._run_app):  # the process's own end is registered by then
    atexit.register(lambda: print(*(name for name in sys.modules if "." not in name)))
    run()

entry._run_app = run
entry.main()
"""


def imported(*arguments: object, environment: dict[str, str]) -> tuple[int, set[str]]:
    """Exit code of `kalm-cache ARGUMENTS`, and the packages that it had imported at its end."""
    command = [sys.executable, "-c", AT_EXIT, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)
    return done.returncode, set(done.stdout.splitlines()[-1].split())


@pytest.fixture
def environment(mini_folder: Path) -> dict[str, str]:
    ours = {"KALM_CACHE_MODEL": str(mini_folder), "KALM_CACHE_DEVICE": "cpu", "KALM_CACHE_DTYPE": "float32"}
    return {"OMP_NUM_THREADS": "1", **ours}


@pytest.mark.parametrize("arguments", ["--help", "config show", "index --help", "stats --index {}", "verify --help"])
def test_a_command_that_computes_nothing_imports_nothing_to_compute_with(
    arguments: str, environment: dict[str, str], built: Path
) -> None:
    code, names = imported(*arguments.format(built).split(), environment=environment)
    assert (code, "typer" in names) == (0, True)
    assert names & (TO_COMPUTE | NEVER | SERVERS) == set()


@pytest.mark.parametrize(
    "arguments",
    [("search", "Who carries pollen?"), ("rerank", "--query", "Who carries pollen?", "--ids", "bees,ferry")],
)
def test_asking_an_index_imports_no_other_runtime_and_no_server(
    arguments: tuple[str, ...], environment: dict[str, str], built: Path
) -> None:
    code, names = imported(*arguments, "--index", built, environment=environment)
    assert (code, "torch" in names) == (0, True)
    assert names & (NEVER | SERVERS) == set()


def test_a_process_ends_with_its_code_after_what_others_do_at_its_exit(environment: dict[str, str]) -> None:
    code, names = imported("stats", "--index", "/nowhere", environment=environment)
    assert (code, "typer" in names) == (1, True)


def test_a_bug_keeps_its_traceback_and_is_exit_code_1() -> None:
    program = "from kalm_cache.cli import entry; entry._run_app = lambda: 1 / 0; entry.main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "Traceback (most recent call last):")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
