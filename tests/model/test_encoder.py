from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.reference import SlowReference, load_slow_reference
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.encoder import PassageEncoder
from kalm_cache.model.kernels import Kernels
from kalm_cache.model.layers import layer
from kalm_cache.model.runtime import load_encoder
from tests.checkpoints import MINI, make_checkpoint
from tests.texts import DOCUMENTS, long_text

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(mini: Checkpoint) -> PassageEncoder:
    return load_encoder(mini, CPU, torch.float32)


@pytest.fixture
def encoder(loaded: PassageEncoder, kernels: Kernels) -> PassageEncoder:
    return PassageEncoder(replace(loaded.stack, kernels=kernels))


def encode(encoder: PassageEncoder, *passages: list[int]) -> list[torch.Tensor]:
    """States of passages, computed together."""
    ids = torch.tensor([token for tokens in passages for token in tokens])
    lengths = [len(tokens) for tokens in passages]
    return list(encoder(ids, lengths).split(lengths))


@pytest.mark.parametrize("document", [*DOCUMENTS.values(), long_text(100)], ids=[*DOCUMENTS, "long"])
def test_states_equal_the_references(encoder: PassageEncoder, mini_reference: SlowReference, document: str):
    ids = mini_reference.passage_ids(document)
    torch.testing.assert_close(encode(encoder, ids)[0], mini_reference.states(ids), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 7, 8])
def test_any_sliding_window_equals_the_references(tmp_path: Path, kernels: Kernels, window: int):
    folder = make_checkpoint(tmp_path, replace(MINI, sliding_window=window))
    reference = load_slow_reference(folder)
    ids = reference.passage_ids(long_text(30))
    stack = load_encoder(open_checkpoint(str(folder)), CPU, torch.float32).stack
    [states] = encode(PassageEncoder(replace(stack, kernels=kernels)), ids)
    torch.testing.assert_close(states, reference.states(ids), atol=2e-5, rtol=1e-5)


def test_the_passages_of_a_batch_change_no_state(encoder: PassageEncoder, mini_reference: SlowReference):
    texts = [long_text(60), DOCUMENTS["plain"], DOCUMENTS["one_word"], long_text(17, 1), DOCUMENTS["empty"]]
    passages = [mini_reference.passage_ids(text) for text in texts]
    for order in (passages, passages[::-1]):
        for tokens, states in zip(order, encode(encoder, *order), strict=True):
            torch.testing.assert_close(states, encode(encoder, tokens)[0], atol=1e-5, rtol=1e-5)


def test_a_passage_of_one_token_has_a_state(encoder: PassageEncoder, mini_reference: SlowReference):
    torch.testing.assert_close(encode(encoder, [42])[0], mini_reference.states([42]), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("mlp_bytes", [1, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_blocks_of_the_mlp_change_no_state(
    monkeypatch: pytest.MonkeyPatch,
    mini: Checkpoint,
    mini_reference: SlowReference,
    dtype: torch.dtype,
    mlp_bytes: int,
):
    encoder = load_encoder(mini, CPU, dtype)
    ids = mini_reference.passage_ids(long_text(20))
    [whole] = encode(encoder, ids)
    monkeypatch.setattr(layer, "MLP_BYTES", mlp_bytes)  # a row, and a few rows, at a time
    torch.testing.assert_close(encode(encoder, ids)[0], whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_the_same_batch_gives_the_same_bits(mini: Checkpoint, mini_reference: SlowReference, dtype: torch.dtype):
    encoder = load_encoder(mini, CPU, dtype)
    passages = [mini_reference.passage_ids(text) for text in (long_text(40), DOCUMENTS["plain"])]
    for left, right in zip(encode(encoder, *passages), encode(encoder, *passages), strict=True):
        assert torch.equal(left, right)
