"""Small real indexes: a model2vec embedder of random vectors, corpora as lines, and jobs that build from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from indexer.build.index_job import Encoders, IndexReport, load_encoders, run_index_job
from indexer.corpus import CorpusLine, RejectedLine
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.publish import receipts
from kalm_cache.passage import Passage
from kalm_cache.settings import Settings, load_settings
from tests.texts import TRAINING_SENTENCES, long_text

TEXTS = {f"d{i}": long_text(words, seed=i) for i, words in enumerate([3, 40, 12, 25, 7, 60, 18, 9, 33, 14, 50, 5])}


WORDS = (*TRAINING_SENTENCES, "rarewordx")


def make_embedder(folder: Path, dimension: int = 8, texts: Iterable[str] = WORDS) -> Path:
    """A model2vec model with a random vector for each word of these texts."""
    from model2vec import StaticModel
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = dict.fromkeys(word for text in ("[UNK]", *texts) for word in text.split())
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    vectors = np.random.default_rng(0).normal(size=(len(vocabulary), dimension)).astype(np.float32)
    StaticModel(vectors, tokenizer).save_pretrained(folder)
    return folder


def settings_for(model: Path, embedder: Path, **changes: Any) -> Settings:
    """Settings on the CPU, in float32 in every process, whose batches hold a handful of the test passages."""
    defaults = {
        "model": str(model),
        "embedder": str(embedder),
        "device": "cpu",
        "dtype": "float32",
        "batch_tokens": 150,
    }
    return load_settings(**(defaults | changes))


def lines_of(texts: dict[str, str] | Iterable[tuple[str, str]]) -> list[CorpusLine | RejectedLine]:
    """Corpus lines as a reader yields them, with locations `c:1`, `c:2`, …"""
    pairs = texts.items() if isinstance(texts, dict) else texts
    return [CorpusLine(Passage(doc_id, text), f"c:{ordinal}") for ordinal, (doc_id, text) in enumerate(pairs, start=1)]


def build(
    index: Path,
    settings: Settings,
    texts: dict[str, str] | Iterable[tuple[str, str]],
    *,
    encoders: Encoders | None = None,
    rejected: list[RejectedLine] | None = None,
    shards: int | None = None,
) -> IndexReport:
    """Run the whole index job; rejected lines go into `rejected`."""
    return run_index_job(
        lines_of(texts),
        index,
        settings,
        encoders or load_encoders(settings),
        on_reject=(rejected if rejected is not None else []).append,
        on_progress=lambda progress: None,
        shards=shards,
    )


def shard_of(index: Path, generation: str = "000001") -> Path:
    """The folder of a generation's one segment."""
    return index / "generations" / generation / "shards" / "00000"


def seal_again(index: Path, **changes: Any) -> None:
    """Change fields of the live manifest, and give every file the receipt of its present content."""
    live = open_current(index)
    manifest = replace(live.manifest, files=receipts(live.folder), **changes)
    (live.folder / "manifest.json").write_bytes(manifest.to_json())
