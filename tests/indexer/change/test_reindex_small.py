"""Reindexing by a small change: the corpus is what the index shows, and what is stored is linked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from indexer.build.index_job import Encoders
from indexer.change.reindex import ReindexReport
from indexer.change.reindex_small import run_small_reindex
from kalm_cache.errors import IndexMismatchError
from kalm_cache.generations.generation import open_current
from kalm_cache.settings import Settings
from tests.indexer.changes import texts_of, valid
from tests.indexes import TEXTS, lines_of

CHANGED = {one: text for one, text in TEXTS.items() if one not in ("d2", "d3")} | {"d4": "edited", "n": "a new one"}


def reindex(index: Path, settings: Settings, encoders: Encoders, texts: Any, **options: Any) -> ReindexReport:
    options = {"on_reject": lambda line: None, "on_progress": lambda progress: None} | options
    return run_small_reindex(lines_of(texts), index, settings, encoders, **options)


def test_what_differs_is_added_and_deleted_and_the_rest_is_linked(
    index: Path, settings: Settings, encoders: Encoders
) -> None:
    base = open_current(index).segment / "states.lmdb"
    report = reindex(index, settings, encoders, CHANGED)
    assert texts_of(index) == CHANGED
    assert (report.passages, report.reused, report.encoded, report.deleted, report.kept) == (11, 9, 2, 2, 0)
    live = open_current(index)
    assert (live.name, len(live.manifest.segments)) == (report.generation, 2)
    assert (live.segment / "states.lmdb").samefile(base)
    assert valid(index)


def test_the_same_corpus_again_changes_nothing(index: Path, settings: Settings, encoders: Encoders) -> None:
    report = reindex(index, settings, encoders, TEXTS)
    assert (report.generation, report.reused, report.encoded, report.deleted) == ("000001", 12, 0, 0)


def test_what_the_corpus_does_not_have_stays_when_asked_for(
    index: Path, settings: Settings, encoders: Encoders
) -> None:
    report = reindex(index, settings, encoders, {"n": "a new one"}, keep_missing=True)
    assert (report.reused, report.encoded, report.deleted, report.kept) == (12, 1, 0, 12)
    assert texts_of(index) == TEXTS | {"n": "a new one"}


def test_other_settings_are_refused(index: Path, settings: Settings, encoders: Encoders) -> None:
    other = settings.model_copy(update={"passage_template": "{text}, said they"})
    with pytest.raises(IndexMismatchError, match="leave --incremental out"):
        reindex(index, other, encoders, CHANGED)
    assert open_current(index).name == "000001"
