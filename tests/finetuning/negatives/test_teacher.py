"""A CrossEncoder of sentence-transformers as the teacher: a small random one, asked over the index's texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalm_cache.errors import UsageError
from kalm_cache.finetuning.data.example import Item
from kalm_cache.finetuning.negatives.scorers import TeacherScorer
from kalm_cache.index.passage_index import PassageIndex
from tests.finetuning.conftest import WORDS


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("teacher")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
        initializer_range=1.0,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_a_teachers_scores_are_the_logits_over_the_texts_that_the_index_keeps(
    index: PassageIndex, texts: dict[str, str], teacher: Path
) -> None:
    from sentence_transformers import CrossEncoder
    from torch.nn import Identity

    items = [Item("d3", True), Item("bees of the hive", False), Item("d7", True)]
    found = TeacherScorer(index, str(teacher))("bees", None, items)
    pairs = [("bees", text) for text in (texts["d3"], "bees of the hive", texts["d7"])]
    expected = CrossEncoder(str(teacher), device="cpu", activation_fn=Identity()).predict(pairs)
    assert found == pytest.approx([float(score) for score in expected], abs=1e-5)
    assert len(set(found)) == 3


def test_what_is_no_teacher_is_refused(index: PassageIndex, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no CrossEncoder of sentence-transformers"):
        TeacherScorer(index, str(tmp_path))
