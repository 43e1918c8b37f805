"""`kalm-cache warm` encodes a corpus into a text cache; its passages are hits afterwards, and are encoded once."""

from __future__ import annotations

import json
from pathlib import Path

from kalm_cache.reranker import KaLMReranker
from tests.cli.conftest import PASSAGES, Run


def test_a_corpus_is_encoded_once_and_is_found_by_who_sends_its_texts(
    run: Run, corpus: Path, mini_folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = json.loads(run("warm", corpus, "--text-cache", cache, "--json").stdout)
    assert (first["passages"], first["encoded"], first["cached"], first["rejected"]) == (len(PASSAGES), 4, 0, 0)
    again = run("warm", corpus, "--text-cache", cache)
    assert "4 passages (0 encoded, 4 cached already, 0 rejected, 0 cut)" in again.stdout
    with KaLMReranker(str(mini_folder), device="cpu", cache=cache) as reranker:
        reranker.rank("bees", list(PASSAGES.values()))
        assert reranker.cache is not None
        assert (reranker.cache.counts.hits, reranker.cache.counts.misses) == (4, 0)


def test_bad_lines_are_rejected_and_the_rest_goes_on(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"_id": "a", "text": "one"}\n{"_id": \n{"_id": "b", "text": "one"}\n')
    errors = tmp_path / "errors.jsonl"
    done = run("warm", tmp_path / "c.jsonl", "--text-cache", tmp_path / "cache", "--json", "--errors", errors)
    report = json.loads(done.stdout)
    assert (done.exit_code, report["passages"], report["encoded"], report["rejected"]) == (3, 2, 1, 1)
    assert "c.jsonl:2" in errors.read_text()


def test_fields_that_are_no_part_of_a_passage_are_counted(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("id,text,url\na,one,x\nb,two,\n")
    cache = tmp_path / "cache"
    assert json.loads(run("warm", tmp_path / "c.csv", "--text-cache", cache, "--json").stdout)["unused_fields"] == {
        "url": 1
    }
    named = run("warm", tmp_path / "c.csv", "--text-cache", cache, "--columns", "id,text,-", "--header").stdout
    assert "no part of the passages" not in named


def test_without_a_cache_or_with_one_that_cannot_be_written_nothing_is_encoded(
    run: Run, corpus: Path, tmp_path: Path
) -> None:
    done = run("warm", corpus)
    assert (done.exit_code, "name the text cache: --text-cache DIR" in done.stderr) == (2, True)
    (tmp_path / "file").touch()
    done = run("warm", corpus, "--text-cache", tmp_path / "file")
    assert (done.exit_code, "is a file; name a folder for the text cache" in done.stderr) == (2, True)
