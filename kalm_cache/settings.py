"""Settings: one flat set of names. A name is a key of a TOML file, a variable `KALM_CACHE_NAME` and, for many, a flag.

Precedence: flag > environment > `--config FILE.toml` > default. `configs/base.toml` lists every setting.
"""

from __future__ import annotations

import difflib
import logging
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from kalm_cache.errors import UsageError
from kalm_cache.languages import AUTO, language_codes
from kalm_cache.metadata.fields import MetadataFields
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION
from kalm_cache.passage import DEFAULT_TEMPLATE, TEXT, PassageTemplate
from kalm_cache.process.environment import ENV_PREFIX, service_links, variables

OTHER_VARIABLES = ("KERNELS", "KERNEL_MARCH", "API_KEY", "BASE_URL")  # read by the kernels and by the client
logger = logging.getLogger(__name__)
FIRST_STAGE_WEIGHTS = {"tiny": 1.0}  # it raised nDCG@10 at every chunk size; no other model was measured
DTypeName = Literal["auto", "bfloat16", "bf16", "float16", "fp16", "float32", "fp32", "int8"]


def _with_text(pattern: str) -> str:
    if TEXT not in PassageTemplate(pattern).fields:
        raise ValueError(f"{{{TEXT}}} is not in it; a passage without its text cannot be found by it")
    return pattern


def _codes(languages: str) -> str:
    return languages if languages == AUTO else ",".join(language_codes(languages)) or languages


def _parsed(metadata: str) -> str:
    MetadataFields.parse(metadata)
    return metadata


