from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalm_cache.errors import CheckpointError
from kalm_cache.first_stage import load_embedder

pytest.importorskip("sentence_transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "fish", "query", "passage", ":"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of one layer with prompts of its own, saved as sentence-transformers saves it."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=32)
    tokenizer.save_pretrained(folder / "hf")
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder / "hf")
    transformer = Transformer(str(folder / "hf"))
    prompts = {"query": "query: ", "document": "passage: "}
    SentenceTransformer(modules=[transformer, Pooling(16)], prompts=prompts, device="cpu").save(str(folder / "st"))
    return folder / "st"


def test_a_sentence_transformer_gives_unit_vectors_with_its_own_prompts(bert_folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = load_embedder(str(bert_folder))
    reference = SentenceTransformer(str(bert_folder), device="cpu")
    assert model.dimension == 16
    for vectors, prompt in (
        (model.embed_queries(["cat dog"]), "query: "),
        (model.embed_passages(["cat dog"]), "passage: "),
    ):
        expected = reference.encode([prompt + "cat dog"], prompt="", normalize_embeddings=True)
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
        assert vectors.dtype == np.float32


def test_a_given_prompt_replaces_that_of_the_model(bert_folder: Path) -> None:
    own = load_embedder(str(bert_folder))
    swapped = load_embedder(str(bert_folder), query_prompt="passage: ", passage_prompt="query: ")
    np.testing.assert_allclose(swapped.embed_queries(["cat"]), own.embed_passages(["cat"]), atol=1e-6)
    np.testing.assert_allclose(swapped.embed_passages(["cat"]), own.embed_queries(["cat"]), atol=1e-6)
    assert swapped.digest != own.digest


def test_empty_and_unknown_texts_give_finite_vectors(bert_folder: Path) -> None:
    model = load_embedder(str(bert_folder))
    assert np.isfinite(model.embed_queries(["", "zebra"])).all()
    assert model.embed_queries([]).shape == (0, 16)


def test_a_static_embedding_module_gives_zero_for_an_empty_text(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    module = StaticEmbedding(Tokenizer(WordLevel({"cat": 0, "dog": 1}, unk_token="cat")), embedding_weights=np.eye(2))
    SentenceTransformer(modules=[module], device="cpu").save(str(tmp_path))
    model = load_embedder(str(tmp_path))
    assert model.embed_passages(["dog", ""]).tolist() == [[0, 1], [0, 0]]


def test_a_model_that_is_nowhere_is_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError, match="nobody/nothing"):
        load_embedder("nobody/nothing")
    with pytest.raises(CheckpointError, match="no/such/folder/at/all"):
        load_embedder("no/such/folder/at/all")


def test_a_folder_without_safetensors_is_a_checkpoint_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_embedder(str(tmp_path))


def test_a_model_is_loaded_on_the_device_that_was_asked_for(bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sentence_transformers

    devices = []

    class Noting(sentence_transformers.SentenceTransformer):
        def __init__(self, *args: object, device: str | None, **options: object) -> None:
            devices.append(device)
            super().__init__(*args, device="cpu", **options)

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", Noting)
    load_embedder(str(bert_folder), device="cuda:3")
    assert devices == ["cuda:3"]
