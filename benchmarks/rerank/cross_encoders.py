"""Cross-encoders that people rerank with today, in their published shapes, with random weights, made in memory.

Source of the shapes: `config.json` of cross-encoder/ms-marco-MiniLM-L6-v2, BAAI/bge-reranker-v2-m3 and
Qwen/Qwen3-Reranker-0.6B. Token ids are random; what a template adds to a pair is counted in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    PretrainedConfig,
    Qwen3Config,
    XLMRobertaConfig,
)

FIRST_ID = 1000
YES_ID, NO_ID = 9693, 2152  # Qwen3's


@dataclass(frozen=True, slots=True)
class Shape:
    """One published cross-encoder."""

    family: Literal["bert", "xlm-roberta", "qwen3"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    max_tokens: int
    template_tokens: int  # that a pair has beside the query's and the passage's

    def config(self) -> PretrainedConfig:
        """transformers' configuration of it."""
        fields: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.max_tokens,
        }
        if self.family == "bert":
            return BertConfig(**fields | {"num_labels": 1})
        if self.family == "xlm-roberta":  # positions start behind the padding id, 1
            return XLMRobertaConfig(
                **fields | {"max_position_embeddings": self.max_tokens + 2, "type_vocab_size": 1, "num_labels": 1}
            )
        return Qwen3Config(
            **fields,
            num_key_value_heads=self.heads // 2,
            head_dim=128,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            tie_word_embeddings=True,
        )


CROSS_ENCODERS = {
    "minilm-l6": Shape("bert", 30_522, 384, 1536, 6, 12, max_tokens=512, template_tokens=3),
    "bge-reranker-v2-m3": Shape("xlm-roberta", 250_002, 1024, 4096, 24, 16, max_tokens=8192, template_tokens=4),
    # chat frame about 47 tokens, instruction and field names about 25
    "qwen3-reranker-0.6b": Shape("qwen3", 151_669, 1024, 3072, 28, 16, max_tokens=32_768, template_tokens=72),
}


class CrossEncoder:
    """One cross-encoder, asked about batches of pairs of equal length: no padding, which flatters it if anything."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.device = shape, device
        kind: Any = AutoModelForCausalLM if shape.family == "qwen3" else AutoModelForSequenceClassification
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: Any = kind.from_config(shape.config(), dtype=dtype)
        self.model = model.eval().to(device)

    def pair_tokens(self, query_tokens: int, passage_tokens: int) -> int:
        """Tokens that it reads of such a pair: what goes beyond its positions is cut, as its tokenizer would."""
        return min(self.shape.template_tokens + query_tokens + passage_tokens, self.shape.max_tokens)

    def pairs(self, count: int, tokens: int, seed: int) -> Tensor:
        """`count` random pairs of `tokens` tokens: (count, tokens) int64."""
        generator = torch.Generator().manual_seed(seed)
        low = min(FIRST_ID, self.shape.vocab_size // 2)
        return torch.randint(low, self.shape.vocab_size, (count, tokens), generator=generator)

    @torch.inference_mode()
    def scores(self, pairs: Tensor, batch_size: int) -> list[float]:
        """One score a pair; Qwen3's is yes_logit − no_logit of the last token, its head asked about no other."""
        scores: list[float] = []
        for batch in pairs.split(batch_size):
            ids = batch.to(self.device)
            mask = torch.ones_like(ids)
            if self.shape.family == "qwen3":
                output = self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
                last = output.logits[:, -1].float()  # (batch, vocabulary)
                yes, no = (token % self.shape.vocab_size for token in (YES_ID, NO_ID))
                scores += (last[:, yes] - last[:, no]).tolist()
            else:
                scores += self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        return scores
