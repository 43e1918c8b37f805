"""`finetune` and `mine`: the steps in their order, from a file of training data to a checkpoint and its report."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kalm_cache.errors import CorpusError, UsageError
from kalm_cache.finetuning.data.example import Example, OnReject, Rejected
from kalm_cache.finetuning.data.read import ItemsAre, read_examples
from kalm_cache.finetuning.data.split import Split, split_examples
from kalm_cache.finetuning.negatives.mining import Mined, Miner
from kalm_cache.finetuning.negatives.scorers import MarginScorer, TeacherScorer
from kalm_cache.finetuning.options import HeldOutOptions, MiningOptions, TrainingOptions, default_chunk_sizes
from kalm_cache.finetuning.passages import Passages, open_passages
from kalm_cache.finetuning.results.comparison import Comparison, compare_decoders
from kalm_cache.finetuning.results.held_out import HeldOutQuery, Prompts, held_out_queries
from kalm_cache.finetuning.results.merged import write_merged
from kalm_cache.finetuning.results.plot import plot_log
from kalm_cache.finetuning.training.lists import Steps
from kalm_cache.finetuning.training.losses import NEED_SCORES
from kalm_cache.finetuning.training.run_state import RunFolder
from kalm_cache.finetuning.training.trained_decoder import load_trained_decoder
from kalm_cache.finetuning.training.trainer import Progress, Trainer
from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.digests import decoder_digest
from kalm_cache.scoring.pooling import check_chunk_size
from kalm_cache.scoring.query_side import load_query_side
from kalm_cache.storage.durable import file_digest, write_atomically
from kalm_cache.storage.text_cache.text_cache import TextCache

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex

RUN = "finetune"  # folder inside of the checkpoint's
Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]  # what, how many -> counts what is done
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Data:
    """Where the queries come from.

    path: of the training data. report: further data, reported on in place of a share of the first. split: of BEIR
    folders. items_are: whether passages are ids or texts.
    """

    path: Path
    report: Path | None = None
    split: str = "train"
    items_are: ItemsAre = "auto"


@dataclass(frozen=True, slots=True)
class Source:
    """What is trained on: an open index, the checkpoint of its decoder, how it is asked, and a text cache if any."""

    index: PassageIndex
    checkpoint: Checkpoint
    instruction: str
    system: str
    text_cache: TextCache | None = None

    @property
    def prompts(self) -> Prompts:
        """Queries → tokens."""
        return Prompts(self.index.query_side, self.instruction, self.system)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a job tells while it runs: rejected lines, steps of training, and bars for the rest."""

    on_reject: OnReject
    on_step: Callable[[Progress], None]
    bar: Bar


@dataclass(frozen=True, slots=True)
class FinetuneReport:
    """What came of a run. `trained`, `watched`: how many queries. `best_step`: the one whose weights were kept."""

    checkpoint: str
    trained: int
    watched: int
    steps: int
    best_step: int
    seconds: float
    comparison: Comparison

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self) | {"comparison": self.comparison.to_json()}


def mine_negatives(
    source: Source, data: Data, options: MiningOptions, seed: int, own_cache: Path, shown: Shown
) -> tuple[list[Example], Mined]:
    """The examples of a file, each with negatives of the index.

    Raises:
        CorpusError: the file cannot be read, or holds no example that can be used.
    """
    examples = read_examples(data.path, source.index.store, shown.on_reject, split=data.split, items_are=data.items_are)
    with _passages(source, own_cache) as passages:
        _encode_texts(passages, examples, shown)
        return _mine(source, passages, examples, options, seed, shown)


def finetune(
    source: Source,
    data: Data,
    out: Path,
    mining: MiningOptions,
    training: TrainingOptions,
    held_out: HeldOutOptions,
    shown: Shown,
) -> FinetuneReport:
    """Train the decoder of an index on its stored states, and write the checkpoint and what it is worth to `out`.

    Run again after a kill it goes on where it stopped. The index's files are read only.

    Raises:
        UsageError: options that do not fit, too few queries, or `out` holds another run.
        CorpusError: the data cannot be read.
        MissingExtraError: peft, scipy or matplotlib is not installed.
    """
    _require_extras(training)
    stored = source.index.generation.manifest.fingerprint.chunk_size
    chunk_sizes = training.chunk_sizes or default_chunk_sizes(stored)
    for chunk_size in chunk_sizes:
        check_chunk_size(stored, chunk_size)
    _require_apart(source, out)
    folder = RunFolder(out / RUN)
    folder.begin(_request(source, data, mining, training, held_out))
    with _passages(source, folder.folder / "texts") as passages:
        split = folder.load_split()
        if split is None:
            split = _prepare(source, passages, data, mining, training, held_out, shown)
            folder.save_split(split)
        _encode_texts(passages, [*split.train, *split.watch, *split.report], shown)
        depth, mode = held_out.candidates, mining.first_stage
        watched = held_out_queries(source.index, source.prompts, split.watch, depth, mode)
        side = source.index.query_side
        decoder = load_trained_decoder(source.checkpoint, side.decoder, side.device, training.lora, training.seed)
        steps = Steps(split.train, chunk_sizes, training)
        trainer = Trainer(decoder, passages, source.prompts, steps, watched, training, folder, shown.on_step)
        trainer.train()
        isolates = training.isolate_prefix or source.checkpoint.config.isolated_prefix
        merged = write_merged(source.checkpoint, decoder.merged(), out, isolated_prefix=isolates)
        decoder.save_adapter(out / "adapter", source.checkpoint.name)
        queries = held_out_queries(source.index, source.prompts, split.report, depth, mode)
        comparison = _compare(source, passages, merged, queries, chunk_sizes, depth, shown)
    report = FinetuneReport(
        str(out), len(split.train), len(split.watch), trainer.step, trainer.best_step, trainer.seconds, comparison
    )
    write_atomically(folder.folder / "report.json", json.dumps(report.to_json(), indent=2).encode())
    plot_log(folder.log_lines(), folder.folder / "training.png")
    folder.forget_state()
    return report


