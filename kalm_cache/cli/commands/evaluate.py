"""`kalm-cache eval`: index judged collections, or reuse their indexes, and measure first stage and reranking."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.evaluation.options import CollectionOptions, FolderOptions, IndexOptions, PlanOptions
from kalm_cache.cli.output import exit_codes, print_json, stdout_console
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from kalm_cache.cli.evaluation.indexes import EvaluationIndexes
    from kalm_cache.cli.evaluation.request import Request
    from kalm_cache.evaluation import BeirTask, EvaluationReport
    from kalm_cache.evaluation.collections.collection import Collection
    from kalm_cache.evaluation.reports.results import CollectionResult
    from kalm_cache.evaluation.run_folder import RunFolder
    from kalm_cache.evaluation.study import Study

LOG_EVERY_SECONDS = 15.0
logger = logging.getLogger(__name__)


def evaluate(
    context: typer.Context,
    collections: CollectionOptions,
    folders: FolderOptions,
    plan: PlanOptions,
    index_options: IndexOptions,
    model: opt.ModelOptions,
    json: opt.AsJson = False,
) -> None:
    """Measure ranking quality on judged collections, before and after reranking: nDCG@10, MRR@10, MAP, recall@100.

    With --out also every first stage, bytes, milliseconds, significance and calibration, as tables and plots.
    """
    from kalm_cache.cli.evaluation.request import read_request
    from kalm_cache.evaluation.reports.output import require_extras

    with exit_codes(resumable=True):
        if folders.out is not None:
            require_extras()
        request = read_request(collections, plan, index_options, model, every_first_stage=folders.out is not None)
        if folders.index is not None and len(request.sources) > 1:
            raise UsageError("--index is the folder of one index; give --index-root for several collections")
        reports = _reports(request, folders, _command(context))
    if json:
        rows = [report.to_json() for report in reports]
        print_json(rows if len(rows) > 1 else rows[0])
    else:
        for report in reports:
            stdout_console().print(_line(report), soft_wrap=True)


def _reports(request: Request, folders: FolderOptions, command: str) -> list[EvaluationReport]:
    """Every collection's reports. The files of `--out` are written anew after each, so that a kill loses one."""
    from kalm_cache.cli.evaluation.indexes import EvaluationIndexes
    from kalm_cache.evaluation.reports.output import write_report
    from kalm_cache.evaluation.reports.report import reports_of

    indexes = EvaluationIndexes(request.settings, request.chunk_sizes)
    reports: list[EvaluationReport] = []
    results: list[CollectionResult] = []
    for collection in request.collections():
        result = _measured(_study(request, indexes, collection, folders), folders.out)
        reports += reports_of(result)
        if folders.out is not None:
            results.append(result)
            write_report(folders.out, results, command)
            logger.info("%s: written", folders.out / "report.md")
    return reports


def _study(request: Request, indexes: EvaluationIndexes, collection: Collection, folders: FolderOptions) -> Study:
    """The collection's study: taken from `--out` where an earlier run finished it, without index or model."""
    from kalm_cache.codec.sensitivity import load_sensitivity
    from kalm_cache.evaluation.collections.trec import read_run
    from kalm_cache.evaluation.study import finished_study, study
    from kalm_cache.model.checkpoint import SENSITIVITY_FILE
    from kalm_cache.storage.passage_store import key_of

    name, out = collection.task.name, folders.out
    run = request.run_of(collection)
    run_folder = None if out is None else _run_folder(request, collection, run, out)
    if run_folder is not None and (finished := finished_study(collection, request.plan, run_folder)) is not None:
        logger.info("%s: finished before, taken from %s", name, run_folder.folder)
        return finished
    with indexes.open(name, collection.corpus, folders.index_of(name)) as index:
        if run is not None:
            keys = set(index.store.keys())
            candidates = read_run(run, collection.task.queries, lambda doc_id: key_of(doc_id) in keys)
            collection = replace(collection, given=candidates)
        return study(
            index,
            collection,
            request.plan,
            sensitivity=load_sensitivity(indexes.encoders.checkpoint.folder / SENSITIVITY_FILE),
            kept=run_folder,
            workspace=out,
            on_progress=_log_progress(name),
        )


def _run_folder(request: Request, collection: Collection, run: Path | None, out: Path) -> RunFolder:
    from kalm_cache.evaluation.plan import settings_key
    from kalm_cache.evaluation.reports.output import RUNS
    from kalm_cache.evaluation.run_folder import RunFolder
    from kalm_cache.storage.durable import file_digest

    names = ("model", "dtype", "codec", "max_length", "query_max_length", "embedder", "bm25")
    key = {name: getattr(request.settings, name) for name in names}
    key["run"] = file_digest(run) if run is not None and run.is_file() else None
    return RunFolder(out / RUNS / _name(collection.task), settings_key(request.plan, collection, key))


def _measured(study: Study, out: Path | None) -> CollectionResult:
    """The study's result; with `out`, compared and calibrated too, and each query's measures go there."""
    from kalm_cache.evaluation.reports.output import write_per_query
    from kalm_cache.evaluation.reports.results import measured, per_query_of, result_of

    values = per_query_of(study)
    if out is None:
        return measured(study, values)
    write_per_query(out, _name(study.task), values)
    return result_of(study, values)


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
    """The command line, put together again from what was parsed."""
    words = ["kalm-cache", "eval"]
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            for item in value if isinstance(value, list | tuple) else [value]:
                words += [parameter.opts[-1]] if isinstance(item, bool) else [parameter.opts[-1], str(item)]
    return shlex.join(words)


def _line(report: EvaluationReport) -> str:
    before, after = report.first_stage, report.reranked
    interpolated = f", first stage's weight {report.first_stage_weight:g}" if report.first_stage_weight else ""
    tau = "" if report.tau is None else f" (Kendall's tau of margins to those without {report.tau:.3f})"
    shared = f", shared prefix{tau}" if report.shared_prefix else ""
    return (
        f"{report.dataset} {report.split}, {report.queries:,} queries, r = {report.chunk_size}, {report.codec}{shared}"
        f"{interpolated}: nDCG@10 {before.ndcg_at_10:.4f} → {after.ndcg_at_10:.4f}, MRR@10 {after.mrr_at_10:.4f}, "
        f"recall@100 {before.recall_at_100:.4f}, {report.states_bytes_per_passage:,.0f} bytes of states a passage"
    )
