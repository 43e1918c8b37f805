from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.reference import SlowReference, load_slow_reference, mean_of_groups
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.decoder import QueryDecoder, causal_window
from kalm_cache.model.runtime import load_decoder
from tests.checkpoints import FULL, MINI, SLIDING, make_checkpoint
from tests.texts import DOCUMENTS, QUERIES, long_text

CPU = torch.device("cpu")


def answer_ids(reference: SlowReference) -> tuple[int, int]:
    yes, no = (reference.tokenizer(word, add_special_tokens=False)["input_ids"][-1] for word in ("yes", "no"))
    return yes, no


def load(folder: Path, reference: SlowReference) -> QueryDecoder:
    return load_decoder(open_checkpoint(str(folder)), answer_ids(reference), CPU, torch.float32)


def decode(decoder: QueryDecoder, ids: list[int], pooled: torch.Tensor) -> float:
    last, mask = torch.tensor([len(ids) - 1]), torch.ones(1, len(pooled), dtype=torch.bool)
    with torch.inference_mode():
        return decoder(torch.tensor([ids]), last, pooled.unsqueeze(0), mask).item()


@pytest.fixture(scope="module")
def decoder(mini: Checkpoint, mini_reference: SlowReference) -> QueryDecoder:
    return load_decoder(mini, answer_ids(mini_reference), CPU, torch.float32)


@pytest.fixture(scope="module")
def pooled(mini_reference: SlowReference) -> torch.Tensor:
    return mean_of_groups(mini_reference.states(mini_reference.passage_ids(DOCUMENTS["plain"])), 4)


def test_a_token_sees_itself_and_the_window_before_it():
    assert causal_window(4, 2, CPU).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


def test_a_window_as_long_as_the_text_is_plain_causal_attention():
    assert torch.equal(causal_window(5, 5, CPU), torch.ones(5, 5).tril().bool())


@pytest.mark.parametrize("query", [*QUERIES.values(), long_text(80)], ids=[*QUERIES, "long"])
def test_margins_equal_the_references(
    decoder: QueryDecoder, mini_reference: SlowReference, pooled: torch.Tensor, query: str
):
    ids = mini_reference.prompt_ids(query)
    assert decode(decoder, ids, pooled) == pytest.approx(mini_reference.margin(ids, pooled), abs=2e-5)


@pytest.mark.parametrize(
    "shape",
    [
        replace(MINI, final_logit_softcapping=3.0),
        replace(MINI, rope_factor=8.0),
        replace(MINI, sliding_window=7),
        replace(MINI, num_key_value_heads=4),
        replace(MINI, query_pre_attn_scalar=100),
        replace(MINI, layer_types=(SLIDING, SLIDING)),
        replace(MINI, layer_types=(FULL,)),
    ],
    ids=["softcap", "linear rope", "odd window", "as many kv heads", "scale", "sliding only", "full only"],
)
def test_every_option_of_the_architecture_equals_the_reference(tmp_path: Path, shape):
    folder = make_checkpoint(tmp_path, shape)
    reference = load_slow_reference(folder)
    decoder = load(folder, reference)
    states = reference.states(reference.passage_ids(DOCUMENTS["plain"]))
    for query in (QUERIES["plain"], QUERIES["specials"]):
        ids = reference.prompt_ids(query)
        assert decode(decoder, ids, states) == pytest.approx(reference.margin(ids, states), abs=2e-5)


def test_padding_of_prompts_and_of_pooled_states_changes_no_margin(
    decoder: QueryDecoder, mini_reference: SlowReference, pooled: torch.Tensor
):
    prompts = [mini_reference.prompt_ids(QUERIES[name]) for name in ("plain", "chinese")]
    passages = [pooled, pooled[:2]]
    ids = torch.full((2, max(map(len, prompts))), 3)
    memory, mask = torch.full((2, len(pooled), 64), 9.0), torch.zeros(2, len(pooled), dtype=torch.bool)
    for row, (prompt, states) in enumerate(zip(prompts, passages, strict=True)):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        memory[row, : len(states)] = states
        mask[row, : len(states)] = True
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    with torch.inference_mode():
        margins = decoder(ids, last, memory, mask).tolist()
    alone = [decode(decoder, prompt, states) for prompt, states in zip(prompts, passages, strict=True)]
    assert margins == pytest.approx(alone, abs=1e-5)


def test_the_order_of_pooled_states_does_not_matter(
    decoder: QueryDecoder, mini_reference: SlowReference, pooled: torch.Tensor
):
    ids = mini_reference.prompt_ids(QUERIES["plain"])
    assert decode(decoder, ids, pooled.flip(0)) == pytest.approx(decode(decoder, ids, pooled), abs=1e-5)
