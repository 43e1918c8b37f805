"""The first stage's static embedder: model2vec's recipe on all-MiniLM-L6-v2, then a fit to its sentence vectors.

Every vocabulary row gets MiniLM's vector of that single token, projected by PCA and weighted by its rarity in the
training corpora (SIF); then rows move so that their mean over a text regresses MiniLM's vector of that text.

    python -m training.static_embedder --minilm DIR --data DIR --out DIR
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from model2vec import StaticModel
from tokenizers import Tokenizer

from training.data import CORPORA, read_corpus, read_pairs
from training.teacher import MiniLM

DIMENSIONS = 256
SIF = 1e-3


def pca(vectors: np.ndarray, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (M,) and components (M, dimensions) by decreasing variance."""
    mean = vectors.mean(0)
    _, axes = np.linalg.eigh(np.cov((vectors - mean).T))
    return mean, np.ascontiguousarray(axes[:, ::-1][:, :dimensions])


def sample_texts(data: Path, passages: int, seed: int) -> list[str]:
    """Passages' first 60 words, windows of 8-40 words, titles and training queries of the training sets."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    for name in CORPORA:
        corpus = read_corpus(data, name)
        texts += [p.query for p in read_pairs(data, name)][:6000] + [p.title for p in corpus if p.title][:3000]
        chosen = rng.permutation(len(corpus))[: passages // len(CORPORA)]
        for row in chosen:
            words = f"{corpus[row].title} {corpus[row].text}".split()
            texts.append(" ".join(words[:60]))
            size = int(rng.integers(8, 40))
            start = int(rng.integers(0, max(1, len(words) - size)))
            texts.append(" ".join(words[start : start + size]))
    return sorted(set(texts))


def fit(rows: torch.Tensor, bags: list[list[int]], targets: torch.Tensor, epochs: int, seed: int) -> torch.Tensor:
    """Moves `rows` (V, D) so that a bag's mean points where its target (N, D) does."""
    torch.manual_seed(seed)
    table = torch.nn.EmbeddingBag.from_pretrained(rows.clone(), freeze=False, mode="mean")
    anchor = rows.clone()
    steps = epochs * (len(bags) // 512)
    optimizer = torch.optim.Adam(table.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    for step in range(steps):
        chosen = torch.randint(len(bags), (512,))
        flat = torch.tensor([t for i in chosen for t in bags[i]])
        lengths = torch.tensor([0] + [len(bags[i]) for i in chosen[:-1]])
        mean = table(flat, lengths.cumsum(0))  # (512, D)
        got, want = torch.nn.functional.normalize(mean, dim=-1), targets[chosen]
        loss = (1 - (got * want).sum(-1)).mean() + 4 * (got @ got.T - want @ want.T).pow(2).mean()
        # Tokens the sample never shows keep the recipe's vector; the others may not run far.
        loss = loss + 0.05 * (table.weight[flat] - anchor[flat]).pow(2).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(json.dumps({"step": step, "of": steps, "loss": round(loss.item(), 4)}), flush=True)
    return table.weight.detach()


def main() -> None:
    """Distils, fits, quantises to int8 and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minilm", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with beir/ and train/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=12000)
    parser.add_argument("--epochs", type=int, default=12, help="0 keeps the plain recipe")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    start = time.time()
    teacher = MiniLM(args.minilm)
    tokenizer = Tokenizer.from_file(str(args.minilm / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    single = teacher.single_tokens().mean(1)  # (V, M)
    mean, axes = pca(single, DIMENSIONS)
    rows = (single - mean) @ axes  # (V, D)

    counts = np.ones(len(rows))
    for name in CORPORA:
        texts = [f"{p.title} {p.text}" for p in read_corpus(args.data, name)]
        for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
            np.add.at(counts, encoding.ids, 1)
    rows *= (SIF / (SIF + counts / counts.sum()))[:, None]
    table = torch.tensor(rows, dtype=torch.float32)

    if args.epochs:
        texts = sample_texts(args.data, args.passages, args.seed)
        print(f"{len(texts)} texts", flush=True)
        targets = torch.tensor((teacher.embed(texts, max_length=64) - mean) @ axes)
        # MiniLM's mean state and its single-token mean differ by a constant direction: take out the sample's own mean.
        targets = torch.nn.functional.normalize(targets - targets.mean(0), dim=-1).float()
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        bags = [e.ids[:64] or [100] for e in encodings]
        scale = table.norm(dim=-1).mean()
        table = fit(table / scale, bags, targets, args.epochs, args.seed)

    args.out.mkdir(parents=True, exist_ok=True)
    model = StaticModel(vectors=table.numpy(), tokenizer=tokenizer, config={"normalize": True}, normalize=True)
    model.save_pretrained(str(args.out))
    StaticModel.from_pretrained(str(args.out), quantize_to="int8").save_pretrained(str(args.out))
    print(f"{time.time() - start:.0f} s, {(args.out / 'model.safetensors').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
