"""What `kalm-cache eval` was asked for, from flags and an evaluation's file: collections, plan, settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from kalm_cache.evaluation.collections.collection import Collection
    from kalm_cache.evaluation.config import CollectionConfig, EvalConfig
    from kalm_cache.evaluation.study import Plan
    from kalm_cache.settings import Settings


@dataclass(frozen=True, slots=True)
class Request:
    """Collections, in order; what is asked of each; the settings of their indexes.

    `data` holds the BEIR folders that a file names; `run` is a TREC run, or a folder of NAME.trec.
    """

    sources: list[CollectionConfig]
    plan: Plan
    settings: Settings
    data: Path
    split: str
    run: Path | None

    @property
    def chunk_sizes(self) -> list[int]:
        """The chunk sizes of the plan's points."""
        return [point.chunk_size for point in self.plan.points]

    def collections(self) -> Iterator[Collection]:
        """The collections, each loaded when it is asked for. Raises as their loaders do."""
        for source in self.sources:
            for collection in _load(source, self.data, self.split):
                own = source.instruction or collection.instruction
                yield replace(collection, instruction=own)

    def run_of(self, collection: Collection) -> Path | None:
        """The TREC run that has this collection's candidates. Raises `UsageError` when a folder has none for it."""
        if self.run is None or not self.run.is_dir():
            return self.run
        for name in (collection.task.name, f"{collection.task.name}-{collection.task.split}"):
            for path in (self.run / f"{name}.trec", self.run / f"{name}.trec.gz"):
                if path.is_file():
                    return path
        raise UsageError(f"--run {self.run}: the folder holds no {collection.task.name}.trec")


def read_request(
    *,
    config: Path | None,
    beir: Sequence[Path],
    ir_datasets: Sequence[str],
    mteb_tasks: Sequence[str],
    data: Path,
    split: str,
    run: Path | None,
    chunk_sizes: str | None,
    codecs: str | None,
    first_stages: bool,
    dense: Sequence[str],
    bi_encoders: Sequence[str],
    first_stage_weights: str | None,
    max_queries: int | None,
    flags: dict[str, Any],
) -> Request:
    """Put flags, file and settings together. `first_stages`: measure every mode of the first stage.

    Raises:
        UsageError: nothing to evaluate, or a value that cannot be served.
    """
    from kalm_cache.evaluation.config import CollectionConfig, load_eval_config
    from kalm_cache.evaluation.points import Point
    from kalm_cache.evaluation.study import Plan
    from kalm_cache.settings import load_settings

    found = load_eval_config(config) if config is not None and config.is_file() else None
    given = [CollectionConfig(beir=str(folder.absolute())) for folder in beir]
    given += [CollectionConfig(ir_dataset=name) for name in ir_datasets]
    given += [CollectionConfig(mteb=name) for name in mteb_tasks]
    sources = given or (list(found.collections) if found else [])
    if not sources:
        raise UsageError(
            "nothing to evaluate: give --beir, --ir-dataset, --mteb-task, or --config configs/eval/NAME.toml"
        )
    own = {"k": found.k, "first_stage": found.first_stage} if found else {}
    settings = load_settings(
        _settings_file(config, found),
        **{name: own.get(name) if value is None else value for name, value in flags.items()},
    )
    sizes = _chunk_sizes(chunk_sizes) or (found.chunk_sizes if found else None) or [settings.chunk_size]
    names: Sequence[str | None] = (codecs.split(",") if codecs else found.codecs if found else None) or [None]
    points = [Point(chunk_size, codec) for codec in names for chunk_size in sizes]
    plan = Plan(
        points=tuple(dict.fromkeys(points)),
        k=settings.k,
        first_stage=settings.first_stage,
        compared=(("dense", "bm25", "fused") if settings.bm25 else ("dense",)) if first_stages else (),
        dense=tuple(dense or (found.dense if found else ())),
        bi_encoders=tuple(bi_encoders or (found.bi_encoders if found else ())),
        first_stage_weights=_weights(first_stage_weights, found, settings),
        max_queries=max_queries or (found.max_queries if found else None),
        instruction=settings.instruction if "instruction" in settings.model_fields_set else None,
        system_instruction=settings.system_instruction,
    )
    return Request(sources, plan, settings, data, split, run)


def _settings_file(config: Path | None, found: EvalConfig | None) -> Path | None:
    if config is None or found is None:
        return config
    return config.parent / found.settings if found.settings else None


def _load(source: CollectionConfig, data: Path, split: str) -> Iterator[Collection]:
    if source.beir is not None:
        from kalm_cache.evaluation.collections.collection import load_beir_collection

        yield load_beir_collection(data / source.beir, source.split or split)
    elif source.ir_dataset is not None:
        from kalm_cache.evaluation.collections.ir_dataset import load_ir_dataset

        yield load_ir_dataset(source.ir_dataset)
    else:
        from kalm_cache.evaluation.collections.mteb_task import load_mteb

        yield from load_mteb(source.mteb or "", source.subsets)


def _weights(value: str | None, found: EvalConfig | None, settings: Settings) -> tuple[float, ...]:
    """Of the flag, or else of the file, or else of the settings; 0 is always measured and left out here."""
    given: Sequence[float] = (found.first_stage_weights if found else None) or [
        settings.first_stage_weight_for(settings.model)
    ]
    if value is not None:
        try:
            given = [float(part) for part in value.split(",")]
        except ValueError as exc:
            raise UsageError(f"--first-stage-weights {value}: give numbers, as 1 or 0.5,1,2") from exc
    if not all(0 <= one < math.inf for one in given):
        raise UsageError(f"--first-stage-weights {value}: a weight is a number of 0 or more")
    return tuple(dict.fromkeys(one for one in given if one))


def _chunk_sizes(value: str | None) -> list[int]:
    if value is None:
        return []
    try:
        chunk_sizes = [int(part) for part in value.split(",")]
    except ValueError as exc:
        raise UsageError(f"--chunk-size {value}: give whole numbers, as 4 or 4,16") from exc
    if min(chunk_sizes) < 1:
        raise UsageError(f"--chunk-size {value}: a chunk size is 1 or more")
    return chunk_sizes
