"""Following files: what starts an update, what does not, and the index that comes of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import indexer.change.watch
from indexer.build.index_job import Encoders
from indexer.change.reindex_small import run_small_reindex
from indexer.change.watch import follow
from indexer.corpus import read_corpus
from kalm_cache.errors import IndexLockedError, UsageError
from kalm_cache.settings import Settings
from tests.indexer.changes import texts_of, valid
from tests.indexes import build
from tests.waiting import wait_for

SETTLE = 0.05


def write(file: Path, texts: dict[str, str]) -> None:
    file.write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()), "utf-8")


@contextmanager
def following(source: Path, update: Callable[[], None]) -> Iterator[None]:
    """`follow` in a thread; it has ended without an error when the block is left."""
    stop, failures = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            follow(source, update, settle_seconds=SETTLE, stop=stop)
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert failures == []


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer.change.watch, "TICK_MS", 50)


def test_an_index_holds_what_its_folder_does(tmp_path: Path, settings: Settings, encoders: Encoders) -> None:
    folder, index = tmp_path / "corpus", tmp_path / "index"
    folder.mkdir()
    write(folder / "a.jsonl", {"a1": "bees", "a2": "ferries"})
    build(index, settings.model_copy(update={"language": "en"}), {"a1": "bees", "gone": "meanwhile"}, encoders=encoders)
    built = settings.model_copy(update={"language": "auto"})

    def update() -> None:
        run_small_reindex(
            *(read_corpus(folder), index, built, encoders),
            spare_if_unreadable=True,
            on_reject=lambda line: None,
            on_progress=lambda counts: None,
        )

    with following(folder, update):
        wait_for(lambda: texts_of(index) == {"a1": "bees", "a2": "ferries"})
        write(folder / "b.jsonl", {"b1": "owls"})
        wait_for(lambda: texts_of(index).get("b1") == "owls")
        write(folder / "a.jsonl", {"a1": "bumblebees"})
        wait_for(lambda: texts_of(index) == {"a1": "bumblebees", "b1": "owls"})
        (folder / "a.jsonl").write_text('{"_id": "a3", "text": "eels"}\n{"_id": "a1", "te', "utf-8")
        wait_for(lambda: "a3" in texts_of(index))
        assert texts_of(index)["a1"] == "bumblebees"  # it may be in the line that cannot be read
        (folder / "a.jsonl").unlink()
        wait_for(lambda: texts_of(index) == {"b1": "owls"})
    assert valid(index)


class Counted:
    """An update that counts its calls, and fails as often as it is told."""

    def __init__(self, *failures: Exception) -> None:
        self.calls, self._failures = 0, list(failures)

    def __call__(self) -> None:
        self.calls += 1
        if self._failures:
            raise self._failures.pop(0)


def test_hidden_files_start_nothing(tmp_path: Path) -> None:
    update = Counted()
    (tmp_path / ".git").mkdir()
    with following(tmp_path, update):
        wait_for(lambda: update.calls == 1)
        (tmp_path / ".git" / "HEAD").write_text("main")
        (tmp_path / ".a.jsonl.swp").write_text("x")
        time.sleep(4 * SETTLE)
        assert update.calls == 1
        (tmp_path / "a.jsonl").write_text("x")
        wait_for(lambda: update.calls == 2)


def test_a_single_file_is_followed_through_its_replacement(tmp_path: Path) -> None:
    update, file = Counted(), tmp_path / "a.jsonl"
    file.write_text("one")
    with following(file, update):
        wait_for(lambda: update.calls == 1)
        (tmp_path / "other.jsonl").write_text("of no interest")
        (tmp_path / "a.new").write_text("two")
        (tmp_path / "a.new").replace(file)
        wait_for(lambda: update.calls == 2)
        file.unlink()
        wait_for(lambda: update.calls == 3)
        file.write_text("three")
        wait_for(lambda: update.calls == 4)
    assert file.read_text() == "three"


def test_what_fails_for_a_while_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer.change.watch, "RETRY_SECONDS", 0.05)
    update = Counted(IndexLockedError("another job"), IndexLockedError("another job"))
    with following(tmp_path, update):
        wait_for(lambda: update.calls == 3)
        time.sleep(4 * SETTLE)
    assert update.calls == 3


def test_what_waiting_does_not_mend_ends_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="for good"):
        follow(tmp_path, Counted(UsageError("for good")), settle_seconds=SETTLE)
