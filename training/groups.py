"""What a training step sees: groups of neighbouring passages, each with several queries. Knows nothing of models.

A group is one seed query's relevant passage with hard neighbours (BM25's and the static embedder's), and further
queries of the same passages: real ones where there are any, otherwise made from the passage's own words.
"""

import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from model2vec import StaticModel
from transformers import PreTrainedTokenizerBase

from training.data import CORPORA, read_corpus, read_pairs
from training.distil_encoder import Passages
from training.tokenizer import INSTRUCTION, SYSTEM

SHARES = {"boolq": 0.28, "cosqa": 0.07, "halueval-hotpot": 0.18, "medquad": 0.16, "scifact": 0.24, "tatqa": 0.07}
INSTRUCTIONS = {
    "boolq": "Given a question, retrieve Wikipedia passages that answer it.",
    "cosqa": "Given a web query, retrieve Python code that implements it.",
    "halueval-hotpot": "Given a multi-hop question, retrieve documents that can help answer the question.",
    "medquad": "Given a medical question, retrieve passages that answer the question.",
    "scifact": "Given a scientific claim, retrieve documents that support or refute the claim.",
    "tatqa": "Given a financial question, retrieve passages or tables that answer the question.",
}
OTHER_INSTRUCTIONS = (
    "Given a web search query, retrieve relevant passages that answer the query.",
    "Find passages relevant to the query.",
    "Given a question, retrieve passages that contain the answer.",
)
WH = (
    "what|who|when|where|which|how many|how|why|what is|what was|who was|what did|in what year did|what type of"
    "|which of"
)
STOP = (
    "a an the of in on at to for from by with and or but as is are was were be been being it its this that "
    "these those he she his her they their them we our you your i not no do does did has have had can could may might "
    "will would which who whom what when where why how than then so such also into over under between after before "
    "during about all any both each more most other some only own same too very s t - , . ; : ( ) ' \" [ ] / ` ?"
)
MAX_QUERY = 40


