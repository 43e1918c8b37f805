"""Options that several commands share. A flag that is not given is `None`, and the next source decides."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from kalm_cache.settings import Settings

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with any of the settings.")]
IndexPlace = Annotated[str, typer.Option("--index", help="Folder of the index, or s3://, gs://, az://, file:// URL.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N.")]
Codec = Annotated[
    str | None, typer.Option("--codec", help="How states are stored: fp32, bf16, fp16, int8, int4, int3, int2; +zstdN.")
]
ChunkSize = Annotated[int | None, typer.Option("--chunk-size", help="Pooling ratio r; reading: a multiple of r.")]
Embedder = Annotated[str | None, typer.Option("--embedder", help="static, or a model2vec/sentence-transformers one.")]
MaxLength = Annotated[int | None, typer.Option("--max-length", help="Tokens of a passage that count.")]
Template = Annotated[
    str | None, typer.Option("--passage-template", help="How a record's fields make a passage: '{title} {text}'.")
]
BatchTokens = Annotated[str | None, typer.Option("--batch-tokens", help="Tokens encoded together, or auto.")]
Instruction = Annotated[str | None, typer.Option("--instruction", help="What the query asks for.")]
FirstStageMode = Annotated[str | None, typer.Option("--first-stage", help="dense, bm25 or fused.")]
Ids = Annotated[
    list[str] | None, typer.Option("--ids", help="Stored ids, comma-separated or repeated; with commas in them: --id.")
]
OneId = Annotated[list[str] | None, typer.Option("--id", help="A stored id as it is; repeat it for more.")]
IdsFile = Annotated[Path | None, typer.Option("--ids-file", help="One id a line, beside those given.")]
Candidates = Annotated[int | None, typer.Option("--k", help="Candidates that are reranked.")]
Language = Annotated[
    str | None, typer.Option("--language", help="Of the corpus, as de or de,en: BM25 stems by it; auto; none.")
]
Folding = Annotated[bool | None, typer.Option("--fold-diacritics/--keep-diacritics", help="BM25 finds café by cafe.")]
NoText = Annotated[bool, typer.Option("--no-text", help="Do not keep the passages' text.")]
Shards = Annotated[
    int | None, typer.Option("--shards", min=1, help="Segments that the index is made of, by the passages' ids.")
]
Filter = Annotated[
    str | None, typer.Option("--filter", help='Only passages whose metadata matches: \'{"lang": "de"}\'.')
]
Fields = Annotated[str | None, typer.Option("--fields", help="Metadata shown with results: names with commas, or all.")]
AsJson = Annotated[bool, typer.Option("--json", help="Data as JSON on stdout; logs stay on stderr.")]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model runs, and where."""

    panel: ClassVar = "Model"
    model: Annotated[
        str | None, typer.Option("--model", help="tiny, nano, small, large, …-r2, a folder, or a hub id.")
    ] = None
    device: Device = None
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="auto, bfloat16|bf16, float16|fp16, float32|fp32, int8.")
    ] = None


@dataclass(frozen=True, slots=True)
class StatesOptions:
    """What decides a passage's states, and how they are stored."""

    panel: ClassVar = "Encoding"
    codec: Codec = None
    chunk_size: ChunkSize = None
    max_length: MaxLength = None
    batch_tokens: BatchTokens = None
    passage_template: Template = None


@dataclass(frozen=True, slots=True)
class EncodingOptions(StatesOptions):
    """What of a passage is encoded, stored and searched."""

    embedder: Embedder = None
    language: Language = None
    fold_diacritics: Folding = None
    metadata: Annotated[
        str | None,
        typer.Option(
            "--metadata", help="Fields kept for filters and results: lang,year or all; year:number, tags:text[]."
        ),
    ] = None
    dense_index: Annotated[str | None, typer.Option("--dense-index", help="auto (by size), flat, ivf, hnsw.")] = None


def settings_from(config: Path | None, *groups: Any, **flags: Any) -> Settings:
    """Settings from `--config`, groups whose fields are named like settings, further flags, and the environment.

    Raises:
        UsageError: the file cannot be read, a value does not fit, or `--text-cache` is empty.
    """
    from kalm_cache.settings import load_settings

    for group in groups:
        flags |= asdict(group)
    require_named(flags.get("text_cache"))
    return load_settings(config, **flags)


def require_named(text_cache: str | None) -> None:
    """Raise `UsageError` for an empty `--text-cache`: probably a variable of the shell that is not set."""
    if text_cache == "":
        raise UsageError("--text-cache is empty: name a folder, or leave the flag out")
