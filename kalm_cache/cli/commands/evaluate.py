"""`kalm-cache eval`: index judged collections, or reuse their indexes, and measure first stage and reranking."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.output import exit_codes, print_json, stdout_console
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from kalm_cache.cli.evaluation_indexes import EvaluationIndexes
    from kalm_cache.cli.evaluation_request import Request
    from kalm_cache.evaluation import BeirTask, EvaluationReport
    from kalm_cache.evaluation.collections.collection import Collection
    from kalm_cache.evaluation.reports.results import CollectionResult
    from kalm_cache.evaluation.run_folder import RunFolder
    from kalm_cache.evaluation.study import Study

LOG_EVERY_SECONDS = 15.0
logger = logging.getLogger(__name__)


def evaluate(
    context: typer.Context,
    beir: Annotated[
        list[Path] | None, typer.Option("--beir", help="BEIR folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.")
    ] = None,
    ir_dataset: Annotated[
        list[str] | None, typer.Option("--ir-dataset", help="Name of ir_datasets, as beir/fiqa/test (extra eval).")
    ] = None,
    mteb_task: Annotated[
        list[str] | None, typer.Option("--mteb-task", help="Task or benchmark of mteb, as SciFact, LMEB (extra mteb).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file: of collections (configs/eval/), or of settings.")
    ] = None,
    data: Annotated[Path, typer.Option("--data", help="Where the BEIR folders of --config are.")] = Path(),
    split: Annotated[str, typer.Option("--split", help="Which judgments: qrels/SPLIT.tsv.")] = "test",
    index: Annotated[
        Path | None, typer.Option("--index", help="Where the index of the one collection is or goes.")
    ] = None,
    index_root: Annotated[
        Path, typer.Option("--index-root", help="Where the indexes are or go, each under its collection's name.")
    ] = Path("eval-index"),
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for report.md, report.json, plots, runs; finished parts are used again."),
    ] = None,
    k: opt.Candidates = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Candidates from a TREC run file, or a folder of NAME.trec.")
    ] = None,
    max_queries: Annotated[int | None, typer.Option("--max-queries", min=1, help="Only a fixed sample.")] = None,
    chunk_size: Annotated[
        str | None,
        typer.Option("--chunk-size", "--chunk-sizes", help="Ratio or several, as 4,16: all from one index."),
    ] = None,
    codecs: Annotated[
        str | None, typer.Option("--codecs", help="Codecs to compare, as fp16,int8,int4: recoded, not encoded again.")
    ] = None,
    dense: Annotated[
        list[str] | None, typer.Option("--dense", help="Embedder to search with, as a further first stage.")
    ] = None,
    bi_encoder: Annotated[
        list[str] | None, typer.Option("--bi-encoder", help="Embedder to rank the same candidates with, by cosine.")
    ] = None,
    first_stage: opt.FirstStageMode = None,
    first_stage_weights: Annotated[
        str | None,
        typer.Option(
            "--first-stage-weights",
            help="Also order by margin + weight x the first stage's z-score, at each, as 1,2.",
        ),
    ] = None,
    instruction: opt.Instruction = None,
    model: opt.Model = None,
    codec: opt.Codec = None,
    embedder: opt.Embedder = None,
    device: opt.Device = None,
    dtype: opt.DType = None,
    json: opt.AsJson = False,
) -> None:
    """Measure ranking quality on judged collections, before and after reranking: nDCG@10, MRR@10, MAP, recall@100.

    With --out also every first stage, bytes, milliseconds, significance and calibration, as tables and plots.
    """
    from kalm_cache.cli.evaluation_indexes import EvaluationIndexes
    from kalm_cache.cli.evaluation_request import read_request
    from kalm_cache.evaluation.evaluate import reports_of
    from kalm_cache.evaluation.reports.output import require_extras, write_report

    with exit_codes(resumable=True):
        if out is not None:
            require_extras()
        request = read_request(
            config=config,
            beir=beir or [],
            ir_datasets=ir_dataset or [],
            mteb_tasks=mteb_task or [],
            data=data,
            split=split,
            run=run,
            chunk_sizes=chunk_size,
            codecs=codecs,
            first_stages=out is not None,
            dense=dense or [],
            bi_encoders=bi_encoder or [],
            first_stage_weights=first_stage_weights,
            max_queries=max_queries,
            flags={
                "k": k,
                "first_stage": first_stage,
                "instruction": instruction,
                "model": model,
                "codec": codec,
                "embedder": embedder,
                "device": device,
                "dtype": dtype,
            },
        )
        if index is not None and len(request.sources) > 1:
            raise UsageError("--index is the folder of one index; give --index-root for several collections")
        indexes = EvaluationIndexes(request.settings, request.chunk_sizes)
        reports: list[EvaluationReport] = []
        results: list[CollectionResult] = []
        for collection in request.collections():
            found = _study(request, indexes, collection, index or index_root / collection.task.name, out)
            reports += reports_of(found)
            if out is not None:
                results.append(_measured(found, out))
                write_report(out, results, _command(context))
                logger.info("%s: written", out / "report.md")
    if json:
        rows = [report.to_json() for report in reports]
        print_json(rows if len(rows) > 1 else rows[0])
    else:
        for report in reports:
            stdout_console().print(_line(report), soft_wrap=True)


def _study(
    request: Request, indexes: EvaluationIndexes, collection: Collection, folder: Path, out: Path | None
) -> Study:
    """The collection's study: taken from `out` where an earlier run finished it, without index or model."""
    from kalm_cache.codec.sensitivity import load_sensitivity
    from kalm_cache.evaluation.collections.trec import read_run
    from kalm_cache.evaluation.study import finished_study, study
    from kalm_cache.model.checkpoint import SENSITIVITY_FILE
    from kalm_cache.storage.passage_store import key_of

    run = request.run_of(collection)
    kept = None if out is None else _run_folder(request, collection, run, out)
    if kept is not None and (finished := finished_study(collection, request.plan, kept)) is not None:
        logger.info("%s: finished before, taken from %s", collection.task.name, kept.folder)
        return finished
    with indexes.open(collection.task.name, collection.corpus, folder) as index:
        if run is not None:
            keys = set(index.store.keys())
            given = read_run(run, collection.task.queries, lambda doc_id: key_of(doc_id) in keys)
            collection = replace(collection, given=given)
        return study(
            index,
            collection,
            request.plan,
            sensitivity=load_sensitivity(indexes.encoders.checkpoint.folder / SENSITIVITY_FILE),
            kept=kept,
            workspace=out,
            on_progress=_log_progress(collection.task.name),
        )


