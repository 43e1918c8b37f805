"""Our decoder's and encoder's time ÷ the time of their bare matrix products, in the same shapes and dtype.

    python -m benchmarks.checkpoints --shape nano --out DIR
    python -m benchmarks.roofline --model DIR [--dtypes float32,bfloat16,int8] [--sides decoder,encoder]
        [--candidates 32] [--tokens 256] [--chunk-size 4] [--passages 16] [--repeats 5] [--profile]

The products are those of `matmuls.py`, through `torch.mm`, `multiply_int8` and `torch.bmm` into buffers made
before: no norm, no softmax, no activation, no copy. Both are timed in turns. A ratio below 1 says that the runtime has
products faster than torch's own. Prints one JSON line for the machine, one for each side and dtype, with `--profile`
one for each of the operators that take most of our time, and a table.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.rerank.pairs import PREFIX_TOKENS, QUERY_TOKENS, Prompts, random_passages
from benchmarks.roofline.matmuls import BareProducts, Product, decoder_products, encoder_products
from benchmarks.timing import DTYPES, emit, interleave, machine, markdown, progress, short, significant
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.scoring.passage_side import load_passage_side
from kalm_cache.scoring.query_side import load_query_side

PROFILED_OPERATORS = 15
PROFILED_CALLS = 3
Call = Callable[[int], object]
Work = tuple[Call, list[Product]]


def decoder_work(args: argparse.Namespace, checkpoint: Checkpoint, dtype: str, device: torch.device) -> Work:
    """Our decoder over one prompt and `--candidates` passages, in one batch, and its products."""
    config = checkpoint.config.decoder
    side = load_query_side(checkpoint, device=device, dtype=DTYPES[dtype], query_max_length=512)
    prompts = Prompts(config.vocab_size, args.prefix_tokens, args.query_tokens)
    rows = math.ceil(args.tokens / args.chunk_size)
    pooled = [torch.randn(rows, config.hidden_size) for _ in range(args.candidates)]

    def call(number: int) -> object:
        return side.margins([prompts.prompt(number)] * len(pooled), pooled, len(pooled))

    return call, decoder_products(config, args.candidates, prompts.tokens, rows)


def encoder_work(args: argparse.Namespace, checkpoint: Checkpoint, dtype: str, device: torch.device) -> Work:
    """Our passage side, pooling included, over `--passages` passages in one batch, and the encoder's products."""
    config = checkpoint.config.encoder
    side = load_passage_side(
        checkpoint, device=device, dtype=DTYPES[dtype], max_length=args.tokens, chunk_size=args.chunk_size
    )
    passages = random_passages([args.tokens] * args.passages, config.vocab_size)
    return lambda _: side.encode(passages), encoder_products(config, args.passages, args.tokens)


SIDES = {"decoder": decoder_work, "encoder": encoder_work}


def measure(side: str, dtype: str, work: Work, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Times of ours and of the bare products, and their ratio."""
    call, products = work
    bare = BareProducts(products, DTYPES[dtype], device)
    calls: dict[str, Call] = {"ours": call, "products": lambda _: bare.run()}
    times = interleave(calls, repeats=args.repeats, turn_s=args.turn_s, device=device)
    operations = sum(product.operations for product in products)
    attention = sum(product.operations for product in products if product.name in ("scores", "mix"))
    return {
        "benchmark": "roofline",
        "side": side,
        "dtype": dtype,
        "samples": len(times["ours"].samples_ms),
        "ours_median_ms": significant(times["ours"].median_ms),
        "ours_min_ms": significant(times["ours"].min_ms),
        "products_median_ms": significant(times["products"].median_ms),
        "products_min_ms": significant(times["products"].min_ms),
        "ratio": significant(times["ours"].median_ms / times["products"].median_ms),
        "ratio_of_min": significant(times["ours"].min_ms / times["products"].min_ms),
        "products": len(products),
        "gflop": significant(operations / 1e9),
        "attention_share_of_gflop": significant(attention / operations),
        "products_gflop_per_s": significant(operations / times["products"].median_ms / 1e6),
    }


def profile_rows(side: str, dtype: str, call: Call, device: torch.device) -> Iterator[dict[str, Any]]:
    """The operators that take most time of their own, milliseconds a call, most first."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        for number in range(PROFILED_CALLS):
            call(number)
    events = profiler.key_averages()
    own_us = {event.key: _own_us(event, device) for event in events}
    total = sum(own_us.values())
    for event in sorted(events, key=lambda event: -own_us[event.key])[:PROFILED_OPERATORS]:
        yield {
            "benchmark": "roofline",
            "profile": side,
            "dtype": dtype,
            "operator": event.key,
            "calls": event.count // PROFILED_CALLS,
            "own_ms": significant(own_us[event.key] / 1e3 / PROFILED_CALLS),
            "share": significant(own_us[event.key] / total),
        }


def _own_us(event: Any, device: torch.device) -> float:
    return float(event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total)


def table(rows: list[dict[str, Any]]) -> str:
    """The ratios."""
    header = ["side, dtype", "ours, ms", "min", "products, ms", "min", "ratio", "of min", "products, GFLOP/s"]
    fields = ("ours_median_ms", "ours_min_ms", "products_median_ms", "products_min_ms", "ratio", "ratio_of_min")
    lines = [
        [
            f"{row['side']}, {row['dtype']}",
            *(short(row[field]) for field in fields),
            f"{row['products_gflop_per_s']:,.0f}",
        ]
        for row in rows
    ]
    return f"\n{markdown(header, lines)}"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint folder")
    parser.add_argument("--dtypes", default="float32,bfloat16,int8", help=", ".join(DTYPES))
    parser.add_argument("--sides", default="decoder,encoder")
    parser.add_argument("--candidates", type=int, default=32, help="of the decoder")
    parser.add_argument("--passages", type=int, default=16, help="of the encoder, together")
    parser.add_argument("--tokens", type=int, default=256, help="of a passage")
    parser.add_argument("--chunk-size", type=int, default=4)
    parser.add_argument("--prefix-tokens", type=int, default=PREFIX_TOKENS, help="of the prompt, before the query")
    parser.add_argument("--query-tokens", type=int, default=QUERY_TOKENS)
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--turn-s", type=float, default=0.3, help="a short call is repeated so long in every round")
    parser.add_argument("--profile", action="store_true", help="where our time goes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure every side in every dtype."""
    args = parse_arguments(arguments)
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    checkpoint = open_checkpoint(str(args.model))
    shape = {name: getattr(args, name) for name in ("candidates", "passages", "tokens", "chunk_size")}
    emit({"benchmark": "roofline", "model": args.model.name, **shape} | machine(device))
    rows = []
    for dtype in args.dtypes.split(","):
        for side in args.sides.split(","):
            progress(f"{side} in {dtype}")
            work = SIDES[side](args, checkpoint, dtype, device)
            rows.append(measure(side, dtype, work, args, device))
            emit(rows[-1])
            if args.profile:
                for row in profile_rows(side, dtype, work[0], device):
                    emit(row)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
