"""The two models of the index jobs under test, and what tests of windows start from."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import indexer.build.plan
import indexer.integrity.verify
from indexer.build.index_job import Encoders, load_encoders
from kalm_cache.settings import Settings
from tests.indexer.jobs import LONGER
from tests.indexer.killed import WINDOW
from tests.indexes import TEXTS, build, settings_for
from tests.torture.forked import run_forked


@pytest.fixture(scope="session")
def settings(mini_folder: Path, embedder_folder: Path) -> Settings:
    return settings_for(mini_folder, embedder_folder)


@pytest.fixture(scope="session")
def encoders(settings: Settings) -> Encoders:
    return load_encoders(settings)


@pytest.fixture(autouse=True)
def forked_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged stores are walked in forks of this process; the command's tests start a new one, as users do."""
    monkeypatch.setattr(indexer.integrity.verify, "subprocess", SimpleNamespace(run=run_forked))


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus of 30 passages has several windows."""
    monkeypatch.setattr(indexer.build.plan, "WINDOW", WINDOW)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    """An index of `LONGER` that was built in one go."""
    folder = tmp_path_factory.mktemp("undisturbed") / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexer.build.plan, "WINDOW", WINDOW)
        build(folder, settings, LONGER, encoders=encoders)
    return folder


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    """An index of `TEXTS` that nobody changes."""
    folder = tmp_path_factory.mktemp("clean") / "index"
    build(folder, settings, TEXTS, encoders=encoders)
    return folder


@pytest.fixture
def index(clean: Path, tmp_path: Path) -> Path:
    """An index of one's own, to be changed or damaged."""
    return Path(shutil.copytree(clean, tmp_path / "index"))
