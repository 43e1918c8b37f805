from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.reference import SlowReference, load_slow_reference
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.encoder import PassageEncoder, bidirectional_window
from kalm_cache.model.runtime import load_encoder
from tests.checkpoints import MINI, make_checkpoint
from tests.texts import DOCUMENTS, long_text

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(mini: Checkpoint) -> PassageEncoder:
    return load_encoder(mini, CPU, torch.float32)


def encode(encoder: PassageEncoder, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return encoder(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))[0]


def test_an_even_window_sees_one_token_more_to_the_right_than_to_the_left():
    # 4: the token itself and 1 to the left, 2 to the right
    assert bidirectional_window(5, 4, CPU).int().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
    ]


def test_an_odd_window_sees_as_far_left_as_right():
    assert bidirectional_window(4, 3, CPU).int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [0, 1, 1, 1],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize("document", [*DOCUMENTS.values(), long_text(100)], ids=[*DOCUMENTS, "long"])
def test_states_equal_the_references(encoder: PassageEncoder, mini_reference: SlowReference, document: str):
    ids = mini_reference.passage_ids(document)
    torch.testing.assert_close(encode(encoder, ids), mini_reference.states(ids), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 7, 8])
def test_any_sliding_window_equals_the_references(tmp_path: Path, window: int):
    folder = make_checkpoint(tmp_path, replace(MINI, sliding_window=window))
    reference = load_slow_reference(folder)
    ids = reference.passage_ids(long_text(30))
    states = encode(load_encoder(open_checkpoint(str(folder)), CPU, torch.float32), ids)
    torch.testing.assert_close(states, reference.states(ids), atol=2e-5, rtol=1e-5)


def test_padding_changes_no_real_state(encoder: PassageEncoder, mini_reference: SlowReference):
    long, short = (mini_reference.passage_ids(text) for text in (long_text(60), DOCUMENTS["plain"]))
    ids = torch.full((2, len(long)), 5)
    mask = torch.zeros(2, len(long), dtype=torch.bool)
    for row, tokens in enumerate((long, short)):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = True
    with torch.inference_mode():
        states = encoder(ids, mask)
    assert torch.isfinite(states).all()
    for row, tokens in enumerate((long, short)):
        torch.testing.assert_close(states[row, : len(tokens)], encode(encoder, tokens), atol=1e-5, rtol=1e-5)
