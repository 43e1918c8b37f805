"""Measures how much a checkpoint's margins mind errors of pooled states, for the low-bit codecs to round by.

    python -m benchmarks.sensitivity --model DIR --beir BEIR/halueval-hotpot [--split train] [--pairs 400] [--out FILE]

The mean over pairs of Σ g·gᵀ, g (P, D) being the gradient of the margin by the pooled states, each pair's scaled to the
same size, r drawn for each from 1, 2, 4 … 32. Pairs are queries and one each of their first fused candidates. By
transformers' own model in float32, loaded whole. OUT is `sensitivity.safetensors` in the folder of the checkpoint; it
changes the checkpoint's digest, so measure before you index. Take queries that nothing will be evaluated on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.candidates import find_candidates
from benchmarks.codec import encode_texts
from benchmarks.reference import SlowReference, load_slow_reference
from benchmarks.timing import progress
from kalm_cache.codec.sensitivity import TENSOR
from kalm_cache.errors import KalmCacheError
from kalm_cache.evaluation import load_beir
from kalm_cache.evaluation.evaluate import sample_queries
from kalm_cache.model.checkpoint import SENSITIVITY_FILE, open_checkpoint
from kalm_cache.scoring.pooling import mean_pool

RATIOS = (1, 2, 4, 8, 16, 32)
CANDIDATES = 20


def gradient(reference: SlowReference, query: str, pooled: Tensor) -> NDArray[np.float64]:
    """The gradient of the margin by pooled states: (P, D) -> (P, D)."""
    states = pooled.float().clone().requires_grad_()
    output = reference.model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states.unsqueeze(0)),
        attention_mask=torch.ones(1, len(states), dtype=torch.long),
        decoder_input_ids=torch.tensor([reference.prompt_ids(query)]),
        use_cache=False,
    )
    yes, no = (reference.tokenizer(word, add_special_tokens=False)["input_ids"][-1] for word in ("yes", "no"))
    (output.logits[0, -1, yes] - output.logits[0, -1, no]).backward()
    assert states.grad is not None
    return states.grad.double().numpy()


def measure(model: str, beir: Path, split: str, pairs: int) -> NDArray[np.float32]:
    """(D, D), with a mean of 1 on its diagonal."""
    rng = np.random.default_rng(0)
    collection = find_candidates(beir, sample_queries(load_beir(beir, split), pairs), CANDIDATES)
    questions = collection.questions
    drawn = [int(rng.choice(candidates)) for candidates in questions.candidates]
    progress(f"{len(drawn)} pairs to take gradients of")
    passages = encode_texts(model, [questions.texts[place] for place in drawn])
    reference = load_slow_reference(open_checkpoint(model).folder)
    reference.model.requires_grad_(False)
    total: NDArray[np.float64] | float = 0.0
    for query, passage in zip(questions.queries, passages, strict=True):
        pooled = mean_pool(passage.states, [passage.tokens], int(rng.choice(RATIOS)))[0]
        g = gradient(reference, query, pooled)
        total = total + g.T @ g / np.square(g).sum()
    square = np.asarray(total)
    scaled: NDArray[np.float32] = (square * len(square) / np.trace(square)).astype(np.float32)
    return scaled


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or that of the error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--beir", type=Path, required=True, help="a folder laid out as BEIR does")
    parser.add_argument("--split", default="train")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--out", type=Path, help="default: beside the weights")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    try:
        out = args.out or open_checkpoint(args.model).folder / SENSITIVITY_FILE
        save_file({TENSOR: measure(args.model, args.beir, args.split, args.pairs)}, out)
    except KalmCacheError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
