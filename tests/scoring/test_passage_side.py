from pathlib import Path

import pytest
import torch

from benchmarks.reference import SlowReference, mean_of_groups
from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.scoring.passage_side import PassageSide, load_passage_side
from kalm_cache.scoring.pooling import mean_pool
from tests.texts import DOCUMENTS, long_text

DOCS = [*DOCUMENTS.values(), long_text(60)]


def load(checkpoint: Checkpoint, **options: object) -> PassageSide:
    defaults = {"device": torch.device("cpu"), "dtype": torch.float32, "max_length": 1024, "chunk_size": 4}
    return load_passage_side(checkpoint, **{**defaults, **options})


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 32])
def test_pooled_states_equal_the_references(mini: Checkpoint, mini_reference: SlowReference, chunk_size: int):
    side = load(mini, chunk_size=chunk_size)
    for document, pooled in zip(DOCS, side.encode(side.tokenize(DOCS)), strict=True):
        states = mini_reference.states(mini_reference.passage_ids(document))
        torch.testing.assert_close(pooled, mean_of_groups(states, chunk_size), atol=2e-5, rtol=1e-5)


def test_a_passage_gives_one_pooled_state_for_every_chunk_of_its_tokens(mini: Checkpoint):
    side = load(mini)
    batch = side.tokenize(DOCS)
    for tokens, pooled in zip(batch, side.encode(batch), strict=True):
        assert pooled.shape == ((len(tokens.ids) + 3) // 4, 64)


def test_batch_composition_does_not_change_the_states(mini: Checkpoint):
    side = load(mini)
    together = side.encode(side.tokenize(DOCS))
    for document, pooled in zip(DOCS, together, strict=True):
        [alone] = side.encode(side.tokenize([document]))
        torch.testing.assert_close(pooled, alone, atol=1e-5, rtol=1e-5)


def test_a_long_passage_is_cut_at_max_length_and_says_so(mini: Checkpoint, mini_reference: SlowReference):
    side = load(mini, max_length=17, chunk_size=1)
    short, long = side.tokenize(["short", long_text(60)])
    assert (short.truncated, long.truncated) == (False, True)
    expected = mini_reference.states(mini_reference.passage_ids(long_text(60), max_length=17))
    torch.testing.assert_close(side.encode([long])[0], expected, atol=2e-5, rtol=1e-5)


def test_states_are_in_the_dtype_of_the_run(mini: Checkpoint):
    side = load(mini, dtype=torch.bfloat16)
    assert side.encode(side.tokenize(["text"]))[0].dtype == torch.bfloat16


@pytest.mark.parametrize(("dtype", "states"), [(torch.float16, torch.float16), (torch.int8, torch.float32)])
def test_states_of_an_int8_run_are_float32(mini: Checkpoint, dtype: torch.dtype, states: torch.dtype):
    side = load(mini, dtype=dtype)
    assert side.encode(side.tokenize(["text"]))[0].dtype == states


@pytest.mark.parametrize(("stored_chunk_size", "chunk_size"), [(1, 4), (2, 8), (4, 4), (4, 32), (8, 16)])
def test_states_stored_at_a_ratio_serve_any_multiple_of_it(
    mini: Checkpoint, mini_reference: SlowReference, stored_chunk_size: int, chunk_size: int
):
    stored, direct = load(mini, chunk_size=stored_chunk_size), load(mini, chunk_size=chunk_size)
    batch = stored.tokenize(DOCS)
    tokens = [len(one.ids) for one in batch]
    served = mean_pool(torch.cat(stored.encode(batch)), tokens, chunk_size, stored_chunk_size=stored_chunk_size)
    for document, ours, pooled in zip(DOCS, served, direct.encode(batch), strict=True):
        torch.testing.assert_close(ours, pooled, atol=1e-5, rtol=1e-5)
        exact = mean_of_groups(mini_reference.states(mini_reference.passage_ids(document)), chunk_size)
        torch.testing.assert_close(ours, exact, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_documents_are_encoded_in_batches_and_come_back_in_order(mini: Checkpoint, batch_size: int):
    side = load(mini, max_length=40)
    passages = side.encode_documents(DOCS, batch_size)
    for tokens, passage in zip(side.tokenize(DOCS), passages, strict=True):
        assert (passage.tokens, passage.truncated) == (len(tokens.ids), tokens.truncated)
        torch.testing.assert_close(passage.states, side.encode([tokens])[0], atol=1e-5, rtol=1e-5)
    assert [passage.truncated for passage in passages].count(True) >= 1


def test_no_documents_have_no_states(mini: Checkpoint):
    assert load(mini).encode_documents([], 8) == []


def test_no_documents_have_no_tokens(mini: Checkpoint):
    assert load(mini).tokenize([]) == []


def test_the_tokenizer_of_the_folder_is_used(mini_folder: Path, mini: Checkpoint, mini_reference: SlowReference):
    assert [tokens.ids for tokens in load(mini).tokenize(DOCS)] == [mini_reference.passage_ids(text) for text in DOCS]
