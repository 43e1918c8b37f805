"""`kalm-cache decoder set` and `show`, in words and as JSON, on a folder and on an object store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kalm_cache.generations.generation import open_current
from tests.checkpoints import MINI, make_checkpoint, with_other_decoder
from tests.cli.conftest import Run


@pytest.fixture
def tuned(mini_folder: Path, tmp_path: Path) -> Path:
    return with_other_decoder(mini_folder, tmp_path / "tuned")


def test_a_decoder_is_set_shown_and_taken_back(run: Run, index: Path, mini_folder: Path, tuned: Path) -> None:
    done = run("decoder", "set", tuned, "--index", index)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"generation 000002 of {index} answers with {tuned} (")
    assert "over the same 4 passages" in done.stdout
    encoder = open_current(index).manifest.fingerprint.model[:12]
    shown = run("decoder", "show", "--index", index).stdout
    assert shown.splitlines()[1] == f"encoder  {encoder}…  {mini_folder}"
    assert shown.splitlines()[2].endswith(str(tuned))
    again = run("decoder", "set", tuned, "--index", index)
    assert again.stdout == f"generation 000002 of {index} answers with {tuned} already: nothing was published\n"
    assert run("rollback", "--index", index).exit_code == 0
    assert json.loads(run("decoder", "show", "--index", index, "--json").stdout)["decoder"] == str(mini_folder)


def test_a_search_answers_with_the_decoder_that_is_set_and_stats_and_doctor_name_it(
    run: Run, index: Path, tuned: Path
) -> None:
    question = ("search", "When does the ferry leave?", "--index", index, "--json")
    before = {one["doc_id"]: one["margin"] for one in json.loads(run(*question).stdout)["results"]}
    run("decoder", "set", tuned, "--index", index)
    after = {one["doc_id"]: one["margin"] for one in json.loads(run(*question).stdout)["results"]}
    assert after.keys() == before.keys()
    assert after != before
    assert json.loads(run("stats", "--index", index, "--json").stdout)["decoder"] == str(tuned)
    checks = json.loads(run("doctor", "--index", index, "--json").stdout)
    (model,) = [check for check in checks["checks"] if check["name"] == "model"]
    assert f"; decoder {tuned}, " in model["found"]
    assert model["status"] == "ok"


def test_an_encoder_that_differs_ends_with_4_and_one_line(run: Run, index: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", MINI, seed=1)
    refused = run("decoder", "set", other, "--index", index)
    assert refused.exit_code == 4
    assert refused.stderr.count("\n") == 1
    assert f"that of '{other}' has digest" in refused.stderr


def test_a_push_of_another_decoder_moves_a_manifest_and_no_states(
    run: Run, index: Path, tuned: Path, tmp_path: Path
) -> None:
    pytest.importorskip("obstore")
    url = (tmp_path / "store").as_uri()
    first = json.loads(run("push", index, url, "--json").stdout)
    run("decoder", "set", tuned, "--index", index)
    pushed = json.loads(run("push", index, url, "--json").stdout)
    assert pushed["generation"] == "000002"
    assert pushed["moved_files"] <= 2  # the manifest, and what its build was started as
    assert pushed["moved_bytes"] < first["moved_bytes"] / 4
    assert run("pull", url, tmp_path / "pulled").exit_code == 0
    assert json.loads(run("decoder", "show", "--index", tmp_path / "pulled", "--json").stdout)["decoder"] == str(tuned)
    assert run("verify", "--index", tmp_path / "pulled").exit_code == 0
