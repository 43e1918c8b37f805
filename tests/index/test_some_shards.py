"""Some shards of an index alone: each passage is in one of them, and together they are the index."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from indexer.build.index_job import load_encoders
from indexer.change.add_delete import delete_passages
from kalm_cache import PassageIndex
from kalm_cache.errors import IndexMismatchError, UnknownIdError
from kalm_cache.first_stage import fuse, merge
from kalm_cache.storage.passage_store import key_of
from tests.indexer.changes import add
from tests.indexes import TEXTS, build, settings_for
from tests.texts import long_text

ADDED = {f"a{i}": long_text(9 + i, seed=50 + i) for i in range(6)} | {"d3": "another text under a known id"}
LEFT = (TEXTS.keys() | ADDED.keys()) - {"d5"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mini_folder: Path, embedder_folder: Path) -> Path:
    """Three shards, and a segment of later additions beside them."""
    folder = tmp_path_factory.mktemp("some") / "index"
    settings = settings_for(mini_folder, embedder_folder, codec="fp16")
    build(folder, settings, TEXTS, shards=3)
    add(folder, settings, load_encoders(settings), ADDED)
    delete_passages(["d5"], folder)
    return folder


def test_every_passage_is_in_exactly_one_shard_those_added_later_too(folder: Path) -> None:
    with PassageIndex.open(folder) as whole:
        sharding = whole.generation.manifest.sharding
        assert sharding is not None
        expected = {doc_id: sharding.shard_of(key_of(doc_id)) for doc_id in LEFT}
    found: dict[str, int] = {}
    for number in range(3):
        with PassageIndex.open(folder, shards=[number]) as part:
            keys = [key.decode() for key in part.store.keys()]  # noqa: SIM118 (not a dict)
            assert len(part) == len(keys)
            found |= dict.fromkeys(keys, number)
    assert found == expected


def test_lists_of_the_shards_merge_into_those_of_the_index(folder: Path) -> None:
    query = TEXTS["d2"][:60]
    with ExitStack() as stack:
        whole = stack.enter_context(PassageIndex.open(folder))
        parts = [stack.enter_context(PassageIndex.open(folder, shards=shards)) for shards in ([0, 2], [1])]
        dense, bm25 = zip(*(part.find_lists(query, 5) for part in parts), strict=True)
        merged = fuse([merge(dense, 100), merge(bm25, 100)], 5)
        expected = whole.find(query, 5).candidates
    assert expected is not None
    assert merged.ordinals.tolist() == expected.ordinals.tolist()
    assert merged.scores.tolist() == expected.scores.tolist()


def test_passages_of_other_shards_are_unknown(folder: Path) -> None:
    with PassageIndex.open(folder) as whole, PassageIndex.open(folder, shards=[0]) as part:
        sharding = whole.generation.manifest.sharding
        assert sharding is not None
        here = [doc_id for doc_id in sorted(LEFT) if sharding.shard_of(key_of(doc_id)) == 0]
        elsewhere = next(doc_id for doc_id in sorted(ADDED) if sharding.shard_of(key_of(doc_id)) != 0)
        assert part.margins("bees", here) == pytest.approx(whole.margins("bees", here), abs=1e-6)
        with pytest.raises(UnknownIdError, match=elsewhere):
            part.margins("bees", [elsewhere])


def test_only_the_files_of_the_shards_need_be_there(folder: Path, tmp_path: Path) -> None:
    import shutil

    copied = Path(shutil.copytree(folder, tmp_path / "index"))
    for other in copied.glob("generations/*/shards/0000[12]"):
        shutil.rmtree(other)
    with PassageIndex.open(copied, shards=[0]) as part:
        assert part.search("bees", k=3).results


def test_shards_that_are_not_there_are_refused(folder: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(IndexMismatchError, match="has the shards 0 to 2, 3 was asked for"):
        PassageIndex.open(folder, shards=[0, 3])
    with pytest.raises(IndexMismatchError, match="the index has no shards"):
        PassageIndex.open(folders["fp16"], shards=[0])
