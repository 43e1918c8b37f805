"""`kalm-cache` as a process: its streams, its signals, its exit codes, its one line where something is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from kalm_cache.cli.app import app

PROGRAM = (sys.executable, "-c", "from kalm_cache.cli import main; main()")
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
ASCII = {"PYTHONIOENCODING": "ascii"}


@pytest.fixture(scope="module")
def environment(mini_folder: Path) -> dict[str, str]:
    ours = {"KALM_CACHE_MODEL": str(mini_folder), "KALM_CACHE_DEVICE": "cpu", "KALM_CACHE_DTYPE": "float32"}
    return os.environ | {"OMP_NUM_THREADS": "1", **ours}


def shell(command: str, environment: dict[str, str], **more: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which `kc` is kalm-cache."""
    kc = f"kc() {{ '{PROGRAM[0]}' -c '{PROGRAM[2]}' \"$@\"; }}; "
    return subprocess.run(["bash", "-c", kc + command], env=environment | more, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        (">/dev/full", b"error: standard output: no space left on device\n"),
        (">&-", b"error: standard output: bad file descriptor\n"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_line_and_exit_code_1(
    redirection: str, said: bytes, environment: dict[str, str], built: Path
) -> None:
    for command in ("--version", f"stats --index {built}", "config show --json"):
        done = shell(f"kc {command} {redirection}", environment)
        assert (done.returncode, done.stderr) == (1, said), command


def test_an_output_that_nobody_reads_ends_in_silence(environment: dict[str, str], built: Path) -> None:
    done = shell(f"kc stats --index {built} | true; exit ${{PIPESTATUS[0]}}", environment)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_logs_that_cannot_be_written_stop_nothing(redirection: str, environment: dict[str, str], built: Path) -> None:
    done = shell(f"kc stats --index {built} --json {redirection}", environment, KALM_CACHE_QQQ="logged")
    assert done.returncode == 0
    assert json.loads(done.stdout)["passages"] == 4


def test_an_ascii_output_gets_every_answer(environment: dict[str, str], built: Path) -> None:
    table = shell(f"kc search 'Où sont les abeilles?' --index {built}", environment, **ASCII)
    assert (table.returncode, table.stderr) == (0, b"")
    assert "Où".encode("ascii", "backslashreplace") in table.stdout
    settings = shell("kc config show --json", environment, KALM_CACHE_INSTRUCTION="Où?", **ASCII)
    assert json.loads(settings.stdout)["instruction"] == "Où?"


@pytest.mark.parametrize(
    "arguments", [r"search $'caf\xe9'", r"rerank --query $'caf\xe9' --document x", r"delete $'\xe9'"]
)
def test_an_argument_that_is_no_utf8_is_named(arguments: str, environment: dict[str, str], built: Path) -> None:
    done = shell(f"kc {arguments} --index {built}", environment)
    assert done.returncode == 2
    assert re.fullmatch(
        rb"error: (query|ids) is not valid UTF-8: byte 0xe9 at character \d, '.*\\udce9'\n", done.stderr
    )


def test_a_corpus_may_be_called_anything_and_an_index_is_called_in_utf8(
    environment: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "c.jsonl").write_bytes(corpus.read_bytes())
    at = f"{tmp_path}/$'caf\\xe9'"
    done = shell(f"kc index {at}/c.jsonl --dry-run --index {tmp_path}/index", environment)
    assert (done.returncode, done.stdout[:10]) == (0, b"4 passages")
    done = shell(f"kc stats --index {at}/index", environment)
    assert (done.returncode, done.stderr.startswith(b"error: index is not valid UTF-8: byte 0xe9")) == (2, True)


def test_a_closed_input_is_said_to_be_one(environment: dict[str, str]) -> None:
    done = shell("kc client --json-file - <&-", environment)
    assert done.returncode == 2
    assert re.fullmatch(rb"error: --json-file -: cannot be read as JSON: .*Bad file descriptor\n", done.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does_on_an_ascii_output(command: str) -> None:
    done = shell(f"kc {command} --help", dict(os.environ), **ASCII)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


def test_no_folder_for_temporary_files_is_said_with_advice(
    environment: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    program = PROGRAM[2].replace(
        "main()", "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/nowhere']; main()"
    )
    command = [sys.executable, "-c", program, "index", str(corpus), "--index", str(tmp_path / "i"), "--dry-run"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120, text=True)
    assert done.returncode == 1
    assert "No usable temporary directory" in done.stderr and "set TMPDIR to a folder" in done.stderr


def test_a_working_directory_that_is_gone_is_said_to_be(environment: dict[str, str], tmp_path: Path) -> None:
    done = shell(f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir ../gone; kc doctor", environment)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: the working directory is gone")


AT_TORCH = """
import os, signal, sys
class Sends:
    def find_spec(self, name, *_):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Sends())
from kalm_cache.cli import main; main()
"""


@pytest.mark.parametrize("command", ["serve --port 0", "gc", "index"])
def test_sigterm_while_a_command_loads_ends_it_with_143(
    command: str, environment: dict[str, str], built: Path, corpus: Path
) -> None:
    arguments = [*command.split(), *([str(corpus)] if command == "index" else []), "--index", str(built)]
    program = [sys.executable, "-c", AT_TORCH, *arguments]
    done = subprocess.run(program, env=environment, capture_output=True, timeout=120, text=True)
    goes_on = "; what is stored is kept: run the same command to go on" if command == "index" else ""
    assert (done.returncode, done.stderr, done.stdout) == (143, f"stopped by SIGTERM{goes_on}\n", "")
