"""The reader's folder: where `make demo` left its index, and a service answers on the port that the pages name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

from indexer.corpus import CorpusLine, read_corpus
from kalm_cache.cli.app import app
from kalm_cache.cli.commands.demo import BUNDLED_DEMO, CHUNK_SIZES
from tests.query_service.conftest import serving

SHOWN_PASSAGES = (980, 1020)  # those of the demo corpus that the pages show: enough, as margins depend on no other


@pytest.fixture(scope="session")
def demo_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index as the demo builds it, of the passages that the pages show."""
    folder = tmp_path_factory.mktemp("demo")
    lines = islice(read_corpus(BUNDLED_DEMO / "corpus.jsonl.zst"), *SHOWN_PASSAGES)
    passages = [line.passage for line in lines if isinstance(line, CorpusLine)]
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
