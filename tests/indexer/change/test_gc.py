"""Garbage collection: what is kept, what goes, and that deleted passages leave no byte behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from indexer.build.index_job import Encoders, load_encoders
from indexer.change.add_delete import delete_passages
from indexer.change.gc import collect_garbage
from indexer.change.rollback import roll_back
from kalm_cache import PassageIndex
from kalm_cache.errors import IndexNotFoundError, StoreError, UsageError
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.journal import read_journal
from kalm_cache.settings import Settings
from tests.indexer.changes import add, bytes_of, found, numbers_of, payloads_of, reindex, scores_of, texts_of, valid
from tests.indexes import TEXTS, build, settings_for, shard_of

SECRET = {"secret": "The rarewordx password of the morning ferry is Xyzzy-Plugh-4711."}
NEW = {"n1": "a new passage about bees", "n2": "the last ferry of the morning"}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "index"
    build(folder, settings, TEXTS | SECRET, encoders=encoders)
    return folder


def names(index: Path) -> list[str]:
    return sorted(path.name for path in (index / "generations").iterdir())


def test_the_live_generation_and_the_one_before_it_are_kept(index: Path, settings: Settings, encoders: Encoders):
    for i in range(3):
        add(index, settings, encoders, {f"n{i}": f"new passage {i}"})
    report = collect_garbage(index)
    assert names(index) == ["000003", "000004"]
    assert [one.generation for one in report.kept] == ["000003"]
    assert [(one.generation, one.why) for one in report.removed] == [
        ("000001", "it is older than those to keep"),
        ("000002", "it is older than those to keep"),
    ]
    assert (report.compacted, report.in_use) == (0, [])
    assert valid(index)
    assert roll_back(index).generation == "000003"
    assert valid(index)


@pytest.mark.parametrize("keep", [0, 1, 2, 9])
def test_as_many_are_kept_as_one_asks_for(index: Path, settings: Settings, encoders: Encoders, keep: int):
    for i in range(3):
        add(index, settings, encoders, {f"n{i}": f"new passage {i}"})
    collect_garbage(index, keep)
    assert names(index) == ["000001", "000002", "000003", "000004"][-1 - keep :]


def test_deleted_passages_leave_no_byte_behind(index: Path, settings: Settings, encoders: Encoders):
    add(index, settings, encoders, NEW)
    payload, text = payloads_of(index)["secret"], SECRET["secret"]
    stored = bytes_of(index)
    assert payload in stored
    delete_passages(["secret"], index)
    assert payload in bytes_of(index)  # hidden, and not gone
    kept, ordinals, shown = payloads_of(index), numbers_of(index), texts_of(index)
    report = collect_garbage(index)
    assert (report.generation, report.compacted) == ("000004", 1)
    assert {one.generation: one.why for one in report.removed} == dict.fromkeys(
        ("000001", "000002", "000003"), "it holds 1 passages that were deleted"
    )
    assert names(index) == ["000004"]
    left = bytes_of(index)
    for trace in (payload, payload[20:60], text.encode(), b"Xyzzy", b"xyzzi", b"plugh", b"secret"):
        assert trace not in left, trace
    assert report.freed_bytes > 0
    assert (payloads_of(index), numbers_of(index), texts_of(index)) == (kept, ordinals, shown)
    assert "n2" in found(index, "morning ferry")["bm25"]
    assert valid(index)


def test_replaced_passages_leave_the_live_generation_and_the_one_before_stays(
    index: Path, settings: Settings, encoders: Encoders
):
    add(index, settings, encoders, {"d1": "edited"})
    report = collect_garbage(index)
    assert (report.generation, report.compacted, names(index)) == ("000003", 1, ["000002", "000003"])
    assert len(open_current(index).manifest.segments) == 1
    assert texts_of(index)["d1"] == "edited"
    collect_garbage(index, keep=0)
    assert names(index) == ["000003"]
    assert valid(index)


def test_what_a_reindex_dropped_is_gone_too(index: Path, settings: Settings, encoders: Encoders):
    payload = payloads_of(index)["secret"]
    reindex(index, settings, encoders, TEXTS)
    assert payload in bytes_of(index)
    report = collect_garbage(index)
    assert (report.compacted, names(index)) == (0, ["000002"])
    assert payload not in bytes_of(index)
    assert b"Xyzzy" not in bytes_of(index)


def test_generations_that_are_being_read_stay_until_they_are_not(index: Path, settings: Settings, encoders: Encoders):
    with PassageIndex.open(index, device="cpu") as serving:
        before = serving.margins("ferry", list(TEXTS))
        delete_passages(["secret"], index)
        report = collect_garbage(index)
        assert [one.generation for one in report.in_use] == ["000001"]
        assert names(index) == ["000001", "000003"]
        assert serving.margins("ferry", list(TEXTS)) == before
        assert serving.search("Xyzzy", first_stage="bm25").results[0].doc_id == "secret"
    report = collect_garbage(index)
    assert [one.generation for one in report.removed] == ["000001"]
    assert b"Xyzzy" not in bytes_of(index)
    assert valid(index)


def test_a_reader_of_another_process_counts_too(index: Path, settings: Settings, encoders: Encoders):
    import subprocess
    import sys

    script = (
        "import sys; from pathlib import Path; from kalm_cache.generations.generation import open_and_share\n"
        "held = open_and_share(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    reader = subprocess.Popen([sys.executable, "-c", script, str(index)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"open\n"
    add(index, settings, encoders, NEW)
    assert [one.generation for one in collect_garbage(index, keep=0).in_use] == ["000001"]
    reader.kill()
    reader.communicate()
    assert [one.generation for one in collect_garbage(index, keep=0).removed] == ["000001"]


def test_a_dry_run_changes_nothing_and_says_the_same(index: Path, settings: Settings, encoders: Encoders):
    add(index, settings, encoders, NEW)
    delete_passages(["secret", "n1"], index)
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    plan = collect_garbage(index, dry_run=True)
    assert {path: path.read_bytes() for path in index.rglob("*") if path.is_file()} == before
    done = collect_garbage(index)
    assert (plan.compacted, plan.removed, plan.kept) == (done.compacted, done.removed, done.kept)


def test_names_and_numbers_are_never_given_again(index: Path, settings: Settings, encoders: Encoders):
    add(index, settings, encoders, NEW)  # numbers 13 and 14, in 000002
    delete_passages(["n1", "n2"], index)
    collect_garbage(index)
    roll = read_journal(index)
    assert (roll.generation, roll.next_ordinal) == (4, 15)
    assert add(index, settings, encoders, NEW).generation == "000005"
    assert {numbers_of(index)[one] for one in NEW} == {15, 16}


def test_what_was_rolled_back_from_goes(index: Path, settings: Settings, encoders: Encoders):
    add(index, settings, encoders, NEW)
    roll_back(index)
    report = collect_garbage(index)
    assert [(one.generation, one.why) for one in report.removed] == [
        ("000002", "the live generation was not made from it")
    ]
    assert read_journal(index).generation == 2
    assert add(index, settings, encoders, NEW).generation == "000003"


def test_a_removal_that_was_interrupted_is_finished(
    index: Path, settings: Settings, encoders: Encoders, monkeypatch: pytest.MonkeyPatch
):
    add(index, settings, encoders, NEW)

    def die(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            collect_garbage(index, keep=0)
    assert names(index) == ["000001.removing", "000002"]
    assert valid(index)
    collect_garbage(index, keep=0)
    assert names(index) == ["000002"]


def test_without_texts_the_new_base_finds_what_one_that_was_built_of_the_rest_finds(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path
):
    index, settings = tmp_path / "index", settings_for(mini_folder, embedder_folder, store_text=False)
    encoders = load_encoders(settings)
    build(index, settings, TEXTS, encoders=encoders)
    add(index, settings, encoders, {"d2": "another text", "n": "a new one"})
    delete_passages(["d1", "d4"], index)
    kept = payloads_of(index)
    assert collect_garbage(index).compacted == 3
    left = {one: text for one, text in TEXTS.items() if one not in ("d1", "d2", "d4")}
    build(tmp_path / "fresh", settings, left | {"d2": "another text", "n": "a new one"}, encoders=encoders)
    for query in ("ferry", "honey bees", "another text"):
        assert scores_of(index, query) == scores_of(tmp_path / "fresh", query)
    assert payloads_of(index) == kept
    assert valid(index)


@pytest.mark.parametrize(("name", "missing"), [("bm25/times.npy", "postings"), ("dense.faiss", "vectors")])
def test_without_texts_a_damaged_first_stage_cannot_be_made_anew_and_nothing_is_done(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path, name: str, missing: str
):
    index = tmp_path / "index"
    build(index, settings_for(mini_folder, embedder_folder, store_text=False), TEXTS)
    delete_passages(["d1"], index)
    path = shard_of(index, "000002") / "first_stage" / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UsageError, match=f"keeps no texts, and the {missing} of segment 00000 cannot be taken over"):
        collect_garbage(index)
    assert open_current(index).name == "000002"


def test_without_texts_and_bm25_states_and_vectors_are_copied(tmp_path: Path, mini_folder: Path, embedder_folder: Path):
    index = tmp_path / "index"
    build(index, settings_for(mini_folder, embedder_folder, store_text=False, bm25=False), TEXTS)
    delete_passages(["d1"], index)
    kept, nearest = payloads_of(index), found(index, "ferry")
    collect_garbage(index)
    assert (payloads_of(index), found(index, "ferry")) == (kept, nearest)
    assert valid(index)


def test_where_locks_are_refused_nothing_is_removed(
    index: Path, settings: Settings, encoders: Encoders, monkeypatch: pytest.MonkeyPatch
):
    import fcntl

    add(index, settings, encoders, NEW)
    original = fcntl.flock
    calls = 0

    def refuse_second(descriptor: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:  # the first one is the build's
            raise OSError(37, "No locks available")
        original(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", refuse_second)
    with pytest.raises(StoreError, match="refuses locks"):
        collect_garbage(index, keep=0)
    assert names(index) == ["000001", "000002"]


def test_where_nothing_was_published_nothing_is_made(tmp_path: Path):
    with pytest.raises(IndexNotFoundError):
        collect_garbage(tmp_path / "none")
    assert not (tmp_path / "none").exists()
