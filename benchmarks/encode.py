"""Tokens a second of the passage side and of transformers' encoder, on passages as long as a real corpus's.

    python -m benchmarks.checkpoints --shape nano --out DIR
    python -m benchmarks.encode --model DIR [--corpus BEIR/scifact] [--tokenizer DIR] [--passages 96] [--chunk-size 4]
        [--ours float32,bfloat16,int8] [--baselines input:float32,sorted:float32,…] [--repeats 3]

Lengths are those of passages spread evenly over the corpus (the bundled one, if none is given), as the tokenizer
counts them (tiny's, if none is given: Gemma's makes fewer tokens); the ids are random. Ours runs as the index job runs
it: sorted by length, batches of at most `--batch-tokens` padded tokens, pooling included. transformers runs as it is
mostly run: batches of 32 padded to the longest, `input` in the corpus's order, `sorted` by length; no pooling.

All are timed in turns. Tokens are real ones: padding counts for nobody. Prints one JSON line for the machine and the
lengths, one for each contender, and a table. Pooled states are compared with transformers' in float32; ours in float32
must be within 1e-3 of their root mean square, else the run fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.reference import mean_of_groups
from benchmarks.rerank.contenders import load_whole
from benchmarks.rerank.pairs import random_passages
from benchmarks.timing import DTYPES, Times, emit, interleave, machine, markdown, progress, short, significant
from indexer.build.batching import batch_by_tokens
from indexer.corpus import RejectedLine, read_corpus
from kalm_cache.model.checkpoint import BUNDLED_TINY, open_checkpoint
from kalm_cache.model.prompts import Tokens, load_prompt_tokenizer
from kalm_cache.scoring.passage_side import load_passage_side

BUNDLED_CORPUS = BUNDLED_TINY.parent / "demo" / "corpus.jsonl.zst"
CORPUS_LINES = 20_000  # of a large corpus, its beginning
ORDERS = ("input", "sorted")
EXACT = "float32"
LARGEST_DIFFERENCE = 1e-3
Encode = Callable[[], list[Tensor]]


def corpus_lengths(corpus: Path, tokenizer: Path, count: int, max_length: int) -> list[int]:
    """Tokens of `count` passages, spread evenly over the corpus, in its order."""
    lines = islice(read_corpus(corpus), CORPUS_LINES)
    texts = [line.passage.text for line in lines if not isinstance(line, RejectedLine)]
    count = min(count, len(texts))
    chosen = [texts[i * len(texts) // count] for i in range(count)]
    return [len(tokens.ids) for tokens in load_prompt_tokenizer(tokenizer).passages(chosen, max_length)]


def load_ours(args: argparse.Namespace, dtype: str, device: torch.device, passages: list[Tokens]) -> Encode:
    """The passage side over all passages, batched as an index job batches them; pooled states in the order given."""
    side = load_passage_side(
        open_checkpoint(str(args.model)),
        device=device,
        dtype=DTYPES[dtype],
        max_length=args.max_length,
        chunk_size=args.chunk_size,
    )

    def encode() -> list[Tensor]:
        batches = batch_by_tokens(
            range(len(passages)),
            length=lambda i: len(passages[i].ids),
            budget_tokens=args.batch_tokens,
            window=len(passages),
        )
        pooled: dict[int, Tensor] = {}
        for batch in batches:
            pooled.update(zip(batch, side.encode([passages[i] for i in batch]), strict=True))
        return [pooled[i] for i in range(len(passages))]

    return encode


def load_transformers(
    args: argparse.Namespace, order: str, dtype: str, device: torch.device, passages: list[Tokens]
) -> Encode:
    """transformers' encoder over all passages, in batches padded to their longest; unpooled states, in input order."""
    encoder: Any = load_whole(args.model, DTYPES[dtype], device).get_encoder()
    positions = list(range(len(passages)))
    if order == "sorted":
        positions.sort(key=lambda i: -len(passages[i].ids))

    @torch.inference_mode()
    def encode() -> list[Tensor]:
        states: dict[int, Tensor] = {}
        for start in range(0, len(positions), args.batch_size):
            batch = positions[start : start + args.batch_size]
            ids, mask = pad([passages[i].ids for i in batch])
            output = encoder(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state  # (B, S, D)
            states.update((i, row[: len(passages[i].ids)]) for i, row in zip(batch, output, strict=True))
        return [states[i] for i in range(len(passages))]

    return encode


def pad(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (B, S) int64 each, S the longest row's length."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def measure(
    encoders: dict[str, Encode], lengths: list[int], chunk_size: int, timer: Callable[..., dict[str, Times]]
) -> list[dict[str, Any]]:
    """One row for each contender. Names are `ours:dtype` and `order:dtype`."""
    pooled = {name: _pooled(name, encode(), chunk_size) for name, encode in encoders.items()}
    times = timer({name: _forget_argument(encode) for name, encode in encoders.items()})
    ours = [name for name in encoders if name.startswith("ours:")]
    tokens = sum(lengths)
    return [
        {
            "benchmark": "encode",
            "contender": name,
            "passages": len(lengths),
            "tokens": tokens,
            **times[name].to_json(len(lengths)),
            "tokens_per_s": significant(1e3 * tokens / times[name].median_ms),
            "tokens_per_s_best": significant(1e3 * tokens / times[name].min_ms),
            "times_ours": {other: significant(times[name].median_ms / times[other].median_ms) for other in ours},
            **_difference(name, pooled),
        }
        for name in encoders
    ]


def _forget_argument(encode: Encode) -> Callable[[int], object]:
    return lambda _: encode()


def _pooled(name: str, states: list[Tensor], chunk_size: int) -> Tensor:
    if not name.startswith("ours:"):
        states = [mean_of_groups(one, chunk_size) for one in states]
    return torch.cat([one.float().cpu() for one in states])  # (sum of P, D)


def _difference(name: str, pooled: dict[str, Tensor]) -> dict[str, Any]:
    """How far its pooled states are from transformers' in float32, ÷ their root mean square."""
    exact = next((other for order in ORDERS if (other := f"{order}:{EXACT}") in pooled), None)
    if exact is None:
        return {}
    scale = pooled[exact].square().mean().sqrt()
    difference = (pooled[name] - pooled[exact]) / scale
    return {
        "compared_with": exact,
        "largest_state_difference": significant(float(difference.abs().max())),
        "mean_square_state_difference": significant(float(difference.square().mean())),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Tokens a second, and the ratios to each of ours."""
    ours = list(rows[0]["times_ours"])
    header = ["contender", "tokens/s, median", "best", *(f"x {name}" for name in ours), "state difference"]
    lines = [
        [
            row["contender"],
            f"{row['tokens_per_s']:,.0f}",
            f"{row['tokens_per_s_best']:,.0f}",
            *(short(row["times_ours"][name]) for name in ours),
            f"{row['largest_state_difference']:.1e}" if "largest_state_difference" in row else "–",
        ]
        for row in rows
    ]
    return f"\n{markdown(header, lines)}"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint folder")
    parser.add_argument("--corpus", type=Path, default=BUNDLED_CORPUS, help="anything that kalm-cache index reads")
    parser.add_argument("--tokenizer", type=Path, default=BUNDLED_TINY, help="folder whose tokenizer counts")
    parser.add_argument("--passages", type=int, default=96)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--chunk-size", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=4096, help="of ours, padding included")
    parser.add_argument("--batch-size", type=int, default=32, help="passages of transformers' batches")
    parser.add_argument("--ours", default="float32,bfloat16,int8", help="dtypes")
    parser.add_argument("--baselines", default="input:float32,sorted:float32,input:bfloat16,sorted:bfloat16")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch")
    return parser.parse_args(arguments)


def load_encoders(args: argparse.Namespace, device: torch.device, passages: list[Tokens]) -> dict[str, Encode]:
    """Every contender of the command line, loaded."""
    encoders: dict[str, Encode] = {}
    for dtype in filter(None, args.ours.split(",")):
        progress(f"loading ours in {dtype}")
        encoders[f"ours:{dtype}"] = load_ours(args, dtype, device, passages)
    for name in filter(None, args.baselines.split(",")):
        progress(f"loading transformers for {name}")
        order, dtype = name.split(":")
        if order not in ORDERS:
            raise SystemExit(f"{name!r}: an order is one of {', '.join(ORDERS)}")
        encoders[name] = load_transformers(args, order, dtype, device, passages)
    return encoders


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 1 where ours computed something else than transformers."""
    args = parse_arguments(arguments)
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    lengths = corpus_lengths(args.corpus, args.tokenizer, args.passages, args.max_length)
    emit({"benchmark": "encode", "model": args.model.name, "lengths": sorted(lengths)} | machine(device))
    passages = random_passages(lengths, open_checkpoint(str(args.model)).config.encoder.vocab_size)
    encoders = load_encoders(args, device, passages)
    timer = partial(interleave, repeats=args.repeats, turn_s=0.0, device=device)
    rows = measure(encoders, lengths, args.chunk_size, timer)
    for row in rows:
        emit(row)
    print(table(rows))
    wrong = [
        row
        for row in rows
        if row["contender"] == f"ours:{EXACT}" and row.get("largest_state_difference", 0.0) > LARGEST_DIFFERENCE
    ]
    for row in wrong:
        progress(f"{row['contender']} differs by {row['largest_state_difference']} from {row['compared_with']}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
