"""`kalm-cache reindex`, `add` and `delete` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kalm_cache.generations.generation import open_current
from tests.checkpoints import make_checkpoint
from tests.cli.conftest import PASSAGES, Run


def write(path: Path, texts: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()), "utf-8")
    return path


def ids_found(run: Run, index: Path, query: str = "the") -> set[str]:
    answer = json.loads(run("search", query, "--index", index, "--first-stage", "dense", "--json").stdout)
    return {one["doc_id"] for one in answer["results"]}


def report_of(run: Run, *arguments: object, exit_code: int = 0) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == exit_code, result.stderr
    return json.loads(result.stdout)


def test_add_makes_passages_searchable_at_once_as_the_index_was_built(run: Run, index: Path, tmp_path: Path) -> None:
    more = write(tmp_path / "more.jsonl", {"owls": "Owls hunt at night.", "bees": PASSAGES["bees"]})
    report = report_of(run, "add", more, "--index", index)
    assert (report["generation"], report["added"], report["unchanged"], report["passages"]) == ("000002", 1, 1, 5)
    assert "owls" in ids_found(run, index, "owls at night")
    assert open_current(index).manifest.fingerprint.chunk_size == 2  # not the default


def test_add_reports_rejected_lines_and_exits_with_3(run: Run, index: Path, tmp_path: Path) -> None:
    more, errors = tmp_path / "more.jsonl", tmp_path / "errors.jsonl"
    more.write_text('{"_id": "owls", "text": "Owls"}\n{not json\n', "utf-8")
    report = report_of(run, "add", more, "--index", index, "--errors", errors, exit_code=3)
    assert (report["added"], report["rejected"]) == (1, 1)
    assert json.loads(errors.read_text())["location"] == f"{more}:2"


def test_add_to_an_index_whose_model_has_changed_exits_with_4(
    run: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_checkpoint(tmp_path / "model", seed=3)
    assert run("index", corpus, "--index", tmp_path / "index", "--model", model).exit_code == 0
    make_checkpoint(model, seed=4)
    result = run("add", write(tmp_path / "more.jsonl", {"a": "b"}), "--index", tmp_path / "index")
    assert result.exit_code == 4
    assert "kalm-cache reindex CORPUS" in result.stderr


def test_delete_takes_ids_and_a_file_of_them(run: Run, index: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("bees\nunknown\n", "utf-8")
    report = report_of(run, "delete", "china", "--ids-file", tmp_path / "ids.txt", "--index", index, exit_code=3)
    assert (report["deleted"], report["unknown"], report["passages"]) == (2, ["unknown"], 2)
    assert ids_found(run, index) == {"gravity", "ferry"}


def test_a_file_of_ids_ends_lines_at_line_feeds_alone(run: Run, index: Path, tmp_path: Path) -> None:
    odd = ["a\u2028b", "c\x0bd", "e\x85f", "g\x1ch", "i,j", " k "]
    assert run("add", write(tmp_path / "more.jsonl", dict.fromkeys(odd, "odd")), "--index", index).exit_code == 0
    (tmp_path / "ids.txt").write_bytes("\ufeff".encode() + "\r\n".join([*odd[:3], "", *odd[3:]]).encode() + b"\n\n")
    report = report_of(run, "delete", "--ids-file", tmp_path / "ids.txt", "--index", index)
    assert (report["deleted"], report["unknown"], report["passages"]) == (6, [], 4)


def test_fields_that_are_no_part_of_a_passage_are_counted(run: Run, index: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text(
        '{"_id": "owls", "text": "Owls", "url": "x"}\n{"_id": "bats", "text": "Bats", "url": "y", "n": 0}\n'
    )
    assert report_of(run, "add", more, "--index", index)["unused_fields"] == {"url": 2, "n": 1}
    for job in (["add"], ["reindex"], ["reindex", "--dry-run"]):
        told = run(*job, more, "--index", index).stdout
        end = "(passage_template names what is, and metadata what is kept beside it): url (2), n (1)\n"
        assert told.endswith(f"\nno part of the passages {end}"), told


def test_delete_without_a_known_id_changes_nothing(run: Run, index: Path) -> None:
    result = run("delete", "nope", "--index", index)
    assert result.exit_code == 1
    assert "'nope'" in result.stderr
    assert run("delete", "--index", index).exit_code == 2
    assert open_current(index).name == "000001"


def test_reindex_keeps_the_settings_of_the_index(run: Run, index: Path, tmp_path: Path) -> None:
    corpus = write(tmp_path / "new.jsonl", {"china": PASSAGES["china"], "owls": "Owls hunt at night."})
    report = report_of(run, "reindex", corpus, "--index", index)
    assert (report["reused"], report["encoded"], report["deleted"], report["passages"]) == (1, 1, 3, 2)
    assert open_current(index).manifest.fingerprint.chunk_size == 2
    assert {"reused", "encoded", "deleted", "recoded", "bytes", "seconds", "speedup"} <= set(report)


def test_reindex_keeps_missing_passages_when_told(run: Run, index: Path, tmp_path: Path) -> None:
    corpus = write(tmp_path / "new.jsonl", {"owls": "Owls hunt at night."})
    report = report_of(run, "reindex", corpus, "--index", index, "--keep-missing")
    assert (report["reused"], report["encoded"], report["deleted"], report["kept"]) == (4, 1, 0, 4)


def test_reindex_recodes_for_another_codec_and_chunk_size(run: Run, index: Path, corpus: Path) -> None:
    report = report_of(run, "reindex", corpus, "--index", index, "--codec", "int4", "--chunk-size", 8)
    assert (report["recoded"], report["encoded"]) == (4, 0)
    back = report_of(run, "reindex", corpus, "--index", index, "--codec", "fp16")
    assert (back["recoded"], back["encoded"]) == (0, 4)
    assert "carry its error already" in back["why_encoded"]


def test_reindex_takes_a_config_file(run: Run, index: Path, corpus: Path, tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('codec = "int8"\n', "utf-8")
    assert report_of(run, "reindex", corpus, "--index", index, "--config", config)["recoded"] == 4
    fingerprint = open_current(index).manifest.fingerprint
    assert (fingerprint.codec, fingerprint.chunk_size) == ("int8", 2)


def test_a_dry_run_of_a_reindex_changes_nothing(run: Run, index: Path, tmp_path: Path) -> None:
    corpus = write(tmp_path / "new.jsonl", {"china": PASSAGES["china"], "owls": "Owls hunt at night."})
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    plan = report_of(run, "reindex", corpus, "--index", index, "--dry-run")
    assert (plan["reused"], plan["encoded"], plan["deleted"], plan["dry_run"]) == (1, 1, 3, True)
    assert {path: path.read_bytes() for path in index.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", [("add", "CORPUS"), ("reindex", "CORPUS"), ("delete", "a"), ("rollback",), ("gc",)])
def test_a_folder_without_an_index_is_one_clear_line_and_is_not_made(
    run: Run, corpus: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    arguments = [corpus if part == "CORPUS" else part for part in command]
    result = run(*arguments, "--index", tmp_path / "none")
    assert result.exit_code == 1
    assert "kalm-cache index CORPUS" in result.stderr
    assert not (tmp_path / "none").exists()


def test_people_are_told_what_happened_in_words(run: Run, index: Path, tmp_path: Path) -> None:
    more = write(tmp_path / "more.jsonl", {"owls": "Owls hunt at night."})
    assert "1 added, 0 replaced" in run("add", more, "--index", index).stdout
    assert "1 deleted" in run("delete", "owls", "--index", index).stdout
    said = run("reindex", more, "--index", index, "--keep-missing").stdout
    assert "4 reused, 0 recoded, 1 encoded" in said
    assert "would hold" in run("reindex", more, "--index", index, "--dry-run").stdout


@pytest.mark.parametrize(
    ("source", "message"),
    [("-", "cannot be followed"), ("s3://bucket/corpus", "cannot be followed"), ("nowhere", "does not exist")],
)
def test_watch_names_what_it_cannot_follow(run: Run, index: Path, source: str, message: str) -> None:
    result = run("watch", source, "--index", index)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("flag", ["--index", "--errors"])
def test_watch_refuses_to_write_into_the_folder_that_it_follows(
    run: Run, index: Path, tmp_path: Path, flag: str
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    result = run("watch", folder, "--index", index, flag, folder / "written")
    assert result.exit_code == 2
    assert f"{flag} {folder / 'written'} is in the folder that is followed" in result.stderr
