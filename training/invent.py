"""Queries made from a passage's own words: a thinned sentence, keywords, or a sentence with a hole as a question.

    python -m training.invent --tokenizer DIR --work WORK

leaves WORK/invented.npz: flat ids, offsets and the passage that each query was made from. Knows nothing of models.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from training.passages import Passages, flatten

WH = (
    "what|who|when|where|which|how many|how|why|what is|what was|who was|what did|in what year did|what type of"
    "|which of|what are|how do i|does|is|can"
)
STOP = (
    "a an the of in on at to for from by with and or but as is are was were be been being it its this that "
    "these those he she his her they their them we our you your i not no do does did has have had can could may might "
    "will would which who whom what when where why how than then so such also into over under between after before "
    "during about all any both each more most other some only own same too very s t - , . ; : ( ) ' \" [ ] / ` ?"
)
PER_PASSAGE = 2
LONG = 0.06  # share of queries of several sentences


class Inventor:
    """Draws queries from passages; everything random comes from the caller's generator."""

    def __init__(self, passages: Passages, tokenizer: PreTrainedTokenizerBase) -> None:
        self.passages = passages
        vocabulary = tokenizer.get_vocab()
        words = sorted(vocabulary, key=vocabulary.__getitem__)
        self.continues = np.array([w.startswith("##") for w in words])
        self.stop = np.zeros(len(words), bool)
        self.stop[[vocabulary[w] for w in STOP.split() if w in vocabulary]] = True
        self.ends = {vocabulary[c] for c in ".?!"}
        self.wh = [tokenizer(w, add_special_tokens=False)["input_ids"] for w in WH.split("|")]
        self.question_mark = vocabulary["?"]

    def invent(self, rng: np.random.Generator, row: int) -> list[int]:
        """Token ids of one query about a passage; at least one id."""
        tokens = self.passages.tokens(row)[1:].tolist()
        words = split_words(tokens, self.continues)
        if not words:
            return [self.question_mark]
        if rng.random() < LONG:
            start = int(rng.integers(max(1, len(words) - 60)))
            kept = [w for w in words[start : start + 90] if rng.random() > 0.45]
            return [t for w in kept for t in w] or words[0]
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
        return [t for w in (kept or sentence[:8]) for t in w]

    def _sentence(self, rng: np.random.Generator, words: list[list[int]]) -> list[list[int]]:
        stops = [i for i, w in enumerate(words) if w[0] in self.ends]
        bounds = [0, *(i + 1 for i in stops), len(words)]
        spans = [(a, b) for a, b in pairwise(bounds) if b - a >= 6] or [(0, len(words))]
        start, end = spans[int(rng.integers(len(spans)))]
        return [w for w in words[start:end] if w[0] not in self.ends] or words


def split_words(tokens: list[int], continues: np.ndarray) -> list[list[int]]:
    """Word pieces joined into words."""
    words: list[list[int]] = []
    for token in tokens:
        if words and continues[token]:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def main() -> None:
    """Writes WORK/invented.npz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    passages = Passages(args.work / "passages.npz")
    inventor = Inventor(passages, AutoTokenizer.from_pretrained(args.tokenizer))
    rows = np.repeat(np.arange(len(passages)), PER_PASSAGE)
    flat, offsets = flatten([inventor.invent(rng, int(row))[:96] for row in rows])
    np.savez(args.work / "invented.npz", ids=flat, offsets=offsets, rows=rows)
    print(len(rows), "queries")


if __name__ == "__main__":
    main()
