import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.reference import INSTRUCTION, SYSTEM, SlowReference, load_slow_reference, mean_of_groups
from kalm_cache.errors import StoreError
from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.prompts import Prompt, PromptTokenizer, load_prompt_tokenizer
from kalm_cache.scoring.attribution import attribute, chunk_texts, focused_mean, observe, query_tokens
from kalm_cache.scoring.pooling import PooledPassage
from kalm_cache.scoring.query_side import QuerySide, load_query_side
from tests.rounding import rms_error
from tests.texts import DOCUMENTS, QUERIES, long_text

TEXT = long_text(60)
QUERY = QUERIES["plain"]


@pytest.fixture(scope="module")
def side(mini: Checkpoint) -> QuerySide:
    return load_query_side(mini, device=torch.device("cpu"), dtype=torch.float32, query_max_length=512)


@pytest.fixture(scope="module")
def eager(mini_folder: Path) -> SlowReference:
    """The reference with transformers' eager attention, which gives its probabilities out."""
    reference = load_slow_reference(mini_folder)
    reference.model.set_attn_implementation("eager")
    return reference


@pytest.fixture(scope="module")
def tokenizer(mini: Checkpoint) -> PromptTokenizer:
    return load_prompt_tokenizer(mini.folder)


def pooled_of(reference: SlowReference, text: str, chunk_size: int) -> PooledPassage:
    ids = reference.passage_ids(text)
    return PooledPassage(len(ids), False, mean_of_groups(reference.states(ids), chunk_size))


@torch.inference_mode()
def attentions(reference: SlowReference, pooled: Tensor) -> list[Tensor]:
    """transformers' attention of every prompt token to every pooled state, (H, T, P) a layer."""
    output = reference.model(
        encoder_outputs=BaseModelOutput(last_hidden_state=pooled.unsqueeze(0)),
        attention_mask=torch.ones(1, len(pooled), dtype=torch.long),
        decoder_input_ids=torch.tensor([reference.prompt_ids(QUERY)]),
        use_cache=False,
        output_attentions=True,
    )
    return [layer[0] for layer in output.cross_attentions]


def explain(side: QuerySide, reference: SlowReference, text: str, chunk_size: int = 4, query: str = QUERY):
    return attribute(
        side,
        side.tokenize(Prompt(query, INSTRUCTION, SYSTEM)),
        text,
        pooled_of(reference, text, chunk_size),
        chunk_size=chunk_size,
        max_length=1024,
    )


