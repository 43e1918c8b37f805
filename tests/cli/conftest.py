"""The command line, run in this process on a small random model and the bundled embedder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kalm_cache.cli.app import app

Run = Callable[..., Result]
PASSAGES = {
    "china": "The capital of China is Beijing.",
    "gravity": "Gravity attracts bodies toward one another.",
    "bees": "In the morning, bees carry pollen from flowers to the hive.",
    "ferry": "The last ferry to the island leaves at nine.",
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in PASSAGES.items()), "utf-8")
    return path


@pytest.fixture
def run(mini_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `kalm-cache ARGUMENTS` with the small model as `KALM_CACHE_MODEL`."""
    monkeypatch.setenv("KALM_CACHE_MODEL", str(mini_folder))
    monkeypatch.setenv("KALM_CACHE_DEVICE", "cpu")

    def invoke(*arguments: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)

    return invoke


@pytest.fixture(scope="session")
def built(mini_folder: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "index"
    environment = {"KALM_CACHE_MODEL": str(mini_folder), "KALM_CACHE_DEVICE": "cpu"}
    arguments = ["index", str(corpus), "--index", str(folder), "--chunk-size", "2"]
    assert CliRunner().invoke(app, arguments, env=environment).exit_code == 0
    return folder


@pytest.fixture
def index(run: Run, built: Path, tmp_path: Path) -> Path:
    """An index that the test may change."""
    return Path(shutil.copytree(built, tmp_path / "index"))
