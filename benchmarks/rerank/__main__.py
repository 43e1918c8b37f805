"""One query against N passages: our decoder on cached states, transformers' KaLM, and other cross-encoders.

    python -m benchmarks.checkpoints --shape nano --out DIR
    python -m benchmarks.rerank --model DIR [--tokens 256] [--chunk-sizes 4] [--candidates 32]
        [--ours cached:float32,…] [--baselines reference:float32,minilm-l6:float32,…] [--repeats 5]
        [--baseline-candidates N] [--full]

A contender is `kind:dtype`; kinds are those of `contenders.py`: `cached` is our decoder with an empty prefix cache,
`prefix-D` with a full one that keeps dtype D, `shared` with one prefix for all passages. All of a run are timed in
turns, on the same random token ids, every call with a query of its own. Tokenizers are left out on all sides. Prints
one JSON line for the machine, one for each contender of each case, and a table of milliseconds a pair for each case.
`x ours` is a contender's time ÷ ours, both medians a pair.

The margins of KaLM's contenders are compared on the same query; ours in float32 must be within 1e-3 of transformers' in
float32, else the run fails. With `--baseline-candidates` the baselines read fewer passages than ours (their time is
linear in N, near enough); `candidates` of their lines says how many. `--full` measures passages of 128 to 1024 tokens,
r = 1 to 32, N = 1, 10, 100, with at most 10 candidates for the baselines.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.rerank.contenders import OURS, PAIR_READERS, TRANSFORMERS, Contender, Setup, load_contender
from benchmarks.rerank.pairs import (
    PREFIX_TOKENS,
    QUERY_TOKENS,
    Candidates,
    Prompts,
    encode_states,
    pool_candidates,
    random_passages,
)
from benchmarks.timing import DTYPES, Times, emit, interleave, machine, markdown, progress, short, significant
from kalm_cache.model.checkpoint import open_checkpoint

DEFAULT_OURS = (
    "cached:float32,cached:bfloat16,cached:int8,prefix-float32:float32,prefix-bfloat16:bfloat16,prefix-int8:int8"
)
DEFAULT_BASELINES = (
    "reference:float32,reference:bfloat16,decoder:float32,decoder:bfloat16,decoder-no-head:float32,"
    "decoder-no-head:bfloat16,minilm-l6:float32,bge-reranker-v2-m3:float32,qwen3-reranker-0.6b:float32"
)
EXACT = "float32"
LARGEST_DIFFERENCE = 1e-3
FULL_TOKENS, FULL_CHUNK_SIZES, FULL_CANDIDATES = [128, 256, 512, 1024], [1, 4, 16, 32], [1, 10, 100]
FULL_BASELINE_CANDIDATES = 10


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender of this run. `limit`: passages it reads at most."""

    kind: str
    dtype: str
    contender: Contender
    limit: int | None

    @property
    def name(self) -> str:
        """`kind:dtype`."""
        return f"{self.kind}:{self.dtype}"

    def score(self, prompts: Prompts, candidates: Candidates, number: int) -> list[float]:
        """Its scores for query `number`."""
        return self.contender.score(prompts.prompt(number), candidates)


def measure_case(
    entries: list[Entry], prompts: Prompts, candidates: Candidates, timer: Callable[..., dict[str, Times]]
) -> list[dict[str, Any]]:
    """One row for each contender."""
    own = {entry.name: candidates.part(0, entry.limit) for entry in entries}
    margins = {
        entry.name: entry.score(prompts, own[entry.name], 0) for entry in entries if entry.kind not in PAIR_READERS
    }
    times = timer({entry.name: partial(entry.score, prompts, own[entry.name]) for entry in entries})
    per_pair = {name: times[name].median_ms / len(own[name]) for name in times}
    ours = [entry.name for entry in entries if entry.kind in OURS]
    return [
        {
            "benchmark": "rerank",
            "contender": entry.name,
            "passage_tokens": len(candidates.passages[0].ids),
            "chunk_size": candidates.chunk_size,
            "candidates": len(own[entry.name]),
            "tokens_read": entry.contender.tokens_read(prompts.prompt(0), candidates.passages[0]),
            **times[entry.name].to_json(len(own[entry.name])),
            "times_ours": {name: significant(per_pair[entry.name] / per_pair[name]) for name in ours},
            **_difference(entry.name, margins),
        }
        for entry in entries
    ]


