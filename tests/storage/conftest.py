from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage.three_passages import PASSAGES
from tests.stores import write_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed store of three passages."""
    write_store(tmp_path / "shard", PASSAGES)
    return tmp_path / "shard"
