"""Stages 2 and 3: the decoder learns to rank pooled states; then encoder and decoder learn together.

    python -m training.train_reranker --stage decoder --init WORK/encoder.pt --out WORK/decoder.pt --minutes 15 ...
    python -m training.train_reranker --stage joint   --init WORK/decoder.pt --out WORK/joint.pt   --minutes 40 ...

Loss of a query over its group's passages: listwise softmax + binary cross-entropy (P(yes) should mean something)
+ KL to BM25's own softmax (exact matching is what short training misses most).
Legend: R passages of a step, N query-passage pairs, S, T, P as in training/model.py.
"""

import argparse
import json
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer

from training.data import CORPORA
from training.groups import INSTRUCTIONS, OTHER_INSTRUCTIONS, Group, Maker, Query, prompt_parts
from training.model import Reranker, compile_layers, mean_pool
from training.workers import train_with_workers

RATIOS = (1, 2, 3, 4, 5, 8, 12, 16, 32)
RATIO_SHARES = (0.17, 0.10, 0.03, 0.30, 0.03, 0.13, 0.02, 0.16, 0.06)
GROUPS, SIZE, QUERIES = 4, 8, 6


def start_decoder(model: Reranker) -> None:
    """Decoder = the encoder's layers; its first layer's heads match tokens by identity (KV head 0) and meaning (1).

    Only slow rotary pairs carry the match: memory keys are not rotated, so fast pairs would scramble it.
    """
    model.decoder.load_state_dict(model.encoder.state_dict())
    layers: Any = model.decoder.layers
    attn, norm = layers[0].self_attn, layers[0].pre_self_attn_layernorm
    generator = torch.Generator().manual_seed(5)
    slow = torch.cat((torch.arange(14, 32), torch.arange(46, 64)))  # of a head's 64 dimensions
    with torch.no_grad():
        norm.weight.zero_()
        attn.q_norm.weight.zero_()
        attn.k_norm.weight.zero_()
        for head, (low, high) in enumerate(((190, 254), (0, 190))):
            plane = torch.linalg.qr(torch.randn(high - low, len(slow), generator=generator)).Q.T * 0.3
            rows = head * 64 + slow
            attn.k_proj.weight[head * 64 : head * 64 + 64] = 0
            attn.k_proj.weight[rows, low:high] = plane
            for query_head in (2 * head, 2 * head + 1):
                attn.q_proj.weight[query_head * 64 : query_head * 64 + 64] = 0
                attn.q_proj.weight[query_head * 64 + slow, low:high] = plane
            attn.v_proj.weight[head * 64] = 0
            attn.v_proj.weight[head * 64, 255] = 1.0  # how much of the attention went to the passage
            attn.v_proj.weight[head * 64 + 1] = 0
            attn.v_proj.weight[head * 64 + 1, 254] = 0.5
        for layer in layers:
            layer.post_self_attn_layernorm.weight.clamp_(max=-0.3)
            layer.post_feedforward_layernorm.weight.clamp_(max=-0.3)


class Prompts:
    """Prompt ids of queries: mostly under the default instruction, sometimes under others."""

    def __init__(self, tokenizer: Any) -> None:
        self.tail = prompt_parts(tokenizer)[1]
        self.default = prompt_parts(tokenizer)[0]
        self.own = [prompt_parts(tokenizer, INSTRUCTIONS[name])[0] for name in CORPORA]
        self.other = [prompt_parts(tokenizer, text)[0] for text in OTHER_INSTRUCTIONS]

    def head(self, query: Query, style: int) -> list[int]:
        """style 0: default; 1: the corpus's own instruction; 2 and up: another."""
        return self.default if style == 0 else self.own[query.corpus] if style == 1 else self.other[(style - 2) % 3]

    def __call__(self, query: Query, style: int) -> list[int]:
        """The whole prompt's ids."""
        return [*self.head(query, style), *query.ids, *self.tail]


