"""Tokenises the training corpora once: flat ids with offsets, cut at 256 tokens, marker `<Document>:` first.

python -m training.prepare --data DIR --tokenizer DIR --out WORK
"""

import argparse
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from training.data import CORPORA, read_corpus, read_pairs
from training.tokenizer import passage_text

MAX_LENGTH = 256


def flatten(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Flat ids (uint16) and offsets (N + 1,)."""
    offsets = np.cumsum([0] + [len(i) for i in ids])
    return np.concatenate([np.asarray(i, np.uint16) for i in ids]), offsets


def main() -> None:
    """Writes WORK/passages.npz and WORK/queries.npz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    texts, corpus, queries, keys = [], [], [], []
    for number, name in enumerate(CORPORA):
        passages = read_corpus(args.data, name)
        texts += [passage_text(p.title, p.text)[:4000] for p in passages]
        keys += [f"{name}/{p.passage_id}" for p in passages]
        corpus += [number] * len(passages)
        queries += [p.query for p in read_pairs(args.data, name)]
    ids = [i[:MAX_LENGTH] for i in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    flat, offsets = flatten(ids)
    np.savez(args.out / "passages.npz", ids=flat, offsets=offsets, corpus=np.array(corpus), keys=np.array(keys))
    flat, offsets = flatten(tokenizer(queries, add_special_tokens=False)["input_ids"])
    np.savez(args.out / "queries.npz", ids=flat, offsets=offsets)
    print(len(ids), "passages", len(queries), "queries")


if __name__ == "__main__":
    main()
