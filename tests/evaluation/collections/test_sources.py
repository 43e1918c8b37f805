"""Collections from ir_datasets and mteb, with local files and a local task; configurations; the model for mteb."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ir_datasets
import mteb
import pytest
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from kalm_cache.errors import CorpusError, UsageError
from kalm_cache.evaluation.collections.ir_dataset import load_ir_dataset
from kalm_cache.evaluation.collections.mteb_task import collections_of, find_tasks
from kalm_cache.evaluation.config import load_eval_config
from kalm_cache.evaluation.measures.metrics import measure
from kalm_cache.evaluation.mteb_reranker import MTEBReranker
from kalm_cache.evaluation.plan import Plan
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.passage import Passage, PassageTemplate

CONFIGS = sorted((Path(__file__).parents[3] / "configs" / "eval").glob("*.toml"))
QRELS = {"q1": {"d1": 2, "d2": 0}, "q2": {"d3": 1}}


class LocalTask(AbsTaskRetrieval):
    """A retrieval task over the passages of this folder's index, without any download."""

    metadata = TaskMetadata(
        name="LocalTask",
        description="local",
        reference=None,
        dataset={"path": "local", "revision": "1"},
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
        prompt={"query": "Find the bees."},
    )
    passages: list[Passage]

    def load_data(self, *_: Any, **__: Any) -> None:
        if self.data_loaded:
            return
        queries = [{"id": "q1", "text": "bees flowers"}, {"id": "q2", "text": "ferry island"}]
        corpus = [{"id": one.doc_id, "text": one.text, "title": ""} for one in self.passages]
        data = {"queries": Dataset.from_list(queries), "corpus": Dataset.from_list(corpus), "top_ranked": None}
        self.dataset = {"default": {"test": data | {"relevant_docs": QRELS}}}  # type: ignore[typeddict-item]
        self.data_loaded = True


@pytest.fixture
def local_task(passages: list[Passage]) -> LocalTask:
    task = LocalTask()
    task.passages = passages
    return task


@pytest.fixture
def reranker(index: PassageIndex, passages: list[Passage], monkeypatch: pytest.MonkeyPatch) -> MTEBReranker:
    monkeypatch.setattr(index, "close", lambda: None)

    def open_index(name: str, corpus: Callable[[], Iterable[Passage]]) -> PassageIndex:
        assert name == "LocalTask-default-test"
        assert list(corpus(PassageTemplate())) == passages
        return index

    return MTEBReranker(open_index, "kalm-cache/mini", k=20)


def predictions(folder: Path) -> dict[str, dict[str, float]]:
    stored = json.loads((folder / "LocalTask_predictions.json").read_text())
    return dict(stored["default"]["test"])


def test_mteb_evaluates_first_stage_and_rerank_in_one(
    local_task: LocalTask, reranker: MTEBReranker, index: PassageIndex, tmp_path: Path
) -> None:
    result = mteb.evaluate(reranker, local_task, cache=None, prediction_folder=tmp_path, co2_tracker=False)  # type: ignore[arg-type]
    run = {}
    for query_id, query in {"q1": "bees flowers", "q2": "ferry island"}.items():
        answer = index.search(query, k=20, top_n=None, instruction="Find the bees.")
        run[query_id] = [one.doc_id for one in answer.results]
        assert predictions(tmp_path)[query_id] == pytest.approx({one.doc_id: one.margin for one in answer.results})
    scores = result.task_results[0].scores["test"][0]
    assert scores["ndcg_at_10"] == pytest.approx(measure(QRELS, run, ["ndcg@10"])["ndcg@10"], abs=1e-4)


def test_mteb_evaluates_the_second_stage_over_another_models_candidates(
    local_task: LocalTask, reranker: MTEBReranker, index: PassageIndex, tmp_path: Path
) -> None:
    first = {"q1": {"d1": 0.9, "d2": 0.8, "d4": 0.1}, "q2": {"d3": 3.0, "d9": 2.0, "d1": 1.0}}
    stored = {"mteb_model_meta": {}, "default": {"test": first}}
    (tmp_path / "LocalTask_predictions.json").write_text(json.dumps(stored))
    second_stage = local_task.convert_to_reranking(tmp_path, top_k=2)
    (tmp_path / "second").mkdir()
    mteb.evaluate(reranker, second_stage, cache=None, prediction_folder=tmp_path / "second", co2_tracker=False)  # type: ignore[arg-type]
    found = predictions(tmp_path / "second")
    assert {query_id: set(ids) for query_id, ids in found.items()} == {"q1": {"d1", "d2"}, "q2": {"d3", "d9"}}
    margins = index.margins("bees flowers", ["d1", "d2"], instruction="Find the bees.")
    assert [found["q1"]["d1"], found["q1"]["d2"]] == pytest.approx(margins, abs=1e-5)


