"""An index finds a passage by its text alone, across segments, and forgets what was deleted or replaced."""

from __future__ import annotations

from pathlib import Path

from indexer.build.index_job import load_encoders
from indexer.change.add_delete import add_passages, delete_passages
from indexer.change.fold_job import run_fold
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.passage import Passage
from kalm_cache.storage.content_lookup import CONTENTS_FILE
from tests.indexes import TEXTS, lines_of, seal_again, settings_for

NEW = {"d1": "another text", "n": "a new one", "again": TEXTS["d3"]}


def found(folder: Path, *texts: str) -> list[str | None]:
    with PassageIndex.open(folder, device="cpu") as index:
        return index.store.find_contents([Passage("", text).content_hash() for text in texts])


def test_texts_lead_to_the_passages_that_are_shown(copied: Path, mini_folder: Path, embedder_folder: Path) -> None:
    assert found(copied, *TEXTS.values(), "nobody's") == [*TEXTS, None]
    settings = settings_for(mini_folder, embedder_folder)
    nothing = {"on_reject": lambda line: None, "on_progress": lambda progress: None}
    add_passages(lines_of(NEW), copied, settings, load_encoders(settings), **nothing)
    delete_passages(["d2", "d3"], copied)
    expected = ["d1", "n", "again", None, None, "d4"]
    asked = [*NEW.values(), TEXTS["d1"], TEXTS["d2"], TEXTS["d4"]]
    assert found(copied, *asked) == expected
    run_fold(copied, everything=True, on_progress=lambda counts: None)
    assert found(copied, *asked) == expected


def test_an_index_of_an_earlier_version_finds_nothing_by_text_and_serves_as_before(copied: Path) -> None:
    for path in copied.rglob(CONTENTS_FILE):
        path.unlink()
    seal_again(copied)
    assert found(copied, TEXTS["d1"]) == [None]
    with PassageIndex.open(copied, device="cpu") as index:
        assert index.rerank("ferry", ["d1"]).results[0].doc_id == "d1"
