"""Measures first stages and checkpoints on BEIR-layout collections: nDCG@10 and recall@100.

python -m training.evaluate --data DIR --embedder DIR [--minilm DIR] [--checkpoint PT] --sets scifact squad-dev
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import torch
from model2vec import StaticModel
from transformers import AutoTokenizer

from training.data import read_corpus
from training.export import round_weights
from training.model import Reranker, mean_pool
from training.tokenizer import passage_text, prompt_text

RRF_K = 60


def read_queries(data: Path, name: str, split: str, limit: int) -> tuple[list[str], list[dict[str, int]]]:
    """Texts and judgments {passage id: grade} of the queries of one split; a fixed random `limit` of them."""
    qrels: dict[str, dict[str, int]] = {}
    for line in (data / "beir" / name / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]:
        query, passage, grade = line.split("\t")
        qrels.setdefault(query, {})[passage] = int(float(grade))
    with (data / "beir" / name / "queries.jsonl").open() as lines:
        texts = {r["_id"]: r["text"] for r in map(json.loads, lines)}
    ids = sorted(qrels)
    if limit and len(ids) > limit:
        ids = sorted(np.random.default_rng(0).choice(ids, limit, replace=False).tolist())
    return [texts[i] for i in ids], [qrels[i] for i in ids]


def ndcg10(ranked: list[str], judged: dict[str, int]) -> float:
    """Linear gain, as BEIR's trec_eval computes it."""
    gains = [judged.get(p, 0) / np.log2(r + 2) for r, p in enumerate(ranked[:10])]
    ideal = sorted(judged.values(), reverse=True)[:10]
    return float(sum(gains) / max(1e-9, sum(g / np.log2(r + 2) for r, g in enumerate(ideal))))


def recall100(ranked: list[str], judged: dict[str, int]) -> float:
    """Share of relevant passages among the first 100."""
    relevant = {p for p, g in judged.items() if g > 0}
    return len(relevant & set(ranked[:100])) / max(1, len(relevant))


def bm25_rank(texts: list[str], queries: list[str], top: int) -> np.ndarray:
    """Passage rows by BM25 (bm25s, lucene, k1 1.2, b 0.75): (N, top)."""
    index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(queries, stopwords="en", show_progress=False)
    rows, _ = index.retrieve(tokens, k=min(top, len(texts)), show_progress=False, n_threads=1)
    return np.asarray(rows)


def dense_rank(passages: np.ndarray, queries: np.ndarray, top: int) -> np.ndarray:
    """Passage rows by inner product: (N, top)."""
    return np.argsort(-(queries @ passages.T), axis=1, kind="stable")[:, :top]


def fuse(rankings: list[np.ndarray], top: int) -> np.ndarray:
    """Reciprocal rank fusion, k = 60: (N, top)."""
    fused = []
    for rows in zip(*rankings, strict=True):
        scores: dict[int, float] = {}
        for ranking in rows:
            for rank, row in enumerate(ranking.tolist()):
                scores[row] = scores.get(row, 0.0) + 1 / (RRF_K + rank + 1)
        fused.append(sorted(scores, key=lambda r: -scores[r])[:top])
    return np.array(fused)


@torch.inference_mode()
def rerank(
    model: Reranker,
    tokenizer: Any,
    texts: list[str],
    queries: list[str],
    candidates: np.ndarray,
    ratios: tuple[int, ...],
) -> dict[int, np.ndarray]:
    """Margins (N, top) for each pooling ratio; passages are cut at 512 tokens here."""
    needed = np.unique(candidates)
    ids = tokenizer([texts[r] for r in needed], add_special_tokens=False)["input_ids"]
    ids = [i[:512] for i in ids]
    states: dict[int, torch.Tensor] = {}
    order = np.argsort([len(i) for i in ids], kind="stable")
    for start in range(0, len(order), 16):
        chosen = order[start : start + 16]
        padded, mask = pad_ids([ids[c] for c in chosen])
        encoded = model.encode(padded, mask)
        for c, row, real in zip(chosen, encoded, mask, strict=True):
            states[int(needed[c])] = row[real].clone()
    prompts = tokenizer([prompt_text(q) for q in queries], add_special_tokens=False)["input_ids"]
    margins = {ratio: np.zeros(candidates.shape, np.float32) for ratio in ratios}
    for n, (prompt, rows) in enumerate(zip(prompts, candidates, strict=True)):
        tokens = torch.tensor(prompt)[None].expand(len(rows), -1)
        last = torch.full((len(rows),), len(prompt) - 1)
        lengths = [len(states[int(r)]) for r in rows]
        padded = torch.nn.utils.rnn.pad_sequence([states[int(r)] for r in rows], batch_first=True)
        mask = torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None]
        for ratio in ratios:
            margins[ratio][n] = model.margins(tokens, last, *mean_pool(padded, mask, ratio)).numpy()
    return margins


def pad_ids(ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and bool mask, (B, S)."""
    length = max(map(len, ids))
    padded = torch.tensor([i + [0] * (length - len(i)) for i in ids])
    return padded, torch.arange(length) < torch.tensor([len(i) for i in ids])[:, None]


def main() -> None:
    """Prints one JSON line per collection and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--embedder", type=Path, required=True)
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="a training state (.pt)")
    parser.add_argument("--tokenizer", type=Path, default=Path("kalm_cache/bundled/tiny"))
    parser.add_argument("--sets", nargs="+", default=["scifact", "squad-dev"])
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--top", type=int, default=50)
    parser.add_argument("--ratios", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    embedder = StaticModel.from_pretrained(str(args.embedder))
    for name in args.sets:
        corpus = read_corpus(args.data, name)
        ids = [p.passage_id for p in corpus]
        texts = [f"{p.title} {p.text}".strip() for p in corpus]
        queries, judged = read_queries(args.data, name, args.split, args.limit)
        sparse = bm25_rank(texts, queries, 100)
        static = dense_rank(embedder.encode(texts), embedder.encode(queries), 100)
        rankings = {"bm25": sparse, "static": static, "fused": fuse([sparse, static], 100)}
        if args.minilm:
            from training.teacher import MiniLM

            teacher = MiniLM(args.minilm)
            rankings["minilm"] = dense_rank(teacher.embed(texts, 256), teacher.embed(queries), 100)
            rankings["bm25+minilm"] = fuse([sparse, rankings["minilm"]], 100)
        start = time.time()
        if args.checkpoint:
            model = Reranker()
            model.load_state_dict(torch.load(args.checkpoint, weights_only=True))
            round_weights(model)  # as exported
            tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
            candidates = rankings["fused"][:, : args.top]
            passages = [passage_text(p.title, p.text) for p in corpus]
            margins = rerank(model, tokenizer, passages, queries, candidates, tuple(args.ratios))
            for ratio, scores in margins.items():
                order = np.argsort(-scores, axis=1, kind="stable")
                rankings[f"reranked r={ratio}"] = np.take_along_axis(candidates, order, 1)
        for method, rows in rankings.items():
            ranked = [[ids[r] for r in row] for row in rows.tolist()]
            line: dict[str, object] = {"set": name, "split": args.split, "queries": len(queries), "method": method}
            line["ndcg@10"] = round(float(np.mean([ndcg10(r, j) for r, j in zip(ranked, judged, strict=True)])), 4)
            if not method.startswith("reranked"):
                pairs = zip(ranked, judged, strict=True)
                line["recall@100"] = round(float(np.mean([recall100(r, j) for r, j in pairs])), 4)
            line["seconds"] = round(time.time() - start)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
