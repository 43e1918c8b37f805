"""The steps of training: draw, read states, margins, loss, update; now and then watch held-out queries and save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from kalm_cache.errors import NonFiniteLogitsError
from kalm_cache.finetuning.data.example import Example
from kalm_cache.finetuning.options import TrainingOptions
from kalm_cache.finetuning.passages import Passages
from kalm_cache.finetuning.results.held_out import HeldOutQuery, Prompts, mean_ndcg
from kalm_cache.finetuning.training.lists import Step, Steps
from kalm_cache.finetuning.training.losses import get_loss
from kalm_cache.finetuning.training.run_state import RunFolder
from kalm_cache.finetuning.training.trained_decoder import TrainedDecoder
from kalm_cache.model.prompts import PromptTokens
from kalm_cache.process.stopping import stop_if_asked
from kalm_cache.scoring.batching import DECODE_BATCH
from kalm_cache.scoring.isolated_prefix import common_length

WARMUP = 10  # steps in which the learning rate rises
TIMED = 6  # steps by whose time it is told how many --minutes hold; the first is not among them
SAVE_SECONDS = 60.0
PAIR_TOKENS = 16_384  # prompt tokens and states with gradients at once, padding included: bounds the memory of a step
CLIP = 1.0  # the longest gradient


@dataclass(frozen=True, slots=True)
class Progress:
    """What a bar shows: steps done of those planned, the loss, and the last held-out nDCG@10."""

    step: int
    planned: int
    loss: float
    ndcg: float


@dataclass(slots=True)
class Trainer:
    """One run. `train` returns the weights that did best on the watched queries."""

    decoder: TrainedDecoder
    passages: Passages
    prompts: Prompts
    steps: Steps
    watched: Sequence[HeldOutQuery]
    options: TrainingOptions
    folder: RunFolder
    on_step: Callable[[Progress], None]
    _optimizer: torch.optim.Optimizer = field(init=False)
    _step: int = field(init=False, default=0)
    _planned: int | None = field(init=False, default=None)
    _seconds: float = field(init=False, default=0.0)  # of training, earlier processes' included
    _timed: list[float] = field(init=False, default_factory=list)
    _best: tuple[float, int, dict[str, Tensor]] | None = field(init=False, default=None)
    _ndcg: float = field(init=False, default=math.nan)

    def __post_init__(self) -> None:
        """Make the optimizer, and go on from what an earlier process saved."""
        parameters = list(self.decoder.parameters.values())
        self._optimizer = torch.optim.AdamW(
            parameters, lr=self.options.rate, weight_decay=self.options.weight_decay, betas=(0.9, 0.98)
        )
        state = self.folder.load_state()
        if state is not None:
            self._restore(state)
        self.folder.cut_log(-1 if state is None else self._step)

    def train(self) -> None:
        """Run the steps that are left, then take the best weights.

        Raises:
            NonFiniteLogitsError: the loss is no number; the learning rate may be too high.
        """
        if self._step == 0 and math.isnan(self._ndcg):
            self._watch()
        saved = time.monotonic()
        while self._step < self._limit() and not self._out_of_time():
            started = time.monotonic()
            loss, chunk_size = self._one(self.steps.step(self._step))
            self._seconds += time.monotonic() - started
            self._step += 1
            planned = self._planned
            self._take_time(time.monotonic() - started)
            self.folder.append(
                {
                    "step": self._step,
                    "loss": loss,
                    "chunk_size": chunk_size,
                    "learning_rate": self._optimizer.param_groups[0]["lr"],
                    "seconds": round(self._seconds, 2),
                }
            )
            if self._is_watch_due():
                self._watch()
            if self._planned != planned or time.monotonic() - saved > SAVE_SECONDS:  # a plan is timed but once
                self._save()
                saved = time.monotonic()
            self.on_step(Progress(self._step, self._limit(), loss, self._ndcg))
            stop_if_asked()
        if self._best is None or self._best[1] != self._step:
            self._watch_if_new()
        self._save()
        self._take_best()

    def _one(self, step: Step) -> tuple[float, int]:
        """Learn from one step; its loss before, and its chunk size."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.options.rate * self._factor()
        torch.manual_seed(self.options.seed * 1_000_003 + self._step)  # dropout: a resumed run has the same
        self._optimizer.zero_grad()
        total = 0.0
        for some in self._parts(step):
            loss = self._losses(some).sum() / len(step.examples)
            if not bool(loss.isfinite()):
                raise NonFiniteLogitsError(f"step {self._step + 1}: the loss is {loss.item()}; lower --learning-rate")
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters.values(), CLIP)
        self._optimizer.step()
        return total, step.chunk_size

    def _losses(self, lists: Sequence[_List]) -> Tensor:
        """The loss of each list, (lists,)."""
        margins = self._margins(
            [each.prompt for each in lists for _ in each.states], [states for each in lists for states in each.states]
        )
        loss, device = get_loss(self.options.loss), margins.device
        parts = margins.split([len(each.states) for each in lists])
        return torch.stack(
            [
                loss(
                    part,
                    torch.tensor(each.example.labels, dtype=torch.float32, device=device),
                    torch.tensor(scores, device=device) if (scores := self._scores(each)) else None,
                )
                for part, each in zip(parts, lists, strict=True)
            ]
        )

    def _scores(self, each: _List) -> Sequence[float]:
        """What a list's margins should be: a teacher's scores, or the margins of the decoder as it was; else empty."""
        if self.options.loss != "distil":
            return each.example.scores
        return self.prompts.side.margins([each.prompt] * len(each.states), each.states, DECODE_BATCH)

    def _margins(self, prompts: Sequence[PromptTokens], states: Sequence[Tensor]) -> Tensor:
        """Of the decoder that learns, its prefix isolated if it is to have one."""
        side, isolated = self.prompts.side, None
        if self.options.isolate_prefix or side.isolated is not None:
            isolated = [common_length(side.prefix(prompt.prompt), prompt) for prompt in prompts]
        return self.decoder.margins([prompt.ids for prompt in prompts], states, isolated)

    def _parts(self, step: Step) -> list[list[_List]]:
        """The lists of a step, so many at a time as `PAIR_TOKENS` allow; like sizes together."""
        items = [item for example in step.examples for item in example.items]
        states = iter(self.passages.states(items, step.chunk_size))
        lists = [
            _List(
                example,
                self.prompts.tokens(example.query, example.instruction),
                [next(states) for _ in example.items],
            )
            for example in step.examples
        ]
        lists.sort(key=lambda each: (each.longest, each.example.source))
        parts: list[list[_List]] = [[]]
        for each in lists:
            pairs = sum(len(one.states) for one in parts[-1]) + len(each.states)
            if parts[-1] and pairs * each.longest > PAIR_TOKENS:
                parts.append([])
            parts[-1].append(each)
        return parts

    def _factor(self) -> float:
        """The learning rate's share: it rises for `WARMUP` steps, then falls along a cosine to a tenth."""
        if self._step < WARMUP:
            return (self._step + 1) / WARMUP
        left = max(self._limit() - WARMUP, 1)
        return 0.1 + 0.9 * (1 + math.cos(math.pi * min((self._step - WARMUP) / left, 1.0))) / 2

    def _limit(self) -> int:
        return self.steps.count if self._planned is None else self._planned

    def _take_time(self, seconds: float) -> None:
        """Once a few steps are timed, plan as many as the minutes hold: the learning rate falls to the end of these."""
        self._timed.append(seconds)
        if self.options.minutes is None or self._planned is not None or len(self._timed) < TIMED:
            return
        # the slowest of them: chunk sizes differ, and a plan that is cut short never comes to its low rates
        a_step = sum(sorted(self._timed[1:])[-2:]) / 2
        left = self.options.minutes * 60 - self._seconds
        self._planned = max(WARMUP, min(self.steps.count, self._step + int(left / a_step)))

    def _out_of_time(self) -> bool:
        return self.options.minutes is not None and self._seconds > self.options.minutes * 60

    def _is_watch_due(self) -> bool:
        every = max(1, self._limit() // self.options.watches)
        return self._step % every == 0

    def _watch_if_new(self) -> None:
        last = [line["step"] for line in self.folder.log_lines() if "ndcg@10" in line]
        if not last or last[-1] != self._step:
            self._watch()

    def _watch(self) -> None:
        """Rank the watched queries, and keep the weights if they are the best so far.

        The best have the highest nDCG; where margins are distilled, those that are nearest to what they were.
        """
        errors: list[float] = []

        def margins(query: HeldOutQuery, chunk_size: int) -> list[float]:
            states = self.passages.states(query.candidates, chunk_size)
            prompts = [query.prompt] * len(states)
            found: list[float] = self._margins(prompts, states).tolist()
            if self.options.loss == "distil":
                wanted = self.prompts.side.margins(prompts, states, DECODE_BATCH)
                errors.append(fmean((a - b) ** 2 for a, b in zip(found, wanted, strict=True)))
            return found

        started = time.monotonic()
        with self.decoder.scoring():
            self._ndcg = mean_ndcg(self.watched, self.steps.chunk_sizes, margins)
        seconds = time.monotonic() - started
        measured = {"squared_error": fmean(errors)} if errors else {}
        self.folder.append({"step": self._step, "ndcg@10": self._ndcg, **measured, "seconds": round(seconds, 2)})
        quality = -fmean(errors) if errors else self._ndcg
        if self._step and (self._best is None or quality > self._best[0]):
            weights = {name: value.detach().cpu().clone() for name, value in self.decoder.parameters.items()}
            self._best = (quality, self._step, weights)
            self._save()

    def _take_best(self) -> None:
        assert self._best is not None, "watched at the end, at the latest"
        with torch.no_grad():
            for name, value in self.decoder.parameters.items():
                value.copy_(self._best[2][name])

    @property
    def step(self) -> int:
        """Steps done."""
        return self._step

    @property
    def seconds(self) -> float:
        """Spent in steps, by earlier processes too."""
        return self._seconds

    @property
    def best_step(self) -> int:
        """The step whose weights were taken."""
        return self._best[1] if self._best else 0

    def _save(self) -> None:
        self.folder.save_state(
            {
                "step": self._step,
                "planned": self._planned,
                "seconds": self._seconds,
                "timed": self._timed,
                "ndcg": self._ndcg,
                "best": self._best,
                "parameters": {name: value.detach().cpu() for name, value in self.decoder.parameters.items()},
                "optimizer": self._optimizer.state_dict(),
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self._step, self._planned, self._seconds = state["step"], state["planned"], state["seconds"]
        self._timed, self._ndcg, self._best = state["timed"], state["ndcg"], state["best"]
        with torch.no_grad():
            for name, value in self.decoder.parameters.items():
                value.copy_(state["parameters"][name])
        self._optimizer.load_state_dict(state["optimizer"])


@dataclass(frozen=True, slots=True)
class _List:
    """An example as the decoder takes it: the prompt, and the states (P, D) of each of its items."""

    example: Example
    prompt: PromptTokens
    states: list[Tensor]

    @property
    def longest(self) -> int:
        """Tokens and states of its longest pair."""
        return len(self.prompt.ids) + max(map(len, self.states))
