"""The decoder learns to rank pooled states; then encoder and decoder learn together.

    python -m training.train_reranker --stage decoder --init WORK/encoder.pt --out WORK/decoder.pt --minutes 15 ...
    python -m training.train_reranker --stage joint   --init WORK/decoder.pt --out WORK/joint.pt   --minutes 40 ...

Loss of a query over its group's passages: cross-entropy to the teachers' distribution (a dense embedder's cosine, BM25
and the judgment) + binary cross-entropy (P(yes) should mean something). A step pools its passages' states twice, finely
and coarsely; from coarse states the decoder also learns what it said of fine ones. What is kept is the mean of the last
weights.
Legend: G groups, C passages of a group, Q its queries, R = G · C passages of a step; P, D as in training/model.py.
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
from transformers import AutoTokenizer

from training.data import CORPORA, TEXT
from training.groups import INSTRUCTIONS, OTHER_INSTRUCTIONS, Group, Maker, Query, prompt_parts
from training.layers import VOCABULARY
from training.model import Reranker, mean_pool
from training.workers import train_with_workers

# Few shapes: a processor's bfloat16 products are compiled for each that they meet, which takes longer than a step.
FINE, FINE_SHARES = (1, 2, 4), (0.5, 0.2, 0.3)
COARSE, COARSE_SHARES = (8, 16, 32), (0.4, 0.3, 0.3)
OWN_SHARE = 0.4  # how much of a coarse target is the fine ranking
LENGTHS, LENGTH_SHARES = (96, 192, 448), (0.5, 0.4, 0.1)  # where passages are cut, in tokens
QUERY_WIDTHS = (12, 20, 28, 60)  # a query and the prompt's end, in tokens; the last comes with the longest passages
GROUPS, SIZE, QUERIES = 4, 8, 6
# What a judgment adds to the teachers' logit, and what it does that the query was made from the passage.
LABEL, MADE_LABEL = 4.0, 2.0


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
        self.default, self.tail = prompt_parts(tokenizer)
        self.own = [prompt_parts(tokenizer, INSTRUCTIONS[name])[0] for name in (*CORPORA, TEXT)]
        self.other = [prompt_parts(tokenizer, text)[0] for text in OTHER_INSTRUCTIONS]

    def head(self, query: Query, style: int) -> list[int]:
        """style 0: default; 1: the corpus's own instruction; 2 and up: another."""
        return self.default if style == 0 else self.own[query.corpus] if style == 1 else self.other[(style - 2) % 3]

    def __call__(self, query: Query, style: int, length: int) -> list[int]:
        """The whole prompt's ids, at most `length`: what is cut is the query."""
        head = self.head(query, style)
        return [*head, *query.ids[: length - len(head) - len(self.tail)], *self.tail]


def step_margins(
    model: Reranker,
    maker: Maker,
    prompts: Prompts,
    groups: list[Group],
    length: int,
    ratios: tuple[int, ...],
    style: int,
    frozen: bool,
) -> list[Tensor]:
    """Margins of every group's queries against its passages, for each pooling ratio: (G, Q, C)."""
    rows = np.array([r for g in groups for r in g.rows])
    tokens, mask = maker.passages.batch(rows, length)
    with torch.set_grad_enabled(not frozen and torch.is_grad_enabled()):
        states = model.encode(tokens, mask)  # (R, S, D)
    shared = 1 if style == 1 else len(prompts.head(groups[0].queries[0], style))
    widths = QUERY_WIDTHS if length == LENGTHS[-1] else QUERY_WIDTHS[:-1]
    ids = [[prompts(q, style, shared + widths[-1]) for q in g.queries] for g in groups]
    longest = max(len(i) for row in ids for i in row)
    widest = shared + min(width for width in widths if shared + width >= longest)
    prompt = torch.tensor([[i + [0] * (widest - len(i)) for i in row] for row in ids])
    last = torch.tensor([[len(i) - 1 for i in row] for row in ids])
    return [model.margins(prompt, last, *mean_pool(states, mask, ratio), shared) for ratio in ratios]


