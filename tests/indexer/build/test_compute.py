"""Computing a batch: the same bytes for a passage, whatever it is batched with."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer.build.batching import batched
from indexer.build.compute import compute
from indexer.build.index_job import load_encoders
from indexer.build.plan import EncodeBatch, PlannedPassage
from kalm_cache.passage import Passage
from tests.indexes import settings_for
from tests.texts import long_text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_passage_is_stored_as_the_same_bytes_in_batches_of_any_size(
    mini_folder: Path, embedder_folder: Path, dtype: str
) -> None:
    encoders = load_encoders(settings_for(mini_folder, embedder_folder, codec="fp32", dtype=dtype))
    passages = [Passage(f"d{i}", long_text(3 + 5 * i % 60, seed=i)) for i in range(40)]

    def payloads(size: int) -> list[bytes]:
        stored: list[bytes] = []
        for some in batched(passages, size):
            wanted = [PlannedPassage(passage, passage.content_hash()) for passage in some]
            tokens = encoders.passage_side.tokenize([passage.text for passage in some])
            stored += [record.payload for record in compute(EncodeBatch(wanted, tokens), encoders.build_models).records]
        return stored

    assert payloads(1) == payloads(7) == payloads(40)
