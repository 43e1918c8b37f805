"""`kalm-cache client` against a real service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from kalm_cache import Client, PassageIndex
from kalm_cache.cli import app as cli

QUERY = "Where do bees dance?"
Run = Callable[..., Result]


@pytest.fixture
def run(service: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `kalm-cache client ARGUMENTS` against the service."""
    # it would have the service, which goes on in a thread of this process, log to a stderr that is closed by then
    monkeypatch.setattr(cli, "start_logging", lambda: None)

    def invoke(*arguments: object, stdin: str | None = None, base_url: object = service.base_url) -> Result:
        given = ["client", "--base-url", str(base_url), *map(str, arguments)]
        return CliRunner().invoke(cli.app, given, input=stdin)

    return invoke


def test_a_search_prints_its_results(run: Run, service: httpx.Client) -> None:
    expected = service.post("/search", json={"query": QUERY, "k": 5, "top_n": 2}).json()["results"]
    assert len(expected) == 2
    lines = run(QUERY, "--k", 5, "--top-k", 2).stdout.splitlines()
    assert [line.split("  ")[1] for line in lines] == [f"doc_id={result['doc_id']}" for result in expected]
    assert "margin=" not in lines[0]
    assert "margin=" in run(QUERY, "--return-margin").stdout


def test_stored_passages_are_ranked_and_scored_by_their_ids(run: Run, index: PassageIndex) -> None:
    ranked = json.loads(run(QUERY, "--endpoint", "rerank", "--ids", "s0,s5", "--ids", "l3", "--json").stdout)
    assert {result["doc_id"] for result in ranked["results"]} == {"s0", "s5", "l3"}
    scored = json.loads(run(QUERY, "--endpoint", "score", "--ids", "s0,s5", "--return-margin", "--json").stdout)
    assert [pair["doc_id"] for pair in scored["results"]] == ["s0", "s5"]
    margins = [pair["margin"] for pair in scored["results"]]
    assert margins == pytest.approx(index.margins(QUERY, ["s0", "s5"]), abs=1e-5)
    assert run(QUERY, "--endpoint", "score", "--ids", "s0").stdout.startswith("index=0  doc_id=s0  score=")


@pytest.mark.parametrize(
    ("result", "line"),
    [
        ({"index": 0, "id": "s0", "score": 0.5}, "index=0  id=s0  score=0.5"),
        ({"index": 0, "id": "s0", "doc_id": "s0", "score": 0.5}, "index=0  doc_id=s0  score=0.5"),
        ({"index": 0, "id": 7, "label": 7, "score": 0.5, "margin": 1.0}, "index=0  label=7  score=0.5"),
        ({"index": 0, "id": "s0", "label": "s0", "doc_id": "s0", "score": 0.5}, "index=0  doc_id=s0  score=0.5"),
        ({"index": 0, "id": 7, "label": 7, "doc_id": "s0", "score": 0.5}, "index=0  doc_id=s0  label=7  score=0.5"),
    ],
)
def test_an_id_is_printed_once(run: Run, monkeypatch: pytest.MonkeyPatch, result: dict[str, object], line: str) -> None:
    monkeypatch.setattr(Client, "request", lambda *_: {"results": [result]})
    assert run(QUERY).stdout == f"{line}\n"


def test_documents_are_ranked_and_scored_by_their_texts(run: Run) -> None:
    ranked = run(QUERY, "--endpoint", "rerank", "--document", "Bees dance.", "--document", "A ferry.", "--top-k", 1)
    assert ranked.stdout.count("\n") == 1
    assert run(QUERY, "--endpoint", "score", "--document", "Bees dance.").stdout.startswith("index=0  score=")


def test_a_request_body_may_be_a_file_or_standard_input(run: Run, tmp_path: Path) -> None:
    body = {"query": QUERY, "texts": ["Bees dance.", "A ferry."]}
    file = tmp_path / "request.json"
    file.write_text(json.dumps(body), "utf-8-sig")  # as Windows' editors do
    from_file = run("--endpoint", "rerank", "--json-file", file, "--top-k", 1, "--json")
    assert len(json.loads(from_file.stdout)) == 1
    from_stdin = run("--endpoint", "rerank", "--json-file", "-", "--return-margin", stdin=json.dumps(body))
    assert from_stdin.stdout.count("margin=") == 2


def test_a_file_of_brackets_is_refused_in_one_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text("[" * 200_000, "utf-8")
    result = run("--json-file", file)
    assert (result.exit_code, "cannot be read as JSON" in result.stderr) == (2, True)


def test_health_tells_what_is_served(run: Run) -> None:
    assert json.loads(run("--health", "--json").stdout)["index_version"] == "000001"
    assert run("--health").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a query, or --json-file, or --health"),
        ([QUERY, "--endpoint", "nothing"], "choose one of search, rerank, score"),
        ([QUERY, "--endpoint", "rerank"], "give either --ids or --document"),
        ([QUERY, "--ids", "s0"], "takes a query alone"),
        ([QUERY, "--endpoint", "score", "--ids", "s0", "--top-k", 1], "in the order of the pairs"),
        ([QUERY, "--json-file", "body.json"], "holds the whole request"),
        (["--json-file", "not-there.json"], "cannot be read as JSON"),
        (["--json-file", "-"], "holds a list; expected an object"),
        ([QUERY, "--chunk-size", 3], "multiple"),
        ([QUERY, "--k", 0], "k: Input should be greater"),
    ],
)
def test_what_cannot_be_asked_ends_with_exit_code_2(run: Run, arguments: list[object], message: str) -> None:
    result = run(*arguments, stdin="[]")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_failures_end_with_exit_code_1(run: Run) -> None:
    unknown = run(QUERY, "--endpoint", "rerank", "--ids", "not-there")
    assert (unknown.exit_code, "not in the index" in unknown.stderr) == (1, True)
    for flag in ("--health", QUERY):
        lost = run(flag, "--retries", 0, base_url="http://127.0.0.1:9")
        assert (lost.exit_code, "cannot be reached" in lost.stderr) == (1, True)
