"""Settings: one flat set of names, the same as flag, as `KALM_CACHE_NAME` and as a key of a TOML file.

Precedence: flag > environment > `--config FILE.toml` > default.
"""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from kalm_cache.errors import UsageError
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION

ENV_PREFIX = "KALM_CACHE_"
NO_SETTINGS = ("KERNELS", "KERNEL_MARCH", "API_KEY", "BASE_URL")  # of the kernels and of the client
logger = logging.getLogger(__name__)
DTypeName = Literal["auto", "bfloat16", "bf16", "float16", "fp16", "float32", "fp32", "int8"]


class Settings(BaseSettings):
    """Every setting, with its default: the bundled model, offline, on whatever device is there."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    # model
    model: str = Field("tiny", description="alias (tiny nano small large, -r2), folder or Hugging Face id")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    dtype: DTypeName = Field("auto", description="auto: bfloat16 where the device multiplies it natively, else float32")
    instruction: str = Field(DEFAULT_INSTRUCTION, description="what a query asks for")
    system_instruction: str = Field(DEFAULT_SYSTEM_INSTRUCTION, description="first line of the prompt")
    query_max_length: int = Field(512, ge=1, description="tokens of a query that count")

    # indexing
    max_length: int = Field(1024, ge=1, description="tokens of a passage that count, its prefix included")
    chunk_size: int = Field(4, ge=1, le=128, description="pooling ratio r that is stored")
    codec: str = Field("fp16", description="how pooled states are stored: fp32 bf16 fp16 int8 int4 int3 int2, +zstdN")
    batch_tokens: int = Field(4096, ge=1, description="tokens encoded together, padding included")
    store_text: bool = Field(True, description="keep the passages' text for results")

    # first stage
    embedder: str = Field(
        "static", description="static (bundled), a model2vec folder, or a sentence-transformers model"
    )
    embedder_query_prompt: str = Field("", description="put before a query for the embedder")
    embedder_passage_prompt: str = Field("", description="put before a passage for the embedder")
    bm25: bool = Field(True, description="build BM25 beside the dense index")
    dense_index: Literal["auto", "flat", "hnsw", "ivf"] = Field(
        "auto", description="auto: exact up to 100,000 passages, ivf above"
    )

    # search
    k: int = Field(100, ge=1, description="candidates that the first stage hands to the reranker")
    top_n: int = Field(10, ge=1, description="results returned")
    first_stage: Literal["dense", "bm25", "fused"] | None = Field(None, description="none: the best the index has")
    first_stage_weight: float = Field(
        0.0, ge=0.0, allow_inf_nan=False, description="of the first stage's z-score beside the margin; 0: none"
    )

    prefix_cache_gib: float = Field(0.0, ge=0.0, description="memory for passages under a prompt's prefix; 0: none")
    prefix_cache_dtype: Literal["float32", "bfloat16", "int8"] = Field("bfloat16", description="what these are held in")

    # service
    host: str = Field("127.0.0.1", description="address that serve binds")
    port: int = Field(8080, ge=0, le=65535, description="port that serve binds; 0 = any free one")
    workers: int = Field(1, ge=1, description="processes that serve; they share weights and index")
    with_encoder: bool = Field(False, description="also score raw documents: loads the encoder when the first come")
    served_model_name: str = Field("", description="names accepted as `model`, with commas; empty: the model's, *: any")
    watch_seconds: float = Field(1.0, ge=0.0, description="how often serve looks for a new generation; 0: never")
    reader_threads: int = Field(2, ge=1, description="threads that search and read while the decoder runs")
    queue_limit: int = Field(256, ge=1, description="requests under way or waiting; more get 429")
    timeout_ms: int = Field(30_000, ge=1, description="a request not answered by then gets 504")
    drain_seconds: float = Field(30.0, ge=0.0, description="how long a stopping service waits for what it has begun")
    max_body_bytes: int = Field(16 << 20, ge=1, description="a larger request body gets 413")
    max_documents: int = Field(1000, ge=1, description="more documents, ids or candidates in a request get 413")
    max_query_chars: int = Field(16_384, ge=1, description="a longer query gets 422")
    api_keys: SecretStr = Field(SecretStr(""), description="bearer keys, with commas; empty: none is asked for")
    api_keys_file: Path | None = Field(None, description="file of bearer keys, one a line")
    admin_keys: SecretStr = Field(SecretStr(""), description="bearer keys of /admin; empty: /admin is off")
    admin_keys_file: Path | None = Field(None, description="file of admin keys, one a line")
    cors_origins: str = Field("", description="origins that browsers may call from, with commas; empty: none")
    log_format: Literal["text", "json"] = Field("text", description="log lines for people or for machines")
    log_queries: bool = Field(False, description="put queries into the log")
    tracing: bool = Field(False, description="OpenTelemetry spans (extra otel)")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags first, then the environment, then the file: `.env` files and secret folders are not read."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Settings from flags (`None` = not given), environment, the TOML file and defaults.

    Variables that begin as ours and are none are warned of: a wrong letter would otherwise say nothing.

    Raises:
        UsageError: the file cannot be read, or a value does not fit; names the field and where it came from.
    """
    if config is not None and not config.is_file():
        raise UsageError(f"--config {config}: no such file")
    given = {name: value for name, value in flags.items() if value is not None}
    for variable, nearest in unknown_variables():
        logger.warning("%s is no setting%s", variable, f"; did you mean {nearest}?" if nearest else "")

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    try:
        loaded = FromFile(**given)
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
    return Settings.model_construct(loaded.model_fields_set, **loaded.model_dump())  # a class that pickles


def unknown_variables() -> list[tuple[str, str | None]]:
    """KALM_CACHE_* variables of the environment that nothing reads, each with the nearest one that something does."""
    known = [*(name.upper() for name in Settings.model_fields), *NO_SETTINGS]
    given = {
        name: name.upper().removeprefix(ENV_PREFIX)
        for name in sorted(os.environ)
        if name.upper().startswith(ENV_PREFIX)
    }
    near = {name: difflib.get_close_matches(rest, known, n=1) for name, rest in given.items() if rest not in known}
    return [(name, f"{ENV_PREFIX}{found[0]}" if found else None) for name, found in near.items()]


def source_of(settings: Settings, name: str, config: Path | None) -> str:
    """Where a setting of `load_settings(config)` came from: `KALM_CACHE_NAME`, the file, or `default`."""
    return _source(name, {}, config) if name in settings.model_fields_set else "default"


def _source(name: str, flags: dict[str, Any], config: Path | None) -> str:
    """Where a setting was taken from, in the order of precedence."""
    if name in flags:
        return f"flag --{name.replace('_', '-')}"
    variable = f"{ENV_PREFIX}{name}".upper()
    return variable if variable in map(str.upper, os.environ) else str(config)