def step_margins(
    model: Reranker,
    maker: Maker,
    prompts: Prompts,
    groups: list[Group],
    length: int,
    ratio: int,
    style: int,
    frozen: bool,
) -> Tensor:
    """Margins of every group's queries against its passages: (groups · queries, size)."""
    rows = np.array([r for g in groups for r in g.rows])
    order = np.argsort(maker.passages.lengths[rows], kind="stable")
    halves = [order[: len(order) // 2], order[len(order) // 2 :]]  # two lengths: less padding
    pooled, masks = [], []
    for half in halves:
        tokens, mask = maker.passages.batch(rows[half], length)
        with torch.set_grad_enabled(not frozen and torch.is_grad_enabled()):
            states, real = mean_pool(model.encode(tokens, mask), mask, ratio)
        pooled.append(states)
        masks.append(real)
    wide = max(m.shape[1] for m in masks)
    place = torch.from_numpy(np.argsort(np.concatenate(halves)))
    memory = torch.cat([F.pad(p, (0, 0, 0, wide - p.shape[1])) for p in pooled])[place]  # (R, P, D)
    seen = torch.cat([F.pad(m, (0, wide - m.shape[1])) for m in masks])[place]
    queries = [(g, q) for g, group in enumerate(groups) for q in group.queries]
    ids = [prompts(q, style) for _, q in queries]
    size = len(groups[0].rows)
    by_length = np.argsort([len(i) for i in ids], kind="stable")
    margins: list[Tensor] = []
    shared = len(prompts.head(queries[0][1], style)) if style != 1 else 0
    for part in np.array_split(by_length, min(3, len(ids))):
        longest = max(len(ids[i]) for i in part)
        prompt = torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in part]).repeat_interleave(size, 0)
        last = torch.tensor([len(ids[i]) - 1 for i in part]).repeat_interleave(size)
        passage = torch.tensor([queries[i][0] * size + k for i in part for k in range(size)])  # (N,)
        margins.append(model.margins(prompt, last, memory, seen, passage, shared).view(len(part), size))
    return torch.cat(margins)[torch.from_numpy(np.argsort(by_length))]


def labels(maker: Maker, groups: list[Group]) -> tuple[Tensor, Tensor, Tensor]:
    """Relevance (Q, size) bool, whether a passage counts (Q, size) bool, BM25 (Q, size)."""
    relevant, counts, lexical = [], [], []
    for group in groups:
        scores = maker.lexical(list(group.queries), list(group.rows))
        truth = np.array([[r in q.positives for r in group.rows] for q in group.queries])
        best = np.where(truth, scores, -np.inf).max(1, keepdims=True)
        near = maker.vectors[list(group.rows)] @ maker.vectors[list(group.rows)].T
        twin = np.array([near[t].max(0) > 0.97 for t in truth])  # nearly the same text as the relevant one
        real = np.array([[q.real] for q in group.queries])
        counts.append(truth | ~(twin | (~real & (scores >= 0.97 * best))))
        relevant.append(truth)
        lexical.append(scores)
    return tuple(torch.from_numpy(np.concatenate(x)) for x in (relevant, counts, lexical))  # type: ignore[return-value]


def loss_of(margins: Tensor, relevant: Tensor, counts: Tensor, lexical: Tensor, kl: float, bce: float) -> Tensor:
    """Mean over queries."""
    logits = margins.masked_fill(~counts, -1e4)
    listwise = logits.logsumexp(1) - logits.masked_fill(~relevant, -1e4).logsumexp(1)
    weight = torch.where(relevant, 2.5, 1.0) * counts
    pointwise = (F.binary_cross_entropy_with_logits(margins, relevant.float(), reduction="none") * weight).sum(1)
    teacher = F.softmax(lexical / 3.0, 1)
    divergence = F.kl_div(F.log_softmax(margins, 1), teacher, reduction="none").sum(1)
    return (listwise + bce * pointwise + kl * divergence).mean()


@torch.no_grad()
def held_out(model: Reranker, maker: Maker, prompts: Prompts, ratios: tuple[int, ...], limit: int) -> dict[str, float]:
    """Mean reciprocal rank of held-out queries' relevant passage among 16 (it and 15 hard neighbours)."""
    rng = np.random.default_rng(3)
    chosen = [maker.held_out[i] for i in rng.permutation(len(maker.held_out))]
    kept: dict[int, list[Query]] = {}
    for query in chosen:
        if len(query.neighbours) >= 15 and len(kept.setdefault(query.corpus, [])) < limit:
            kept[query.corpus].append(query)
    out: dict[str, float] = {}
    for number, queries in sorted(kept.items()):
        groups = []
        for query in queries:
            rows = [min(query.positives), *query.neighbours[:10], *query.neighbours[-5:]]
            groups.append(Group(tuple(rng.permutation(rows).tolist()), (query,)))
        relevant, _, lexical = labels(maker, groups)
        scores = {"bm25": lexical + torch.randn(lexical.shape) * 1e-6}
        for ratio in ratios:
            parts = [
                step_margins(model, maker, prompts, groups[i : i + 4], 224, ratio, 0, True)
                for i in range(0, len(groups), 4)
            ]
            scores[f"r{ratio}"] = torch.cat(parts)
        for name, table in scores.items():
            best = table.masked_fill(~relevant, -torch.inf).max(1, keepdim=True).values
            ranks = (table >= best).sum(1).float()
            out[f"{CORPORA[number]} {name}"] = round((1 / ranks).mean().item(), 3)
    return out


