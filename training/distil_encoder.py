"""Stage 1: the encoder learns all-MiniLM-L6-v2's token states, beside each token's identity and rarity.

A target state (256 dimensions) is made of
  190  MiniLM's contextual state of the token, centred, by PCA;
   64  the token's identity: its input word embedding, whitened and scaled to one length (exact matching needs it);
    1  the token's rarity: its standardised log inverse frequency in the training corpora;
    1  a constant that says "this is a passage", 0 in the embedding table.
The embedding table starts (and stays) at the same layout of single tokens.

    python -m training.distil_encoder --minilm DIR --work WORK --minutes 12
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.model import MARKERS, Reranker
from training.passages import Passages
from training.static_embedder import pca
from training.teacher import CLS, SEP, MiniLM
from training.workers import train_with_workers

SEMANTIC, IDENTITY = 190, 64
SEMANTIC_SHARE, IDENTITY_SHARE = 0.70, 0.26  # of a target's square length, 256


def layout(teacher: MiniLM, flat: np.ndarray, sample: Tensor) -> dict[str, Tensor]:
    """Projection of teacher states, and the fixed part of every vocabulary row.

    Args:
        flat: all passages' token ids, for the rarities.
        sample: (N, M) teacher states to take the principal components of.
    """
    mean, axes = pca(sample.numpy(), SEMANTIC)
    spread = ((sample.numpy() - mean) @ axes).std() * SEMANTIC**0.5
    projection = torch.tensor(axes * (SEMANTIC_SHARE * 256) ** 0.5 / spread, dtype=torch.float32)
    words = teacher.model.embeddings.word_embeddings.weight.detach().numpy()
    center, directions = pca(words, IDENTITY)
    identity = (words - center) @ directions
    identity /= identity.std(0)
    identity *= (IDENTITY_SHARE * 256) ** 0.5 / np.linalg.norm(identity, axis=1, keepdims=True)
    counts = np.bincount(flat, minlength=len(words)) + 0.5
    rarity = -np.log(counts / counts.sum())
    rarity = (rarity - rarity.min()) / (rarity.max() - rarity.min()) * 5.0 - 2.5
    fixed = np.concatenate([identity, rarity[:, None], np.zeros_like(rarity[:, None])], 1)
    return {
        "mean": torch.tensor(mean, dtype=torch.float32),
        "projection": projection,
        "fixed": torch.tensor(fixed, dtype=torch.float32),  # (V, 66)
    }


def targets(states: Tensor, ids: Tensor, parts: dict[str, Tensor]) -> Tensor:
    """Teacher states (B, S, M) and the checkpoint's ids (B, S) -> target states (B, S, 256)."""
    fixed = parts["fixed"][ids].clone()
    fixed[..., -1] = 2.5
    return torch.cat(((states - parts["mean"]) @ parts["projection"], fixed), -1)


def teacher_states(teacher: MiniLM, ids: Tensor, mask: Tensor) -> Tensor:
    """The teacher reads [CLS] where the checkpoint reads `<Document>:`, and ends with [SEP]: (B, S) -> (B, S, M)."""
    ids = F.pad(ids, (0, 1))
    ids[:, 0] = CLS
    ids[torch.arange(len(ids)), mask.sum(1)] = SEP
    return teacher.token_states(ids, F.pad(mask, (1, 0), value=True).long())[:, :-1]


def learn(rank: int, count: int, model: Reranker, args: argparse.Namespace, parts: dict[str, Tensor]) -> None:
    """One worker: batches of similar lengths until the time is over."""
    passages, queries = Passages(args.work / "passages.npz"), Passages(args.work / "queries.npz")
    rng = np.random.default_rng(args.seed + rank)
    teacher = MiniLM(args.minilm)
    parameters = [*model.encoder.parameters(), model.marker_rows]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    start, step, seen = time.time(), 0, 0
    log = (args.work / "distil_encoder.jsonl").open("a") if rank == 0 else None
    by_length = np.argsort(passages.lengths, kind="stable")
    while (elapsed := time.time() - start) < args.minutes * 60:
        rate = args.lr * min(1.0, (step + 1) / 60) * max(0.05, 1 - elapsed / (args.minutes * 60))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if step % 12 == 5:  # short texts too: the decoder, which reads queries, starts from these weights
            rows = rng.integers(0, len(queries.lengths), 64)
            ids, mask = queries.batch(rows, 48)
            ids, mask = F.pad(ids, (1, 0), value=11), F.pad(mask, (1, 0), value=True)
        else:
            size, length = (12, 256) if step % 12 == 0 else (24, 128)
            at = int(rng.integers(0, len(by_length) - size))
            ids, mask = passages.batch(by_length[at : at + size], length)
        want = targets(teacher_states(teacher, ids, mask), ids, parts)
        got = model.encode(ids, mask).float()
        cosine = F.cosine_similarity(got, want, dim=-1)[mask].mean()
        means = [F.normalize((x * mask[..., None]).sum(1)[:, :SEMANTIC], dim=-1) for x in (got, want)]
        gram = (means[0] @ means[0].T - means[1] @ means[1].T).pow(2).mean()
        scale = (got.norm(dim=-1) - want.norm(dim=-1))[mask].pow(2).mean() / 256
        loss = 1 - cosine + 2 * gram + 0.1 * scale
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step, seen = step + 1, seen + len(ids)
        if log and step % 20 == 0:
            line: dict[str, float] = {"step": step, "seconds": round(elapsed), "passages": seen * count}
            line |= {"1-cos": round(1 - cosine.item(), 4), "gram": round(gram.item(), 5), "lr": round(rate, 6)}
            print(json.dumps(line), file=log, flush=True)
        if rank == 0 and step % 100 == 0:
            torch.save(model.state_dict(), args.work / "encoder.latest.pt")
    if rank == 0:
        torch.save(model.state_dict(), args.work / "encoder.pt")


def main() -> None:
    """Distils, and leaves WORK/encoder.pt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minilm", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    teacher = MiniLM(args.minilm)
    passages = Passages(args.work / "passages.npz")
    rows = np.random.default_rng(args.seed).integers(0, len(passages.lengths), 160)
    ids, mask = passages.batch(rows, 128)
    sample = teacher_states(teacher, ids, mask)[mask]
    parts = layout(teacher, passages.ids, sample)
    model = Reranker()
    single = torch.tensor(teacher.single_tokens()[:, 1])  # (V, M)
    table = torch.cat(((single - parts["mean"]) @ parts["projection"], parts["fixed"]), 1) / 16
    model.table.data.copy_(table)
    model.marker_rows.data[1:] = table[torch.tensor(MARKERS)]
    layers: Any = model.encoder.layers
    for layer in layers:
        layer.post_self_attn_layernorm.weight.data.fill_(-0.6)
        layer.post_feedforward_layernorm.weight.data.fill_(-0.6)
    torch.save(parts, args.work / "layout.pt")
    train_with_workers(learn, args.workers, model, args, parts)


if __name__ == "__main__":
    main()
