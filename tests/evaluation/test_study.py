"""Sweeps over points, run folders, given candidates: on the small index of this folder's conftest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kalm_cache.codec import decode, get_codec
from kalm_cache.errors import UsageError
from kalm_cache.evaluation import BeirTask
from kalm_cache.evaluation.collections.collection import Collection, drops_own_id
from kalm_cache.evaluation.collections.trec import Scored, ids_of
from kalm_cache.evaluation.plan import Plan, settings_key
from kalm_cache.evaluation.points import Point, open_point, states_bytes_per_passage
from kalm_cache.evaluation.reports.markdown import markdown_report
from kalm_cache.evaluation.reports.report import reports_of
from kalm_cache.evaluation.reports.results import measured, per_query_of, result_of
from kalm_cache.evaluation.run_folder import RunFolder
from kalm_cache.evaluation.study import Study, finished_study, study
from kalm_cache.evaluation.systems import bi_encode, search, search_dense
from kalm_cache.index.passage_index import PassageIndex

POINTS = (Point(2, "fp16"), Point(4, "int8"))


@pytest.fixture(scope="module")
def collection(task: BeirTask) -> Collection:
    return Collection(task, lambda template: ())


@pytest.fixture(scope="module")
def found(index: PassageIndex, collection: Collection) -> Iterator[Study]:
    yield study(index, collection, Plan(POINTS, k=10, compared=("dense", "bm25", "fused")))


def test_a_point_at_the_stored_ratio_and_codec_holds_the_states_of_the_index(index: PassageIndex) -> None:
    ids = [f"d{n}" for n in range(12)]
    with open_point(index, Point(2, "fp16"), ids) as point:
        stored = point.reader.read(ids, 2)
    assert all((a.states == b.states).all() for a, b in zip(stored, index.pooled(ids), strict=True))


def test_a_point_of_another_codec_holds_what_that_codec_makes_of_the_pooled_states(index: PassageIndex) -> None:
    codec = get_codec("int8")
    with open_point(index, Point(8, "int8"), ["d3", "d1"]) as point:
        (found,) = point.reader.read(["d1"], 8)
    (exact,) = index.pooled(["d1"], chunk_size=8)
    states = exact.states.numpy()
    assert (found.states.numpy() == decode(codec, codec.encode(states), *states.shape)).all()


def test_bytes_of_a_point_are_those_of_its_file(index: PassageIndex) -> None:
    ids = [f"d{n}" for n in range(40)]
    with open_point(index, Point(2, "fp16"), ids) as own, open_point(index, Point(2, "int4"), ids) as small:
        assert own.bytes_per_passage == pytest.approx(states_bytes_per_passage(index), rel=0.01)
        assert small.bytes_per_passage < own.bytes_per_passage


def test_a_point_finer_than_what_is_stored_is_refused(index: PassageIndex) -> None:
    with (
        pytest.raises(UsageError, match="not as fine as fp32; index with --codec fp32"),
        open_point(index, Point(2, "fp32"), ["d1"]),
    ):
        pass


def test_every_point_ranks_the_same_candidates_by_its_margins(index: PassageIndex, found: Study) -> None:
    candidates = ids_of(found.candidates.run)
    for point in found.of_kind("reranker"):
        for query_id, ranked in point.run.items():
            assert {one.doc_id for one in ranked} == set(candidates[query_id][:10])
            assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    query_id, query = next(iter(found.task.queries.items()))
    ids = candidates[query_id][:10]
    exact = dict(zip(ids, index.margins(query, ids, chunk_size=2), strict=True))
    first = found.of_kind("reranker")[0].run[query_id]
    assert [one.score for one in first] == pytest.approx([exact[one.doc_id] for one in first], abs=1e-5)


def test_a_finished_study_is_taken_from_its_folder_and_a_stopped_one_goes_on(
    index: PassageIndex, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(POINTS[:1], k=10)
    key = settings_key(plan, collection, {"model": "mini"})
    first = study(index, collection, plan, kept=RunFolder(tmp_path, key))
    again = finished_study(collection, plan, RunFolder(tmp_path, key))
    assert again is not None
    assert [ids_of(one.run) for one in again.systems] == [ids_of(one.run) for one in first.systems]
    assert [one.cost for one in again.systems] == [one.cost for one in first.systems]
    more = replace(plan, points=POINTS)
    assert finished_study(collection, more, RunFolder(tmp_path, key)) is None
    asked: list[int] = []
    study(index, collection, more, kept=RunFolder(tmp_path, key), on_progress=lambda done, _: asked.append(done))
    assert len(asked) == len(collection.task.queries)  # of the second point alone


def test_a_run_folder_of_other_settings_is_refused_with_both_sides(tmp_path: Path) -> None:
    RunFolder(tmp_path, {"k": 100}).save_facts({})
    with pytest.raises(UsageError, match="k was 100, is 50; give another --out, or remove it"):
        RunFolder(tmp_path, {"k": 50})


def test_a_point_is_interpolated_with_the_first_stage_at_every_weight_as_a_search_is(
    index: PassageIndex, collection: Collection, tmp_path: Path
) -> None:
    plan = Plan((Point(2, "fp16"),), k=10)
    key = settings_key(plan, collection, {})
    study(index, collection, plan, kept=RunFolder(tmp_path, key))
    # of margins that an earlier run kept: nothing is decoded again
    weighed = replace(plan, first_stage_weights=(0.5, 3.0))
    again = finished_study(collection, weighed, RunFolder(tmp_path, key))
    assert again is not None
    half, three = again.of_kind("interpolated")
    assert (half.name, three.cost.first_stage_weight, three.cost.chunk_size) == ("fp16 r=2 w=0.5", 3.0, 2)
    for query_id, query in list(collection.task.queries.items())[:4]:
        expected = index.search(query, k=10, top_n=None, chunk_size=2, first_stage_weight=3.0).results
        assert [one.doc_id for one in three.run[query_id]] == [one.doc_id for one in expected]
    report = markdown_report([result_of(again)], "kalm-cache eval", "a machine")
    assert "margin + 3 x the first stage's z-score" in report
    assert [one.first_stage_weight for one in reports_of(measured(again, per_query_of(again)))] == [0.0, 0.5, 3.0]


def test_given_candidates_come_before_the_first_stage(index: PassageIndex, collection: Collection) -> None:
    given = {query_id: [Scored("d1", 2.0), Scored("d2", 1.0)] for query_id in collection.task.queries}
    found = study(index, replace(collection, given=given), Plan((Point(2),), k=10, max_queries=3))
    assert found.candidates.name == "given"
    assert all({one.doc_id for one in ranked} == {"d1", "d2"} for ranked in found.systems[-1].run.values())


def test_a_passage_with_the_querys_own_id_is_left_out_where_the_benchmark_says_so(index: PassageIndex) -> None:
    task = BeirTask("own", "test", {"d5": index.find_texts(["d5"])[0]}, {"d5": {"d6": 1}})  # type: ignore[dict-item]
    assert search(index, task, 5, "dense").run["d5"][0].doc_id == "d5"
    dropped = search(index, task, 5, "dense", drop_own_id=True).run["d5"]
    assert len(dropped) == 5
    assert "d5" not in ids_of({"d5": dropped})["d5"]


@pytest.fixture
def own(index: PassageIndex) -> Collection:
    """Two queries that are passages themselves."""
    queries = {doc_id: str(index.find_texts([doc_id])[0]) for doc_id in ("d5", "d6")}
    return Collection(BeirTask("toy", "test", queries, {"d5": {"d1": 1}, "d6": {"d2": 1}}), lambda: ())


def test_no_system_ranks_a_querys_own_passage_where_it_is_dropped(
    index: PassageIndex, own: Collection, embedder_folder: Path
) -> None:
    plan = Plan((Point(2),), k=10, compared=("dense", "bm25"), dense=(str(embedder_folder),))
    given = {query_id: [Scored("d6", 3.0), Scored("d5", 2.0), Scored("d1", 1.0)] for query_id in own.task.queries}
    for collection in (own, replace(own, given=given)):
        found = study(index, replace(collection, drop_own_id=True), plan)
        assert len(found.systems) >= 4
        for system in found.systems:
            assert all(query_id not in ids for query_id, ids in ids_of(system.run).items()), system.name


def test_own_ids_among_the_candidates_are_warned_of_unless_somebody_said_what_becomes_of_them(
    index: PassageIndex, own: Collection, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings(drop_own_id: bool | None) -> list[str]:
        caplog.clear()
        study(index, replace(own, drop_own_id=drop_own_id), Plan((Point(2),), k=5))
        return [line.getMessage() for line in caplog.records if "own id" in line.getMessage()]

    [warning] = warnings(None)
    assert "2 of 2 queries have a passage of their own id among the candidates" in warning
    assert "--drop-own-id" in warning
    assert warnings(drop_own_id=False) == warnings(drop_own_id=True) == []


@pytest.mark.parametrize(
    ("name", "drops"),
    [("arguana", True), ("ArguAna", True), ("quora", True), ("quora-dev", True), ("beir-quora-test", True)],
)
def test_collections_whose_queries_are_passages_are_known_by_name(name: str, drops: bool) -> None:
    assert drops_own_id(name) is drops
    assert drops_own_id(f"not-{name}") is None


def test_instructions_come_from_the_plan_the_query_the_collection_in_this_order(collection: Collection) -> None:
    own = replace(collection, instruction="of all", instructions={"q1": "of one"})
    plan = Plan(POINTS)
    assert [plan.instruction_for(own, query_id) for query_id in ("q1", "q2")] == ["of one", "of all"]
    assert replace(plan, instruction="said").instruction_for(own, "q1") == "said"


def test_an_embedder_ranks_all_passages_or_the_same_candidates(
    index: PassageIndex, task: BeirTask, embedder_folder: Path
) -> None:
    everything = search_dense(index, task, 40, str(embedder_folder), "dense x").run
    own = search(index, task, 40, "dense").run
    assert (len(everything), {len(ranked) for ranked in everything.values()}) == (len(own), {len(index)})
    for query_id, ranked in everything.items():
        assert [one.score for one in ranked] == pytest.approx([one.score for one in own[query_id]], abs=1e-5)
    candidates = {query_id: ranked[::-1] for query_id, ranked in everything.items()}
    for query_id, ranked in bi_encode(index, task, candidates, str(embedder_folder), "x").run.items():
        expected = [one.score for one in everything[query_id]]
        assert [one.score for one in ranked] == pytest.approx(expected, abs=1e-5)