def _difference(name: str, margins: dict[str, list[float]]) -> dict[str, Any]:
    """How far its margins are from transformers' in float32, over the passages that both read."""
    exact = next((other for kind in TRANSFORMERS if (other := f"{kind}:{EXACT}") in margins), None)
    if exact is None or name not in margins:
        return {}
    pairs = list(zip(margins[name], margins[exact], strict=False))
    return {
        "compared_with": exact,
        "compared_margins": len(pairs),
        "margins_min": significant(min(theirs for _, theirs in pairs)),
        "margins_max": significant(max(theirs for _, theirs in pairs)),
        "largest_margin_difference": significant(max(abs(mine - theirs) for mine, theirs in pairs)),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The contenders of one case, slowest ratio to ours and all."""
    ours = list(rows[0]["times_ours"])
    header = ["contender", "N", "ms a pair, median", "min", *(f"x {name}" for name in ours), "margin difference"]
    lines = [
        [
            row["contender"],
            row["candidates"],
            short(row["median_ms_per_item"]),
            short(row["min_ms_per_item"]),
            *(short(row["times_ours"][name]) for name in ours),
            f"{row['largest_margin_difference']:.1e}" if "largest_margin_difference" in row else "–",
        ]
        for row in rows
    ]
    first = rows[0]
    case = f"{first['passage_tokens']} tokens, r = {first['chunk_size']}, N = {max(row['candidates'] for row in rows)}"
    return f"\n{case}\n\n{markdown(header, lines)}\n"


def disagreeing(rows: list[dict[str, Any]]) -> list[str]:
    """Ours in float32 that computed something else than transformers in float32."""
    exact = {f"{kind}:{EXACT}" for kind in ("cached", f"prefix-{EXACT}")}
    return [
        f"{row['contender']} differs by {row['largest_margin_difference']} from {row['compared_with']}"
        for row in rows
        if row["contender"] in exact and row.get("largest_margin_difference", 0.0) > LARGEST_DIFFERENCE
    ]


def load_entries(args: argparse.Namespace, device: torch.device) -> list[Entry]:
    """Every contender of the command line, loaded."""
    entries = []
    for names, limit in ((args.ours, None), (args.baselines, args.baseline_candidates)):
        for kind, dtype in names:
            progress(f"loading {kind} in {dtype}")
            setup = Setup(args.model, DTYPES[dtype], device, args.batch_size, args.prefix_tokens, args.query_tokens)
            entries.append(Entry(kind, dtype, load_contender(kind, setup), limit))
    return entries


def cases(args: argparse.Namespace, device: torch.device, vocabulary: int) -> Iterator[Candidates]:
    """The passages of each case; those of one length are encoded once."""
    for tokens in args.tokens:
        passages = random_passages([tokens] * max(args.candidates), vocabulary)
        progress(f"encoding {len(passages)} passages of {tokens} tokens")
        states = encode_states(args.model, passages, device)
        for chunk_size in args.chunk_sizes:
            pooled = pool_candidates(passages, states, chunk_size)
            for count in args.candidates:
                yield pooled.part(0, count)


def contender_names(text: str) -> list[tuple[str, str]]:
    """`kind:dtype,kind:dtype` as pairs; without `:dtype`, float32. Empty text: none."""
    names = []
    for part in filter(None, text.split(",")):
        kind, _, dtype = part.partition(":")
        dtype = dtype or EXACT
        if kind not in OURS | TRANSFORMERS | PAIR_READERS or dtype not in DTYPES:
            known = ", ".join(OURS | TRANSFORMERS | PAIR_READERS)
            raise argparse.ArgumentTypeError(f"{part!r}: kinds are {known}; dtypes {', '.join(DTYPES)}")
        names.append((kind, dtype))
    return names


def integers(text: str) -> list[int]:
    """`1,4,16` as numbers."""
    return [int(part) for part in text.split(",")]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint folder")
    parser.add_argument("--tokens", type=integers, default=[256], help="of a passage")
    parser.add_argument("--chunk-sizes", type=integers, default=[4])
    parser.add_argument("--candidates", type=integers, default=[32])
    parser.add_argument("--ours", type=contender_names, default=DEFAULT_OURS)
    parser.add_argument("--baselines", type=contender_names, default=DEFAULT_BASELINES)
    parser.add_argument("--baseline-candidates", type=int, help="passages that a baseline reads at most")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--prefix-tokens", type=int, default=PREFIX_TOKENS, help="of the prompt, before the query")
    parser.add_argument("--query-tokens", type=int, default=QUERY_TOKENS)
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--turn-s", type=float, default=0.3, help="a short call is repeated so long in every round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--full", action="store_true", help="the grid of passage lengths, ratios and N")
    args = parser.parse_args(arguments)
    if args.full:
        args.tokens, args.chunk_sizes, args.candidates = FULL_TOKENS, FULL_CHUNK_SIZES, FULL_CANDIDATES
        args.baseline_candidates = args.baseline_candidates or FULL_BASELINE_CANDIDATES
    return args


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 1 where ours computed something else than transformers."""
    args = parse_arguments(arguments)
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    vocabulary = open_checkpoint(str(args.model)).config.decoder.vocab_size
    prompts = Prompts(vocabulary, args.prefix_tokens, args.query_tokens)
    emit({"benchmark": "rerank", "model": args.model.name, "prompt_tokens": prompts.tokens} | machine(device))
    entries = load_entries(args, device)
    timer = partial(interleave, repeats=args.repeats, turn_s=args.turn_s, device=device)
    wrong: list[str] = []
    tables = []
    for candidates in cases(args, device, vocabulary):
        rows = measure_case(entries, prompts, candidates, timer)
        for row in rows:
            emit(row)
        tables.append(table(rows))
        wrong += disagreeing(rows)
    print("\n".join(tables))
    for line in wrong:
        progress(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