def test_a_task_of_mteb_is_a_collection_with_its_prompt(local_task: LocalTask, passages: list[Passage]) -> None:
    (found,) = collections_of(local_task)
    assert (found.task.name, found.task.split, found.task.qrels) == ("LocalTask", "test", QRELS)
    assert found.instruction == "Find the bees."
    assert callable(found.corpus)
    assert list(found.corpus(PassageTemplate())) == passages


def test_a_query_with_an_instruction_of_its_own_keeps_it(local_task: LocalTask) -> None:
    local_task.load_data()
    data = local_task.dataset["default"]["test"]
    data["queries"] = Dataset.from_list([{"id": "q1", "text": "bees", "instruction": "Only hives."}])
    (found,) = collections_of(local_task)
    assert Plan(()).instruction_for(found, "q1") == "Only hives."


def test_an_unknown_task_is_refused_and_one_out_of_reach_says_what_to_do(
    local_task: LocalTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="mteb has no task or benchmark 'NoSuchTask'"):
        find_tasks("NoSuchTask")

    def unreachable() -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(local_task, "load_data", unreachable)
    with pytest.raises(CorpusError, match=r"LocalTask cannot be loaded: ConnectionError: no route; .* with a network"):
        list(collections_of(local_task))


def test_lmeb_is_known_by_its_name() -> None:
    assert {"LoCoMo", "LMEB_SciFact"} <= {task.metadata.name for task in find_tasks("LMEB")}


@pytest.fixture
def local_dataset(tmp_path: Path) -> str:
    (tmp_path / "docs.tsv").write_text("d1\tBees fly.\nd2\tOwls hunt.\n")
    (tmp_path / "queries.tsv").write_text("q1\tbees\nq9\tunjudged\n")
    (tmp_path / "qrels").write_text("q1 0 d1 2\nq1 0 d2 0\n")
    dataset = ir_datasets.create_dataset(
        docs_tsv=str(tmp_path / "docs.tsv"),
        queries_tsv=str(tmp_path / "queries.tsv"),
        qrels_trec=str(tmp_path / "qrels"),
    )
    name = f"local/{tmp_path.name}"
    ir_datasets.registry.register(name, dataset)
    return name


def test_a_dataset_of_ir_datasets_is_a_collection(local_dataset: str) -> None:
    found = load_ir_dataset(local_dataset)
    assert (found.task.queries, found.task.qrels) == ({"q1": "bees"}, {"q1": {"d1": 2, "d2": 0}})
    assert callable(found.corpus)
    assert list(found.corpus(PassageTemplate())) == [Passage("d1", "Bees fly."), Passage("d2", "Owls hunt.")]


def test_a_name_that_ir_datasets_does_not_know_is_refused() -> None:
    with pytest.raises(UsageError, match="knows no 'beir/nothing'"):
        load_ir_dataset("beir/nothing")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_names_collections_that_exist(path: Path) -> None:
    config = load_eval_config(path)
    assert config is not None
    assert len({json.dumps(one.model_dump()) for one in config.collections}) == len(config.collections)
    for one in config.collections:
        if one.ir_dataset is not None:
            dataset = ir_datasets.load(one.ir_dataset)
            assert all(dataset.has(part) for part in ("docs", "queries", "qrels"))
        if one.mteb is not None:
            assert find_tasks(one.mteb, one.subsets)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("collections = []", "at least 1 item"),
        ('[[collections]]\nbeir = "a"\nmteb = "b"', "give one of beir, ir_dataset and mteb"),
        ('codex = "int8"\n[[collections]]\nbeir = "a"', "codex: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_field(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "eval.toml").write_text(content)
    with pytest.raises(UsageError, match=rf"eval\.toml: .*{reason}"):
        load_eval_config(tmp_path / "eval.toml")


def test_a_file_of_settings_is_no_evaluation(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("k = 5\n")
    assert load_eval_config(tmp_path / "settings.toml") is None
