"""Options that several commands share. A flag that is not given is `None`, so that environment and file can speak."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with any of the settings.")]
IndexFolder = Annotated[Path, typer.Option("--index", help="Folder of the index.")]
Model = Annotated[str | None, typer.Option("--model", help="tiny, nano, small, large, …-r2, a folder, or a hub id.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N.")]
DType = Annotated[str | None, typer.Option("--dtype", help="auto, bfloat16|bf16, float16|fp16, float32|fp32, int8.")]
Codec = Annotated[
    str | None, typer.Option("--codec", help="How states are stored: fp32, bf16, fp16, int8, int4, int3, int2; +zstdN.")
]
DenseIndex = Annotated[str | None, typer.Option("--dense-index", help="auto (by size), flat, ivf, hnsw.")]
Corpus = Annotated[str, typer.Argument(help="JSONL, TSV, CSV or Parquet file (also .gz, .zst), a folder, or -.")]
ErrorsFile = Annotated[Path | None, typer.Option("--errors", help="Write rejected lines to this file.")]
ChunkSize = Annotated[int | None, typer.Option("--chunk-size", help="Pooling ratio r; reading: a multiple of r.")]
MaxLength = Annotated[int | None, typer.Option("--max-length", help="Tokens of a passage that count.")]
QueryMaxLength = Annotated[int | None, typer.Option("--query-max-length", help="Tokens of a query that count.")]
Embedder = Annotated[str | None, typer.Option("--embedder", help="static, or a model2vec/sentence-transformers one.")]
BatchTokens = Annotated[int | None, typer.Option("--batch-tokens", help="Tokens encoded together.")]
Instruction = Annotated[str | None, typer.Option("--instruction", help="What the query asks for.")]
FirstStageMode = Annotated[str | None, typer.Option("--first-stage", help="dense, bm25 or fused.")]
FirstStageWeight = Annotated[
    float | None,
    typer.Option("--first-stage-weight", help="Order by margin + this x the first stage's z-score; 0: margin."),
]
Candidates = Annotated[int | None, typer.Option("--k", help="Candidates that are reranked.")]
AsJson = Annotated[bool, typer.Option("--json", help="Data as JSON on stdout; logs stay on stderr.")]
