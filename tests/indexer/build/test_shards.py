"""A sharded index: it answers as one segment would, and everything that changes an index works on it."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from indexer.build.index_job import Encoders, load_encoders, run_index_job
from indexer.change.add_delete import delete_passages
from indexer.change.fold_job import run_fold
from indexer.change.gc import collect_garbage
from indexer.change.rollback import roll_back
from indexer.integrity.repair import repair_index
from indexer.integrity.verify import verify_index
from kalm_cache.errors import StoreError, UsageError
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.stats import index_stats
from kalm_cache.settings import Settings
from tests.indexer.changes import add, numbers_of, payloads_of, reindex, texts_of, valid
from tests.indexer.killed import run_until_killed
from tests.indexer.sharded import MANY, answers_of, files_of, margins_of, shards_of
from tests.indexes import build, lines_of, settings_for


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    """An index of `MANY` in one segment."""
    folder = tmp_path_factory.mktemp("whole") / "index"
    build(folder, settings, MANY, encoders=encoders)
    return folder


@pytest.fixture(scope="module")
def of_three(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    """An index of `MANY` in three shards, that nobody changes."""
    folder = tmp_path_factory.mktemp("three") / "index"
    build(folder, settings, MANY, encoders=encoders, shards=3)
    return folder


@pytest.fixture
def three(of_three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(of_three, tmp_path / "three"))


@pytest.fixture(scope="module")
def exact(
    tmp_path_factory: pytest.TempPathFactory, mini_folder: Path, embedder_folder: Path
) -> tuple[Path, Settings, Encoders]:
    """An index of `MANY` in one segment, whose states are not rounded; and what builds more of its kind."""
    settings = settings_for(mini_folder, embedder_folder, codec="fp32")
    folder, encoders = tmp_path_factory.mktemp("exact") / "index", load_encoders(settings)
    build(folder, settings, MANY, encoders=encoders)
    return folder, settings, encoders


@pytest.mark.parametrize("shards", [1, 2, 5, 8])
def test_any_number_of_shards_answers_as_one_segment(
    tmp_path: Path, exact: tuple[Path, Settings, Encoders], shards: int
):
    index, (whole, settings, encoders) = tmp_path / "index", exact
    report = build(index, settings, MANY, encoders=encoders, shards=shards)
    assert (report.passages, report.encoded) == (len(MANY), len(MANY))
    assert list(shards_of(index)) == list(range(shards))
    assert answers_of(index) == answers_of(whole)
    assert margins_of(index) == pytest.approx(margins_of(whole), abs=1e-6)
    assert numbers_of(index) == numbers_of(whole)
    assert valid(index)


def test_shards_of_an_ivf_answer_as_one_ivf(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path, encoders: Encoders
):
    settings = settings_for(mini_folder, embedder_folder, dense_index="ivf")
    texts = MANY | {f"more {doc_id}": f"{text} and more" for doc_id, text in MANY.items()}  # enough for two clusters
    build(tmp_path / "one", settings, texts, encoders=encoders)
    build(tmp_path / "five", settings, texts, encoders=encoders, shards=5)
    assert json.loads((tmp_path / "five/generations/000001/shards/00004/first_stage/dense.json").read_text()) | {
        "passages": len(texts)
    } == json.loads((tmp_path / "one/generations/000001/shards/00000/first_stage/dense.json").read_text())
    assert answers_of(tmp_path / "five") == answers_of(tmp_path / "one")
    assert valid(tmp_path / "five")


def test_an_index_of_one_segment_says_nothing_of_shards(whole: Path, of_three: Path):
    written = (whole / "generations/000001/manifest.json").read_text()
    assert "sharding" not in written
    assert '"shard"' not in written
    assert '"sharding"' in (of_three / "generations/000001/manifest.json").read_text()


def test_shards_without_a_passage_are_valid(tmp_path: Path, settings: Settings, encoders: Encoders):
    build(tmp_path / "index", settings, dict(list(MANY.items())[:2]), encoders=encoders, shards=8)
    assert sorted(shards_of(tmp_path / "index").values()) == [0, 0, 0, 0, 0, 0, 1, 1]
    assert valid(tmp_path / "index")
    with pytest.raises(UsageError, match="number of shards is 16385; it must be 1 to 16384"):
        build(tmp_path / "other", settings, MANY, encoders=encoders, shards=16385)


def test_duplicates_and_bad_lines_are_reported_as_for_one_segment(
    tmp_path: Path, settings: Settings, encoders: Encoders
):
    texts = [*MANY.items(), ("m3", "again"), ("twin10", "and again")]
    reported: list[list[object]] = [[], []]
    for into, shards in zip(reported, (None, 4), strict=True):
        report = build(tmp_path / str(shards), settings, texts, encoders=encoders, rejected=into, shards=shards)
        assert (report.passages, report.rejected) == (len(MANY), 2)
    assert reported[0] == reported[1]


def test_reindexing_copies_what_has_the_same_text_within_and_between_shards(
    three: Path, settings: Settings, encoders: Encoders
):
    changed = MANY | {"m4": "another text", "new": "something new"}
    report = reindex(three, settings, encoders, changed)
    assert (report.reused, report.encoded, len(shards_of(three))) == (len(MANY) - 1, 2, 3)
    for shards in (5, 1):
        report = reindex(three, settings, encoders, changed, shards=shards)
        assert (report.reused, report.encoded, len(shards_of(three))) == (len(changed), 0, shards)
        assert texts_of(three) == changed
        assert valid(three)


def test_reindexing_a_sharded_index_answers_as_reindexing_one_segment(
    tmp_path: Path, three: Path, whole: Path, settings: Settings, encoders: Encoders
):
    one = Path(shutil.copytree(whole, tmp_path / "one"))
    changed = {doc_id: f"{text} now" if int(doc_id.strip("mtwin")) % 9 == 4 else text for doc_id, text in MANY.items()}
    some = dict(list(changed.items())[5:])
    for index in (one, three):
        report = reindex(index, settings, encoders, some, keep_missing=True)
        assert (report.kept, report.passages) == (5, len(MANY))
    assert answers_of(three) == answers_of(one)
    assert numbers_of(three) == numbers_of(one)


def test_one_segment_becomes_shards_and_nothing_is_encoded(
    tmp_path: Path, whole: Path, settings: Settings, encoders: Encoders
):
    index = Path(shutil.copytree(whole, tmp_path / "index"))
    report = build(index, settings, MANY, encoders=encoders, shards=4)
    assert (report.copied, report.encoded) == (len(MANY), 0)
    assert answers_of(index) == answers_of(whole)
    assert roll_back(index).passages == len(MANY)
    assert shards_of(index) == {}


def test_adding_to_and_deleting_from_shards_answers_as_one_segment_does(
    tmp_path: Path, three: Path, whole: Path, settings: Settings, encoders: Encoders
):
    one = Path(shutil.copytree(whole, tmp_path / "one"))
    for index in (one, three):
        add(index, settings, encoders, {"m3": "the third text, changed", "new": "a new text", "m7": MANY["m7"]})
        delete_passages(["m9", "twin20"], index)
        add(index, settings, encoders, {"m9": MANY["m9"] + " back again"})
        assert valid(index)
    assert answers_of(three) == answers_of(one)
    assert texts_of(three) == texts_of(one)
    names = [segment.name for segment in open_current(three).manifest.tail]
    assert names == ["000002", "000004"]  # none is a shard's: these have five digits


def test_gc_leaves_the_shards_of_what_is_shown(
    tmp_path: Path, three: Path, whole: Path, settings: Settings, encoders: Encoders
):
    one = Path(shutil.copytree(whole, tmp_path / "one"))
    for index in (one, three):
        add(index, settings, encoders, {"m3": "the third text, changed", "new": "a new text"})
        delete_passages(["m9", "twin20"], index)
        assert collect_garbage(index).compacted == 3
        assert valid(index)
    assert sum(shards_of(three).values()) == len(MANY) - 1
    assert open_current(three).manifest.tail == []
    assert answers_of(three) == answers_of(one)
    assert (index_stats(three).passages, index_stats(three).segments) == (len(MANY) - 1, 3)


def test_many_additions_to_shards_fold_and_the_shards_stay(three: Path, settings: Settings, encoders: Encoders):
    before = {name: one for name, one in files_of(three).items() if "/0000" in f"/{name[7:]}"}
    for i in range(8):
        add(three, settings, encoders, {f"added{i}": f"text number {i}"})
    assert len(open_current(three).manifest.tail) == 1
    assert before.items() <= files_of(three).items()
    assert valid(three)
    run_fold(three, everything=True, on_progress=lambda counts: None)
    assert sum(shards_of(three).values()) == len(MANY) + 8
    assert open_current(three).manifest.tail == []
    assert valid(three)


def test_a_damaged_shard_is_repaired_from_its_texts_and_stays_a_shard(
    three: Path, settings: Settings, encoders: Encoders, whole: Path
):
    path = open_current(three).folder / "shards/00001/states.lmdb"
    content = bytearray(path.read_bytes())
    payload = payloads_of(three)[next(key for key in numbers_of(three) if bytes(payloads_of(three)[key]) in content)]
    content[content.find(payload)] ^= 1
    path.write_bytes(content)
    assert not verify_index(three).ok
    report = repair_index(three, settings)
    assert (report.encoded, report.quarantined, report.passages) == (1, [], len(MANY))
    assert valid(three)
    assert len(shards_of(three)) == 3
    assert margins_of(three) == pytest.approx(margins_of(whole), abs=1e-6)


def test_a_passage_in_the_wrong_shard_is_found_by_verify(three: Path):
    manifest = json.loads((open_current(three).folder / "manifest.json").read_text())
    assert manifest["sharding"] == {"count": 3, "buckets": 16384}
    # two shards change their names: every file is as its receipt says, and every passage is where it is not looked for
    shards = open_current(three).folder / "shards"
    (shards / "00000").rename(shards / "x")
    (shards / "00002").rename(shards / "00000")
    (shards / "x").rename(shards / "00002")
    assert not verify_index(three).ok


KILLS = [
    ("indexer.build.unfinished.resume_log:ResumeLog.write", 1),
    ("indexer.build.unfinished.resume_log:ResumeLog.write", 7),  # in a later shard
    ("indexer.build.unfinished.resume_log:Reservations.reserve", 3),  # while texts are shuffled
    ("indexer.build.shards.one_process:finish_first_stage", 1),
    ("kalm_cache.first_stage.bm25.collection:publish_file", 2),  # one shard of three has its scores
    ("indexer.build.build:receipts", 1),
    ("kalm_cache.generations.publish:rename_durably", 1),
]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(("call", "nth"), KILLS)
def test_a_killed_sharded_job_goes_on_and_ends_as_one_that_was_not_killed(
    tmp_path: Path, settings: Settings, encoders: Encoders, of_three: Path, call: str, nth: int
):
    index = tmp_path / "index"
    run_until_killed(index, settings, MANY, call, nth, signal.SIGKILL, shards=3)
    report = build(index, settings, MANY, encoders=encoders, shards=3)
    assert report.encoded + report.resumed == len(MANY)
    if "ResumeLog" not in call and "reserve" not in call:
        assert report.encoded == 0
    assert answers_of(index) == answers_of(of_three)
    assert numbers_of(index) == numbers_of(of_three)
    assert valid(index)


def test_an_unfinished_build_of_other_shards_is_refused_with_the_way_out(
    tmp_path: Path, settings: Settings, encoders: Encoders
):
    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    arguments = (lines_of(MANY), tmp_path / "index", settings, encoders)
    with pytest.raises(KeyboardInterrupt):
        run_index_job(*arguments, on_reject=print, on_progress=stop, shards=3)
    for shards in (None, 4):
        with pytest.raises(StoreError, match="run again with --shards 3 to finish it, or remove it"):
            build(tmp_path / "index", settings, MANY, encoders=encoders, shards=shards)
    assert build(tmp_path / "index", settings, MANY, encoders=encoders, shards=3).passages == len(MANY)


def test_a_segment_that_lacks_a_file_is_encoded_again_and_the_others_are_copied(
    three: Path, settings: Settings, encoders: Encoders
):
    lost = shards_of(three)[1]
    (open_current(three).folder / "shards/00001/states.lmdb").unlink()
    report = reindex(three, settings, encoders, MANY)
    assert (report.encoded, report.reused, report.why_encoded) == (lost, len(MANY) - lost, None)
    assert valid(three)
