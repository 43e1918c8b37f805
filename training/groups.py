"""What a training step sees: groups of neighbouring passages, each with several queries. Knows nothing of models.

A group is one seed query's relevant passage with hard neighbours (BM25's and a dense teacher's), and further queries of
the same passages: real ones where there are any, otherwise made from a passage's own words (`invent.py`).
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from transformers import PreTrainedTokenizerBase

from training.data import CORPORA, TEXT
from training.passages import Passages
from training.tokenizer import INSTRUCTION, SYSTEM

SHARES = {
    "boolq": 0.17,
    "cosqa": 0.05,
    "halueval-hotpot": 0.24,
    "medquad": 0.13,
    "scifact": 0.12,
    "tatqa": 0.05,
    TEXT: 0.24,
}
INSTRUCTIONS = {
    "boolq": "Given a question, retrieve Wikipedia passages that answer it.",
    "cosqa": "Given a web query, retrieve Python code that implements it.",
    "halueval-hotpot": "Given a multi-hop question, retrieve documents that can help answer the question.",
    "medquad": "Given a medical question, retrieve passages that answer the question.",
    "scifact": "Given a scientific claim, retrieve documents that support or refute the claim.",
    "tatqa": "Given a financial question, retrieve passages or tables that answer the question.",
    TEXT: "Given a heading or a question, retrieve the passage that belongs to it.",
}
OTHER_INSTRUCTIONS = (
    "Given a web search query, retrieve relevant passages that answer the query.",
    "Find passages relevant to the query.",
    "Given a question, retrieve passages that contain the answer.",
)
TWIN = 0.985  # cosine of passages that say the same


@dataclass(frozen=True, slots=True)
class Query:
    """Token ids of a query, the passage rows known to be relevant, and its row among the teacher's query vectors."""

    ids: tuple[int, ...]
    positives: frozenset[int]
    neighbours: tuple[int, ...]
    corpus: int
    vector: int
    real: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Passage rows and the queries that are scored against every one of them."""

    rows: tuple[int, ...]
    queries: tuple[Query, ...]


class Maker:
    """Draws groups and scores them with the teachers. Reads what `prepare`, `invent` and `vectors` left in WORK."""

    def __init__(self, work: Path, vocabulary: int) -> None:
        self.passages = Passages(work / "passages.npz")
        self.real, self.invented = Passages(work / "queries.npz"), Passages(work / "invented.npz")
        self.passage_vectors = np.load(work / "passages.vectors.npy", mmap_mode="r")
        self.query_vectors = np.load(work / "queries.vectors.npy", mmap_mode="r")  # real ones, then invented ones
        self.near_passages = np.load(work / "near_passages.npy", mmap_mode="r")
        near_queries = np.load(work / "near_queries.npy")
        self.bm25 = bm25_weights(self.passages, vocabulary)
        with np.load(work / "invented.npz") as arrays:
            self.invented_rows = arrays["rows"]
        self.of_invented = np.searchsorted(self.invented_rows, np.arange(len(self.passages) + 1))
        with np.load(work / "passages.npz") as arrays:
            corpus = arrays["corpus"]
        self.members = [np.flatnonzero(corpus == c) for c in range(int(corpus.max()) + 1)]
        self.corpus = corpus
        shares = np.array([SHARES[name] for name in (*CORPORA, TEXT)[: len(self.members)]])
        self.shares = shares / shares.sum()
        self.queries: list[Query] = []
        self.held_out: list[Query] = []
        self.by_corpus: list[list[int]] = [[] for _ in self.members]
        self.of_passage: dict[int, list[int]] = {}
        with np.load(work / "queries.npz") as a:
            arrays = dict(a)
        for number in range(len(self.real)):
            positives, negatives = (
                arrays[k][arrays[f"{o}_offsets"][number] : arrays[f"{o}_offsets"][number + 1]].tolist()
                for k, o in (("positives", "positive"), ("negatives", "negative"))
            )
            ids = tuple(self.real.tokens(number).tolist())
            dense = near_queries[number].tolist()
            hard = tuple(dict.fromkeys(r for r in negatives + dense if r not in positives))
            query = Query(ids, frozenset(positives), hard, int(arrays["corpus"][number]), number, True)
            # Held out by the query's own tokens, so that every worker and every run agrees.
            if zlib.crc32(np.array(ids).tobytes()) % 100 < (12 if query.corpus == CORPORA.index("scifact") else 4):
                self.held_out.append(query)
                continue
            self.by_corpus[query.corpus].append(len(self.queries))
            for row in positives:
                self.of_passage.setdefault(row, []).append(len(self.queries))
            self.queries.append(query)

    def group(self, rng: np.random.Generator, size: int, queries: int) -> Group:
        """One group of `size` passages and `queries` queries."""
        number = int(rng.choice(len(self.members), p=self.shares))
        pool = self.by_corpus[number]
        if pool and rng.random() < 0.75:
            seed = self.queries[pool[int(rng.integers(len(pool)))]]
        else:
            seed = self.invented_query(rng, int(rng.choice(self.members[number])))
        positive = int(rng.choice(sorted(seed.positives)))
        hard = [r for r in seed.neighbours if r != positive] or self.near(positive)
        take = size - 1 if rng.random() < 0.5 else size - 2  # in every other group a passage drawn at random
        chosen = rng.permutation(hard)[:take].tolist()
        while len(chosen) < size - 1:
            chosen.append(int(rng.choice(self.members[number])))
        rows = [positive, *chosen]
        asked = [seed]
        for row in rng.permutation(rows).tolist():
            if len(asked) == queries:
                break
            known = self.of_passage.get(row, [])
            if known and rng.random() < 0.7:
                asked.append(self.queries[known[int(rng.integers(len(known)))]])
            else:
                asked.append(self.invented_query(rng, row))
        return Group(tuple(rng.permutation(rows).tolist()), tuple(asked))

    def near(self, row: int) -> list[int]:
        """Passages of the same corpus nearest to one, by the dense teacher, without those that say the same."""
        rows = self.near_passages[row]
        cosines = self.passage_vectors[rows].astype(np.float32) @ self.passage_vectors[row].astype(np.float32)
        return [int(r) for r, c in zip(rows, cosines, strict=True) if c < TWIN and r != row]

    def invented_query(self, rng: np.random.Generator, row: int) -> Query:
        """One of the queries made from a passage."""
        number = int(rng.integers(self.of_invented[row], self.of_invented[row + 1]))
        ids = tuple(self.invented.tokens(number).tolist())
        return Query(ids, frozenset([row]), (), int(self.corpus[row]), len(self.real) + number, False)

    def dense(self, queries: list[Query], rows: list[int]) -> np.ndarray:
        """The dense teacher's cosine of every query with every row: (Q, R) float32."""
        asked = self.query_vectors[[q.vector for q in queries]].astype(np.float32)
        found: np.ndarray = asked @ self.passage_vectors[rows].astype(np.float32).T
        return found

    def lexical(self, queries: list[Query], rows: list[int]) -> np.ndarray:
        """BM25 over word pieces of every query against every row: (Q, R) float32."""
        selected = self.bm25[rows]  # (R, V)
        pieces = [sorted(set(q.ids)) for q in queries]
        flat = [t for p in pieces for t in p]
        offsets = np.cumsum([0] + [len(p) for p in pieces])
        wanted = sp.csr_matrix((np.ones(len(flat), np.float32), flat, offsets), (len(queries), selected.shape[1]))
        return np.asarray((wanted @ selected.T).todense())


