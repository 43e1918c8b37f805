"""`kalm-cache client`: requests to a running service, from options or with a body from a file."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.filters import parsed_fields, parsed_filter
from kalm_cache.cli.output import exit_codes, print_json, stdout_console
from kalm_cache.cli.texts import ids_of
from kalm_cache.errors import ServiceUnavailableError, UsageError

if TYPE_CHECKING:
    from kalm_cache.client import Client

ENDPOINTS = ("search", "rerank", "score")
OVERRIDES = ("k", "chunk_size", "first_stage", "instruction")  # flags that are fields of the body, by the same names
SHOWN = ("rank", "index", "doc_id", "label", "id", "score", "margin", "cache", "metadata", "text")
TAGS = ("label", "id")  # not shown where they repeat `doc_id`


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What is asked: the endpoint, and the fields of the request's body."""

    endpoint: Annotated[str, typer.Option("--endpoint", help="search, rerank or score.")] = "search"
    json_file: Annotated[Path | None, typer.Option("--json-file", help="The request's body; - = stdin.")] = None
    ids: opt.Ids = None
    one_id: opt.OneId = None
    ids_file: opt.IdsFile = None
    document: Annotated[list[str] | None, typer.Option("--document", help="A document; repeat it for more.")] = None
    k: opt.Candidates = None
    top_k: Annotated[int | None, typer.Option("--top-k", "--top-n", min=1, help="Results shown.")] = None
    chunk_size: opt.ChunkSize = None
    first_stage: opt.FirstStageMode = None
    instruction: opt.Instruction = None
    filter: opt.Filter = None
    fields: opt.Fields = None
    return_margin: Annotated[bool, typer.Option("--return-margin", help="Add yes_logit − no_logit.")] = False

    def body(self, query: str | None) -> dict[str, Any]:
        """The request's body. Raises `UsageError` where the options contradict each other."""
        doc_ids = ids_of(self.ids, self.one_id, self.ids_file)
        body = _body_of(self.endpoint, query, self.json_file, doc_ids, self.document)
        for name in OVERRIDES:
            if (value := getattr(self, name)) is not None:
                body[name] = value
        if (wanted := parsed_filter(self.filter)) is not None:
            body["filter"] = wanted
        if names := parsed_fields(self.fields):
            body["fields"] = names
        return body | _result_options(self.endpoint, self.top_k, self.return_margin)


def client(
    query: Annotated[str | None, typer.Argument(help="The question; not with --json-file.")] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="The service; KALM_CACHE_BASE_URL, or http://127.0.0.1:8080.")
    ] = None,
    *,
    request: RequestOptions,
    health: Annotated[bool, typer.Option("--health", help="Whether the service is ready, and what it serves.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for each try.")] = 60.0,
    retries: Annotated[int, typer.Option("--retries", min=0, help="Further tries where the service is busy.")] = 3,
    json: opt.AsJson = False,
) -> None:
    """Ask a running service to search, rerank or score; the key is KALM_CACHE_API_KEY.

    --json prints the service's response unchanged. With --health, a service that is not ready is exit code 1.
    """
    from kalm_cache.client import Client

    with exit_codes(), Client(base_url, timeout=timeout, retries=retries) as service:
        answer = _health(service) if health else service.request(f"/{request.endpoint}", request.body(query))
    if json:
        print_json(answer)
    else:
        _print(answer, request.return_margin)


def _health(service: Client) -> dict[str, Any]:
    answer = service.health()
    if not service.ready():
        raise ServiceUnavailableError(f"{service.base_url} is alive, but not ready: it is starting or stopping")
    return answer


def _body_of(
    endpoint: str, query: str | None, file: Path | None, doc_ids: list[str], documents: list[str] | None
) -> dict[str, Any]:
    if endpoint not in ENDPOINTS:
        raise UsageError(f"--endpoint {endpoint}: choose one of {', '.join(ENDPOINTS)}")
    if file is not None:
        if query is not None or doc_ids or documents:
            raise UsageError("--json-file holds the whole request: leave out the query, ids and --document")
        return _read(file)
    if query is None:
        raise UsageError("give a query, or --json-file, or --health")
    if endpoint == "search":
        if doc_ids or documents:
            raise UsageError("--endpoint search takes a query alone; for ids and --document: --endpoint rerank")
        return {"query": query}
    if bool(doc_ids) == bool(documents):
        raise UsageError(f"--endpoint {endpoint}: give either --ids or --document")
    if endpoint == "score":
        stored = [{"id": doc_id, "query": query, "doc_id": doc_id} for doc_id in doc_ids]
        return {"pairs": stored or [{"query": query, "document": text} for text in documents or []]}
    return {"query": query, "ids": doc_ids} if doc_ids else {"query": query, "documents": documents}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        body = json_format.loads(content.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as exc:
        raise UsageError(f"--json-file {file}: cannot be read as JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise UsageError(f"--json-file {file}: holds a {type(body).__name__}; expected an object, the request's body")
    return body


def _result_options(endpoint: str, top_k: int | None, return_margin: bool) -> dict[str, Any]:
    """Fields of the body that --top-k and --return-margin override."""
    if endpoint == "score" and top_k is not None:
        raise UsageError("--top-k: scores come in the order of the pairs, all of them; use --endpoint rerank")
    fields: dict[str, Any] = {} if top_k is None else {"top_n": top_k}
    return fields | ({"return_margin": True} if return_margin and endpoint != "search" else {})


def _print(answer: Any, return_margin: bool) -> None:
    console = stdout_console()
    for result in _results(answer):
        names = [name for name in SHOWN if result.get(name) is not None and (name != "margin" or return_margin)]
        names = [name for name in names if name not in TAGS or result[name] != result.get("doc_id")]
        if "label" in names and "id" in names:  # `id` is the label once more, as services of earlier releases call it
            names.remove("id")
        console.print("  ".join(f"{name}={result[name]}" for name in names), soft_wrap=True, markup=False)


def _results(answer: Any) -> list[Mapping[str, Any]]:
    """The rows of an answer: results, vLLM's data, TEI's array, or the one row that a health answer is."""
    if isinstance(answer, list):
        return answer
    for name in ("results", "data"):
        if isinstance(answer.get(name), list):
            return list(answer[name])
    return [answer]