def _prepare(
    source: Source,
    passages: Passages,
    data: Data,
    mining: MiningOptions,
    training: TrainingOptions,
    held_out: HeldOutOptions,
    shown: Shown,
) -> Split:
    """Read, split and mine: negatives are needed by what is trained on alone."""

    def read(path: Path) -> list[Example]:
        return read_examples(path, source.index.store, shown.on_reject, split=data.split, items_are=data.items_are)

    split = split_examples(
        read(data.path),
        training.seed,
        watch_share=held_out.watch_share,
        report_share=held_out.report_share,
        report=None if data.report is None else read(data.report),
    )
    _encode_texts(passages, split.train, shown)
    mined, counts = _mine(source, passages, split.train, mining, training.seed, shown)
    logger.info(
        "%d negatives mined for %d queries; %d candidates left out as probably relevant",
        counts.taken, counts.queries, counts.false,
    )  # fmt: skip
    train = list(_trainable(mined, training.loss, shown.on_reject))
    if not train:
        raise CorpusError(f"{data.path}: no query can be trained on; the lines that were rejected say why")
    return replace(split, train=train)


def _trainable(examples: Sequence[Example], loss: str, on_reject: OnReject) -> Iterator[Example]:
    """Examples that the loss can learn from."""
    for example in examples:
        if not example.negatives:
            reason = "no negative passage, given or mined"
        elif loss in NEED_SCORES and not example.scores:
            reason = f"no teacher's scores, which the loss {loss} needs: pos_scores and neg_scores, or --teacher"
        else:
            yield example
            continue
        on_reject(Rejected(example.source, reason, example.query))


def _mine(
    source: Source, passages: Passages, examples: Sequence[Example], options: MiningOptions, seed: int, shown: Shown
) -> tuple[list[Example], Mined]:
    scorer = (
        MarginScorer(source.prompts, passages, source.index.chunk_size)
        if options.teacher is None
        else TeacherScorer(source.index, options.teacher)
    )
    miner, counts = Miner(source.index, options, scorer, seed, options.teacher is not None), Mined()
    with shown.bar("mining negatives", len(examples)) as advance:
        return list(miner.mine(examples, counts, advance)), counts


def _encode_texts(passages: Passages, examples: Sequence[Example], shown: Shown) -> None:
    items = [item for example in examples for item in example.items if not item.is_id]
    if items:
        with shown.bar("encoding texts", len(set(items))) as advance:
            passages.encode(items, advance)


def _compare(
    source: Source,
    passages: Passages,
    merged: Checkpoint,
    queries: Sequence[HeldOutQuery],
    chunk_sizes: Sequence[int],
    depth: int,
    shown: Shown,
) -> Comparison:
    before = source.index.query_side
    after = load_query_side(merged, device=before.device, dtype=before.dtype, query_max_length=before.query_max_length)
    with shown.bar("comparing", len(queries) * len(chunk_sizes)) as advance:
        return compare_decoders(before, after, passages, queries, chunk_sizes, depth, advance)


@contextmanager
def _passages(source: Source, own_cache: Path) -> Iterator[Passages]:
    with open_passages(source.index, source.checkpoint, own_cache, source.text_cache) as passages:
        yield passages


def _request(
    source: Source, data: Data, mining: MiningOptions, training: TrainingOptions, held_out: HeldOutOptions
) -> dict[str, Any]:
    """What a run is asked for: with another one, its folder is another run's."""
    manifest = source.index.generation.manifest
    return {
        "index": manifest.fingerprint.digest(),
        "generation": source.index.generation.name,
        "decoder": decoder_digest(source.checkpoint),
        "train": _digest(data.path),
        "report": None if data.report is None else _digest(data.report),
        "data": asdict(replace(data, path=Path(data.path.name), report=None)),
        "instruction": source.instruction,
        "system_instruction": source.system,
        "mining": asdict(mining),
        "training": asdict(training),
        "held out": asdict(held_out),
    }


def _digest(path: Path) -> str:
    """Of the file; of a BEIR folder its place, as its files are many."""
    try:
        return file_digest(path) if path.is_file() else str(path.resolve(strict=True))
    except OSError as exc:
        raise CorpusError(f"cannot read {path}: {exc.strerror}") from exc


def _require_apart(source: Source, out: Path) -> None:
    if out.resolve() == source.checkpoint.folder.resolve():
        raise UsageError(f"--out {out} is the checkpoint that is fine-tuned; name another folder")
    if (out / "config.json").is_file() and not (out / RUN).is_dir():
        raise UsageError(f"--out {out} holds a checkpoint already; name another folder")


def _require_extras(training: TrainingOptions) -> None:
    """Raise `MissingExtraError` before anything is computed."""
    from kalm_cache.evaluation.measures.significance import load_scipy_stats
    from kalm_cache.evaluation.reports.plots import load_figure
    from kalm_cache.finetuning.training.trained_decoder import require_peft

    load_scipy_stats()
    load_figure()
    if training.lora is not None:
        require_peft()
