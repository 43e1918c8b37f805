"""`kalm-cache rerank`: one question, and the texts or the stored passages to rank for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.filters import parsed_fields, parsed_filter
from kalm_cache.cli.index_places import index_to_read
from kalm_cache.cli.output import exit_codes, print_json, stdout_console
from kalm_cache.cli.texts import ids_of, lines_in
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from kalm_cache.settings import Settings


@dataclass(frozen=True, slots=True)
class DocumentOptions:
    """What `rerank` ranks: texts, or stored passages."""

    panel: ClassVar = "Documents"
    document: Annotated[list[str] | None, typer.Option("--document", help="A document; repeat it for more.")] = None
    documents_file: Annotated[Path | None, typer.Option("--documents-file", help="One document a line.")] = None
    ids: opt.Ids = None
    one_id: opt.OneId = None
    ids_file: opt.IdsFile = None
    index: Annotated[str | None, typer.Option("--index", help="Folder of the index, or its URL, with --ids.")] = None

    def texts(self) -> list[str]:
        """The documents that were given as text. Raises `UsageError` for a file that is no UTF-8 text."""
        return [*(self.document or []), *lines_in("--documents-file", self.documents_file)]

    def doc_ids(self) -> list[str]:
        """The stored ids that were given. Raises `UsageError` for a file that is no UTF-8 text."""
        return ids_of(self.ids, self.one_id, self.ids_file)


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """How `rerank` scores pairs."""

    panel: ClassVar = "Scoring"
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pairs scored together.")] = 32
    query_max_length: Annotated[
        int | None, typer.Option("--query-max-length", help="Tokens of a query that count.")
    ] = None
    max_length: Annotated[
        int | None, typer.Option("--reranker-max-length", "--max-length", help="Tokens of a document that count.")
    ] = None
    chunk_size: Annotated[str | None, typer.Option("--chunk-size", help="Pooling ratio, or none.")] = None
    instruction: opt.Instruction = None
    min_probability: Annotated[
        float | None, typer.Option("--min-probability", help="Of stored passages, leave those below it out.")
    ] = None

    def as_flags(self) -> dict[str, Any]:
        """The settings among them. Raises `UsageError`."""
        return {
            "query_max_length": self.query_max_length,
            "max_length": self.max_length,
            "chunk_size": _chunk_size(self.chunk_size),
            "instruction": self.instruction,
            "min_probability": self.min_probability,
        }


def rerank(
    query: Annotated[str, typer.Option("--query", help="The question.")],
    documents: DocumentOptions,
    scoring: ScoringOptions,
    model: opt.ModelOptions,
    config: opt.ConfigFile = None,
    filter: opt.Filter = None,
    fields: opt.Fields = None,
    return_margin: Annotated[bool, typer.Option("--return-margin", help="Add yes_logit − no_logit.")] = False,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Results shown; all by default.")] = None,
    json: opt.AsJson = False,
) -> None:
    """Rank documents given as text (encoded on the fly), or stored passages by their ids (decoder only)."""
    with exit_codes():
        wanted, names = parsed_filter(filter), parsed_fields(fields)
        settings = opt.settings_from(config, model, **scoring.as_flags())
        texts, doc_ids = documents.texts(), documents.doc_ids()
        if bool(doc_ids) == bool(texts) or bool(doc_ids) != bool(documents.index):
            raise UsageError(
                "give either --document/--documents-file, or ids (--ids, --id, --ids-file) together with --index"
            )
        if documents.index is None and (wanted is not None or names):
            raise UsageError("--filter and --fields are of stored passages: give ids and --index, or leave them out")
        if documents.index is not None:
            results = _rerank_stored(query, doc_ids, documents.index, settings, top_k, wanted, names)
        else:
            results = _rerank_texts(query, texts, settings, scoring.batch_size, top_k)
    if not return_margin:
        results = [{name: value for name, value in result.items() if name != "margin"} for result in results]
    if json:
        print_json({"query": query, "results": results})
    else:
        for result in results:
            stdout_console().print("  ".join(f"{name}={value}" for name, value in result.items()), soft_wrap=True)


def _rerank_stored(
    query: str,
    doc_ids: list[str],
    index: str,
    settings: Settings,
    top_k: int | None,
    filter: dict[str, Any] | None,
    fields: list[str],
) -> list[dict[str, Any]]:
    from kalm_cache.index.from_settings import open_index

    with index_to_read(index, settings) as folder, open_index(folder, settings) as passages:
        answer = passages.rerank(
            query,
            doc_ids,
            top_n=top_k,
            min_probability=settings.min_probability,
            filter=filter,
            fields=fields,
            instruction=settings.instruction,
            system_instruction=settings.system_instruction,
            with_text=False,
        )
    return [
        {"doc_id": result.doc_id, "score": result.score, "margin": result.margin}
        | ({} if result.probability is None else {"probability": result.probability})
        | ({} if result.metadata is None else {"metadata": result.metadata})
        for result in answer.results
    ]


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


def _chunk_size(value: str | None) -> int | None:
    """`--chunk-size N|none`; none = 1 = no pooling."""
    if value is None:
        return None
    if value.lower() == "none":
        return 1
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"--chunk-size {value}: give a whole number from 1, or none")
    return int(value)
