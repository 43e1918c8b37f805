"""What `benchmarks.rerank` times: ways to score one query against N passages. One class each, a dict of them below.

Ours gets pooled states and asks the decoder. transformers' runs are KaLM's too, on the same weights, ids and states, so
that their margins must equal ours. Cross-encoders have other weights: only their time can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import T5Gemma2ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging

from benchmarks.rerank.cross_encoders import CROSS_ENCODERS, CrossEncoder
from benchmarks.rerank.onnx_models import OnnxCrossEncoder
from benchmarks.rerank.pairs import PREFIX_TOKENS, QUERY_TOKENS, Candidates
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.kernels.prefix_kv import PrefixKV, SharedPrefixKV
from kalm_cache.model.prompts import Prompt, Tokens, load_prompt_tokenizer
from kalm_cache.scoring.batching import SharedPrompt
from kalm_cache.scoring.prefix_cache import PREFIX_DTYPES
from kalm_cache.scoring.query_side import QuerySide, load_query_side
from kalm_cache.scoring.shared_prefix import SAMPLE


@dataclass(frozen=True, slots=True)
class Setup:
    """What every contender is made from. `batch_size`: pairs computed together; `prefix_tokens`: of every prompt."""

    model: Path
    dtype: torch.dtype
    device: torch.device
    batch_size: int
    prefix_tokens: int = PREFIX_TOKENS
    query_tokens: int = QUERY_TOKENS


class Contender(Protocol):
    """One way to score a query against passages."""

    def score(self, prompt: Tokens, candidates: Candidates) -> list[float]:
        """One margin or score a passage, in order."""

    def tokens_read(self, prompt: Tokens, passage: Tokens) -> int:
        """Tokens of one pair that it computes with, pooled states not counted."""


class Cached:
    """Ours: pooled states from the cache, nothing else known of the passage."""

    def __init__(self, setup: Setup) -> None:
        self.batch_size = setup.batch_size
        self.side: QuerySide = load_query_side(
            open_checkpoint(str(setup.model)), device=setup.device, dtype=setup.dtype, query_max_length=512
        )

    def score(self, prompt: Tokens, candidates: Candidates) -> list[float]:
        """The margins."""
        return self.side.margins([prompt] * len(candidates), candidates.pooled, self.batch_size)

    def tokens_read(self, prompt: Tokens, passage: Tokens) -> int:
        """The prompt's."""
        return len(prompt.ids)


class Prefix(Cached):
    """Ours with a warm prefix cache: the keys and values of prompt tokens before the query are kept of each."""

    def __init__(self, setup: Setup, kept_dtype: torch.dtype) -> None:
        super().__init__(setup)
        self.prefix_tokens, self.kept_dtype = setup.prefix_tokens, kept_dtype
        self._filled_with: Candidates | None = None
        self._kept: list[PrefixKV] = []

    def score(self, prompt: Tokens, candidates: Candidates) -> list[float]:
        """The margins. Candidates other than the last call's are run through the prefix first: not to be timed."""
        if candidates is not self._filled_with:
            prefix = tuple(prompt.ids[: self.prefix_tokens])
            self._kept = self.side.prefill(prefix, candidates.pooled, self.batch_size, self.kept_dtype)
            self._filled_with = candidates
        return self.side.margins([prompt] * len(candidates), self._kept, self.batch_size)

    def tokens_read(self, prompt: Tokens, passage: Tokens) -> int:
        """The prompt's after its prefix."""
        return len(prompt.ids) - self.prefix_tokens


class Shared(Cached):
    """Ours with a prefix that all passages share, the mean over the first ones: nothing else is known of a passage."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.prefix_tokens = setup.prefix_tokens
        self._mean: SharedPrefixKV | None = None

    def score(self, prompt: Tokens, candidates: Candidates) -> list[float]:
        """The margins. The first call computes the mean: not to be timed."""
        if self._mean is None:
            self._mean = self.side.mean_prefix(tuple(prompt.ids[: self.prefix_tokens]), candidates.pooled[:SAMPLE])
        shared = SharedPrompt(prompt.ids, False, Prompt(""), self._mean)
        return self.side.margins([shared] * len(candidates), candidates.pooled, self.batch_size)

    def tokens_read(self, prompt: Tokens, passage: Tokens) -> int:
        """The prompt's after its prefix."""
        return len(prompt.ids) - self.prefix_tokens


class Decoder:
    """transformers' decoder on cached states, with the head of the whole vocabulary over every prompt token."""

    def __init__(self, setup: Setup) -> None:
        self.device, self.dtype, self.batch_size = setup.device, setup.dtype, setup.batch_size
        self.model = load_whole(setup.model, setup.dtype, setup.device)
        self.answer_ids = load_prompt_tokenizer(setup.model).answer_ids()

    @torch.inference_mode()
    def score(self, prompt: Tokens, candidates: Candidates) -> list[float]:
        """The margins, batch by batch in the order given."""
        margins: list[float] = []
        for start in range(0, len(candidates), self.batch_size):
            pooled, mask = self.pooled(candidates.part(start, start + self.batch_size))
            ids = torch.tensor([prompt.ids] * len(pooled), device=self.device)  # (N, T)
            logits = self.answer_logits(ids, pooled, mask).float()  # (N, 2)
            margins += (logits[:, 0] - logits[:, 1]).tolist()
        return margins

    def tokens_read(self, prompt: Tokens, passage: Tokens) -> int:
        """The prompt's."""
        return len(prompt.ids)

    def pooled(self, batch: Candidates) -> tuple[Tensor, Tensor]:
        """Pooled states (N, P, D) of a batch, padded, and which of them are real (N, P)."""
        cast = [states.to(self.device, self.dtype) for states in batch.pooled]
        counts = torch.tensor([len(states) for states in cast], device=self.device)
        padded = pad_sequence(cast, batch_first=True)
        return padded, torch.arange(padded.shape[1], device=self.device) < counts[:, None]

    def answer_logits(self, ids: Tensor, pooled: Tensor, mask: Tensor) -> Tensor:
        """Logits (N, 2) of `yes` and `no`."""
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=pooled),
            attention_mask=mask.long(),
            decoder_input_ids=ids,
            use_cache=False,
        )
        last: Tensor = output.logits[:, -1]  # (N, vocabulary)
        return last[:, list(self.answer_ids)]


