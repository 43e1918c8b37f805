"""`kalm-cache search`, `rerank` and `serve`: what is asked of an index or a model online."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.output import exit_codes, print_json, stdout_console
from kalm_cache.cli.tables import ranking_table, timings_line
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from kalm_cache.settings import Settings


def search(
    query: Annotated[str, typer.Argument(help="The question.")],
    index: opt.IndexFolder,
    config: opt.ConfigFile = None,
    k: opt.Candidates = None,
    top_n: Annotated[int | None, typer.Option("--top-n", help="Results shown.")] = None,
    chunk_size: opt.ChunkSize = None,
    first_stage: opt.FirstStageMode = None,
    first_stage_weight: opt.FirstStageWeight = None,
    instruction: opt.Instruction = None,
    model: opt.Model = None,
    codec: opt.Codec = None,
    device: opt.Device = None,
    dtype: opt.DType = None,
    json: opt.AsJson = False,
) -> None:
    """First stage, then cached rerank: the passages that answer a query, best first."""
    from kalm_cache.index.from_settings import open_index
    from kalm_cache.settings import load_settings

    with exit_codes():
        settings = load_settings(
            config,
            model=model,
            codec=codec,
            chunk_size=chunk_size,
            device=device,
            dtype=dtype,
            k=k,
            top_n=top_n,
            first_stage=first_stage,
            first_stage_weight=first_stage_weight,
            instruction=instruction,
        )
        with open_index(index, settings) as passages:
            answer = passages.search(
                query,
                k=settings.k,
                top_n=settings.top_n,
                first_stage=settings.first_stage,
                first_stage_weight=settings.first_stage_weight_for(passages.generation.manifest.model),
                instruction=settings.instruction,
                system_instruction=settings.system_instruction,
            )
    if json:
        print_json(dataclasses.asdict(answer))
    else:
        stdout_console().print(ranking_table(answer), timings_line(answer))


def rerank(
    query: Annotated[str, typer.Option("--query", help="The question.")],
    document: Annotated[list[str] | None, typer.Option("--document", help="A document; repeat it for more.")] = None,
    documents_file: Annotated[Path | None, typer.Option("--documents-file", help="One document a line.")] = None,
    ids: Annotated[list[str] | None, typer.Option("--ids", help="Stored ids, comma-separated or repeated.")] = None,
    index: Annotated[Path | None, typer.Option("--index", help="Folder of the index, with --ids.")] = None,
    config: opt.ConfigFile = None,
    model: opt.Model = None,
    device: opt.Device = None,
    dtype: opt.DType = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pairs scored together.")] = 32,
    query_max_length: opt.QueryMaxLength = None,
    max_length: Annotated[
        int | None, typer.Option("--reranker-max-length", "--max-length", help="Tokens of a document that count.")
    ] = None,
    chunk_size: Annotated[str | None, typer.Option("--chunk-size", help="Pooling ratio, or none.")] = None,
    instruction: opt.Instruction = None,
    return_margin: Annotated[bool, typer.Option("--return-margin", help="Add yes_logit − no_logit.")] = False,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Results shown; all by default.")] = None,
    json: opt.AsJson = False,
) -> None:
    """Rank documents given as text (encoded on the fly), or stored passages by their ids (decoder only)."""
    from kalm_cache.settings import load_settings

    with exit_codes():
        settings = load_settings(
            config,
            model=model,
            device=device,
            dtype=dtype,
            query_max_length=query_max_length,
            max_length=max_length,
            chunk_size=_ratio(chunk_size),
            instruction=instruction,
        )
        texts = _documents(document, documents_file)
        if bool(ids) == bool(texts) or bool(ids) != bool(index):
            raise UsageError("give either --document/--documents-file, or --ids together with --index")
        if index is not None:
            results = _rerank_ids(query, ids or [], index, settings, top_k)
        else:
            results = _rerank_texts(query, texts, settings, batch_size, top_k)
    if not return_margin:
        results = [{name: value for name, value in result.items() if name != "margin"} for result in results]
    if json:
        print_json({"query": query, "results": results})
    else:
        for result in results:
            stdout_console().print("  ".join(f"{name}={value}" for name, value in result.items()), soft_wrap=True)


def _rerank_ids(query: str, ids: list[str], index: Path, settings: Settings, top_k: int | None) -> list[dict[str, Any]]:
    from kalm_cache.index.from_settings import open_index

    wanted = [one for group in ids for one in group.split(",") if one]
    with open_index(index, settings) as passages:
        answer = passages.rerank(
            query,
            wanted,
            top_n=top_k,
            instruction=settings.instruction,
            system_instruction=settings.system_instruction,
            with_text=False,
        )
    return [{"doc_id": result.doc_id, "score": result.score, "margin": result.margin} for result in answer.results]


def _rerank_texts(
    query: str, texts: list[str], settings: Settings, batch_size: int, top_k: int | None
) -> list[dict[str, Any]]:
    from kalm_cache.reranker import KaLMReranker

    reranker = KaLMReranker(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        batch_size=batch_size,
        query_max_length=settings.query_max_length,
        max_length=settings.max_length,
        chunk_size=settings.chunk_size,
        instruction=settings.instruction,
        system_instruction=settings.system_instruction,
    )
    ranking = reranker.rank(query, texts, top_k=top_k, return_margin=True)
    return [{**ranked, "text": texts[ranked["corpus_id"]]} for ranked in ranking]


def _documents(given: list[str] | None, file: Path | None) -> list[str]:
    texts = list(given or [])
    if file is not None:
        try:
            texts += [line for line in file.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(f"--documents-file {file}: cannot be read as UTF-8 text: {exc}") from exc
    return texts


def _ratio(value: str | None) -> int | None:
    """`--chunk-size N|none`; none = 1 = no pooling."""
    if value is None:
        return None
    if value.lower() == "none":
        return 1
    if not value.isdigit() or int(value) < 1:
        raise UsageError(f"--chunk-size {value}: give a whole number from 1, or none")
    return int(value)


def serve(
    index: opt.IndexFolder,
    config: opt.ConfigFile = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to bind; 127.0.0.1 by default.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to bind; 0 = any free one.")] = None,
    model: opt.Model = None,
    device: opt.Device = None,
    dtype: opt.DType = None,
    prefix_cache_gib: Annotated[
        float | None, typer.Option("--prefix-cache-gib", help="Memory for passages met before; 0 = none.")
    ] = None,
    with_encoder: Annotated[
        bool | None, typer.Option("--with-encoder/--without-encoder", help="Score raw documents too.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; they share weights and index.")] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option("--api-keys-file", help="Bearer keys, one a line; or KALM_CACHE_API_KEYS.")
    ] = None,
    log_format: Annotated[str | None, typer.Option("--log-format", help="text or json.")] = None,
) -> None:
    """Serve an index over HTTP until SIGTERM: /search, /rerank, /score, /metrics, /docs, and a page at /.

    Every other limit is a setting: see kalm-cache config show.
    """
    from kalm_cache.settings import load_settings
    from query_service.server import run_server

    with exit_codes():
        settings = load_settings(
            config,
            host=host,
            port=port,
            model=model,
            device=device,
            dtype=dtype,
            prefix_cache_gib=prefix_cache_gib,
            with_encoder=with_encoder,
            workers=workers,
            api_keys_file=api_keys_file,
            log_format=log_format,
        )
        run_server(index, settings)
