"""One worker for all torture that runs in `make test`: a part of what `make torture` does."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.torture import shim
from tests.torture.pool import Pool, open_pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    if not sys.platform.startswith("linux") or shim.compiler() is None:
        pytest.skip("needs Linux and a C compiler")
    with open_pool(workers=1) as opened:
        yield opened
