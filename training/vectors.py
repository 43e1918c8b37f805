"""Vectors of a dense teacher for passages and queries, and each one's nearest passages of its corpus.

    python -m training.vectors --teacher DIR --tokenizer DIR --work WORK

The teacher is any embedder that an index takes (`kalm_cache.first_stage`): the bundled static one takes a minute, a
transformer an hour on two cores. Leaves WORK/passages.vectors.npy and WORK/queries.vectors.npy (real ones, then
invented ones; unit length, float16), near_passages.npy and near_queries.npy (N, 24) int32.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from kalm_cache.first_stage import load_embedder
from training.passages import Passages

NEAREST = 24


def nearest(vectors: np.ndarray, corpus: np.ndarray, passages: np.ndarray, passage_corpus: np.ndarray) -> np.ndarray:
    """The 24 nearest passages of the same corpus, best first: (N, 24) int32."""
    found = np.zeros((len(vectors), NEAREST), np.int32)
    for number in np.unique(corpus):
        members = np.flatnonzero(passage_corpus == number)
        table = torch.tensor(passages[members]).bfloat16()
        for rows in np.array_split(np.flatnonzero(corpus == number), 1 + (corpus == number).sum() // 512):
            best = (torch.tensor(vectors[rows]).bfloat16() @ table.T).float().topk(NEAREST).indices.numpy()
            found[rows] = members[best]
    return found


def read_texts(path: Path) -> list[str]:
    """One JSON string a line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    """Embeds, and finds neighbours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--teacher", "--tokenizer", "--work"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    invented = Passages(args.work / "invented.npz")
    made = tokenizer.batch_decode([invented.tokens(n).tolist() for n in range(len(invented))])
    teacher = load_embedder(str(args.teacher))
    asked_texts = read_texts(args.work / "queries.txt.jsonl") + made
    passages = teacher.embed_passages(read_texts(args.work / "passages.txt.jsonl")).astype(np.float16)
    queries = teacher.embed_queries(asked_texts).astype(np.float16)
    np.save(args.work / "passages.vectors.npy", passages)
    np.save(args.work / "queries.vectors.npy", queries)
    with np.load(args.work / "passages.npz") as arrays:
        corpus = arrays["corpus"]
    with np.load(args.work / "queries.npz") as arrays:
        asked = arrays["corpus"]
    np.save(args.work / "near_passages.npy", nearest(passages, corpus, passages, corpus))
    np.save(args.work / "near_queries.npy", nearest(queries[: len(asked)], asked, passages, corpus))


if __name__ == "__main__":
    main()