class Settings(BaseModel):
    """Every setting with its default. The defaults run the bundled model, offline, on CUDA or else on the CPU."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # model
    model: str = Field("tiny", description="alias (tiny nano small large, -r2), folder or Hugging Face id")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    dtype: DTypeName = Field("auto", description="auto: bfloat16 where the device multiplies it natively, else float32")
    instruction: str = Field(DEFAULT_INSTRUCTION, description="what a query asks for")
    system_instruction: str = Field(DEFAULT_SYSTEM_INSTRUCTION, description="first line of the prompt")
    query_max_length: int = Field(512, ge=1, description="tokens of a query that count")

    # indexing
    passage_template: Annotated[str, AfterValidator(_with_text)] = Field(
        DEFAULT_TEMPLATE, description="how the fields of a record make a passage, in corpus and requests"
    )
    metadata: Annotated[str, AfterValidator(_parsed)] = Field(
        "", description="fields kept for filters and results: names with commas, or all; NAME:TYPE; empty: none"
    )
    max_length: int = Field(1024, ge=1, description="tokens of a passage that count, its prefix included")
    chunk_size: int = Field(4, ge=1, le=128, description="pooling ratio r that is stored")
    codec: str = Field("fp16", description="how pooled states are stored: fp32 bf16 fp16 int8 int4 int3 int2, +zstdN")
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="tokens encoded together, padding included; auto: by the device's memory, or by cores"
    )
    store_text: bool = Field(True, description="keep the passages' text for results")

    # object stores
    cache_folder: str = Field("", description="local copies of remote indexes; empty: ~/.cache/kalm-cache")
    cache_gib: float = Field(100.0, gt=0.0, description="what these may take on disk, together")

    # first stage
    embedder: str = Field(
        "static", description="static (bundled), a model2vec folder, or a sentence-transformers model"
    )
    embedder_query_prompt: str = Field("", description="put before a query for the embedder")
    embedder_passage_prompt: str = Field("", description="put before a passage for the embedder")
    bm25: bool = Field(True, description="build BM25 beside the dense index")
    language: Annotated[str, AfterValidator(_codes)] = Field(
        AUTO, description="codes of the corpus's languages, with commas: BM25 stems by them; none; auto: by its texts"
    )
    fold_diacritics: bool = Field(False, description="BM25 finds words with and without their diacritics alike")
    dense_index: Literal["auto", "flat", "hnsw", "ivf"] = Field(
        "auto", description="auto: exact up to 100,000 passages, ivf above"
    )

    # search
    k: int = Field(100, ge=1, description="candidates that the first stage hands to the reranker")
    top_n: int = Field(10, ge=1, description="results returned")
    first_stage: Literal["dense", "bm25", "fused"] | None = Field(None, description="none: the best the index has")
    first_stage_weight: Annotated[float, Field(ge=0.0)] | Literal["auto"] | None = Field(
        None,
        description="of the first stage's z-score beside the margin; auto: by calibrate; none: tiny 1, other models 0",
    )
    min_probability: float | None = Field(
        None, ge=0.0, le=1.0, description="results below it are left out, which takes a calibration; none: all stay"
    )
    prefix_cache_gib: float = Field(0.0, ge=0.0, description="memory for passages under a prompt's prefix; 0: none")
    prefix_cache_dtype: Literal["float32", "bfloat16", "int8"] = Field("bfloat16", description="precision of these")

    shared_prefix: Literal["mean"] | None = Field(
        None, description="mean: a prompt's tokens before the query are the same for all passages; none: exactly"
    )

    # service
    host: str = Field("127.0.0.1", description="address that serve binds")
    port: int = Field(8080, ge=0, le=65535, description="port that serve binds; 0 = any free one")
    shards: str = Field("", description="of the index, that serve serves: numbers with commas; empty: all")
    shard_api_key: SecretStr = Field(SecretStr(""), description="the key with which a router asks services of shards")
    partial_answers: bool = Field(
        False, description="a router answers without shards that nobody serves, and says so; else with 503"
    )
    hedge_ms: float | None = Field(
        None, gt=0.0, description="a router asks another replica after so long; none: as 95% of answers took"
    )
    workers: int = Field(1, ge=1, description="processes that serve; they share weights and index")
    with_encoder: bool = Field(False, description="also score raw documents; the first one loads the encoder")
    text_cache: str = Field("", description="folder of the text cache, made when it is written; empty: none")
    text_cache_gib: float = Field(4.0, ge=1 / 64, description="what the text cache's file may take on disk")
    text_cache_ttl_seconds: float | None = Field(None, gt=0.0, description="a cached text serves so long; none: always")
    text_cache_secret: SecretStr = Field(
        SecretStr(""), description="keys the text cache's hashes: who has another one finds nothing"
    )
    text_cache_any_file_system: bool = Field(False, description="a text cache on a network file system is not refused")
    served_model_name: str = Field("", description="names accepted as `model`, with commas; empty: the model's, *: any")
    watch_seconds: float = Field(1.0, ge=0.0, description="how often serve looks for a new generation; 0: never")
    reader_threads: int = Field(2, ge=1, description="threads that search and read while the decoder runs")
    queue_limit: int = Field(256, ge=1, description="requests under way or waiting; more get 429")
    timeout_ms: int = Field(30_000, ge=1, description="a request not answered by then gets 504")
    drain_seconds: float = Field(
        30.0, ge=0.0, allow_inf_nan=False, description="how long a stopping service waits for what it has begun"
    )
    header_seconds: float = Field(
        10.0, gt=0.0, allow_inf_nan=False, description="a client has as long for a request line and headers"
    )
    body_seconds: float = Field(
        30.0,
        gt=0.0,
        allow_inf_nan=False,
        description="and as long for a body, or for reading an answer, plus 1 s for each 16 KiB",
    )
    max_connections: int = Field(
        1000, ge=1, description="open ones of a process; for more, those silent for longest are closed"
    )
    allowed_hosts: str = Field(
        "", description="names that requests may be for, with commas, *: any; empty: without keys on loopback, its own"
    )
    max_body_bytes: int = Field(16 << 20, ge=1, description="a larger request body gets 413")
    max_documents: int = Field(1000, ge=1, description="more documents, ids or candidates in a request get 413")
    max_query_chars: int = Field(16_384, ge=1, description="a longer query or instruction gets 422")
    max_instruction_tokens: int = Field(512, ge=1, description="a request's instruction of more gets 422")
    api_keys: SecretStr = Field(SecretStr(""), description="bearer keys, with commas; empty: none is asked for")
    api_keys_file: Path | None = Field(None, description="file of bearer keys, one a line, perhaps with a filter")
    admin_keys: SecretStr = Field(SecretStr(""), description="bearer keys of /admin; empty: /admin is off")
    admin_keys_file: Path | None = Field(None, description="file of admin keys, one a line")
    cors_origins: str = Field("", description="origins that browsers may call from, with commas; empty: none")
    log_format: Literal["text", "json"] = Field("text", description="log lines for people or for machines")
    log_queries: bool = Field(False, description="put queries into the log")
    tracing: bool = Field(False, description="OpenTelemetry spans (extra otel)")

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_is_a_number(cls, value: Any, field: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(field.field_name)].annotation is not bool:
            raise ValueError("Input should not be a boolean")
        return value

    @field_validator("shards")
    @classmethod
    def _numbers_with_commas(cls, value: str) -> str:
        numbers = [part.strip() for part in value.split(",")] if value.strip() else []
        if not all(number.isascii() and number.isdigit() for number in numbers):
            raise ValueError("Input should be numbers with commas, such as 0,3")
        return ",".join(numbers)

    @property
    def served_shards(self) -> tuple[int, ...] | None:
        """The numbers of `shards`, rising; `None` = all."""
        return tuple(sorted({int(number) for number in self.shards.split(",")})) if self.shards else None

    def first_stage_weight_for(self, model: str) -> float | Literal["auto"]:
        """`first_stage_weight`, or the default of `model`, the name that the index's manifest holds."""
        default = FIRST_STAGE_WEIGHTS.get(model, 0.0)
        return default if self.first_stage_weight is None else self.first_stage_weight


