from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import PASSAGES, Run

BAD_CORPUS = b"""{"_id": "a", "text": "one"}
{"_id": "a", "text": "again"}
{not json
{"_id": "", "text": "no id"}
{"_id": "b", "text": "two \xff"}
{"_id": "c", "text": "three"}
"""


def test_indexing_reports_what_was_stored_as_json_on_stdout(run: Run, corpus: Path, tmp_path: Path) -> None:
    result = run("index", corpus, "--index", tmp_path / "index", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (report["passages"], report["encoded"], report["rejected"]) == (4, 4, 0)
    assert report["generation"] == "000001"


def test_bad_lines_go_to_the_errors_file_and_the_exit_code_says_so(run: Run, tmp_path: Path) -> None:
    corpus, errors = tmp_path / "bad.jsonl", tmp_path / "errors.jsonl"
    corpus.write_bytes(BAD_CORPUS)
    result = run("index", corpus, "--index", tmp_path / "index", "--errors", errors, "--json")
    rejected = [json.loads(line) for line in errors.read_text("utf-8").splitlines()]
    assert result.exit_code == 3
    assert json.loads(result.stdout)["passages"] == 2
    assert [line["location"] for line in rejected] == [f"{corpus}:{number}" for number in (2, 3, 4, 5)]
    assert f"first at {corpus}:1" in rejected[0]["reason"]
    assert f"{corpus}:3" in result.stderr


def test_the_corpus_may_come_from_stdin_compressed(run: Run, corpus: Path, tmp_path: Path) -> None:
    result = run("index", "-", "--index", tmp_path / "index", "--json", stdin=gzip.compress(corpus.read_bytes()))
    assert result.exit_code == 0
    assert json.loads(result.stdout)["passages"] == len(PASSAGES)


def test_fields_that_are_no_part_of_a_passage_are_counted(run: Run, tmp_path: Path) -> None:
    corpus, index = tmp_path / "c.jsonl", tmp_path / "[i]"
    odd = {"[red]x": 1, "a\nb": "c", "metadata": {}, "note": None, "lang": ""}
    lines = [
        {"_id": "a", "text": "one", "title": "t"} | odd,
        {"_id": "b", "text": "two", "contents": "lost", "[red]x": 2},
    ]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"_id": "c", "url": "x"}\n')
    expected = {"[red]x": 2, "a\nb": 1, "contents": 1}
    for more in (["--dry-run"], []):
        assert json.loads(run("index", corpus, "--index", index, "--json", *more).stdout)["unused_fields"] == expected
        told = run("index", corpus, "--index", index, *more).stdout
        assert told.endswith(": [red]x (2), 'a\\nb' (1), contents (1)\n")
    assert f"of {index}: 2 passages" in told


def test_a_dry_run_counts_and_stores_nothing(run: Run, corpus: Path, tmp_path: Path) -> None:
    result = run("index", corpus, "--index", tmp_path / "index", "--dry-run", "--json")
    projection = json.loads(result.stdout)
    assert result.exit_code == 0
    assert projection["passages"] == 4
    assert projection["projected_bytes"] > 0
    assert not (tmp_path / "index").exists()


def test_a_dry_run_projects_the_bytes_that_indexing_then_stores(run: Run, corpus: Path, tmp_path: Path) -> None:
    projection = json.loads(run("index", corpus, "--index", tmp_path / "index", "--dry-run", "--json").stdout)
    report = json.loads(run("index", corpus, "--index", tmp_path / "index", "--json").stdout)
    assert projection["tokens"] == report["tokens"]
    # every passage is in the sample, so that only its directory entry (14 bytes and the id) stands between the two
    ids = sum(len(json.loads(line)["_id"]) for line in corpus.read_text("utf-8").splitlines())
    assert projection["projected_bytes"] == pytest.approx(report["payload_bytes"] + 4 * 14 + ids, abs=4)


def test_cut_passages_are_counted_and_reported(run: Run, corpus: Path, tmp_path: Path) -> None:
    result = run("index", corpus, "--index", tmp_path / "index", "--max-length", 8, "--json")
    assert json.loads(result.stdout)["truncated"] == 4
    assert "longer than max_length=8" in result.stderr


def test_no_text_keeps_ids_and_states_only(run: Run, corpus: Path, tmp_path: Path) -> None:
    assert run("index", corpus, "--index", tmp_path / "index", "--no-text").exit_code == 0
    answer = json.loads(run("search", "capital", "--index", tmp_path / "index", "--json").stdout)
    assert {result["text"] for result in answer["results"]} == {None}


@pytest.mark.parametrize("codec", ["fp32", "bf16", "fp16", "int8", "int4", "int3", "int2", "bf16+zstd3"])
def test_every_codec_can_be_chosen_and_shows_in_the_stats(run: Run, corpus: Path, tmp_path: Path, codec: str) -> None:
    run("index", corpus, "--index", tmp_path / "index", "--codec", codec)
    stats = json.loads(run("stats", "--index", tmp_path / "index", "--json").stdout)
    assert stats["codec"] == codec
    assert stats["passages"] == 4


def test_an_unknown_codec_is_a_usage_error_that_lists_the_known_ones(run: Run, corpus: Path, tmp_path: Path) -> None:
    result = run("index", corpus, "--index", tmp_path / "index", "--codec", "int5")
    assert result.exit_code == 2
    assert "fp32, bf16, fp16, int8, int4, int3, int2" in result.stderr


def test_a_missing_corpus_is_one_clear_line(run: Run, tmp_path: Path) -> None:
    result = run("index", tmp_path / "nothing.jsonl", "--index", tmp_path / "index")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "nothing.jsonl" in result.stderr


def test_the_errors_file_must_not_be_the_corpus(run: Run, corpus: Path, tmp_path: Path) -> None:
    before = corpus.read_bytes()
    result = run("index", corpus, "--index", tmp_path / "index", "--errors", corpus)
    assert result.exit_code == 2
    assert corpus.read_bytes() == before


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_job_and_the_next_run_goes_on(run: Run, number: int, exit_code: int, tmp_path: Path) -> None:
    corpus, index = tmp_path / "corpus.jsonl", tmp_path / "index"
    lines = [json.dumps({"_id": f"d{n}", "text": f"gravity and bees {n} " * 4}) for n in range(500)]
    corpus.write_text("\n".join(lines), "utf-8")
    arguments = ["index", str(corpus), "--index", str(index), "--batch-tokens", "256", "--json"]
    building = index / "generations" / "000001.building" / "shards" / "00000" / "working.lmdb"
    with subprocess.Popen(
        [sys.executable, "-c", "from kalm_cache.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "KALM_CACHE_DTYPE": "float32"},  # as in this process
        # a shell's background jobs ignore Ctrl-C, and so would this one if the tests run in one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as job:
        while job.poll() is None and not (building.exists() and building.stat().st_size > 50_000):
            time.sleep(0.02)
        job.send_signal(number)
        _, stderr = job.communicate()
    assert job.returncode == exit_code
    assert b"run the same command to go on" in stderr
    report = json.loads(run(*arguments).stdout)
    assert report["passages"] == 500
    assert report["resumed"] > 0
    assert report["resumed"] + report["encoded"] == 500
