"""The reader's folder: where `make demo` left its index, and a service answers on the port that the pages name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from indexer.corpus import CorpusLine, read_corpus
from kalm_cache.cli.app import app
from kalm_cache.cli.commands.demo import BUNDLED_DEMO, CHUNK_SIZES
from kalm_cache.evaluation import load_beir
from kalm_cache.evaluation.evaluate import sample_queries
from tests.query_service.conftest import serving

SHOWN_PASSAGES = {f"p{number}" for number in range(984, 1000)}  # margins depend on no others
EVALUATED_QUERIES = 5  # of the demo's, by docs/evaluation.md


@pytest.fixture(scope="session")
def demo_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index as the demo builds it, of the passages that the pages show."""
    folder = tmp_path_factory.mktemp("demo")
    judged = sample_queries(load_beir(BUNDLED_DEMO), EVALUATED_QUERIES).qrels.values()
    wanted = SHOWN_PASSAGES.union(*judged)
    lines = [line for line in read_corpus(BUNDLED_DEMO / "corpus.jsonl.zst") if isinstance(line, CorpusLine)]
    passages = [line.passage for line in lines if line.passage.doc_id in wanted]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": one.doc_id, "text": one.text}) + "\n" for one in passages), "utf-8")
    given = ["--index", str(folder / "demo-index"), "--chunk-size", str(CHUNK_SIZES[0]), "--device", "cpu"]
    result = CliRunner().invoke(app, ["index", str(corpus), *given])
    assert result.exit_code == 0, result.stderr
    return folder / "demo-index"


@pytest.fixture(scope="session")
def service_url(demo_index: Path) -> Iterator[str]:
    """Where that index is served."""
    with serving(demo_index) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture
def readers_folder(demo_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with `demo-index` in it, and the process in it."""
    (tmp_path / "demo-index").symlink_to(demo_index)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path
