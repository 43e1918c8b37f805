"""What `kalm-cache eval` measures, from flags and an evaluation's file: collections, plan, settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kalm_cache.cli.options import settings_from
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from kalm_cache.cli.evaluation.options import CollectionOptions, PlanOptions
    from kalm_cache.evaluation.collections.collection import Collection
    from kalm_cache.evaluation.collections.qrels import QrelsFormat
    from kalm_cache.evaluation.config import CollectionConfig, EvalConfig
    from kalm_cache.evaluation.plan import Plan
    from kalm_cache.first_stage import Mode
    from kalm_cache.settings import Settings


@dataclass(frozen=True, slots=True)
class Request:
    """Collections in order, what is measured of each, and the settings of their indexes.

    `data` holds the BEIR folders that a file names; `run` is a TREC run, or a folder of NAME.trec. `drop_own_id`
    and `qrels_format` are those of all collections; `None` = their own.
    """

    sources: list[CollectionConfig]
    plan: Plan
    settings: Settings
    data: Path
    split: str
    run: Path | None
    drop_own_id: bool | None = None
    qrels_format: QrelsFormat | None = None

    @property
    def chunk_sizes(self) -> list[int]:
        """The chunk sizes of the plan's points."""
        return [point.chunk_size for point in self.plan.points]

    def collections(self) -> Iterator[Collection]:
        """The collections, loaded one after the other. Raises as their loaders do."""
        for source in self.sources:
            for collection in _load(source, self.data, self.split, self.qrels_format):
                wishes = [self.drop_own_id, source.drop_own_id, collection.drop_own_id]
                yield replace(
                    collection,
                    instruction=source.instruction or collection.instruction,
                    drop_own_id=next((wish for wish in wishes if wish is not None), None),
                )

    def run_of(self, collection: Collection) -> Path | None:
        """The TREC run that has this collection's candidates. Raises `UsageError` for a folder without one."""
        if self.run is None or not self.run.is_dir():
            return self.run
        for name in (collection.task.name, f"{collection.task.name}-{collection.task.split}"):
            for path in (self.run / f"{name}.trec", self.run / f"{name}.trec.gz"):
                if path.is_file():
                    return path
        raise UsageError(f"--run {self.run}: the folder holds no {collection.task.name}.trec")


def read_request(
    collections: CollectionOptions, plan: PlanOptions, *settings: Any, every_first_stage: bool = False
) -> Request:
    """Put flags, the file of `--config` and settings together.

    Args:
        collections: what to evaluate; its `config` is an evaluation's file, or one of settings.
        plan: what to measure; its values come before those of the file.
        settings: further groups, whose fields are settings.
        every_first_stage: measure each mode of the first stage.

    Raises:
        UsageError: nothing to evaluate, or a value that cannot be served.
    """
    from kalm_cache.evaluation.config import load_eval_config

    path = collections.config
    file = load_eval_config(path) if path is not None and path.is_file() else None
    loaded = settings_from(
        _settings_file(path, file),
        *settings,
        k=file.k if file and plan.k is None else plan.k,
        first_stage=file.first_stage if file and plan.first_stage is None else plan.first_stage,
        shared_prefix=file.shared_prefix if file and plan.shared_prefix is None else plan.shared_prefix,
        instruction=plan.instruction,
    )
    return Request(
        sources=_sources(collections, file),
        plan=_plan(plan, file, loaded, every_first_stage),
        settings=loaded,
        data=collections.data,
        split=collections.split,
        run=plan.run,
        drop_own_id=collections.drop_own_id,
        qrels_format=_qrels_format(collections),
    )


def _settings_file(config: Path | None, file: EvalConfig | None) -> Path | None:
    if config is None or file is None:
        return config
    return config.parent / file.settings if file.settings else None


def _sources(given: CollectionOptions, file: EvalConfig | None) -> list[CollectionConfig]:
    """The collections of the flags, or else of the file."""
    from kalm_cache.evaluation.config import CollectionConfig

    sources = [CollectionConfig(beir=str(folder.absolute())) for folder in given.beir or []]
    sources += [CollectionConfig(ir_dataset=name) for name in given.ir_dataset or []]
    sources += [CollectionConfig(mteb=name) for name in given.mteb_task or []]
    if not sources and file is None:
        raise UsageError(
            "nothing to evaluate: give --beir, --ir-dataset, --mteb-task, or --config configs/eval/NAME.toml"
        )
    sources = sources or (list(file.collections) if file else [])
    if _qrels_format(given) != _qrels_format(CollectionConfig(beir="")) and not any(source.beir for source in sources):
        raise UsageError("--qrels-columns, --qrels-header and --qrels-delimiter are for BEIR folders; there is none")
    return sources