@pytest.mark.parametrize("chunk_size", [1, 4, 16])
def test_margin_and_probabilities_equal_transformers(side: QuerySide, eager: SlowReference, chunk_size: int):
    pooled = pooled_of(eager, TEXT, chunk_size).states
    observed = observe(side, side.tokenize(Prompt(QUERY, INSTRUCTION, SYSTEM)), pooled)
    expected = attentions(eager, pooled)
    assert observed.margin == pytest.approx(eager.margin(eager.prompt_ids(QUERY), pooled), abs=2e-5)
    for ours, theirs in zip(observed.layers[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(observed.layers[-1], expected[-1][:, -1:], atol=1e-5, rtol=0)


def test_the_margin_is_that_of_the_fast_path(side: QuerySide, mini_reference: SlowReference):
    prompt = side.tokenize(Prompt(QUERY, INSTRUCTION, SYSTEM))
    pooled = pooled_of(mini_reference, TEXT, 4).states
    assert observe(side, prompt, pooled).margin == pytest.approx(side.margins([prompt], [pooled], 1)[0], abs=1e-4)


# Two bfloat16 runs that round in another order are √2 of one run's error apart, where their errors are independent. Two
# int8 runs differ in the few values that lie at the edge of a step.
@pytest.mark.parametrize(("dtype", "times"), [(torch.bfloat16, 1.5), (torch.int8, 0.5)])
def test_margins_in_fewer_bits_are_no_further_from_the_fast_paths_than_its_own_from_exact_ones(
    mini: Checkpoint, side: QuerySide, mini_reference: SlowReference, dtype: torch.dtype, times: float
):
    rounded = load_query_side(mini, device=torch.device("cpu"), dtype=dtype, query_max_length=512)
    passages = [pooled_of(mini_reference, text, 4).states for text in (TEXT, DOCUMENTS["plain"], DOCUMENTS["emoji"])]
    prompts = [side.tokenize(Prompt(query, INSTRUCTION, SYSTEM)) for query in QUERIES.values()]
    pairs = list(itertools.product(prompts, passages))
    exact, fast = (one.margins(*map(list, zip(*pairs, strict=True)), 32) for one in (side, rounded))
    slow = [observe(rounded, prompt, pooled).margin for prompt, pooled in pairs]
    assert rms_error(slow, fast) <= times * rms_error(fast, exact)


@pytest.mark.parametrize("chunk_size", [1, 4, 32])
def test_weights_sum_to_one_over_chunks_that_have_text(side: QuerySide, mini_reference: SlowReference, chunk_size: int):
    found = explain(side, mini_reference, TEXT, chunk_size)
    assert sum(found.weights) == pytest.approx(1)
    assert min(found.weights) >= 0
    assert len(found.weights) == len(found.chunks)
    assert all(chunk.end > chunk.start for chunk in found.chunks)
    assert found.margin == pytest.approx(
        mini_reference.margin(
            mini_reference.prompt_ids(QUERY),
            mean_of_groups(mini_reference.states(mini_reference.passage_ids(TEXT)), chunk_size),
        ),
        abs=1e-4,
    )


def test_a_passage_without_text_has_no_chunks(side: QuerySide, mini_reference: SlowReference):
    assert explain(side, mini_reference, "", chunk_size=32).weights == []


def test_an_empty_query_is_answered(side: QuerySide, mini_reference: SlowReference):
    assert sum(explain(side, mini_reference, TEXT, query="").weights) == pytest.approx(1)


def test_text_of_another_passage_is_refused(side: QuerySide, mini_reference: SlowReference):
    with pytest.raises(StoreError, match="chunks"):
        attribute(
            side,
            side.tokenize(Prompt(QUERY, INSTRUCTION, SYSTEM)),
            TEXT + " and more of it than before, by far",
            pooled_of(mini_reference, TEXT, 1),
            chunk_size=1,
            max_length=1024,
        )


def test_the_focused_mean_by_hand():
    even, pointed = [0.2, 0.2], [0.0, 0.7]  # of what is left of 1, prompt tokens got the rest
    assert focused_mean([torch.tensor([[even, pointed]])]).tolist() == pytest.approx([0, 1], abs=1e-5)
    assert focused_mean([torch.tensor([[even]])]).tolist() == [0.5, 0.5]
    assert focused_mean([torch.tensor([[[0.3]]])]).tolist() == [1.0]


def test_query_tokens_are_what_an_empty_prompt_has_not():
    assert query_tokens([1, 2, 7, 8, 3, 4], [1, 2, 3, 4]) == range(2, 4)
    assert query_tokens([1, 2, 3, 3, 4], [1, 2, 3, 4]) == range(3, 4)  # a query like the template's own token
    assert query_tokens([1, 2, 3, 4], [1, 2, 3, 4]) == range(4)


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 16])
@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "empty"])
def test_chunks_cover_the_text_in_order_without_overlap(tokenizer: PromptTokenizer, name: str, chunk_size: int):
    text = DOCUMENTS[name]
    chunks = chunk_texts(tokenizer, text, chunk_size, 1024)
    tokens = tokenizer.passage(text, 1024).ids
    assert [chunk.tokens for chunk in chunks] == [
        len(tokens[i : i + chunk_size]) for i in range(0, len(tokens), chunk_size)
    ]
    ends = [0, *(chunk.end for chunk in chunks)]
    assert all(chunk.start >= end for chunk, end in zip(chunks, ends, strict=False))
    missed = text
    for chunk in reversed(chunks):
        missed = missed[: chunk.start] + missed[chunk.end :]
    assert missed.strip() == ""


def test_each_chunk_is_the_text_of_its_tokens(tokenizer: PromptTokenizer):
    text = "Honey bees dance to tell the others where the flowers are."
    ids = tokenizer.passage(text, 1024).ids
    chunks = chunk_texts(tokenizer, text, 4, 1024)
    assert len(chunks) == -(-len(ids) // 4) > 3
    for number, chunk in enumerate(chunks[1:], start=1):  # the first holds the prefix
        own = ids[4 * number : 4 * number + 4]
        assert tokenizer.tokenizer.decode(own).strip() == text[chunk.start : chunk.end].strip()


def test_what_was_cut_has_no_chunk(tokenizer: PromptTokenizer):
    assert sum(chunk.tokens for chunk in chunk_texts(tokenizer, TEXT, 4, 30)) == 30
    assert chunk_texts(tokenizer, TEXT, 4, 30)[-1].end < len(TEXT)
