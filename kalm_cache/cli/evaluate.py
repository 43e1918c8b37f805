"""`kalm-cache eval`: index a BEIR collection (or reuse its index) and measure first stage and reranking on it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.output import exit_codes, print_json, stdout_console
from kalm_cache.cli.progress import show_progress
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from kalm_cache.evaluation import EvaluationReport
    from kalm_cache.settings import Settings

logger = logging.getLogger(__name__)


def evaluate(
    beir: Annotated[Path, typer.Option("--beir", help="BEIR folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.")],
    split: Annotated[str, typer.Option("--split", help="Which judgments: qrels/SPLIT.tsv.")] = "test",
    index: Annotated[
        Path | None, typer.Option("--index", help="Where its index is or goes; default: eval-index/NAME.")
    ] = None,
    config: opt.ConfigFile = None,
    k: opt.Candidates = None,
    max_queries: Annotated[int | None, typer.Option("--max-queries", min=1, help="Only a fixed sample.")] = None,
    chunk_size: Annotated[
        str | None, typer.Option("--chunk-size", help="Ratio or several, as 4,16: stored at the smallest.")
    ] = None,
    first_stage: opt.FirstStageMode = None,
    instruction: opt.Instruction = None,
    model: opt.Model = None,
    codec: opt.Codec = None,
    embedder: opt.Embedder = None,
    device: opt.Device = None,
    dtype: opt.DType = None,
    json: opt.AsJson = False,
) -> None:
    """Measure ranking quality on a BEIR collection: nDCG@10, recall@100 and MRR@10, before and after reranking."""
    from kalm_cache.evaluation import evaluate as measure
    from kalm_cache.evaluation import load_beir
    from kalm_cache.index import PassageIndex
    from kalm_cache.settings import load_settings

    with exit_codes(resumable=True):
        ratios = _ratios(chunk_size)
        settings = load_settings(
            config,
            k=k,
            chunk_size=min(ratios) if ratios else None,
            first_stage=first_stage,
            instruction=instruction,
            model=model,
            codec=codec,
            embedder=embedder,
            device=device,
            dtype=dtype,
        )
        task = load_beir(beir, split)
        folder = index or Path("eval-index") / task.name
        _index_or_reuse(beir, folder, settings)
        with PassageIndex.open(folder, model=settings.model, device=settings.device, dtype=settings.dtype) as passages:
            reports = measure(
                passages,
                task,
                k=settings.k,
                first_stage=settings.first_stage,
                chunk_sizes=ratios or [settings.chunk_size],
                max_queries=max_queries,
                instruction=settings.instruction,
            )
    if json:
        rows = [report.to_json() for report in reports]
        print_json(rows if len(rows) > 1 else rows[0])
    else:
        for report in reports:
            stdout_console().print(_line(report), soft_wrap=True)


def _index_or_reuse(beir: Path, folder: Path, settings: Settings) -> None:
    """Build the collection's index unless the folder holds one with the same fingerprint."""
    from indexer.corpus import read_corpus
    from indexer.job import is_built, load_encoders, run_index_job

    encoders = load_encoders(settings)
    if is_built(folder, encoders.fingerprint):
        logger.info("using the index in %s as it is; remove it to index again", folder)
        return
    total = sum(1 for _ in read_corpus(beir))
    with show_progress(total) as on_progress:
        run_index_job(
            read_corpus(beir),
            folder,
            settings,
            encoders,
            on_reject=lambda line: logger.warning("rejected %s: %s", line.location, line.reason),
            on_progress=on_progress,
        )


def _ratios(value: str | None) -> list[int]:
    if value is None:
        return []
    try:
        ratios = [int(part) for part in value.split(",")]
    except ValueError as exc:
        raise UsageError(f"--chunk-size {value}: give whole numbers, as 4 or 4,16") from exc
    if min(ratios) < 1:
        raise UsageError(f"--chunk-size {value}: a chunk size is 1 or more")
    return ratios


def _line(report: EvaluationReport) -> str:
    before, after = report.first_stage, report.reranked
    return (
        f"{report.dataset} {report.split}, {report.queries:,} queries, r = {report.chunk_size}, {report.codec}: "
        f"nDCG@10 {before.ndcg_at_10:.4f} → {after.ndcg_at_10:.4f}, MRR@10 {after.mrr_at_10:.4f}, "
        f"recall@100 {before.recall_at_100:.4f}, {report.bytes_per_passage:,.0f} bytes a passage"
    )
