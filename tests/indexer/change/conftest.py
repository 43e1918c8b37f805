"""An index that is built once, and a copy of it for each test that changes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from indexer.build.index_job import Encoders
from kalm_cache.settings import Settings
from tests.indexes import TEXTS, build


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    folder = tmp_path_factory.mktemp("base") / "index"
    build(folder, settings, TEXTS, encoders=encoders)
    return folder


@pytest.fixture
def index(base: Path, tmp_path: Path) -> Path:
    """An index of one's own, to be changed."""
    return Path(shutil.copytree(base, tmp_path / "index"))
