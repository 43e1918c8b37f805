"""Tokenises the training corpora once: flat ids with offsets, cut at 448 tokens, marker `<Document>:` first.

    python -m training.prepare --data DIR --text CLEAN --tokenizer DIR --out WORK

CLEAN is what `overlap.py` left. A source of text gives at most `--text-limit` passages and as many pairs.

leaves WORK/passages.npz (with each passage's corpus), WORK/queries.npz (real queries with their corpus, relevant
passages and unjudged neighbours, as flat arrays), and the texts for teachers, WORK/{passages,queries}.txt.jsonl.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from training.data import CORPORA, TEXT, Pair, TrainingPassage, read_corpus, read_pairs, read_text
from training.passages import flatten
from training.tokenizer import passage_text

MAX_LENGTH = 448


def flat_rows(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Lists of row numbers as one int32 array and offsets (N + 1,)."""
    return np.array([r for row in rows for r in row], np.int32), np.cumsum([0] + [len(r) for r in rows])


def without(
    corpus: list[TrainingPassage], pairs: list[Pair], queries: list[str], passages: list[str]
) -> tuple[list[TrainingPassage], list[Pair]]:
    """A collection without the queries and passages that evaluation sets share."""
    unwanted, asked = set(passages), set(queries)
    kept = [
        Pair(p.query, tuple(i for i in p.positives if i not in unwanted), p.negatives)
        for p in pairs
        if p.query not in asked
    ]
    return [p for p in corpus if p.passage_id not in unwanted], [p for p in kept if p.positives]


def write_texts(path: Path, texts: list[str]) -> None:
    """One JSON string a line."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(text) + "\n" for text in texts)


def main() -> None:
    """Writes the arrays and texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="what overlap.py left")
    parser.add_argument("--text-limit", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    left_out = json.loads((args.text / "overlap.json").read_text())
    sources = [without(read_corpus(args.data, n), read_pairs(args.data, n), **left_out[n]) for n in CORPORA]
    sources.append(read_text(args.text, args.text_limit, random.Random(args.seed)))
    texts, plain, corpus, queries, of_query, positives, negatives = [], [], [], [], [], [], []
    for number, (passages, pairs) in enumerate(sources):
        row_of = {p.passage_id: len(texts) + i for i, p in enumerate(passages)}
        texts += [passage_text(p.title, p.text)[:4000] for p in passages]
        plain += [f"{p.title} {p.text}".strip()[:4000] for p in passages]
        corpus += [number] * len(passages)
        queries += [p.query for p in pairs]
        of_query += [number] * len(pairs)
        positives += [[row_of[i] for i in p.positives] for p in pairs]
        negatives += [[row_of[i] for i in p.negatives if i in row_of] for p in pairs]
    ids = [i[:MAX_LENGTH] for i in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    flat, offsets = flatten(ids)
    np.savez(args.out / "passages.npz", ids=flat, offsets=offsets, corpus=np.array(corpus))
    flat, offsets = flatten(tokenizer(queries, add_special_tokens=False)["input_ids"])
    positive_rows, positive_offsets = flat_rows(positives)
    negative_rows, negative_offsets = flat_rows(negatives)
    np.savez(
        args.out / "queries.npz",
        ids=flat,
        offsets=offsets,
        corpus=np.array(of_query),
        positives=positive_rows,
        positive_offsets=positive_offsets,
        negatives=negative_rows,
        negative_offsets=negative_offsets,
    )
    write_texts(args.out / "passages.txt.jsonl", plain)
    write_texts(args.out / "queries.txt.jsonl", queries)
    print({n: (corpus.count(i), of_query.count(i)) for i, n in enumerate((*CORPORA, TEXT))})


if __name__ == "__main__":
    main()