@dataclass(frozen=True, slots=True)
class Query:
    """Token ids of a query and the passage rows that are relevant to it."""

    ids: tuple[int, ...]
    positives: frozenset[int]
    neighbours: tuple[int, ...]
    corpus: int
    real: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Passage rows and the queries that are scored against every one of them."""

    rows: tuple[int, ...]
    queries: tuple[Query, ...]


class Maker:
    """Draws groups. One instance a worker; everything random comes from its own generator."""

    def __init__(self, data: Path, work: Path, embedder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.passages = Passages(work / "passages.npz")
        with np.load(work / "passages.npz") as arrays:
            self.corpus, keys = arrays["corpus"], arrays["keys"]
        row_of = {key: row for row, key in enumerate(keys.tolist())}
        vocabulary = tokenizer.get_vocab()
        words = sorted(vocabulary, key=vocabulary.__getitem__)
        self.continues = np.array([w.startswith("##") for w in words])
        self.stop = np.zeros(len(words), bool)
        self.stop[[vocabulary[w] for w in STOP.split() if w in vocabulary]] = True
        self.ends = {vocabulary[c] for c in ".?!"}
        self.wh = [tokenizer(w, add_special_tokens=False)["input_ids"] for w in WH.split("|")]
        self.question_mark = vocabulary["?"]
        self.bm25 = bm25_weights(self.passages, len(words))
        static = StaticModel.from_pretrained(str(embedder))
        self.queries: list[Query] = []
        self.held_out: list[Query] = []
        self.by_corpus: list[list[int]] = [[] for _ in CORPORA]
        self.of_passage: dict[int, list[int]] = {}
        vectors = []
        for number, name in enumerate(CORPORA):
            vectors.append(static.encode([f"{p.title} {p.text}" for p in read_corpus(data, name)]))
            first = int(np.argmax(self.corpus == number))
            self._add_pairs(data, name, number, row_of, static, vectors[-1], first, tokenizer)
        self.vectors = np.concatenate(vectors)

    def _add_pairs(
        self,
        data: Path,
        name: str,
        number: int,
        row_of: dict[str, int],
        static: StaticModel,
        vectors: np.ndarray,
        first: int,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        pairs = read_pairs(data, name)
        near = np.argpartition(-(static.encode([p.query for p in pairs]) @ vectors.T), 20, axis=1)[:, :20] + first
        tokens = tokenizer([p.query for p in pairs], add_special_tokens=False)["input_ids"]
        for pair, ids, dense in zip(pairs, tokens, near.tolist(), strict=True):
            positives = frozenset(row_of[f"{name}/{p}"] for p in pair.positives)
            sparse = [row_of[f"{name}/{p}"] for p in pair.negatives if f"{name}/{p}" in row_of]
            hard = tuple(dict.fromkeys(r for r in sparse + dense if r not in positives))
            query = Query(tuple(ids[:MAX_QUERY]), positives, hard, number, True)
            # Held out by the query's own text, so that every worker and every run agrees.
            if zlib.crc32(pair.query.encode()) % 100 < (12 if name == "scifact" else 4):
                self.held_out.append(query)
                continue
            self.by_corpus[number].append(len(self.queries))
            for row in positives:
                self.of_passage.setdefault(row, []).append(len(self.queries))
            self.queries.append(query)

    def group(self, rng: np.random.Generator, size: int, queries: int) -> Group:
        """One group of `size` passages and `queries` queries."""
        number = int(rng.choice(len(CORPORA), p=[SHARES[name] for name in CORPORA]))
        if rng.random() < 0.75:
            pool = self.by_corpus[number]
            seed = self.queries[pool[int(rng.integers(len(pool)))]]
        else:
            seed = self.invent(rng, int(rng.choice(np.flatnonzero(self.corpus == number))))
        positive = int(rng.choice(sorted(seed.positives)))
        hard = [r for r in seed.neighbours if r != positive] or self.near(positive)
        chosen = rng.permutation(hard)[: size - 1].tolist()
        while len(chosen) < size - 1:
            chosen.append(int(rng.choice(np.flatnonzero(self.corpus == number))))
        rows = [positive, *chosen]
        asked = [seed]
        for row in rng.permutation(rows).tolist():
            if len(asked) == queries:
                break
            known = self.of_passage.get(row, [])
            if known and row != positive and rng.random() < 0.6:
                asked.append(self.queries[known[int(rng.integers(len(known)))]])
            else:
                asked.append(self.invent(rng, row))
        return Group(tuple(rng.permutation(rows).tolist()), tuple(asked))

    def near(self, row: int) -> list[int]:
        """The 24 passages of the same corpus nearest to one, by the static embedder."""
        same = np.flatnonzero(self.corpus == self.corpus[row])
        scores = self.vectors[same] @ self.vectors[row]
        best = np.argpartition(-scores, 25)[:25]
        return [int(r) for r in same[best] if r != row]

    def invent(self, rng: np.random.Generator, row: int) -> Query:
        """A query from a passage's own words: a thinned sentence, keywords, or a sentence with a hole as a question."""
        tokens = self.passages.ids[self.passages.offsets[row] + 1 : self.passages.offsets[row + 1]].tolist()
        words = split_words(tokens, self.continues)
        sentence = self._sentence(rng, words)
        kind = rng.random()
        if kind < 0.35:
            kept = [w for w in sentence[:26] if rng.random() > 0.3]
        elif kind < 0.65:
            content = [w for w in sentence if not self.stop[w[0]]]
            take = int(rng.integers(2, 8))
            kept = [content[i] for i in sorted(rng.permutation(len(content))[:take])]
        else:
            size = int(rng.integers(5, 15))
            start = int(rng.integers(0, max(1, len(sentence) - size)))
            window = sentence[start : start + size]
            hole = int(rng.integers(0, max(1, len(window) - 1)))
            width = int(rng.integers(1, 4))
            rest = [w for w in window[:hole] + window[hole + width :] if not self.stop[w[0]] or rng.random() > 0.3]
            kept = [self.wh[int(rng.integers(len(self.wh)))], *rest, [self.question_mark]]
        ids = [t for w in (kept or sentence[:8]) for t in w]
        kept_ids = tuple(ids[:MAX_QUERY]) or (self.question_mark,)
        return Query(kept_ids, frozenset([row]), (), int(self.corpus[row]), False)

    def _sentence(self, rng: np.random.Generator, words: list[list[int]]) -> list[list[int]]:
        stops = [i for i, w in enumerate(words) if w[0] in self.ends]
        bounds = [0, *(i + 1 for i in stops), len(words)]
        spans = [(a, b) for a, b in pairwise(bounds) if b - a >= 6] or [(0, len(words))]
        start, end = spans[int(rng.integers(len(spans)))]
        return [w for w in words[start:end] if w[0] not in self.ends] or words

    def lexical(self, queries: list[Query], rows: list[int]) -> np.ndarray:
        """BM25 over word pieces of every query against every row: (Q, R) float32."""
        selected = self.bm25[rows]  # (R, V)
        pieces = [sorted(set(q.ids)) for q in queries]
        flat = [t for p in pieces for t in p]
        offsets = np.cumsum([0] + [len(p) for p in pieces])
        wanted = sp.csr_matrix((np.ones(len(flat), np.float32), flat, offsets), (len(queries), selected.shape[1]))
        return np.asarray((wanted @ selected.T).todense())


def split_words(tokens: list[int], continues: np.ndarray) -> list[list[int]]:
    """Word pieces joined into words."""
    words: list[list[int]] = []
    for token in tokens:
        if words and continues[token]:
            words[-1].append(token)
        else:
            words.append([token])
    return words


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
