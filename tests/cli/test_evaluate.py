"""`kalm-cache eval` on BEIR folders of a few lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kalm_cache.evaluation.reports import plots
from tests.cli.conftest import PASSAGES, Run

QUERIES = {"q1": "capital of China", "q2": "what attracts bodies", "q3": "pollen in the morning", "q4": "last ferry"}
QRELS = {"q1": "china", "q2": "gravity", "q3": "bees", "q4": "ferry"}


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir" / "toy"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": doc_id, "title": "", "text": text} for doc_id, text in PASSAGES.items()]
    queries = [{"_id": query_id, "text": text} for query_id, text in QUERIES.items()]
    for name, lines in {"corpus": corpus, "queries": queries}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judgments = "".join(f"{query_id}\t{doc_id}\t1\n" for query_id, doc_id in QRELS.items())
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judgments}")
    return folder


@pytest.fixture
def ask(run: Run, beir: Path, tmp_path: Path) -> Any:
    """Runs `kalm-cache eval --json` with the index in this test's folder, and returns what it printed."""

    def ask(*arguments: object, exit_code: int = 0) -> Any:
        result = run("eval", "--index-root", tmp_path / "indexes", *arguments, "--json")
        assert result.exit_code == exit_code, result.stderr
        return json.loads(result.stdout) if exit_code == 0 else result.stderr

    return ask


def test_one_folder_gives_one_report_and_several_chunk_sizes_one_each(ask: Any, beir: Path, tmp_path: Path) -> None:
    rows = ask("--beir", beir, "--chunk-size", "2,4")
    assert [(row["dataset"], row["chunk_size"], row["stored_chunk_size"]) for row in rows] == [
        ("toy", 2, 2),
        ("toy", 4, 2),
    ]
    alone = ask("--beir", beir, "--chunk-size", 4)  # served by the same index
    assert alone["stored_chunk_size"] == 2
    assert alone["reranked"] == rows[1]["reranked"]
    assert [path.name for path in (tmp_path / "indexes").iterdir()] == ["toy"]