def targets(maker: Maker, groups: list[Group], dense: float, lexical: float) -> tuple[Tensor, Tensor]:
    """The teachers' distribution over a group's passages, and which are known to be relevant: (G, Q, C) each.

    A conditional logit of cosine and BM25 (`fit_teacher.py` fits both weights to judged pairs), and of the judgment;
    unjudged passages that the teachers like as much keep their share.
    """
    logits, relevant = [], []
    for group in groups:
        queries, rows = list(group.queries), list(group.rows)
        truth = np.array([[r in q.positives for r in rows] for q in queries])
        label = np.array([[LABEL if q.real else MADE_LABEL] for q in queries])
        logits.append(dense * maker.dense(queries, rows) + lexical * maker.lexical(queries, rows) + label * truth)
        relevant.append(truth)
    return F.softmax(torch.from_numpy(np.stack(logits)).float(), -1), torch.from_numpy(np.stack(relevant))


def loss_of(margins: Tensor, teacher: Tensor, relevant: Tensor, bce: float) -> Tensor:
    """Mean over queries of the listwise and the pointwise loss; all three (G, Q, C)."""
    listwise = -(teacher * F.log_softmax(margins, -1)).sum(-1)
    counts = relevant | (teacher < 0.1)  # an unjudged passage that the teachers like is no certain "no"
    weight = torch.where(relevant, 2.5, 1.0) * counts
    pointwise = (F.binary_cross_entropy_with_logits(margins, relevant.float(), reduction="none") * weight).sum(-1)
    return (listwise + bce * pointwise).mean()


@torch.no_grad()
def held_out(model: Reranker, maker: Maker, prompts: Prompts, ratios: tuple[int, ...], limit: int) -> dict[str, float]:
    """Mean reciprocal rank of held-out queries' relevant passage among 16 (it and 15 hard neighbours)."""
    rng = np.random.default_rng(3)
    kept: dict[int, list[Query]] = {}
    for number in rng.permutation(len(maker.held_out)):
        query = maker.held_out[number]
        if len(query.neighbours) >= 15 and len(kept.setdefault(query.corpus, [])) < limit:
            kept[query.corpus].append(query)
    out: dict[str, float] = {}
    for corpus, queries in sorted(kept.items()):
        groups = [
            Group(tuple(rng.permutation([min(q.positives), *rng.permutation(q.neighbours)[:15]]).tolist()), (q,))
            for q in queries
        ]
        relevant = torch.tensor([[r in g.queries[0].positives for r in g.rows] for g in groups])
        scores = {
            "bm25": torch.tensor(np.concatenate([maker.lexical(list(g.queries), list(g.rows)) for g in groups])),
            "dense": torch.tensor(np.concatenate([maker.dense(list(g.queries), list(g.rows)) for g in groups])),
        }
        parts = [
            torch.stack(step_margins(model, maker, prompts, groups[i : i + 4], LENGTHS[1], ratios, 0, True))[:, :, 0]
            for i in range(0, len(groups), 4)
        ]
        scores |= {f"r{r}": table for r, table in zip(ratios, torch.cat(parts, 1), strict=True)}
        for name, table in scores.items():
            best = table.masked_fill(~relevant, -torch.inf).max(1, keepdim=True).values
            ranks = ((table >= best) & ~relevant).sum(1) + 1.0
            out[f"{(*CORPORA, TEXT)[corpus]} {name}"] = round((1 / ranks).mean().item(), 3)
    for name in ("bm25", "dense", *(f"r{r}" for r in ratios)):
        values = [v for k, v in out.items() if k.endswith(f" {name}")]
        out[f"mean {name}"] = round(sum(values) / len(values), 3)
    return out


class Mean:
    """A running mean of the weights over the last few hundred steps: what is kept of a run."""

    def __init__(self, model: Reranker, share: float = 0.05) -> None:
        self.share, self.count = share, 0
        self.state = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: Reranker) -> None:
        """Takes the weights in; the first ones count more, so that the start is soon forgotten."""
        self.count += 1
        share = max(self.share, 1 / self.count)
        for name, value in model.state_dict().items():
            self.state[name].lerp_(value, share)

    def model(self) -> Reranker:
        """A model with the mean weights."""
        out = Reranker()
        out.load_state_dict(self.state)
        return out