def make(args: argparse.Namespace) -> tuple[Maker, Prompts]:
    """The data side, built once and kept in WORK/maker.pkl."""
    kept: Path = args.work / "maker.pkl"
    if not kept.exists():
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
        made = Maker(args.data, args.work, args.embedder, tokenizer), Prompts(tokenizer)
        kept.write_bytes(pickle.dumps(made))
    return pickle.loads(kept.read_bytes())  # type: ignore[no-any-return]  # our own file


def learn(rank: int, count: int, model: Reranker, args: argparse.Namespace) -> None:
    """One worker: groups until the time is over."""
    compile_layers()
    maker, prompts = make(args)
    rng = np.random.default_rng(args.seed * 100 + rank)
    frozen = args.stage == "decoder"
    dense = [{"params": [*model.decoder.parameters(), model.marker_rows], "top": args.lr}]
    if not frozen:
        dense.append({"params": list(model.encoder.parameters()), "top": args.encoder_lr})
        model.table.requires_grad_(True)
    everything = [p for group in dense for p in group["params"]]
    optimizer = torch.optim.AdamW(dense, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    rows_optimizer = None if frozen else torch.optim.SparseAdam([model.table], lr=args.table_lr)
    start, step, seen, running = time.time(), 0, 0, 0.0
    saved = evaluated = 0.0
    log = args.log.open("a") if rank == 0 else None
    while (elapsed := time.time() - start) < args.minutes * 60:
        share = elapsed / (args.minutes * 60)
        factor = min(1.0, (step + 1) / args.warmup) * max(args.floor, 1 - share)
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * factor
        groups = [maker.group(rng, SIZE, QUERIES) for _ in range(GROUPS)]
        ratio = int(rng.choice(RATIOS, p=RATIO_SHARES))
        style = 0 if rng.random() < 0.9 else int(rng.integers(1, 5))
        length = 224 if rng.random() < args.long else 128
        margins = step_margins(model, maker, prompts, groups, length, ratio, style, frozen)
        relevant, counts, lexical = labels(maker, groups)
        loss = loss_of(margins, relevant, counts, lexical, args.kl, args.bce)
        optimizer.zero_grad()
        if rows_optimizer:
            rows_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(everything, 1.0)
        optimizer.step()
        if rows_optimizer:
            rows_optimizer.step()
        best = margins.detach().masked_fill(~counts, -1e4)
        correct = relevant.gather(1, best.argmax(1, keepdim=True)).float().mean().item()
        running = correct if step == 0 else 0.97 * running + 0.03 * correct
        step, seen = step + 1, seen + len(margins)
        if not log:
            continue
        if step % 25 == 0:
            line = {"stage": args.stage, "step": step, "seconds": round(elapsed), "queries": seen * count}
            line |= {"loss": round(loss.item(), 3), "accuracy@1 of 8": round(running, 3), "ratio": ratio}
            print(json.dumps(line), file=log, flush=True)
        if elapsed - saved > args.save_every:
            saved = elapsed
            save(model, args.out.with_suffix(".latest.pt"))  # to look at, or to go on from with --init
        if elapsed - evaluated > args.evaluate_every:
            evaluated = elapsed
            quality = held_out(model, maker, prompts, (4,), 40)
            line = {"stage": args.stage, "seconds": round(elapsed), "mrr of 16": quality}
            print(json.dumps(line), file=log, flush=True)
    if log:
        save(model, args.out)
        line = {"stage": args.stage, "final": True, "mrr of 16": held_out(model, maker, prompts, (1, 4, 16), 16)}
        print(json.dumps(line), file=log, flush=True)


def save(model: Reranker, path: Path) -> None:
    """Writes beside, then renames: a reader never meets half a file."""
    torch.save(model.state_dict(), path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def main() -> None:
    """Trains one stage from `--init` and leaves `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--data", "--work", "--embedder", "--tokenizer", "--init", "--out", "--log"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--stage", choices=("decoder", "joint"), required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--encoder-lr", type=float, default=2e-4)
    parser.add_argument("--table-lr", type=float, default=1e-4)
    parser.add_argument("--floor", type=float, default=0.05, help="the learning rate's last share")
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--kl", type=float, default=0.3)
    parser.add_argument("--bce", type=float, default=0.1)
    parser.add_argument("--long", type=float, default=0.2, help="share of steps with passages of 224 tokens, not 128")
    parser.add_argument("--save-every", type=float, default=120)
    parser.add_argument("--evaluate-every", type=float, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = Reranker()
    model.load_state_dict(torch.load(args.init, weights_only=True))
    if args.stage == "decoder":
        model.encoder.requires_grad_(False)
    if args.init.name == "encoder.pt":
        start_decoder(model)
    make(args)
    train_with_workers(learn, args.workers, model, args)


if __name__ == "__main__":
    main()
