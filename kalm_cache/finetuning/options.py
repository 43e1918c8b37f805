"""How a decoder is fine-tuned: every choice with its default. Rates and epochs are hardly tuned."""

from __future__ import annotations

from dataclasses import dataclass, field

from kalm_cache.errors import UsageError
from kalm_cache.finetuning.training.losses import get_loss
from kalm_cache.finetuning.training.trained_decoder import LoraOptions

LORA_RATE, FULL_RATE = 2e-4, 2e-5  # learning rates; no trial has chosen them yet
MULTIPLES = (1, 2, 4, 8)  # of the stored chunk size: what is trained and reported, unless it is said
MAX_CHUNK_SIZE = 32


@dataclass(frozen=True, slots=True)
class MiningOptions:
    """Which passages stand in as negatives.

    Args:
        negatives: of each query, from the first stage; given ones count.
        first_rank: the best rank that is taken; those before it are often relevant, if nobody has judged them.
        last_rank: the worst one.
        random: further ones from the whole corpus.
        false_above: one whose margin is this much above the best relevant passage's is taken for a relevant one that
            nobody has judged, and left out; `None` = none is.
        first_stage: `dense`, `bm25` or `fused`; `None` = the best that the index has.
        teacher: a sentence-transformers CrossEncoder whose scores filter in place of the margins, and are kept.
    """

    negatives: int = 15
    first_rank: int = 2
    last_rank: int = 200
    random: int = 2
    false_above: float | None = 2.0
    first_stage: str | None = None
    teacher: str | None = None

    def __post_init__(self) -> None:
        """Raises `UsageError` for counts that cannot be."""
        if self.negatives < 0 or self.random < 0:
            raise UsageError(f"{self.negatives} negatives and {self.random} random ones; expected 0 or more of each")
        if not 1 <= self.first_rank <= self.last_rank:
            raise UsageError(f"ranks {self.first_rank}-{self.last_rank}; expected FIRST-LAST, as 2-200")


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How long, how fast and on what.

    Args:
        loss: a name in `losses`.
        isolate_prefix: prompt tokens before the query see no passage, so that all passages share their keys and values.
        lora: adapters; `None` = the whole decoder.
        learning_rate: `None` = `LORA_RATE`, or `FULL_RATE` for the whole decoder.
        epochs: passes over the training queries.
        minutes: of training, at most; the plan is shortened to what they hold.
        queries: of one step.
        passages: of one query in a step.
        chunk_sizes: one is drawn for each step; empty = the index's own and its multiples.
        weight_decay: AdamW's.
        watches: how often held-out queries are ranked in between.
        seed: of all that is drawn.
    """

    loss: str = "softmax"
    lora: LoraOptions | None = field(default_factory=LoraOptions)
    learning_rate: float | None = None
    epochs: float = 3.0
    minutes: float | None = None
    queries: int = 8
    passages: int = 16
    chunk_sizes: tuple[int, ...] = ()
    weight_decay: float = 0.01
    watches: int = 6
    seed: int = 0
    isolate_prefix: bool = False

    def __post_init__(self) -> None:
        """Raises `UsageError` for values that cannot be."""
        get_loss(self.loss)
        if self.loss == "distil" and not self.isolate_prefix:
            raise UsageError("the loss distil learns the decoder as it is: without isolate_prefix nothing would change")
        if self.epochs <= 0 or (self.minutes is not None and self.minutes <= 0):
            raise UsageError("epochs and minutes must be above 0")
        if self.queries < 1 or self.passages < 2 or self.watches < 1:
            raise UsageError("a step needs a query or more, of 2 passages or more, and one watch is the least")

    @property
    def rate(self) -> float:
        """The learning rate after warming up."""
        return self.learning_rate or (FULL_RATE if self.lora is None else LORA_RATE)


@dataclass(frozen=True, slots=True)
class HeldOutOptions:
    """What is held out, and how it is ranked.

    Args:
        watch_share: of the queries that the checkpoint is chosen by.
        report_share: of the queries that the report is about.
        candidates: of the first stage that are reranked for each.
    """

    watch_share: float = 0.1
    report_share: float = 0.2
    candidates: int = 50

    def __post_init__(self) -> None:
        """Raises `UsageError` for shares that leave nothing, or no candidates."""
        if not 0 < self.watch_share < 1 or not 0 < self.report_share < 1 or self.watch_share + self.report_share >= 1:
            raise UsageError("the held-out shares must be above 0, and below 1 together")
        if self.candidates < 2:
            raise UsageError(f"{self.candidates} candidates; expected 2 or more")


def default_chunk_sizes(stored: int) -> tuple[int, ...]:
    """The stored chunk size and its multiples that models are trained at."""
    sizes = tuple(stored * multiple for multiple in MULTIPLES if stored * multiple <= MAX_CHUNK_SIZE)
    return sizes or (stored,)
