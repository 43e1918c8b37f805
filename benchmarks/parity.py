"""How far our margins are from transformers' own on real texts, in float32 and bfloat16, and whether rankings agree.

Each query meets its judged passage, other passages of the collection, and two long ones (several passages joined, up
to the limit of 1024 tokens). Token ids are compared on many more texts, which costs nothing.

    python -m benchmarks.parity --model DIR [--beir DIR] [--pairs 24] [--chunk-sizes 1,4,32]
        [--dtypes float32,bfloat16,int8] [--batch-size 8] [--texts 1000]

int8, which transformers does not have, is compared with its float32.

At batch size 1 both sides multiply matrices of the same shapes, and should differ by nothing or next to nothing. Larger
batches round differently, which an untuned model in bfloat16 can magnify; how far transformers' own bfloat16 is from
its float32 says what to make of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from itertools import combinations, takewhile
from pathlib import Path
from typing import Any

import torch

from benchmarks.reference import INSTRUCTION, SYSTEM, MarginOracle, SlowReference, load_slow_reference
from benchmarks.timing import emit, progress
from kalm_cache.model.prompts import Prompt, PromptTokenizer, load_prompt_tokenizer
from kalm_cache.reranker import KaLMReranker

PUBLISHED_QUERY = "What is the capital of China?"
PUBLISHED_DOCUMENTS = ["The capital of China is Beijing.", "Gravity attracts bodies toward one another."]
PASSAGES_A_QUERY = 6


@dataclass(frozen=True, slots=True)
class Texts:
    """Queries and passages, and which passage answers which query."""

    queries: list[str]
    passages: list[str]
    answers: list[str]


def read_texts(beir: Path | None) -> Texts:
    """The texts of a BEIR folder (qrels of the `test` split), or the two pairs published with the model."""
    if beir is None:
        return Texts([PUBLISHED_QUERY] * 2, PUBLISHED_DOCUMENTS * 4, PUBLISHED_DOCUMENTS)
    corpus = {line["_id"]: line for line in _json_lines(beir / "corpus.jsonl")}
    queries = {line["_id"]: line["text"] for line in _json_lines(beir / "queries.jsonl")}
    passages = {doc_id: f"{line.get('title', '')} {line['text']}".strip() for doc_id, line in corpus.items()}
    judged = [line.split("\t")[:2] for line in (beir / "qrels" / "test.tsv").read_text("utf-8").splitlines()[1:]]
    return Texts([queries[q] for q, _ in judged], list(passages.values()), [passages[p] for _, p in judged])


def choose_pairs(texts: Texts, count: int) -> list[tuple[str, str]]:
    """`PASSAGES_A_QUERY` passages for each of the queries, spread evenly over the collection."""
    pairs = []
    groups = max(1, count // PASSAGES_A_QUERY)
    for group in range(groups):
        at = group * len(texts.queries) // groups
        start = group * len(texts.passages) // groups
        others = [texts.passages[(start + 37 * i + 11) % len(texts.passages)] for i in range(PASSAGES_A_QUERY - 3)]
        long = [" ".join(texts.passages[start : start + 4]), " ".join(texts.passages[start + 10 : start + 18])]
        pairs += [(texts.queries[at], passage) for passage in (texts.answers[at], *others, *long)]
    return pairs


def compare_tokens(texts: Texts, tokenizer: PromptTokenizer, reference: SlowReference, count: int) -> dict[str, Any]:
    """Texts whose token ids differ from transformers' (none should), and the published query's prompt in numbers."""
    queries, passages = texts.queries[:count], texts.passages[:count]
    prompt = tokenizer.prompt(Prompt(PUBLISHED_QUERY, INSTRUCTION, SYSTEM), 512).ids
    other = tokenizer.prompt(Prompt("Gravity", INSTRUCTION, SYSTEM), 512).ids
    return {
        "queries": len(queries),
        "queries_that_differ": sum(
            tokenizer.prompt(Prompt(query, INSTRUCTION, SYSTEM), 512).ids != reference.prompt_ids(query)
            for query in queries
        ),
        "passages": len(passages),
        "passages_that_differ": sum(
            tokenizer.passage(passage, 1024).ids != reference.passage_ids(passage) for passage in passages
        ),
        "published_prompt_tokens": len(prompt),
        "prompt_tokens_before_the_query": sum(
            1 for _ in takewhile(lambda ids: ids[0] == ids[1], zip(prompt, other, strict=False))
        ),
    }


def compare_margins(ours: list[float], theirs: list[float], exact: list[float]) -> dict[str, Any]:
    """Mean and largest differences of margins; `exact` are transformers' float32 margins."""
    size = PASSAGES_A_QUERY
    groups = range(0, len(ours), size)
    same = [_order(ours[i:][:size]) == _order(theirs[i:][:size]) for i in groups]
    return {
        "margins_min": round(min(theirs), 3),
        "margins_max": round(max(theirs), 3),
        "margins_deviation": round(statistics.pstdev(theirs), 3),
        "ours_to_transformers": _distance(ours, theirs),
        "ours_to_float32": _distance(ours, exact),
        "transformers_to_float32": _distance(theirs, exact),
        "same_rankings": f"{sum(same)}/{len(same)}",
        "kendall_to_float32": round(statistics.mean(_kendall(ours[i:][:size], exact[i:][:size]) for i in groups), 4),
    }


