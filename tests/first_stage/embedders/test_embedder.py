from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kalm_cache.errors import CheckpointError, MissingExtraError
from kalm_cache.first_stage import Embedder, load_embedder
from kalm_cache.first_stage.embedders import embedder
from kalm_cache.first_stage.embedders.embedder import BUNDLED_STATIC
from kalm_cache.first_stage.embedders.static import is_static_folder


def test_a_static_vector_is_the_normalised_mean_of_its_words(static_folder: Path) -> None:
    model: Embedder = load_embedder(str(static_folder))
    assert model.dimension == 2
    vectors = model.embed_passages(["cat", "cat dog", "fish"])  # (3, 4); mean (1.5, 3); (-1, 0)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, np.array([[0.6, 0.8], [0.4472136, 0.8944272], [-1.0, 0.0]]), rtol=1e-6)


def test_texts_without_known_words_embed_to_zero(static_folder: Path) -> None:
    model = load_embedder(str(static_folder))
    assert model.embed_queries(["", "zebra", "?!"]).tolist() == [[0, 0]] * 3
    assert model.embed_queries([]).shape == (0, 2)
    assert model.embed_passages([]).shape == (0, 2)


def test_prompts_go_in_front_of_their_own_side(static_folder: Path) -> None:
    model = load_embedder(str(static_folder), query_prompt="dog ", passage_prompt="fish ")
    plain = load_embedder(str(static_folder))
    assert model.embed_queries(["cat"]).tolist() == plain.embed_queries(["dog cat"]).tolist()
    assert model.embed_passages(["cat"]).tolist() == plain.embed_passages(["fish cat"]).tolist()


def test_the_digest_follows_the_files_and_the_prompts_but_not_the_place(static_folder: Path, tmp_path: Path) -> None:
    digest = load_embedder(str(static_folder)).digest
    assert len(digest) == 64
    moved = shutil.copytree(static_folder, tmp_path / "moved")
    assert load_embedder(str(moved)).digest == digest
    (moved / "README.md").write_text("edited")
    assert load_embedder(str(moved)).digest == digest
    others = [load_embedder(str(moved), query_prompt="a").digest, load_embedder(str(moved), passage_prompt="a").digest]
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    assert len({digest, *others, load_embedder(str(moved)).digest}) == 4


def test_threads_may_share_an_embedder(static_folder: Path) -> None:
    model = load_embedder(str(static_folder))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: model.embed_queries(["cat dog"] * 50).tolist(), range(40)))
    assert all(answer == answers[0] for answer in answers)


def test_damaged_static_weights_are_a_checkpoint_error(static_folder: Path) -> None:
    (static_folder / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_embedder(str(static_folder))


def test_a_damaged_static_tokenizer_is_a_checkpoint_error(static_folder: Path) -> None:
    (static_folder / "tokenizer.json").write_text("garbage")
    with pytest.raises(CheckpointError, match="not a model2vec model"):
        load_embedder(str(static_folder))


def test_a_missing_bundled_embedder_is_a_checkpoint_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "BUNDLED_STATIC", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="reinstall"):
        load_embedder("static")


def test_another_name_without_sentence_transformers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"kalm-cache\[sentence-transformers\]"):
        load_embedder("BAAI/bge-small-en-v1.5")


@pytest.mark.skipif(not is_static_folder(BUNDLED_STATIC), reason="the bundled embedder is not there yet")
def test_the_bundled_embedder_finds_related_texts_nearer_than_unrelated_ones() -> None:
    model = load_embedder("static")
    query = model.embed_queries(["What is the capital of France?"])[0]
    passages = model.embed_passages(["Paris is the capital and largest city of France.", "Cells divide by mitosis."])
    np.testing.assert_allclose(np.linalg.norm(passages, axis=1), 1, rtol=1e-5)
    assert query @ passages[0] > query @ passages[1]
    assert np.isfinite(model.embed_queries(["", " ", "\u200b"])).all()


def _rewrite_vectors(folder: Path, **tensors: np.ndarray) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            {"embeddings": np.ones((2, 4), np.float32).T[:2]},
            "embeddings for 2 tokens, the tokenizer gives 4",
        ),  # transposed
        ({"embeddings": np.ones(4, np.float32)}, "expected rows"),
        ({"embeddings": np.full((4, 2), np.nan, np.float32)}, "finite"),
        ({"embeddings": np.ones((4, 2), np.float32), "mapping": np.array([0, 1, 2, 9])}, "row 9 of 4"),
        ({"embeddings": np.ones((4, 2), np.float32), "mapping": np.array([0, 1, 2])}, "mapping for 3 tokens"),
        ({"embeddings": np.ones((4, 2), np.float32), "mapping": np.array([0, 1, 2, -1])}, "row -1 of 4"),
        ({"embeddings": np.ones((4, 2), np.float32), "weights": np.ones(3)}, "weights of shape"),
    ],
)
def test_static_vectors_that_do_not_fit_the_tokenizer_are_a_checkpoint_error(
    static_folder: Path, tensors: dict[str, np.ndarray], said: str
) -> None:
    _rewrite_vectors(static_folder, **tensors)
    with pytest.raises(CheckpointError, match=said):
        load_embedder(str(static_folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model["vocab"].update(cat=10**9), "the tokenizer gives 1000000001"),
        (lambda model: model.update(unk_token="[NONE]"), "UNK"),
        (lambda model: model["vocab"].clear(), "not a model2vec model"),
    ],
)
def test_a_static_tokenizer_that_cannot_serve_every_text_is_a_checkpoint_error(
    static_folder: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    tokenizer = json.loads((static_folder / "tokenizer.json").read_text())
    change(tokenizer["model"])
    (static_folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=said):
        load_embedder(str(static_folder))


def test_a_static_config_of_brackets_is_a_checkpoint_error(static_folder: Path) -> None:
    (static_folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="nested more than"):
        load_embedder(str(static_folder))
