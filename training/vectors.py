"""Vectors of a dense teacher for passages and queries, and each one's nearest passages of its corpus.

    python -m training.vectors --teacher DIR --work WORK

The teacher is a BERT that means its last states (gte-small, all-MiniLM-L6-v2), in bfloat16; queries that were made
from passages share its vocabulary's ids. Leaves WORK/passages.vectors.npy and WORK/queries.vectors.npy (real ones, then
invented ones; unit length, float16), near_passages.npy and near_queries.npy (N, 24) int32.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from numpy.lib.format import open_memmap
from transformers import AutoModel, AutoTokenizer

from training.passages import Passages
from training.teacher import CLS, SEP, mean_unit, pad

PASSAGE_TOKENS, QUERY_TOKENS, NEAREST = 128, 64, 24
# Few shapes: a processor's bfloat16 products are compiled for each.
WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128)
BATCH_TOKENS = 4096


def embed(worker: int, workers: int, teacher: Path, tokens: list[list[int]], out: Path) -> None:
    """One process's share of the texts, in batches of similar lengths, into `out`."""
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(teacher, dtype=torch.bfloat16, add_pooling_layer=False).eval()
    vectors = np.load(out, mmap_mode="r+")
    lengths = np.array([len(i) for i in tokens])
    for low, width in pairwise((0, *WIDTHS)):
        mine = np.flatnonzero((lengths > low) & (lengths <= width))[worker::workers]
        size = BATCH_TOKENS // width
        for start in range(0, len(mine), size):
            rows = mine[start : start + size]
            ids, mask = pad([tokens[r] for r in rows] + [[CLS]] * (size - len(rows)), width)
            with torch.inference_mode():
                states = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            vectors[rows] = mean_unit(states, mask)[: len(rows)].numpy().astype(np.float16)


def embed_all(teacher: Path, tokens: list[list[int]], out: Path, workers: int) -> np.ndarray:
    """Vectors of all texts (N, 384), in several single-threaded processes; kept in `out`."""
    open_memmap(out, "w+", np.float16, (len(tokens), 384)).flush()
    mp.spawn(embed, (workers, teacher, tokens, out), workers)  # type: ignore[no-untyped-call]
    return np.load(out, mmap_mode="r")


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


def main() -> None:
    """Embeds, and finds neighbours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.teacher)
    tokens: dict[str, list[list[int]]] = {}
    for name, length in (("passages", PASSAGE_TOKENS), ("queries", QUERY_TOKENS)):
        with (args.work / f"{name}.txt.jsonl").open(encoding="utf-8") as lines:
            texts = [json.loads(line)[: 8 * length] for line in lines]
        tokens[name] = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    invented = Passages(args.work / "invented.npz")
    tokens["queries"] += [[CLS, *invented.tokens(n)[: QUERY_TOKENS - 2].tolist(), SEP] for n in range(len(invented))]
    passages = embed_all(args.teacher, tokens["passages"], args.work / "passages.vectors.npy", args.workers)
    queries = embed_all(args.teacher, tokens["queries"], args.work / "queries.vectors.npy", args.workers)
    with np.load(args.work / "passages.npz") as arrays:
        corpus = arrays["corpus"]
    with np.load(args.work / "queries.npz") as arrays:
        asked = arrays["corpus"]
    np.save(args.work / "near_passages.npy", nearest(passages, corpus, passages, corpus))
    np.save(args.work / "near_queries.npy", nearest(queries[: len(asked)], asked, passages, corpus))


if __name__ == "__main__":
    main()