def load_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Settings from flags (`None` = not given), environment, the TOML file and defaults.

    Logs a warning for each variable `KALM_CACHE_*` that nothing reads: it is probably misspelt. Those that Kubernetes
    or Docker put there for a service of that name are ignored, which is said once.

    Raises:
        UsageError: the file cannot be read, or a value does not fit; names the field and its source.
    """
    if config is not None and not config.is_file():
        raise UsageError(f"--config {config}: no such file")
    given = {name: value for name, value in flags.items() if value is not None}
    for variable, nearest in unknown_variables():
        logger.warning("%s is no setting%s", variable, f"; did you mean {nearest}?" if nearest else "")
    _hint_at_links(tuple(service_links()))

    try:
        return Settings(**(_in_file(config) | _in_environment() | given))
    except ValidationError as exc:
        problems = [
            f"{error['loc'][0]} from {_source(str(error['loc'][0]), given, config)}: {error['msg']} "
            f"(given: {error['input']!r})"
            for error in exc.errors()
        ]
        raise UsageError("; ".join(problems)) from exc
    except OSError as exc:
        raise UsageError(f"--config {config}: cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise UsageError(f"--config {config}: not valid TOML: {exc}") from exc


def _in_file(config: Path | None) -> dict[str, Any]:
    return {} if config is None else tomllib.loads(config.read_text("utf-8"))


def _in_environment() -> dict[str, Any]:
    """`.env` files and folders of secrets are not read."""
    return {name.lower(): value for name, value in variables().items() if name.lower() in Settings.model_fields}


def unknown_variables() -> list[tuple[str, str | None]]:
    """Variables `KALM_CACHE_*` that nothing reads, each with the most similar name that is read, if there is one."""
    known = [name.upper() for name in (*Settings.model_fields, *OTHER_VARIABLES)]
    unknown: list[tuple[str, str | None]] = []
    for name in sorted(variables().keys() - known):
        similar = difflib.get_close_matches(name, known, n=1)
        unknown.append((f"{ENV_PREFIX}{name}", f"{ENV_PREFIX}{similar[0]}" if similar else None))
    return unknown


@cache  # once, however often settings are read
def _hint_at_links(names: tuple[str, ...]) -> None:
    if names:
        logger.warning(
            "ignored %s%s, which Kubernetes or Docker set for a service of that name: they are no settings "
            "(enableServiceLinks: false in the pod's spec leaves them out)",
            names[0],
            f" and {len(names) - 1} more such variables" if len(names) > 1 else "",
        )


def idle_settings(settings: Settings) -> list[str]:
    """Settings of the text cache that were set to something, where there is no text cache."""
    if settings.text_cache:
        return []
    fields = {name: field for name, field in Settings.model_fields.items() if name.startswith("text_cache_")}
    return [name for name, field in fields.items() if getattr(settings, name) != field.default]


def source_of(settings: Settings, name: str, config: Path | None) -> str:
    """The source of a setting of `load_settings(config)`: `KALM_CACHE_NAME`, the file, or `default`."""
    return _source(name, {}, config) if name in settings.model_fields_set else "default"


def _source(name: str, flags: dict[str, Any], config: Path | None) -> str:
    """The source with the highest precedence that gives a setting."""
    if name in flags:
        return f"flag --{name.replace('_', '-')}"
    return f"{ENV_PREFIX}{name}".upper() if name.upper() in variables() else str(config)
