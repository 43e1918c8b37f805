"""The errors file: what is counted, kept and on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from indexer.corpus import RejectedLine
from indexer.corpus.rejects import ErrorsFile
from kalm_cache.errors import UsageError


def rejected(number: int) -> RejectedLine:
    return RejectedLine(f"c.jsonl:{number}", "no id", None, "{}")


def test_each_rejected_line_is_one_json_line(tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    with ErrorsFile(path) as errors:
        errors.add(RejectedLine("c.csv:2", "no text", "é1", "é1,\n2"))
        errors.add(rejected(3))
    assert path.read_text(encoding="utf-8") == (
        '{"location": "c.csv:2", "reason": "no text", "doc_id": "é1", "raw": "é1,\\n2"}\n'
        '{"location": "c.jsonl:3", "reason": "no id", "doc_id": null, "raw": "{}"}\n'
    )


def test_all_are_counted_and_the_first_ten_kept_with_or_without_a_file(tmp_path: Path) -> None:
    for path in (None, tmp_path / "errors.jsonl"):
        with ErrorsFile(path) as errors:
            for number in range(1, 13):
                errors.add(rejected(number))
        assert errors.count == 12
        assert errors.first == [rejected(number) for number in range(1, 11)]


def test_the_file_is_there_and_empty_when_nothing_was_rejected(tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    path.write_text("of an older run\n")
    with ErrorsFile(path):
        pass
    assert path.read_bytes() == b""


def test_half_a_surrogate_pair_in_a_file_name_is_written_as_its_json_escape(tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    with ErrorsFile(path) as errors:
        errors.add(RejectedLine("caf\udce9.jsonl:1", "no id", None, "{}"))
    assert json.loads(path.read_bytes())["location"] == "caf\udce9.jsonl:1"


def test_a_kill_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from indexer.corpus import RejectedLine\n"
        "from indexer.corpus.rejects import ErrorsFile\n"
        "with ErrorsFile(Path(sys.argv[1])) as errors:\n"
        "    for number in range(3):\n"
        "        errors.add(RejectedLine(f'c.jsonl:{number}', 'no id', None, '{}'))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", script, str(path)], cwd=root, check=False).returncode == -9
    locations = [json.loads(line)["location"] for line in path.read_text().splitlines()]
    assert locations == ["c.jsonl:0", "c.jsonl:1", "c.jsonl:2"]


def test_a_path_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write --errors .*none/errors\.jsonl: No such file"):
        ErrorsFile(tmp_path / "none" / "errors.jsonl").__enter__()
