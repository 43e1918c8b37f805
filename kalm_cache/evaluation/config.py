"""An evaluation's TOML file: which collections, asked how. `configs/eval/` holds one for each benchmark.

What a flag of `kalm-cache eval` says comes before what the file says.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kalm_cache.errors import UsageError

COLLECTIONS = "collections"


class CollectionConfig(BaseModel):
    """One collection, or all of a benchmark; one of `beir`, `ir_dataset` and `mteb` says from where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beir: str | None = Field(default=None, description="folder laid out as BEIR does, below --data")
    ir_dataset: str | None = Field(default=None, description="name of ir_datasets, as beir/fiqa/test")
    mteb: str | None = Field(default=None, description="task or benchmark of mteb, as SciFact or LMEB")
    split: str | None = Field(default=None, description="judgments of a BEIR folder: qrels/SPLIT.tsv")
    subsets: list[str] | None = Field(default=None, description="only these subsets of an mteb task")
    instruction: str | None = Field(default=None, description="what its queries ask for")
    qrels_columns: list[str] | None = Field(default=None, description="of a BEIR folder, as query, -, passage, grade")
    qrels_header: bool | None = Field(default=None, description="whether the judgments' first line names the columns")
    qrels_delimiter: str | None = Field(default=None, description="between their columns: tab, comma or blank")
    drop_own_id: bool | None = Field(default=None, description="leave the passage with the query's own id out")

    def model_post_init(self, context: Any) -> None:
        """Exactly one source. Raises `ValueError`."""
        if sum(source is not None for source in (self.beir, self.ir_dataset, self.mteb)) != 1:
            raise ValueError("give one of beir, ir_dataset and mteb")
        of_beir = (self.split, self.qrels_columns, self.qrels_header, self.qrels_delimiter)
        if self.beir is None and any(value is not None for value in of_beir):
            raise ValueError("split and qrels_… are for beir alone")


class EvalConfig(BaseModel):
    """The file. All but `collections` has the meaning of the flag of that name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    collections: list[CollectionConfig] = Field(min_length=1)
    settings: str | None = Field(default=None, description="TOML file of settings, relative to this one")
    k: int | None = Field(default=None, ge=1)
    first_stage: Literal["dense", "bm25", "fused"] | None = None
    chunk_sizes: list[int] | None = None
    codecs: list[str] | None = None
    dense: list[str] = []
    bi_encoders: list[str] = []
    first_stage_weights: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = []
    shared_prefix: Literal["mean"] | None = None
    max_queries: int | None = Field(default=None, ge=1)


def load_eval_config(path: Path) -> EvalConfig | None:
    """Read an evaluation's file; `None` for a file of settings, which names no collections.

    Raises:
        UsageError: the file cannot be read, is no TOML, or a field is unknown or wrong; names it.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise UsageError(f"--config {path}: {exc}") from exc
    if COLLECTIONS not in content:
        return None
    try:
        return EvalConfig(**content)
    except ValidationError as exc:
        problems = (f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors())
        raise UsageError(f"--config {path}: {'; '.join(problems)}") from exc