def bm25_weights(passages: Passages, vocabulary: int, k1: float = 1.2, b: float = 0.75) -> sp.csr_matrix:
    """Term weights (passages, vocabulary), Lucene's idf, over all training corpora as one."""
    count = len(passages.lengths)
    tf = sp.csr_matrix((np.ones(len(passages.ids), np.float32), passages.ids, passages.offsets), (count, vocabulary))
    tf.sum_duplicates()
    df = np.bincount(tf.indices, minlength=vocabulary)
    idf = np.log(1 + (count - df + 0.5) / (df + 0.5))
    norm = k1 * (1 - b + b * passages.lengths / passages.lengths.mean())
    rows = np.repeat(np.arange(count), np.diff(tf.indptr))
    tf.data = (idf[tf.indices] * tf.data * (k1 + 1) / (tf.data + norm[rows])).astype(np.float32)
    return tf


def prompt_parts(tokenizer: PreTrainedTokenizerBase, instruction: str = INSTRUCTION) -> tuple[list[int], list[int]]:
    """Token ids before and after the query."""
    head = f"<bos><start_of_turn>user\n{SYSTEM}\n\n<Instruct>: {instruction}\n<Query>:"
    tail = "<end_of_turn>\n<start_of_turn>model\n\n\n\n"
    return tuple(tokenizer(t, add_special_tokens=False)["input_ids"] for t in (head, tail))  # type: ignore[return-value]
