"""Whose attention finds the sentence that holds the answer: what `kalm_cache.scoring.attribution` was chosen by.

    python -m benchmarks.attention --squad SQUAD_DEV_JSON [--index demo-index] [--questions 400] [--chunk-sizes 1,4,16]

SQUAD_DEV_JSON is SQuAD's dev-v1.1.json, whose paragraphs `kalm-cache demo` indexes at r = 1. For each of the demo's
questions over its own paragraph: does the sentence with the answer have the highest mean weight of all?
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import emit
from kalm_cache.evaluation import load_beir
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.checkpoint import BUNDLED_TINY
from kalm_cache.model.prompts import Prompt
from kalm_cache.scoring.attribution import Attention, Chunk, chunk_texts, focused_mean, observe, query_tokens

DEMO = BUNDLED_TINY.parent / "demo"
FEWEST_SENTENCES = 3
SENTENCE_END = re.compile(r'(?<=[.!?])["”)]*\s+(?=[A-Z"“(])')
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its passage, and where the answer begins in the passage's text."""

    text: str
    doc_id: str
    passage: str
    answer: int


def main() -> None:
    """Print a line for each chunk size and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squad", type=Path, required=True)
    parser.add_argument("--index", type=Path, default=Path("demo-index"))
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--chunk-sizes", default="1,4,16")
    given = parser.parse_args()
    with PassageIndex.open(given.index, device="cpu", dtype="float32") as index:
        questions = list(read_questions(given.squad, index))
        random.Random(0).shuffle(questions)
        for ratio in map(int, given.chunk_sizes.split(",")):
            found: dict[str, list[float]] = defaultdict(list)
            for question in questions[: given.questions]:
                for way, right in judge(question, index, ratio).items():
                    found[way].append(right)
            for way, right in found.items():
                emit(
                    {
                        "chunk_size": ratio,
                        "way": way,
                        "questions": len(right),
                        "found": round(sum(right) / len(right), 2),
                    }
                )


def read_questions(squad: Path, index: PassageIndex) -> Iterator[Question]:
    """The demo's questions whose passage has sentences to choose from."""
    task = load_beir(DEMO)
    for article in json.loads(squad.read_text("utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                [doc_id] = task.qrels.get(asked["id"], {}) or [None]
                [text] = index.find_texts([doc_id]) if doc_id else [None]
                start = text.find(paragraph["context"]) if isinstance(text, str) else -1
                if doc_id and isinstance(text, str) and start >= 0 and len(sentences(text)) >= FEWEST_SENTENCES:
                    yield Question(asked["question"], doc_id, text, start + asked["answers"][0]["answer_start"])


def judge(question: Question, index: PassageIndex, ratio: int) -> dict[str, float]:
    """For each way to weigh chunks: is the answer's sentence the heaviest one (1 or 0)? And the chance to draw it."""
    side = index.query_side
    prompt = side.tokenize(Prompt(question.text))
    empty = side.tokenize(Prompt(""))
    [passage] = index.pooled([question.doc_id], chunk_size=ratio)
    max_length = index.generation.manifest.fingerprint.max_length
    chunks = chunk_texts(side.tokenizer, question.passage, ratio, max_length)
    attention = observe(side, prompt, passage.states)
    ways = weights(attention, query_tokens(prompt.ids, empty.ids), [chunk.end > chunk.start for chunk in chunks])
    kept = [chunk for chunk in chunks if chunk.end > chunk.start]
    right = {way: float(holds_answer(question, kept, one)) for way, one in ways.items()}
    return right | {"one sentence drawn": 1 / len(sentences(question.passage))}


def weights(attention: Attention, asked: range, kept: list[bool]) -> dict[str, Tensor]:
    """The ways, each (P,)."""
    last = torch.stack([layer[:, -1, kept] for layer in attention.layers])  # (layers, H, P)
    query = torch.stack([layer[:, asked.start : asked.stop, kept] for layer in attention.layers[:-1]])
    return {
        "last token": last.mean((0, 1)),
        "last token, last two layers": last[-2:].mean((0, 1)),
        "query": query.mean((0, 1, 2)),
        "query, last two layers": query[-2:].mean((0, 1, 2)),
        "query, by focus": focused_mean(list(query)),
    }


def holds_answer(question: Question, chunks: list[Chunk], weight: Tensor) -> bool:
    """Whether the sentence with the highest mean weight a chunk is the answer's; a chunk is where it begins."""
    means = []
    for start, end in (spans := sentences(question.passage)):
        own = [float(one) for chunk, one in zip(chunks, weight, strict=True) if start <= chunk.start < end]
        means.append(sum(own) / len(own) if own else 0.0)
    start, end = spans[means.index(max(means))]
    return start <= question.answer < end


def sentences(text: str) -> list[Span]:
    """Where sentences begin and end, roughly."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return list(zip([0, *ends], [*ends, len(text)], strict=True))


if __name__ == "__main__":
    main()
