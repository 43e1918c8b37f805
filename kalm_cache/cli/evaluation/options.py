"""The options of `kalm-cache eval`, in groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from kalm_cache.cli import options as opt


@dataclass(frozen=True, slots=True)
class CollectionOptions:
    """The judged collections."""

    panel: ClassVar = "Collections"
    beir: Annotated[
        list[Path] | None, typer.Option("--beir", help="BEIR folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.")
    ] = None
    ir_dataset: Annotated[
        list[str] | None, typer.Option("--ir-dataset", help="Name of ir_datasets, as beir/fiqa/test (extra eval).")
    ] = None
    mteb_task: Annotated[
        list[str] | None, typer.Option("--mteb-task", help="Task or benchmark of mteb, as SciFact, LMEB (extra mteb).")
    ] = None
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file: of collections (configs/eval/), or of settings.")
    ] = None
    data: Annotated[Path, typer.Option("--data", help="Where the BEIR folders of --config are.")] = Path()
    split: Annotated[str, typer.Option("--split", help="Which judgments: qrels/SPLIT.tsv.")] = "test"
    qrels_columns: Annotated[
        str | None,
        typer.Option("--qrels-columns", help="Columns of a BEIR folder's judgments, as query,-,passage,grade."),
    ] = None
    qrels_header: Annotated[
        bool | None,
        typer.Option("--qrels-header/--no-qrels-header", help="Whether their first line names the columns."),
    ] = None
    qrels_delimiter: Annotated[
        str | None, typer.Option("--qrels-delimiter", help="Between their columns: tab, comma or blank.")
    ] = None
    drop_own_id: Annotated[
        bool | None,
        typer.Option(
            "--drop-own-id/--keep-own-id",
            help="Leave the passage with the query's own id out, or not; by default in ArguAna and Quora.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class FolderOptions:
    """Where indexes and results go."""

    panel: ClassVar = "Folders"
    index: Annotated[Path | None, typer.Option("--index", help="Where the index of the one collection is or goes.")] = (
        None
    )
    index_root: Annotated[
        Path, typer.Option("--index-root", help="Where the indexes are or go, each under its collection's name.")
    ] = Path("eval-index")
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for report.md, report.json, plots, runs; finished parts are used again."),
    ] = None

    def index_of(self, collection: str) -> Path:
        """The folder of a collection's index."""
        return self.index or self.index_root / collection


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What is measured of each collection."""

    panel: ClassVar = "What is measured"
    k: opt.Candidates = None
    run: Annotated[
        Path | None, typer.Option("--run", help="Candidates from a TREC run file, or a folder of NAME.trec.")
    ] = None
    max_queries: Annotated[int | None, typer.Option("--max-queries", min=1, help="Only a fixed sample.")] = None
    chunk_size: Annotated[
        str | None,
        typer.Option("--chunk-size", "--chunk-sizes", help="Ratio or several, as 4,16: all from one index."),
    ] = None
    codecs: Annotated[
        str | None, typer.Option("--codecs", help="Codecs to compare, as fp16,int8,int4: recoded, not encoded again.")
    ] = None
    dense: Annotated[
        list[str] | None, typer.Option("--dense", help="Embedder to search with, as a further first stage.")
    ] = None
    bi_encoder: Annotated[
        list[str] | None, typer.Option("--bi-encoder", help="Embedder to rank the same candidates with, by cosine.")
    ] = None
    first_stage: opt.FirstStageMode = None
    first_stage_weights: Annotated[
        str | None,
        typer.Option(
            "--first-stage-weights",
            help="Also order by margin + weight x the first stage's z-score, at each, as 1,2.",
        ),
    ] = None
    shared_prefix: Annotated[
        str | None,
        typer.Option("--shared-prefix", help="mean: also with the prefix that passages share, and how margins change."),
    ] = None
    instruction: opt.Instruction = None


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How the indexes are built."""

    panel: ClassVar = "Indexes"
    codec: opt.Codec = None
    embedder: opt.Embedder = None
