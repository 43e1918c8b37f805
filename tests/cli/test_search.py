from __future__ import annotations

import json
from pathlib import Path

import pytest

from kalm_cache.cli.commands.watch import _updating
from kalm_cache.cli.corpus_input import CorpusOptions
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.reranker import KaLMReranker
from kalm_cache.settings import FIRST_STAGE_WEIGHTS, load_settings
from tests.checkpoints import make_checkpoint
from tests.cli.conftest import PASSAGES, Run

QUERY = "What is the capital of China?"


def test_search_prints_ranks_scores_texts_and_timings_as_json(run: Run, index: Path) -> None:
    result = run("search", QUERY, "--index", index, "--top-n", 3, "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert answer["query"] == QUERY
    assert [one["rank"] for one in answer["results"]] == [1, 2, 3]
    assert set(answer["results"][0]) == {
        *("doc_id", "score", "margin", "rank", "first_stage_rank", "first_stage_score", "text", "probability"),
        "metadata",
    }
    margins = [one["margin"] for one in answer["results"]]
    assert margins == sorted(margins, reverse=True)
    assert {"first_stage", "read", "decode", "total"} <= set(answer["timings_ms"])


def test_search_shows_a_table_to_people(run: Run, index: Path) -> None:
    result = run("search", QUERY, "--index", index)
    assert result.exit_code == 0
    assert "before" in result.stdout
    assert "china" in result.stdout


def test_a_larger_chunk_size_is_served_from_the_same_index(run: Run, index: Path) -> None:
    at_2 = json.loads(run("search", QUERY, "--index", index, "--json").stdout)
    at_4 = json.loads(run("search", QUERY, "--index", index, "--chunk-size", 4, "--json").stdout)
    assert at_2["results"][0]["margin"] != at_4["results"][0]["margin"]


@pytest.mark.parametrize(("option", "value"), [("--chunk-size", 3), ("--codec", "int8")])
def test_options_that_do_not_fit_the_index_exit_with_4(run: Run, index: Path, option: str, value: object) -> None:
    result = run("search", QUERY, "--index", index, option, value)
    assert result.exit_code == 4
    assert "was built with" in result.stderr
    assert f"kalm-cache reindex CORPUS {option} {value}" in result.stderr


def test_another_model_than_the_one_that_built_the_index_exits_with_4(run: Run, index: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", seed=1)
    result = run("search", QUERY, "--index", index, "--model", other)
    assert result.exit_code == 4
    assert str(other) in result.stderr


def test_an_empty_folder_says_how_to_index(run: Run, tmp_path: Path) -> None:
    result = run("search", QUERY, "--index", tmp_path)
    assert result.exit_code == 1
    assert "kalm-cache index CORPUS" in result.stderr


def test_rerank_takes_the_flags_of_the_reference_script(run: Run, mini_folder: Path) -> None:
    documents = [PASSAGES["gravity"], PASSAGES["china"], PASSAGES["bees"]]
    result = run(
        *("rerank", "--model", mini_folder, "--device", "cpu", "--dtype", "fp32", "--batch-size", 2),
        *("--query-max-length", 6, "--reranker-max-length", 9, "--chunk-size", "none", "--instruction", "Find it."),
        *("--return-margin", "--top-k", 2, "--query", QUERY, "--json"),
        *(part for document in documents for part in ("--document", document)),
    )
    reranker = KaLMReranker(
        str(mini_folder), device="cpu", query_max_length=6, max_length=9, chunk_size=None, instruction="Find it."
    )
    expected = reranker.rank(QUERY, documents, top_k=2, return_margin=True)
    assert result.exit_code == 0
    got = json.loads(result.stdout)["results"]
    assert [one["corpus_id"] for one in got] == [one["corpus_id"] for one in expected]
    assert [one["margin"] for one in got] == pytest.approx([one["margin"] for one in expected], abs=1e-5)


def test_rerank_reads_documents_from_a_file_one_a_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "documents.txt"
    file.write_text("first document\n\nsecond document\n", "utf-8")
    results = json.loads(run("rerank", "--query", QUERY, "--documents-file", file, "--json").stdout)["results"]
    assert {one["text"] for one in results} == {"first document", "second document"}
    assert "margin" not in results[0]


def test_rerank_by_ids_needs_no_text(run: Run, index: Path) -> None:
    result = run("rerank", "--query", QUERY, "--index", index, "--ids", "china,bees", "--return-margin", "--json")
    results = json.loads(result.stdout)["results"]
    assert {one["doc_id"] for one in results} == {"china", "bees"}
    assert all("margin" in one for one in results)


def test_unknown_ids_are_named(run: Run, index: Path) -> None:
    result = run("rerank", "--query", QUERY, "--index", index, "--ids", "china,mars")
    assert result.exit_code == 1
    assert "'mars'" in result.stderr


def test_rerank_wants_either_documents_or_ids(run: Run, index: Path) -> None:
    both = run("rerank", "--query", QUERY, "--index", index, "--ids", "china", "--document", "x")
    neither = run("rerank", "--query", QUERY)
    assert (both.exit_code, neither.exit_code) == (2, 2)


def test_config_show_prints_a_file_that_gives_the_same_settings(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(run("config", "show").stdout, "utf-8")
    assert run("config", "show", "--config", file).stdout == file.read_text("utf-8")


@pytest.mark.parametrize(("flags", "weight"), [((), 1.0), (("--first-stage-weight", 0), 0.0)])
def test_search_orders_by_the_first_stages_weight_of_the_indexs_model(
    run: Run, index: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[object, ...], weight: float
) -> None:
    with PassageIndex.open(index) as passages:
        monkeypatch.setitem(FIRST_STAGE_WEIGHTS, passages.generation.manifest.model, 1.0)
        expected = passages.search(QUERY, first_stage_weight=weight).results
    results = json.loads(run("search", QUERY, "--index", index, *flags, "--json").stdout)["results"]
    assert [one["doc_id"] for one in results] == [one.doc_id for one in expected]


def test_ids_with_commas_are_given_one_by_one(run: Run, tmp_path: Path) -> None:
    corpus, index, ids = tmp_path / "c.jsonl", tmp_path / "index", tmp_path / "ids.txt"
    texts = {"a,b": "bees", "c": "gravity", "d\u2028e,f": "the island"}
    corpus.write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()), "utf-8")
    ids.write_text("d\u2028e,f\n\n", "utf-8")
    assert run("index", corpus, "--index", index).exit_code == 0
    asked = ("--ids", "c", "--id", "a,b", "--ids-file", ids, "--index", index, "--json")
    results = json.loads(run("rerank", "--query", "bees", *asked).stdout)["results"]
    assert {result["doc_id"] for result in results} == set(texts)
    result = run("rerank", "--query", "bees", "--ids", "a,b", "--index", index)
    assert (result.exit_code, "not in the index: 'a', 'b'" in result.stderr) == (1, True)


def test_a_filter_and_fields_are_taken_from_the_corpus_to_the_results(run: Run, tmp_path: Path) -> None:
    corpus, index = tmp_path / "c.csv", tmp_path / "index"
    corpus.write_text("id,text,lang,year\na,Beijing,zh,1949\nb,Gravity,en,\nc,Bees,en,1999\nd,Ferry,en,soon\n")
    result = run("index", corpus, "--index", index, "--metadata", "lang,year:number", "--json")
    assert result.exit_code == 3
    assert "c.csv:5: the field 'year' holds 'soon', and the column is number" in result.stderr
    arguments = ("search", "Gravity", "--index", index, "--filter", '{"lang": "en"}')
    answer = json.loads(run(*arguments, "--fields", "all", "--json").stdout)
    metadata = {one["doc_id"]: one["metadata"] for one in answer["results"]}
    assert metadata == {"b": {"lang": "en"}, "c": {"lang": "en", "year": 1999}}
    assert "1999" in run(*arguments, "--fields", "year").stdout
    assert json.loads(run("stats", "--index", index, "--json").stdout)["columns"] == {"lang": "text", "year": "number"}
    ranked = ("rerank", "--query", "Gravity", "--index", index, "--ids", "a,b,c", *arguments[-2:], "--fields", "year")
    results = json.loads(run(*ranked, "--json").stdout)["results"]
    assert {one["doc_id"]: one["metadata"] for one in results} == {"b": {}, "c": {"year": 1999}}
    assert run("rerank", "--query", "Gravity", "--document", "Bees", *arguments[-2:]).exit_code == 2


def test_an_index_that_follows_a_file_follows_its_metadata(run: Run, tmp_path: Path) -> None:
    corpus, index = tmp_path / "c.jsonl", tmp_path / "index"
    corpus.write_text('{"_id": "a", "text": "Beijing", "lang": "zh"}\n{"_id": "b", "text": "Bees", "lang": "en"}\n')
    assert run("index", corpus, "--index", index, "--metadata", "all").exit_code == 0
    update = _updating(CorpusOptions(str(corpus)), str(index), load_settings(device="cpu"), json=True)
    corpus.write_text(corpus.read_text().replace('"en"', '"de"'))
    update()
    with PassageIndex.open(index, device="cpu") as opened:
        assert opened.metadata.values(["a", "b"], ["lang"]) == [{"lang": "zh"}, {"lang": "de"}]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--filter", '{"lang": "en"}', "the index keeps no metadata"),
        ("--filter", "lang=en", "--filter is not JSON"),
        ("--filter", "[1]", "write an object"),
        ("--fields", "lang", "no field 'lang'"),
        ("--fields", "lang,", "write names with commas"),
    ],
)
def test_a_filter_that_cannot_be_exits_with_2(run: Run, index: Path, option: str, value: str, message: str) -> None:
    result = run("search", QUERY, "--index", index, option, value)
    assert result.exit_code == 2
    assert message in result.stderr
