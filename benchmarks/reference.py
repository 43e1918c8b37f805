"""The slow reference: KaLM-Reranker-V1 with transformers' own T5Gemma2, one pair at a time, every step spelled out.

It shares no code with kalm_cache, templates included: what both agree on was computed twice.
Source: the KaLM-Reranker-V1 model cards. Legend: S passage tokens, T prompt tokens, D state width, P pooled states.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, T5Gemma2ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

INSTRUCTION = "Given a query, retrieve documents that answer the query."
SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)


@dataclass(frozen=True, slots=True)
class SlowReference:
    """A checkpoint loaded whole, vision tower included, and asked about one pair at a time."""

    tokenizer: Any
    model: T5Gemma2ForConditionalGeneration

    def passage_ids(self, document: str, max_length: int = 1024) -> list[int]:
        """Token ids of one passage, its prefix included, at most `max_length`."""
        encoded = self.tokenizer(
            "<Document>: " + document, add_special_tokens=False, truncation=True, max_length=max_length
        )
        return list(encoded["input_ids"])

    def prompt_ids(
        self, query: str, instruction: str = INSTRUCTION, system: str = SYSTEM, query_max_length: int = 512
    ) -> list[int]:
        """Token ids of one prompt; the query is cut to `query_max_length` tokens and decoded back first."""
        cut = self.tokenizer(query, add_special_tokens=False, truncation=True, max_length=query_max_length)
        query = self.tokenizer.decode(cut["input_ids"], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text = "<bos><start_of_turn>user\n" + system + "\n\n<Instruct>: " + instruction + "\n<Query>: " + query
        text = text + "<end_of_turn>\n<start_of_turn>model\n\n\n\n"
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def states(self, passage_ids: list[int]) -> Tensor:
        """Last hidden states (S, D) of the whole encoder for one passage."""
        ids = torch.tensor([passage_ids], device=self.model.device)
        encoder = self.model.get_encoder()
        return encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]

    @torch.inference_mode()
    def margin(self, prompt_ids: list[int], pooled: Tensor) -> float:
        """yes_logit − no_logit of one prompt over one passage's pooled states (P, D), from the full vocabulary head."""
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=pooled.unsqueeze(0)),
            attention_mask=torch.ones(1, len(pooled), dtype=torch.long, device=self.model.device),
            decoder_input_ids=torch.tensor([prompt_ids], device=self.model.device),
            use_cache=False,
        )
        last = output.logits[0, -1].float()  # (vocabulary,)
        return float(last[self._word_id("yes")] - last[self._word_id("no")])

    def _word_id(self, word: str) -> int:
        return int(self.tokenizer(word, add_special_tokens=False)["input_ids"][-1])


class MarginOracle:
    """A slow reference that encodes each passage once, however many prompts and ratios ask about it."""

    def __init__(self, reference: SlowReference) -> None:
        self.reference = reference
        self._states: dict[tuple[str, int], Tensor] = {}

    def margin(self, query: str, document: str, ratio: int, max_length: int = 1024, **prompt: Any) -> float:
        """The margin of one (query, document) pair, from text; `prompt` holds options of `prompt_ids`."""
        if (document, max_length) not in self._states:
            passage_ids = self.reference.passage_ids(document, max_length)
            self._states[document, max_length] = self.reference.states(passage_ids)
        pooled = mean_of_groups(self._states[document, max_length], ratio)
        return self.reference.margin(self.reference.prompt_ids(query, **prompt), pooled)


def load_slow_reference(folder: Path | str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> SlowReference:
    """Load a checkpoint folder with transformers alone."""
    model = T5Gemma2ForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval().to(device)
    return SlowReference(AutoTokenizer.from_pretrained(folder), model)


def mean_of_groups(states: Tensor, ratio: int) -> Tensor:
    """Means of consecutive groups of `ratio` states, (S, D) -> (ceil(S / ratio), D), one group after the other."""
    means = []
    for start in range(0, len(states), ratio):
        group = states[start : start + ratio].float()
        means.append((group.sum(0) / len(group)).to(states.dtype))
    return torch.stack(means)
