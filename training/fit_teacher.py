"""How much each teacher counts: a conditional logit of cosine and BM25 on judged pairs of the training sets.

    python -m training.fit_teacher --work WORK

A query's candidates are its relevant passage and its unjudged neighbours; the likelihood is the softmax's of the
relevant one. Prints the weights that `train_reranker` takes as --dense and --lexical, and each teacher's MRR.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from training.data import CORPORA
from training.groups import Maker
from training.layers import VOCABULARY

CANDIDATES, QUERIES = 16, 300


def main() -> None:
    """Fits on an equal number of queries of every set, so that the large ones do not decide alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    maker, rng = Maker(args.work, VOCABULARY), np.random.default_rng(7)
    features, corpora = [], []
    for corpus in range(len(CORPORA)):
        for number in rng.permutation(maker.by_corpus[corpus])[:QUERIES]:
            query = maker.queries[int(number)]
            rows = [min(query.positives), *rng.permutation(query.neighbours)[: CANDIDATES - 1].tolist()]
            if len(rows) == CANDIDATES:
                features.append(np.concatenate([maker.dense([query], rows), maker.lexical([query], rows)]))
                corpora.append(corpus)
    table, corpora = torch.tensor(np.stack(features)), np.array(corpora)  # (N, 2, CANDIDATES), the first is relevant
    weights = torch.tensor([20.0, 0.3], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -F.log_softmax(torch.einsum("nfc,f->nc", table, weights), -1)[:, 0].mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    print({"dense": round(weights[0].item(), 2), "lexical": round(weights[1].item(), 3)})
    rankings = {"dense": table[:, 0], "bm25": table[:, 1], "both": torch.einsum("nfc,f->nc", table, weights.detach())}
    for name, scores in rankings.items():
        ranks = ((scores >= scores[:, :1]).sum(1)).float().numpy()
        print(name, {c: round(float((1 / ranks[corpora == i]).mean()), 3) for i, c in enumerate(CORPORA)})


if __name__ == "__main__":
    main()
