"""A real service on a loopback port, and the index that it serves."""

from __future__ import annotations

from tests.query_service.conftest import (  # noqa: F401  # fixtures
    build,
    decoder_only,
    embedder_folder,
    index,
    index_folder,
    service,
)
