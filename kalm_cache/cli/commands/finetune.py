"""`kalm-cache finetune`: train the decoder of an index on its stored states. `kalm-cache mine`: see the negatives."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.index_places import index_to_read
from kalm_cache.cli.output import EXIT_PARTIAL, exit_codes, print_json, stdout_console
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from indexer.corpus.rejects import ErrorsFile
    from kalm_cache.finetuning.data.example import OnReject, Rejected
    from kalm_cache.finetuning.job import Data, FinetuneReport, Shown, Source
    from kalm_cache.finetuning.options import HeldOutOptions, MiningOptions, TrainingOptions
    from kalm_cache.settings import Settings

EXIT_WORSE = 1
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DataFlags:
    """Training data, and what is to be known of it."""

    panel: ClassVar = "Data"
    train: Annotated[
        Path, typer.Option("--train", help="JSONL {query, pos, neg}, CSV/TSV/Parquet, or a BEIR folder or qrels file.")
    ]
    split: Annotated[str, typer.Option("--split", help="Of a BEIR folder: qrels/SPLIT.tsv.")] = "train"
    items: Annotated[str, typer.Option("--items", help="What passages are: ids, texts, auto (told by the index).")] = (
        "auto"
    )
    errors: Annotated[Path | None, typer.Option("--errors", help="Write rejected lines to this file.")] = None

    def data(self, report: Path | None = None) -> Data:
        """As a job takes it. Raises `UsageError`."""
        from kalm_cache.finetuning.data.read import parse_items_are
        from kalm_cache.finetuning.job import Data

        return Data(self.train, report, self.split, parse_items_are(self.items))


@dataclass(frozen=True, slots=True)
class MiningFlags:
    """Which passages stand in as negatives."""

    panel: ClassVar = "Negatives"
    negatives: Annotated[int, typer.Option("--negatives", help="Of each query, from the first stage.")] = 15
    ranks: Annotated[str, typer.Option("--range", help="Ranks that they are drawn from.")] = "2-200"
    random: Annotated[int, typer.Option("--random", help="Further ones from the whole corpus.")] = 2
    false_above: Annotated[
        float,
        typer.Option(
            "--false-above",
            help="Leave out what scores so much above the best relevant passage; inf: nothing.",
        ),
    ] = 2.0
    first_stage: opt.FirstStageMode = None
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="A sentence-transformers CrossEncoder whose scores are used.")
    ] = None

    def options(self) -> MiningOptions:
        """As a job takes them. Raises `UsageError`."""
        from kalm_cache.finetuning.negatives.mining import parse_range
        from kalm_cache.finetuning.options import MiningOptions

        first, last = parse_range(self.ranks)
        return MiningOptions(self.negatives, first, last, self.random, self.false_above, self.first_stage, self.teacher)


@dataclass(frozen=True, slots=True)
class TrainingFlags:
    """How long, how fast and on what."""

    panel: ClassVar = "Training"
    loss: Annotated[
        str | None, typer.Option("--loss", help="softmax, lambda, bce, margin-mse; with --isolate-prefix distil.")
    ] = None
    isolate_prefix: Annotated[
        bool,
        typer.Option("--isolate-prefix", help="Tokens before the query see no passage: all share them, for nothing."),
    ] = False
    full: Annotated[bool, typer.Option("--full", help="Train the whole decoder in place of LoRA adapters.")] = False
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the LoRA adapters.")] = 16
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Left out: 2e-4 for LoRA, 2e-5 for --full.")
    ] = None
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the training queries.")] = 3.0
    minutes: Annotated[float | None, typer.Option("--minutes", help="Of training, at most.")] = None
    queries: Annotated[int, typer.Option("--queries", help="Of one step.")] = 8
    passages: Annotated[int, typer.Option("--passages", help="Of each query in a step.")] = 16
    chunk_sizes: Annotated[
        str | None,
        typer.Option("--chunk-sizes", help="One is drawn each step; left out: 1, 2, 4, 8 times the index's."),
    ] = None
    seed: Annotated[int, typer.Option("--seed", help="Of all that is drawn.")] = 0

    def options(self) -> TrainingOptions:
        """As a job takes them. Raises `UsageError`."""
        from kalm_cache.finetuning.options import TrainingOptions
        from kalm_cache.finetuning.training.trained_decoder import LoraOptions

        return TrainingOptions(
            loss=self.loss or ("distil" if self.isolate_prefix else "softmax"),
            isolate_prefix=self.isolate_prefix,
            lora=None if self.full else LoraOptions(self.rank, 2 * self.rank),
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            minutes=self.minutes,
            queries=self.queries,
            passages=self.passages,
            chunk_sizes=_numbers(self.chunk_sizes),
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class HeldOutFlags:
    """What is held out, and how it is ranked."""

    panel: ClassVar = "Report"
    report: Annotated[
        Path | None, typer.Option("--report", help="Data to report on, in place of a share of --train.")
    ] = None
    watch_share: Annotated[float, typer.Option("--watch-share", help="Of the queries, to choose weights by.")] = 0.1
    report_share: Annotated[float, typer.Option("--report-share", help="Of the queries, to report on.")] = 0.2
    candidates: Annotated[int, typer.Option("--candidates", help="Of the first stage, reranked for each.")] = 50
    set_: Annotated[bool, typer.Option("--set", help="Answer with it from now on, unless it is worse.")] = False
    force: Annotated[bool, typer.Option("--force", help="Exit code 0, and set, although it is worse.")] = False

    def options(self) -> HeldOutOptions:
        """As a job takes them. Raises `UsageError`."""
        from kalm_cache.finetuning.options import HeldOutOptions

        return HeldOutOptions(self.watch_share, self.report_share, self.candidates)


@dataclass(frozen=True, slots=True)
class CacheFlags:
    """Which text cache takes the states of texts."""

    text_cache: Annotated[
        str | None, typer.Option("--text-cache", help="Text cache for texts among the passages; else one in --out.")
    ] = None


def finetune(
    index: opt.IndexPlace,
    out: Annotated[Path, typer.Option("--out", help="Folder of the checkpoint that is made.")],
    data: DataFlags,
    mining: MiningFlags,
    training: TrainingFlags,
    held_out: HeldOutFlags,
    model: opt.ModelOptions,
    cache: CacheFlags,
    instruction: opt.Instruction = None,
    config: opt.ConfigFile = None,
    json: opt.AsJson = False,
) -> None:
    """Train the decoder on the index's stored states, and say what it is worth on held-out queries.

    The encoder is not run and stays as it is, and so does the index. Interrupted, it goes on where it stopped when run
    again. Exit code 1 when the ranking became worse, 3 when lines were rejected.
    """
    from kalm_cache.finetuning.job import finetune as run

    with exit_codes(resumable=True):
        settings = opt.settings_from(config, model, cache, instruction=instruction)
        options = mining.options(), training.options(), held_out.options()
        with _source(index, settings) as source, _shown(data.errors) as (shown, rejects):
            report = run(source, data.data(held_out.report), out, *options, shown)
    _print(report, index, json)
    if report.comparison.is_worse and not held_out.force:
        raise typer.Exit(EXIT_WORSE)
    if held_out.set_:
        _set(report, index)
    if rejects.count:
        raise typer.Exit(EXIT_PARTIAL)


def mine(
    index: opt.IndexPlace,
    out: Annotated[Path, typer.Option("--out", help="JSON lines {query, pos, neg} that are written.")],
    data: DataFlags,
    mining: MiningFlags,
    model: opt.ModelOptions,
    cache: CacheFlags,
    seed: Annotated[int, typer.Option("--seed", help="Of what is drawn.")] = 0,
    instruction: opt.Instruction = None,
    config: opt.ConfigFile = None,
    json: opt.AsJson = False,
) -> None:
    """Write training data with negatives of the index, as `finetune` mines them, to be looked at or trained on.

    Exit code 3 when lines were rejected.
    """
    from kalm_cache.finetuning.job import mine_negatives
    from kalm_cache.finetuning.training.run_state import write_examples

    with exit_codes():
        settings = opt.settings_from(config, model, cache, instruction=instruction)
        with _source(index, settings) as source, _shown(data.errors) as (shown, rejects), _temporary(out) as texts:
            examples, counts = mine_negatives(source, data.data(), mining.options(), seed, texts, shown)
            write_examples(out, examples)
    if json:
        print_json({"out": str(out), "queries": counts.queries, "negatives": counts.taken, "left_out": counts.false})
    else:
        stdout_console().print(
            f"{out}: {counts.queries:,} queries, {counts.taken:,} negatives mined, {counts.false:,} candidates left "
            "out as probably relevant",
            soft_wrap=True,
            markup=False,
        )
    if rejects.count:
        raise typer.Exit(EXIT_PARTIAL)


@contextmanager
def _source(index: str, settings: Settings) -> Iterator[Source]:
    from kalm_cache.finetuning.job import Source
    from kalm_cache.index.decoders import decoder_checkpoint
    from kalm_cache.index.from_settings import open_index, open_text_cache

    with ExitStack() as stack:
        folder = stack.enter_context(index_to_read(index, settings))
        passages = stack.enter_context(open_index(folder, settings))
        cache = open_text_cache(settings)
        if cache is not None:
            stack.enter_context(cache)
        model = settings.model if "model" in settings.model_fields_set else None
        checkpoint = decoder_checkpoint(passages.generation, folder, model)
        yield Source(passages, checkpoint, settings.instruction, settings.system_instruction, cache)


@contextmanager
def _shown(errors: Path | None) -> Iterator[tuple[Shown, ErrorsFile]]:
    """What a job shows on standard error, and the file of rejected lines."""
    from indexer.corpus.rejects import ErrorsFile
    from kalm_cache.cli.corpus_input import warn_of_rejects
    from kalm_cache.cli.training_progress import show_training
    from kalm_cache.finetuning.job import Shown
    from kalm_cache.process.progress_bar import progress_bar

    with ErrorsFile(errors) as rejects, show_training() as on_step:
        yield Shown(_adding_to(rejects), on_step, lambda what, total: progress_bar(what, total, None)), rejects
    warn_of_rejects(rejects)


def _adding_to(rejects: ErrorsFile) -> OnReject:
    from indexer.corpus import RejectedLine

    def add(rejected: Rejected) -> None:
        rejects.add(RejectedLine(rejected.location, rejected.reason, None, rejected.raw))

    return add


@contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    """A folder for the states of texts, beside what is written."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="mine-", dir=out.parent) as folder:
        yield Path(folder)


def _print(report: FinetuneReport, index: str, as_json: bool) -> None:
    if as_json:
        print_json(report.to_json())
        return
    comparison = report.comparison
    lines = [
        f"{report.checkpoint}: {report.trained:,} queries, {report.steps:,} steps in {report.seconds:.0f} s; the "
        f"weights are those of step {report.best_step:,}, the best on {report.watched:,} watched queries",
        *comparison.lines(),
        f"to answer with it: kalm-cache decoder set {report.checkpoint} --index {index}",
    ]
    stdout_console().print("\n".join(lines), soft_wrap=True, markup=False)


def _set(report: FinetuneReport, index: str) -> None:
    from indexer.change.set_decoder import set_decoder
    from kalm_cache.cli.index_places import index_to_change

    with index_to_change(index) as folder:
        done = set_decoder(folder, report.checkpoint)
    logger.info("generation %s of %s answers with %s", done.generation, index, done.decoder)


def _numbers(text: str | None) -> tuple[int, ...]:
    """`4,8` → (4, 8). Raises `UsageError`."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--chunk-sizes is {text!r}; expected numbers with commas, as 4,8")
    return tuple(map(int, parts))