def learn(rank: int, count: int, model: Reranker, args: argparse.Namespace) -> None:
    """One worker: groups until the time is over."""
    torch.set_flush_denormal(True)
    maker, prompts = Maker(args.work, VOCABULARY), Prompts(AutoTokenizer.from_pretrained(args.tokenizer))
    rng = np.random.default_rng(args.seed * 100 + rank)
    frozen = args.stage == "decoder"
    dense = [{"params": [*model.decoder.parameters(), model.marker_rows], "top": args.lr}]
    if not frozen:
        dense.append({"params": list(model.encoder.parameters()), "top": args.encoder_lr})
        model.table.requires_grad_(True)
    everything = [p for group in dense for p in group["params"]]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(dense, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    ]
    if not frozen:
        optimizers.append(torch.optim.SparseAdam([model.table], lr=args.table_lr))
    mean, log = (Mean(model), args.log.open("a")) if rank == 0 else (None, None)
    step, seen, agreement, saved, evaluated = 0, 0, 0.0, 0.0, 0.0
    start = time.time()
    while (elapsed := time.time() - start) < args.minutes * 60:
        factor = min(1.0, (step + 1) / args.warmup) * max(args.floor, 1 - elapsed / (args.minutes * 60))
        for group in [g for o in optimizers for g in o.param_groups]:
            group["lr"] = group.get("top", args.table_lr) * factor
        length = int(rng.choice(LENGTHS, p=LENGTH_SHARES))
        groups = [maker.group(rng, SIZE, QUERIES) for _ in range(GROUPS // 2 if length == LENGTHS[-1] else GROUPS)]
        ratios = int(rng.choice(FINE, p=FINE_SHARES)), int(rng.choice(COARSE, p=COARSE_SHARES))
        style = 0 if rng.random() < 0.9 else int(rng.integers(1, 5))
        margins, coarse = step_margins(model, maker, prompts, groups, length, ratios, style, frozen)
        teacher, relevant = targets(maker, groups, args.dense, args.lexical)
        own = torch.lerp(teacher, margins.detach().softmax(-1), OWN_SHARE)
        loss = loss_of(margins, teacher, relevant, args.bce) + loss_of(coarse, own, relevant, args.bce)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(everything, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        agreed = (margins.detach().argmax(-1) == teacher.argmax(-1)).float().mean().item()
        agreement = agreed if step == 0 else 0.99 * agreement + 0.01 * agreed
        step, seen = step + 1, seen + margins.shape[0] * margins.shape[1]
        if not (log and mean):
            continue
        if step % 20 == 0:
            mean.update(model)
        if step % 50 == 0:
            line = {"stage": args.stage, "step": step, "seconds": round(elapsed), "queries": seen * count}
            line |= {"loss": round(loss.item(), 3), "first of 8 as the teachers": round(agreement, 3)}
            print(json.dumps(line), file=log, flush=True)
        if elapsed - saved > args.save_every:
            saved = elapsed
            save(mean.state, args.out.with_suffix(".latest.pt"))  # to look at, or to go on from with --init
        if elapsed - evaluated > args.evaluate_every:
            evaluated = elapsed
            quality = held_out(mean.model(), maker, prompts, (1, 8, 32), 40)
            line = {"stage": args.stage, "seconds": round(elapsed), "mrr of 16": quality}
            print(json.dumps(line), file=log, flush=True)
    if log and mean:
        save(mean.state, args.out)
        quality = held_out(mean.model(), maker, prompts, (1, 2, 4, 8, 16, 32), 40)
        print(json.dumps({"stage": args.stage, "final": True, "mrr of 16": quality}), file=log, flush=True)


def save(state: dict[str, Tensor], path: Path) -> None:
    """Writes beside, then renames: a reader never meets half a file."""
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def main() -> None:
    """Trains one stage from `--init` and leaves `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--work", "--tokenizer", "--init", "--out", "--log"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--stage", choices=("decoder", "joint"), required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--encoder-lr", type=float, default=2e-4)
    parser.add_argument("--table-lr", type=float, default=1e-4)
    parser.add_argument("--floor", type=float, default=0.05, help="the learning rate's last share")
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--dense", type=float, default=20.0, help="the dense teacher's weight: of a cosine")
    parser.add_argument("--lexical", type=float, default=0.3, help="BM25's weight")
    parser.add_argument("--bce", type=float, default=0.1)
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
    train_with_workers(learn, args.workers, model, args)


if __name__ == "__main__":
    main()