def test_the_axes_of_plots_say_what_they_count(
    ask: Any, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: dict[str, str] = {}
    save = plots._save

    def note_and_save(figure: Any, axes: Any, path: Path, command: str) -> None:
        labels[path.name] = axes[0].get_xlabel()
        save(figure, axes, path, command)

    monkeypatch.setattr(plots, "_save", note_and_save)
    ask("--beir", beir, "--out", tmp_path / "out", "--chunk-sizes", "2,4", "--codecs", "fp16,int4", "--k", 3)
    assert labels == {
        "quality-ratio.png": "pooling ratio r",
        "quality-bytes.png": "bytes a passage (states' file)",
        "quality-ms.png": "ms a query (read and decode, median)",
        "reliability.png": "P(yes), mean of bin",
    }


def test_out_holds_reports_plots_runs_and_queries_and_is_gone_on_from(ask: Any, beir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--beir", beir, "--out", out, "--chunk-sizes", "2,4", "--codecs", "fp16,int4", "--k", 3)
    rows = ask(*arguments)
    report = json.loads((out / "report.json").read_text())
    systems = ["dense", "bm25", "fused", "fp16 r=2", "fp16 r=4", "int4 r=2", "int4 r=4"]
    (collection,) = report["collections"]
    assert [one["name"] for one in collection["systems"]] == systems
    assert report["command"].startswith(f"kalm-cache eval --beir {beir}")
    assert len(list(out.glob("*.png"))) == 4
    markdown = (out / "report.md").read_text()
    assert all(f"![{text}" in markdown for text in ("nDCG@10 against the pooling ratio r", "how often passages"))
    assert markdown.count(report["command"]) == 5  # at the top, and under every figure
    assert len((out / "runs" / "toy-test" / "int4-r4.trec").read_text().splitlines()) == 12
    queries = (out / "per-query" / "toy-test.tsv").read_text().splitlines()
    assert queries[0].split("\t") == ["query-id", "system", "ndcg@10", "mrr@10", "map@100", "recall@100"]
    assert len(queries) == 1 + len(systems) * len(QUERIES)
    written = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    assert ask(*arguments) == rows
    weighed = ask(*arguments, "--first-stage-weights", "0,1.5")  # from the margins that were kept
    assert weighed[:4] == rows
    assert [(row["chunk_size"], row["first_stage_weight"]) for row in weighed[4:]] == [(2, 1.5), (4, 1.5)] * 2
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == written
    assert "k was 3, is 2; give another --out" in ask(*arguments, "--k", 2, exit_code=2)


@pytest.mark.parametrize("weights", ["much", "1,-2", "nan"])
def test_a_first_stage_weight_is_a_number_of_0_or_more(ask: Any, beir: Path, weights: str) -> None:
    message = ask("--beir", beir, "--first-stage-weights", weights, exit_code=2)
    assert f"--first-stage-weights {weights}" in message


def test_candidates_come_from_a_trec_run(ask: Any, beir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.trec"
    run.write_text("".join(f"{query_id} Q0 {doc_id} 1 1.0 t\n" for query_id, doc_id in QRELS.items()))
    row = ask("--beir", beir, "--run", run)
    assert (row["first_stage"]["mode"], row["first_stage"]["ndcg@10"], row["reranked"]["ndcg@10"]) == ("given", 1, 1)
    run.write_text("q1 Q0 mars 1 1.0 t\n")
    assert "run.trec:1: passage 'mars' is not in the index" in ask("--beir", beir, "--run", run, exit_code=1)
    assert "holds no toy.trec" in ask("--beir", beir, "--run", tmp_path, exit_code=2)


def test_a_configuration_names_folders_below_data_and_flags_come_first(ask: Any, beir: Path, tmp_path: Path) -> None:
    config = tmp_path / "eval.toml"
    config.write_text('k = 2\nchunk_sizes = [2, 4]\n[[collections]]\nbeir = "toy"\ninstruction = "Find it."\n')
    rows = ask("--config", config, "--data", beir.parent)
    assert [(row["chunk_size"], row["k"]) for row in rows] == [(2, 2), (4, 2)]
    row = ask("--config", config, "--data", beir.parent, "--k", 3, "--chunk-size", 2)
    assert (row["chunk_size"], row["k"]) == (2, 3)


@pytest.fixture
def arguana(beir: Path) -> Path:
    """The passages, each its own query, whose relevant passage is the next one."""
    folder = beir.rename(beir.with_name("arguana"))
    ids = list(PASSAGES)
    queries = "".join(json.dumps({"_id": doc_id, "text": text}) + "\n" for doc_id, text in PASSAGES.items() if text)
    (folder / "queries.jsonl").write_text(queries)
    judgments = "".join(f"{ids[i - 1]}\t{ids[i]}\t1\n" for i in range(len(ids)) if PASSAGES[ids[i - 1]])
    (folder / "qrels" / "test.tsv").write_text(judgments)
    return folder


def test_a_querys_own_passage_is_left_out_where_the_name_a_flag_or_the_file_says_so(
    ask: Any, run: Run, arguana: Path, tmp_path: Path
) -> None:
    def best(*arguments: object) -> float:
        return float(ask("--index", tmp_path / "one", *arguments, "--k", 1)["first_stage"]["ndcg@10"])

    dropped = best("--beir", arguana)
    kept = best("--beir", arguana, "--keep-own-id")
    assert kept < dropped
    other = arguana.rename(arguana.with_name("other"))
    assert best("--beir", other) == kept
    assert best("--beir", other, "--drop-own-id") == dropped
    config = tmp_path / "eval.toml"
    config.write_text(f'[[collections]]\nbeir = "{other}"\ndrop_own_id = true\n')
    assert best("--config", config) == dropped
    assert best("--config", config, "--keep-own-id") == kept


def test_judgments_of_any_layout_can_be_told(ask: Any, beir: Path, tmp_path: Path) -> None:
    plain = ask("--beir", beir)
    (beir / "qrels" / "test.tsv").write_text(
        "".join(f"1|{doc}|{query}\n".replace("|", ",") for query, doc in QRELS.items())
    )
    flags = ("--qrels-columns", "grade,passage,query", "--no-qrels-header", "--qrels-delimiter", "comma")
    assert ask("--beir", beir, *flags)["reranked"] == plain["reranked"]
    config = tmp_path / "eval.toml"
    config.write_text(f'[[collections]]\nbeir = "{beir}"\nqrels_columns = ["grade", "passage", "query"]\n')
    assert ask("--config", config)["reranked"] == plain["reranked"]
    assert "there is none" in ask("--ir-dataset", "beir/x", "--qrels-header", exit_code=2)


def test_what_cannot_be_served_is_one_clear_line(ask: Any, beir: Path, tmp_path: Path) -> None:
    assert "nothing to evaluate" in ask(exit_code=2)
    assert "carry its error already" in ask("--beir", beir, "--codec", "int8", "--codecs", "int4", exit_code=2)
    both = ("--beir", beir, "--beir", beir, "--index", tmp_path / "one")
    assert "give --index-root for several collections" in ask(*both, exit_code=2)
    (beir / "qrels" / "test.tsv").unlink()
    assert "holds no qrels/test.tsv" in ask("--beir", beir, exit_code=1)