def _run_folder(request: Request, collection: Collection, run: Path | None, out: Path) -> RunFolder:
    from kalm_cache.evaluation.reports.output import RUNS
    from kalm_cache.evaluation.run_folder import RunFolder
    from kalm_cache.evaluation.study import settings_key
    from kalm_cache.storage.durable import file_digest

    names = ("model", "dtype", "codec", "max_length", "query_max_length", "embedder", "bm25")
    key = {name: getattr(request.settings, name) for name in names}
    key["run"] = file_digest(run) if run is not None and run.is_file() else None
    return RunFolder(out / RUNS / _name(collection.task), settings_key(request.plan, collection, key))


def _measured(found: Study, out: Path) -> CollectionResult:
    """The study's result; each query's measures go to `out`."""
    from kalm_cache.evaluation.reports.output import write_per_query
    from kalm_cache.evaluation.reports.results import per_query_of, result_of

    values = per_query_of(found)
    write_per_query(out, _name(found.task), values)
    return result_of(found, values)


def _name(task: BeirTask) -> str:
    return f"{task.name}-{task.split}"


def _log_progress(name: str) -> Callable[[int, int], None]:
    logged = time.monotonic()

    def log(done: int, total: int) -> None:
        nonlocal logged
        if time.monotonic() - logged >= LOG_EVERY_SECONDS:
            logged = time.monotonic()
            logger.info("%s: %d of %d queries reranked, all points counted", name, done, total)

    return log


def _command(context: typer.Context) -> str:
    """The command line as it was given, from what was parsed of it."""
    words = ["kalm-cache", "eval"]
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [parameter.opts[-1]] if isinstance(one, bool) else [parameter.opts[-1], str(one)]
    return shlex.join(words)


def _line(report: EvaluationReport) -> str:
    before, after = report.first_stage, report.reranked
    interpolated = f", first stage's weight {report.first_stage_weight:g}" if report.first_stage_weight else ""
    return (
        f"{report.dataset} {report.split}, {report.queries:,} queries, r = {report.chunk_size}, {report.codec}"
        f"{interpolated}: nDCG@10 {before.ndcg_at_10:.4f} → {after.ndcg_at_10:.4f}, MRR@10 {after.mrr_at_10:.4f}, "
        f"recall@100 {before.recall_at_100:.4f}, {report.bytes_per_passage:,.0f} bytes a passage"
    )
