"""Writes a training state as a T5Gemma2 checkpoint: bfloat16 safetensors, config.json, tokenizer; then checks it.

The check: transformers loads it without missing or unexpected tensors, and its margins equal the training code's
within 1e-4 in float32. Files are written beside and renamed, so a reader never meets half a checkpoint.

    python -m training.export --checkpoint WORK/joint.pt --minilm DIR --out kalm_cache/bundled/tiny
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import T5Gemma2Config, T5Gemma2ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from training.layers import STACK
from training.model import MARKERS, NO, YES, Reranker, mean_pool
from training.tokenizer import build, passage_text, prompt_text, save

OUTSIDE = 256_000  # ids that this vocabulary does not have: no image ever comes in


def configuration() -> T5Gemma2Config:
    """The shape, in transformers' words, with the smallest vision tower that it accepts."""
    text: dict[str, Any] = {
        "vocab_size": STACK.vocab_size,
        "hidden_size": STACK.hidden_size,
        "intermediate_size": STACK.intermediate_size,
        "num_hidden_layers": len(STACK.layer_types),
        "num_attention_heads": STACK.num_attention_heads,
        "num_key_value_heads": STACK.num_key_value_heads,
        "head_dim": STACK.head_dim,
        "query_pre_attn_scalar": int(STACK.query_pre_attn_scalar),
        "sliding_window": STACK.sliding_window,
        "layer_types": list(STACK.layer_types),
        "rms_norm_eps": STACK.rms_norm_eps,
        "max_position_embeddings": 2048,
        "rope_parameters": {k: {"rope_type": "default", "rope_theta": r.theta} for k, r in STACK.rope.items()},
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision: dict[str, Any] = {
        "hidden_size": 4,
        "intermediate_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    vision |= {"image_size": 28, "patch_size": 14}
    outside: dict[str, Any] = {
        "eoi_token_index": OUTSIDE,
        "boi_token_index": OUTSIDE - 1,
        "image_token_index": OUTSIDE + 1,
    }
    encoder = {"text_config": text, "vision_config": vision, "mm_tokens_per_image": 4, **outside}
    return T5Gemma2Config(encoder=encoder, decoder=dict(text), **outside)


def fill(target: dict[str, Tensor], model: Reranker) -> dict[str, Tensor]:
    """transformers' tensors from the training state's; the vision tower's are zeros."""
    table = model.table.detach().clone()
    table[torch.tensor(MARKERS)] = model.marker_rows.detach()[1:]
    sides = {"model.encoder.text_model.": model.encoder, "model.decoder.": model.decoder}
    filled: dict[str, Tensor] = {}
    for name, value in target.items():
        if name.endswith(("embed_tokens.weight", "lm_head.out_proj.weight")):
            filled[name] = table
        elif name.endswith("eoi_embedding") or "vision" in name or "multi_modal" in name:
            filled[name] = torch.zeros_like(value)
        else:
            side = next(s for s in sides if name.startswith(s))
            filled[name] = sides[side].state_dict()[name.removeprefix(side)]
    return filled


def round_weights(model: Reranker) -> Reranker:
    """The same weights after a trip through bfloat16, kept in float32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return model


@torch.no_grad()
def check(folder: Path, model: Reranker) -> float:
    """Largest difference of margins between transformers and the training code, over a few texts and ratios."""
    from transformers import AutoTokenizer

    loaded: Any
    info: Any
    loaded, info = T5Gemma2ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise SystemExit(f"transformers does not find what it expects: {info}")
    loaded.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    passages = ["The capital of China is Beijing.", "Gravity attracts bodies. " * 60, "Beijing"]
    worst = 0.0
    for query in ("What is the capital of China?", "force between two masses"):
        prompt = torch.tensor([tokenizer(prompt_text(query), add_special_tokens=False)["input_ids"]])
        for text in passages:
            ids = torch.tensor([tokenizer(passage_text("", text), add_special_tokens=False)["input_ids"]])
            mask = torch.ones_like(ids, dtype=torch.bool)
            states = loaded.get_encoder()(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            own = model.encode(ids, mask)
            for ratio in (1, 4, 16):
                pooled, real = mean_pool(states, mask, ratio)
                logits = loaded(
                    decoder_input_ids=prompt,
                    encoder_outputs=BaseModelOutput(last_hidden_state=pooled),
                    attention_mask=real.long(),
                ).logits[0, -1]
                last = torch.tensor([[prompt.shape[1] - 1]])
                margin = model.margins(prompt[None], last, *mean_pool(own, mask, ratio), 1)[0, 0, 0]
                worst = max(worst, abs((logits[YES] - logits[NO] - margin).item()))
                print(f"{query!r:34} {text[:22]!r:26} r={ratio:<2} margin {margin:8.4f}")
    return worst


def main() -> None:
    """Exports and checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--minilm", type=Path, required=True, help="for the tokenizer's vocabulary")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = Reranker(dtype=torch.float32)
    model.load_state_dict(torch.load(args.checkpoint, weights_only=True))
    round_weights(model)
    target: Any = T5Gemma2ForConditionalGeneration(configuration())
    target.load_state_dict(fill(target.state_dict(), model))
    target.tie_weights()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
        beside = Path(folder)
        target.to(torch.bfloat16).save_pretrained(beside)
        save(build(args.minilm), beside)
        (beside / "generation_config.json").unlink(missing_ok=True)
        worst = check(beside, model)
        if worst > 1e-4:
            raise SystemExit(f"margins differ by {worst:.2e} from transformers'")
        for file in sorted(beside.iterdir()):
            file.chmod(0o644)
            file.replace(args.out / file.name)
    size = (args.out / "model.safetensors").stat().st_size
    print(f"largest difference to transformers {worst:.1e}; {size:,} bytes")


if __name__ == "__main__":
    main()