def _plan(given: PlanOptions, file: EvalConfig | None, settings: Settings, every_first_stage: bool) -> Plan:
    """What is measured: by the flags, or else by the file, or else by the settings."""
    from kalm_cache.evaluation.plan import Plan
    from kalm_cache.evaluation.points import points_of

    chunk_sizes = _chunk_sizes(given.chunk_size) or (file.chunk_sizes if file else None) or [settings.chunk_size]
    codecs: Sequence[str | None] = (
        (given.codecs.split(",") if given.codecs else None) or (file.codecs if file else None) or [None]
    )
    modes: tuple[Mode, ...] = ("dense", "bm25", "fused") if settings.bm25 else ("dense",)
    return Plan(
        points=points_of(chunk_sizes, codecs, settings.shared_prefix),
        k=settings.k,
        first_stage=settings.first_stage,
        compared=modes if every_first_stage else (),
        dense=tuple(given.dense or (file.dense if file else ())),
        bi_encoders=tuple(given.bi_encoder or (file.bi_encoders if file else ())),
        first_stage_weights=_weights(given.first_stage_weights, file, settings),
        max_queries=given.max_queries or (file.max_queries if file else None),
        instruction=settings.instruction if "instruction" in settings.model_fields_set else None,
        system_instruction=settings.system_instruction,
    )


def _qrels_format(given: CollectionOptions | CollectionConfig) -> QrelsFormat:
    """How files of judgments are laid out, as far as flags or a collection of a file say. Raises `UsageError`."""
    from kalm_cache.evaluation.collections.qrels import QrelsFormat

    columns = given.qrels_columns.split(",") if isinstance(given.qrels_columns, str) else given.qrels_columns
    return QrelsFormat(tuple(columns) if columns else None, given.qrels_header, given.qrels_delimiter)


def _load(source: CollectionConfig, data: Path, split: str, qrels_format: QrelsFormat | None) -> Iterator[Collection]:
    if source.beir is not None:
        from kalm_cache.evaluation.collections.collection import load_beir_collection

        of_source = _qrels_format(source)
        format_ = of_source if qrels_format is None else qrels_format.over(of_source)
        yield load_beir_collection(data / source.beir, source.split or split, format_)
    elif source.ir_dataset is not None:
        from kalm_cache.evaluation.collections.ir_dataset import load_ir_dataset

        yield load_ir_dataset(source.ir_dataset)
    else:
        from kalm_cache.evaluation.collections.mteb_task import load_mteb

        yield from load_mteb(source.mteb or "", source.subsets)


def _weights(flag: str | None, file: EvalConfig | None, settings: Settings) -> tuple[float, ...]:
    """The weights of the flag, or else of the file, or else of the model. 0 is always measured, and left out here."""
    default = settings.first_stage_weight_for(settings.model)
    if default == "auto":
        raise UsageError('first_stage_weight "auto" is of a calibrated index; name weights with --first-stage-weights')
    weights: Sequence[float] = (file.first_stage_weights if file else None) or [default]
    if flag is not None:
        try:
            weights = [float(part) for part in flag.split(",")]
        except ValueError as exc:
            raise UsageError(f"--first-stage-weights {flag}: give numbers, as 1 or 0.5,1,2") from exc
    if not all(0 <= weight < math.inf for weight in weights):
        raise UsageError(f"--first-stage-weights {flag}: a weight is a number of 0 or more")
    return tuple(dict.fromkeys(weight for weight in weights if weight))


def _chunk_sizes(flag: str | None) -> list[int]:
    if flag is None:
        return []
    try:
        chunk_sizes = [int(part) for part in flag.split(",")]
    except ValueError as exc:
        raise UsageError(f"--chunk-size {flag}: give whole numbers, as 4 or 4,16") from exc
    if min(chunk_sizes) < 1:
        raise UsageError(f"--chunk-size {flag}: a chunk size is 1 or more")
    return chunk_sizes