class DecoderWithoutHead(Decoder):
    """transformers' decoder on cached states, its head cut down to the two answers of the last token."""

    def answer_logits(self, ids: Tensor, pooled: Tensor, mask: Tensor) -> Tensor:
        """Logits (N, 2) of `yes` and `no`."""
        output = self.model.get_decoder()(
            input_ids=ids, encoder_hidden_states=pooled, encoder_attention_mask=mask.long(), use_cache=False
        )
        rows: Tensor = self.model.get_output_embeddings().weight[list(self.answer_ids)]  # (2, D)
        logits: Tensor = output.last_hidden_state[:, -1] @ rows.T
        cap = self.model.config.decoder.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap


class Reference(Decoder):
    """The reference as published: encode, pool, decode, head; everything in transformers, for every query anew."""

    def tokens_read(self, prompt: Tokens, passage: Tokens) -> int:
        """The prompt's and the passage's."""
        return len(prompt.ids) + len(passage.ids)

    def pooled(self, batch: Candidates) -> tuple[Tensor, Tensor]:
        """As `Decoder`, but from the passages' tokens."""
        ids = pad_sequence([torch.tensor(passage.ids) for passage in batch.passages], batch_first=True)
        counts = torch.tensor([len(passage.ids) for passage in batch.passages])
        mask = (torch.arange(ids.shape[1]) < counts[:, None]).to(self.device)  # (N, S)
        states = self.model.get_encoder()(input_ids=ids.to(self.device), attention_mask=mask.long()).last_hidden_state
        # a group is real where its first token is
        return mean_of_padded_groups(states, mask, batch.chunk_size), mask[:, :: batch.chunk_size]


class PairReader:
    """A cross-encoder of another family on random pairs of as many tokens."""

    def __init__(self, setup: Setup, name: str, kind: type[CrossEncoder] = CrossEncoder) -> None:
        self.batch_size, self.query_tokens = setup.batch_size, setup.query_tokens
        self.encoder = kind(CROSS_ENCODERS[name], setup.dtype, setup.device)

    def score(self, prompt: Tokens, candidates: Candidates) -> list[float]:
        """Scores of pairs of equal length, as long as the longest."""
        tokens = max(self.tokens_read(prompt, passage) for passage in candidates.passages)
        return self.encoder.scores(self.encoder.pairs(len(candidates), tokens, seed=0), self.batch_size)

    def tokens_read(self, prompt: Tokens, passage: Tokens) -> int:
        """Those of its own template, the query and the passage, up to its limit."""
        return self.encoder.pair_tokens(self.query_tokens, len(passage.ids))


OURS: dict[str, Callable[[Setup], Contender]] = {
    "cached": Cached,
    "shared": Shared,
    **{f"prefix-{name}": partial(Prefix, kept_dtype=dtype) for name, dtype in PREFIX_DTYPES.items()},
}
TRANSFORMERS: dict[str, Callable[[Setup], Contender]] = {
    "reference": Reference,
    "decoder": Decoder,
    "decoder-no-head": DecoderWithoutHead,
}
PAIR_READERS: dict[str, Callable[[Setup], Contender]] = {
    **{name: partial(PairReader, name=name) for name in CROSS_ENCODERS},
    "minilm-l6-onnx": partial(PairReader, name="minilm-l6", kind=OnnxCrossEncoder),
}


def load_contender(kind: str, setup: Setup) -> Contender:
    """The contender of this kind. Raises `KeyError` for an unknown one."""
    return (OURS | TRANSFORMERS | PAIR_READERS)[kind](setup)


def mean_of_padded_groups(states: Tensor, mask: Tensor, ratio: int) -> Tensor:
    """Means of groups of `ratio` states, real ones only: states (N, S, D), mask (N, S) -> (N, ceil(S / ratio), D)."""
    padding = -states.shape[1] % ratio
    groups = F.pad(states * mask.unsqueeze(-1), (0, 0, 0, padding)).unflatten(1, (-1, ratio))  # (N, P, r, D)
    counts = F.pad(mask, (0, padding)).unflatten(1, (-1, ratio)).sum(2, keepdim=True)  # (N, P, 1)
    means: Tensor = groups.sum(2, dtype=torch.float32) / counts.clamp(min=1)
    return means.to(states.dtype)


@cache
def load_whole(model: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The checkpoint in transformers, whole; one for all contenders of a dtype."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    whole: Any = T5Gemma2ForConditionalGeneration.from_pretrained(model, dtype=dtype)
    return whole.eval().to(device)
