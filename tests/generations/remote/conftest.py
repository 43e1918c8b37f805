"""A small real index in three generations."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from indexer.change.add_delete import delete_passages
from indexer.models import load_encoders
from tests.indexer.changes import add
from tests.indexes import TEXTS, build, settings_for

Folders = Callable[[str], Path]


@pytest.fixture(scope="session")
def generations(mini_folder: Path, embedder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same index after `index`, after `add`, and after `delete`."""
    home = tmp_path_factory.mktemp("remote")
    settings = settings_for(mini_folder, embedder_folder, bm25=False)  # few files: each is a request
    encoders = load_encoders(settings)
    build(home / "1", settings, TEXTS, encoders=encoders)
    shutil.copytree(home / "1", home / "2")
    add(home / "2", settings, encoders, {"new": "a passage that is new"})
    shutil.copytree(home / "2", home / "3")
    delete_passages(["d3"], home / "3")
    return [home / name for name in "123"]


@pytest.fixture
def copy(generations: list[Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of the index after so many changes, under a name."""

    def copied(step: int, name: str = "index") -> Path:
        return Path(shutil.copytree(generations[step - 1], tmp_path / name))

    return copied
