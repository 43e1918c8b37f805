"""Random T5Gemma2 checkpoints in the shapes of the published models, for tests and measurements without a download.

Weights are noise, but none is at its zero or one initialisation: a norm, an embedding or a rotation that is left out
shows up in the margins. The scales are chosen so that the margins of different texts lie several units apart.

    python -m benchmarks.checkpoints --shape nano --out DIR [--layers N] [--seed N] [--vision] [--tokenizer DIR]
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Gemma2Config, T5Gemma2ForConditionalGeneration

GEMMA_VOCABULARY = 262_208
SLIDING_PATTERN = 6  # every sixth layer sees the whole text
NO_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY_VISION = NO_VISION | {"image_size": 56, "patch_size": 14}
SIGLIP_VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
    "vision_use_head": False,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of one model, encoder and decoder alike. Field names are transformers'."""

    hidden_size: int
    intermediate_size: int
    layer_types: tuple[str, ...]
    num_attention_heads: int = 4
    num_key_value_heads: int = 1
    head_dim: int = 256
    query_pre_attn_scalar: int = 256
    sliding_window: int = 512
    rope_factor: float = 1.0
    final_logit_softcapping: float | None = None


def published_layers(count: int) -> tuple[str, ...]:
    """The published models' pattern: five sliding layers, then a full one."""
    return tuple("sliding_attention" if (i + 1) % SLIDING_PATTERN else "full_attention" for i in range(count))


SHAPES = {
    "nano": Shape(640, 2048, published_layers(18)),
    "small": Shape(1152, 6912, published_layers(26)),
    "large": Shape(
        2560,
        10_240,
        published_layers(34),
        num_attention_heads=8,
        num_key_value_heads=4,
        sliding_window=1024,
        rope_factor=8.0,
    ),
}


def random_model(
    shape: Shape, *, vocab_size: int, eoi_token: int, vision: dict[str, Any], tied: bool = True, seed: int = 0
) -> T5Gemma2ForConditionalGeneration:
    """A float32 model of this shape with seeded random weights, vision tower included."""
    text = _text_config(shape, vocab_size) | {"tie_word_embeddings": tied}
    encoder = {
        "text_config": text,
        "vision_config": vision,
        "eoi_token_index": eoi_token,
        "mm_tokens_per_image": 256 if vision is SIGLIP_VISION else 4,
        "tie_word_embeddings": tied,
    }
    config = T5Gemma2Config(encoder=encoder, decoder=text, tie_word_embeddings=tied)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # transformers' own initialisation of the vision tower
        model = T5Gemma2ForConditionalGeneration(config)
    randomize(model, seed)
    return model


@torch.no_grad()
def randomize(model: T5Gemma2ForConditionalGeneration, seed: int) -> None:
    """Fill every text weight with seeded noise: projections keep the scale of their input, norms spread around 1.

    Queries and keys get larger norms than the rest, so that attention picks tokens instead of averaging them all.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():  # names each tied parameter once
        if "vision_tower" in name or "multi_modal" in name:
            continue
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.normal_(0.5, 0.2, generator=generator)
        elif name.endswith("norm.weight"):
            weight.normal_(0.0, 0.2, generator=generator)
        elif name.endswith("eoi_embedding"):
            weight.normal_(0.0, 2.0, generator=generator)
        elif "embed_tokens" in name or "lm_head" in name:
            weight.normal_(0.0, 2.0 * weight.shape[1] ** -0.5, generator=generator)
        else:
            weight.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)


def train_tokenizer(sentences: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A small tokenizer built like Gemma's: BPE over `▁` for spaces, bytes for unseen characters, the same specials.

    It adds `<bos>` where special tokens are asked for, as Gemma's does.
    """
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<end_of_image>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 256, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer = _with_byte_tokens(tokenizer)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    # Gemma holds runs of newlines as added tokens that are not special
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("\n\n\n\n", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def _with_byte_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The trained tokenizer with the 256 tokens `<0x00>` … `<0xFF>` behind its vocabulary (the trainer makes none)."""
    state = json.loads(tokenizer.to_str())
    vocabulary: dict[str, int] = state["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    return Tokenizer.from_str(json.dumps(state))


def _text_config(shape: Shape, vocab_size: int) -> dict[str, Any]:
    full = {"rope_type": "default", "rope_theta": 1_000_000.0}
    if shape.rope_factor != 1.0:
        full = {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": shape.rope_factor}
    return {
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": len(shape.layer_types),
        "layer_types": list(shape.layer_types),
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "query_pre_attn_scalar": shape.query_pre_attn_scalar,
        "sliding_window": shape.sliding_window,
        "final_logit_softcapping": shape.final_logit_softcapping,
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    }


def main() -> None:
    """Write one checkpoint in bfloat16, with the given tokenizer or a small one of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="nano")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, help="fewer layers than the published model's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision", action="store_true", help="a vision tower of SigLIP's real size, not a tiny one")
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer.json to copy (Gemma's, for instance)")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    if args.layers:
        shape = replace(shape, layer_types=published_layers(args.layers))
    vision = SIGLIP_VISION if args.vision else TINY_VISION
    model = random_model(shape, vocab_size=GEMMA_VOCABULARY, eoi_token=256_000, vision=vision, seed=args.seed)
    model.to(torch.bfloat16).save_pretrained(args.out)
    if args.tokenizer:
        for path in args.tokenizer.glob("tokenizer*"):
            shutil.copy(path, args.out)
    else:
        train_tokenizer(["yes no user model Document Query Instruct"], 400).save_pretrained(args.out)
    print(json.dumps({"out": str(args.out), "parameters": sum(weight.numel() for weight in model.parameters())}))


if __name__ == "__main__":
    main()