def _distance(left: list[float], right: list[float]) -> dict[str, float]:
    distances = [abs(a - b) for a, b in zip(left, right, strict=True)]
    return {"mean": sum(distances) / len(distances), "max": max(distances)}


def _kendall(left: list[float], right: list[float]) -> float:
    """Kendall's tau-a: pairs in the same order minus pairs in the opposite one, of all pairs."""
    pairs = list(combinations(zip(left, right, strict=True), 2))
    return sum(1 if (a[0] - b[0]) * (a[1] - b[1]) > 0 else -1 for a, b in pairs) / len(pairs)


def _order(margins: list[float]) -> list[int]:
    return sorted(range(len(margins)), key=lambda i: -margins[i])


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def main() -> None:
    """Print one JSON line for the tokens, and one for each dtype and chunk size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint folder")
    parser.add_argument("--beir", type=Path, help="a collection in BEIR's layout; without it, the published pairs")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--chunk-sizes", default="1,4,32")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--texts", type=int, default=1000, help="queries and passages whose tokens are compared")
    args = parser.parse_args()
    texts = read_texts(args.beir)
    pairs = choose_pairs(texts, args.pairs)
    chunk_sizes = [int(size) for size in args.chunk_sizes.split(",")]
    exact_oracle = MarginOracle(load_slow_reference(args.model))
    tokens = compare_tokens(texts, load_prompt_tokenizer(args.model), exact_oracle.reference, args.texts)
    lengths = [len(exact_oracle.reference.passage_ids(passage)) for _, passage in pairs]
    emit({**tokens, "pairs": len(pairs), "longest_passage_tokens": max(lengths)})
    exact = {size: [exact_oracle.margin(*pair, size) for pair in pairs] for size in chunk_sizes}
    for dtype in args.dtypes.split(","):
        as_exact = dtype in ("float32", "int8")
        oracle = exact_oracle if as_exact else MarginOracle(load_slow_reference(args.model, getattr(torch, dtype)))
        for size in chunk_sizes:
            progress(f"{dtype}, chunk size {size}")
            theirs = exact[size] if as_exact else [oracle.margin(*pair, size) for pair in pairs]
            reranker = KaLMReranker(str(args.model), device="cpu", dtype=dtype, chunk_size=size)
            ours = [
                scored["margin"] for scored in reranker.predict(pairs, return_margin=True, batch_size=args.batch_size)
            ]
            emit({"dtype": dtype, "chunk_size": size, **compare_margins(ours, theirs, exact[size])})


if __name__ == "__main__":
    main()
