"""`kalm-cache calibrate`: judged queries of an index → probabilities, and the weight of the first stage."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.index_places import index_to_change
from kalm_cache.cli.output import exit_codes, print_json, stdout_console
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from kalm_cache.evaluation.fit_calibration import FittedResult, Judged
    from kalm_cache.index.passage_index import PassageIndex
    from kalm_cache.settings import Settings

LARGEST_CHUNK_SIZE = 32  # that is fitted unless others are named


@dataclass(frozen=True, slots=True)
class JudgmentOptions:
    """What was judged."""

    panel: ClassVar = "Judgments"
    qrels: Annotated[Path | None, typer.Option("--qrels", help="Judged queries: query id, passage id, grade.")] = None
    queries: Annotated[
        Path | None, typer.Option("--queries", help="Their texts; by default queries.jsonl above the judgments.")
    ] = None
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help='Judged pairs, one a line: {"query", "doc_id", "label"}.')
    ] = None
    max_queries: Annotated[
        int | None, typer.Option("--max-queries", min=1, help="A sample of so many queries, the same in every run.")
    ] = None


@dataclass(frozen=True, slots=True)
class JudgedSearchOptions:
    """How candidates of judged queries are searched."""

    panel: ClassVar = "Search"
    k: opt.Candidates = None
    first_stage: opt.FirstStageMode = None
    instruction: opt.Instruction = None


def calibrate(
    index: opt.IndexPlace,
    judgments: JudgmentOptions,
    search: JudgedSearchOptions,
    model: opt.ModelOptions,
    config: opt.ConfigFile = None,
    chunk_sizes: Annotated[
        str | None, typer.Option("--chunk-sizes", help="With commas; by default the stored one, doubled up to 32.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what was found; change nothing.")] = False,
    json: opt.AsJson = False,
) -> None:
    """Fit probabilities and the first stage's weight to judged queries, and keep them beside the decoder.

    Results have a `probability` from then on, and `--min-probability` and `--first-stage-weight auto` work. Fitted on
    these queries, for each chunk size; the errors shown are of queries left out of the fit.
    """
    with exit_codes():
        from indexer.change.set_calibration import set_calibration
        from kalm_cache.index.from_settings import open_index

        settings = opt.settings_from(config, search, model)
        judged = _judged(judgments)
        with index_to_change(index, settings) as folder:
            with open_index(folder, settings) as passages:
                fitted = _fit(passages, judged, settings, chunk_sizes)
            name = settings.model if "model" in settings.model_fields_set else None
            generation = None if dry_run else set_calibration(folder, fitted.calibration, name).name
    if json:
        print_json({"index": index, "generation": generation, **asdict(fitted)})
    else:
        stdout_console().print(_in_words(fitted, index, generation), soft_wrap=True, markup=False)


def _judged(given: JudgmentOptions) -> Judged:
    from kalm_cache.evaluation.collections.beir import queries_file, read_task
    from kalm_cache.evaluation.collections.pairs import read_pairs
    from kalm_cache.evaluation.fit_calibration import Judged
    from kalm_cache.evaluation.plan import sample_queries
    from kalm_cache.storage.durable import file_digest

    path = given.qrels or given.pairs
    if path is None or (given.qrels and given.pairs):
        raise UsageError("give either --qrels FILE or --pairs FILE")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if given.pairs:
        if given.queries:
            raise UsageError("--queries are those of --qrels; pairs hold their own: leave it out")
        return Judged(sample_queries(read_pairs(path), given.max_queries), False, file_digest(path))
    queries = given.queries or queries_file(path.resolve().parent.parent)
    task = read_task(path.resolve().parent.parent.name, path.name.partition(".")[0], path, queries)
    return Judged(sample_queries(task, given.max_queries), True, file_digest(path))


def _fit(passages: PassageIndex, judged: Judged, settings: Settings, chunk_sizes: str | None) -> FittedResult:
    from kalm_cache.evaluation.fit_calibration import FitPlan, fit_calibration
    from kalm_cache.process.progress_bar import progress_bar

    plan = FitPlan(
        instruction=settings.instruction,
        system_instruction=settings.system_instruction,
        chunk_sizes=_sizes(chunk_sizes, passages.generation.manifest.fingerprint.chunk_size),
        first_stage=settings.first_stage,
        k=settings.k,
    )
    with progress_bar("scoring", len(judged.task.queries), None) as advance:
        return fit_calibration(passages, judged, plan, lambda done, total: advance(1))


def _sizes(given: str | None, stored: int) -> list[int]:
    if given is None:
        return [stored << step for step in range(8) if step == 0 or stored << step <= LARGEST_CHUNK_SIZE]
    sizes = [size.strip() for size in given.split(",")]
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise UsageError(f"--chunk-sizes {given}: give whole numbers from 1, with commas between them")
    return list(dict.fromkeys(map(int, sizes)))


def _in_words(fitted: FittedResult, index: str, generation: str | None) -> str:
    calibration = fitted.calibration
    where = f"{index}: nothing was changed" if generation is None else f"generation {generation} of {index}"
    return "\n".join(
        [
            f"{where}: calibrated on {calibration.queries:,} queries, {calibration.pairs:,} pairs",
            "",
            _table(fitted),
            "",
            _thresholds(fitted),
        ]
    )


def _table(fitted: FittedResult) -> str:
    """One line a chunk size."""
    rows = [
        [
            str(curve.chunk_size),
            f"{curve.temperature:.3f}",
            f"{curve.offset:+.3f}",
            f"{measure.ece_before:.3f}",
            f"{measure.ece:.3f}",
            "–" if curve.first_stage_weight is None else f"{curve.first_stage_weight:g}",
            *("–" if value is None else f"{value:.4f}" for value in (measure.ndcg_margin, measure.ndcg)),
        ]
        for curve, measure in zip(fitted.calibration.curves, fitted.measures, strict=True)
    ]
    header = ["r", "temperature", "offset", "error before", "after", "weight", "nDCG@10, margin", "with weight"]
    return _columns([header, *rows])


def _thresholds(fitted: FittedResult) -> str:
    """The lowest probability for a precision, by chunk size; and the recall with it."""
    wanted = sorted({one.precision for curve in fitted.calibration.curves for one in curve.thresholds})
    rows: list[list[Any]] = [["precision", *(f"r = {curve.chunk_size}" for curve in fitted.calibration.curves)]]
    for precision in wanted:
        row = [f"{precision:g}"]
        for curve in fitted.calibration.curves:
            found = next((one for one in curve.thresholds if one.precision == precision), None)
            row.append("–" if found is None else f"{found.probability:.3f} (recall {found.recall:.3f})")
        rows.append(row)
    return _columns(rows)


def _columns(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
