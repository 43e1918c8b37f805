"""The two models of the index jobs under test."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer.job import Encoders, load_encoders
from kalm_cache.settings import Settings
from tests.indexes import make_embedder, settings_for


@pytest.fixture(scope="session")
def embedder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_embedder(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="session")
def settings(mini_folder: Path, embedder_folder: Path) -> Settings:
    return settings_for(mini_folder, embedder_folder)


@pytest.fixture(scope="session")
def encoders(settings: Settings) -> Encoders:
    return load_encoders(settings)
