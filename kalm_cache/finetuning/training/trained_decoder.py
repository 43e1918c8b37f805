"""The decoder with gradients: transformers' own T5Gemma2 decoder over pooled states, whole or with LoRA adapters.

Names of its parameters are those of the checkpoint's tensors. Embeddings and the rows of `yes` and `no` stay as they
are. Letters in shapes: N pairs, T prompt tokens, P pooled states, D state width.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kalm_cache.errors import MissingExtraError
from kalm_cache.model.checkpoint import DECODER_PREFIX, Checkpoint
from kalm_cache.model.decoder import QueryDecoder

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTED = rf"{re.escape(DECODER_PREFIX)}layers\.\d+\.(self_attn|mlp)\.({'|'.join(PROJECTIONS)})"


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """Rank, scale and dropout of the adapters of every projection of every layer (peft's `LoraConfig`)."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


class _Named(nn.Module):
    """Gives the decoder the place that it has in a checkpoint: `model.decoder`."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.decoder = decoder


class TrainedDecoder:
    """A decoder that learns. `parameters` are what is trained; `margins` is differentiable by them."""

    def __init__(self, shell: nn.Module, decoder: nn.Module, frozen: QueryDecoder, device: torch.device) -> None:
        """`shell` holds `decoder` under the checkpoint's names; `frozen` gives the embeddings and the answers' rows."""
        self.shell, self._decoder, self._frozen, self._device = shell, decoder, frozen, device

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: value for name, value in self.shell.named_parameters() if value.requires_grad}

    def margins(
        self, prompts: Sequence[Sequence[int]], pooled: Sequence[Tensor], isolated: Sequence[int] | None = None
    ) -> Tensor:
        """yes logit − no logit of each pair of a prompt's token ids and a passage's states (P, D): (N,) float32.

        `isolated`: how many of each prompt's first tokens see no passage; `None` = all see it.
        """
        ids = pad_sequence([torch.tensor(list(each)) for each in prompts], batch_first=True)  # (N, T)
        lengths = torch.tensor([len(each) for each in prompts])
        states = pad_sequence([each.to(self._device, torch.float32) for each in pooled], batch_first=True)  # (N, P, D)
        counts = torch.tensor([len(each) for each in pooled])
        with torch.no_grad():
            embedded = self._frozen.stack.embed(ids.flatten().to(self._device)).float().view(*ids.shape, -1)
        with self._precision():
            output = self._decoder(
                inputs_embeds=embedded,
                attention_mask=_mask(lengths, ids.shape[1]).to(self._device),
                encoder_hidden_states=states,
                encoder_attention_mask=self._seen(counts, states.shape[1], ids.shape[1], isolated),
                use_cache=False,
            ).last_hidden_state  # (N, T, D)
        last = output[torch.arange(len(lengths)), (lengths - 1).to(self._device)].float()  # (N, D)
        logits = last @ self._frozen.answer_rows.to(self._device).T  # (N, 2)
        cap = self._frozen.stack.config.final_logit_softcapping
        logits = logits if cap is None else torch.tanh(logits / cap) * cap
        return logits[:, 0] - logits[:, 1]

    def _seen(
        self, counts: Tensor, states: int, tokens: int, isolated: Sequence[int] | None
    ) -> Tensor | dict[str, Tensor]:
        """Which states prompt tokens see, as transformers' decoder takes it: (N, P), or by token."""
        there = _mask(counts, states).to(self._device)  # (N, P)
        if isolated is None:
            return there
        behind = torch.arange(tokens) >= torch.tensor(list(isolated)).unsqueeze(1)  # (N, T)
        seen = behind.to(self._device).unsqueeze(-1) & there.bool().unsqueeze(1)  # (N, T, P)
        return {"full_attention": seen.unsqueeze(1)}  # (N, 1, T, P): of every layer, whatever its window

    def _precision(self) -> AbstractContextManager[Any]:
        """bfloat16 products on CUDA, over float32 weights; float32 on a CPU."""
        return torch.autocast("cuda", torch.bfloat16) if self._device.type == "cuda" else nullcontext()

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """No gradients and no dropout inside."""
        self.shell.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.shell.train()

    def merged(self) -> dict[str, Tensor]:
        """The decoder's tensors by the checkpoint's names, adapters merged into them; the decoder itself stays."""
        shell: Any = self.shell
        if hasattr(shell, "merge_and_unload"):
            shell = copy.deepcopy(shell).merge_and_unload()
        return {name: value.detach().cpu().float().contiguous() for name, value in shell.state_dict().items()}

    def save_adapter(self, folder: Path, base: str) -> bool:
        """Write the adapter as peft has it, for `PeftModel.from_pretrained` over the whole model `base`.

        Returns:
            Whether there is one: a decoder trained whole has none.
        """
        shell: Any = self.shell
        if not hasattr(shell, "peft_config"):
            return False
        shell.save_pretrained(folder)
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        config["base_model_name_or_path"] = base
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        (folder / "README.md").unlink(missing_ok=True)  # a form of peft's that nobody filled in
        return True


def load_trained_decoder(
    checkpoint: Checkpoint, frozen: QueryDecoder, device: torch.device, lora: LoraOptions | None, seed: int = 0
) -> TrainedDecoder:
    """The decoder of a checkpoint in float32, ready to be trained.

    Args:
        checkpoint: where its tensors are.
        frozen: the same decoder for inference: embeddings and answers.
        device: where to compute.
        lora: train adapters alone; `None` = every layer whole, and the final norm.
        seed: of the adapters' first weights.

    Raises:
        MissingExtraError: peft is not installed.
    """
    decoder = _decoder_of(checkpoint)
    shell: nn.Module = _Named(decoder)
    tensors = {name: checkpoint.tensor(name).float() for name in shell.state_dict()}
    shell.load_state_dict(tensors)
    shell.to(device)
    if lora is not None:
        torch.manual_seed(seed)
        shell = _with_adapters(shell, lora)
    shell.train()
    return TrainedDecoder(shell, decoder, frozen, device)


def _decoder_of(checkpoint: Checkpoint) -> Any:
    from transformers import AutoConfig
    from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Decoder

    config = copy.deepcopy(AutoConfig.from_pretrained(checkpoint.folder).decoder)
    # tokens come embedded: the table stays where it is, mapped from disk
    config.vocab_size, config.pad_token_id, config._attn_implementation = 1, 0, "sdpa"
    decoder = T5Gemma2Decoder(config)
    del decoder.embed_tokens
    return decoder


def require_peft() -> Any:
    """The module peft. Raises `MissingExtraError`."""
    try:
        import peft
    except ImportError as exc:
        raise MissingExtraError("peft", "finetune") from exc
    return peft


def _with_adapters(shell: nn.Module, lora: LoraOptions) -> Any:
    peft = require_peft()
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=ADAPTED)
    return peft.get_peft_model(shell, config)


def _mask(lengths: Tensor, width: int) -> Tensor:
    """(N,) -> (N, width) int64: 1 for the first `length` places of each."""
    return (torch.arange(width) < lengths.unsqueeze(1)).long()
