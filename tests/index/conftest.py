"""Published indexes of twelve texts, and one that is open."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kalm_cache import PassageIndex
from tests.index.asked import TOLERANCE
from tests.indexes import TEXTS, build, settings_for


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory, mini_folder: Path, embedder_folder: Path) -> dict[str, Path]:
    """One index folder for each codec."""
    root = tmp_path_factory.mktemp("indexes")
    for codec in TOLERANCE:
        build(root / codec, settings_for(mini_folder, embedder_folder, codec=codec), TEXTS)
    return {codec: root / codec for codec in TOLERANCE}


@pytest.fixture(scope="package")
def index(folders: dict[str, Path]) -> Iterator[PassageIndex]:
    with PassageIndex.open(folders["fp16"], device="cpu") as index:
        yield index


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """An index of one's own, to be damaged."""
    return Path(shutil.copytree(folders["fp16"], tmp_path / "index"))
