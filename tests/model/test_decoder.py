from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.reference import INSTRUCTION, SYSTEM, SlowReference, load_slow_reference, mean_of_groups
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.decoder import QueryDecoder
from kalm_cache.model.kernels import Kernels
from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.layers.decoder_pass import Prompts
from kalm_cache.model.runtime import load_decoder
from tests.checkpoints import FULL, MINI, SLIDING, make_checkpoint
from tests.rounding import rms_error
from tests.texts import DOCUMENTS, QUERIES, long_text

CPU = torch.device("cpu")
# Of a float32 run: what is rounded is the same on every processor. 0.02 and 0.043 were seen; margins are units apart.
KEPT_WITHIN = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.int8: 0.1}


def answer_ids(reference: SlowReference) -> tuple[int, int]:
    yes, no = (reference.tokenizer(word, add_special_tokens=False)["input_ids"][-1] for word in ("yes", "no"))
    return yes, no


def load(folder: Path, reference: SlowReference, kernels: Kernels, dtype: torch.dtype = torch.float32) -> QueryDecoder:
    decoder = load_decoder(open_checkpoint(str(folder)), answer_ids(reference), CPU, dtype)
    return replace(decoder, stack=replace(decoder.stack, kernels=kernels))


def decode(decoder: QueryDecoder, pairs: Sequence[tuple[list[int], Tensor]]) -> list[float]:
    """Margins of pairs, computed together; equal prompts are given once."""
    distinct = [list(ids) for ids in dict.fromkeys(tuple(ids) for ids, _ in pairs)]
    prompts = Prompts(distinct, [distinct.index(ids) for ids, _ in pairs])
    states = torch.cat([pooled for _, pooled in pairs]).to(decoder.stack.dtype)
    return decoder.margins(prompts, states, [len(pooled) for _, pooled in pairs]).tolist()


def decode_after(
    decoder: QueryDecoder, pairs: Sequence[tuple[list[int], Tensor]], cut: int, dtype: torch.dtype
) -> list[float]:
    """`decode`, but the first `cut` tokens of the prompts, all equal, are run and kept before."""
    prefix = tuple(pairs[0][0][:cut])
    assert all(tuple(ids[:cut]) == prefix for ids, _ in pairs)
    cached = decoder.prefill(
        prefix,
        torch.cat([pooled for _, pooled in pairs]).to(decoder.stack.dtype),
        [len(pooled) for _, pooled in pairs],
        dtype,
    )
    return decoder.margins_after(Prompts([ids[cut:] for ids, _ in pairs], list(range(len(pairs)))), cached).tolist()


@pytest.fixture(scope="module")
def loaded(mini: Checkpoint, mini_reference: SlowReference) -> QueryDecoder:
    return load_decoder(mini, answer_ids(mini_reference), CPU, torch.float32)


@pytest.fixture
def decoder(loaded: QueryDecoder, kernels: Kernels) -> QueryDecoder:
    return replace(loaded, stack=replace(loaded.stack, kernels=kernels))


@pytest.fixture(scope="module")
def pooled(mini_reference: SlowReference) -> Tensor:
    return mean_of_groups(mini_reference.states(mini_reference.passage_ids(DOCUMENTS["plain"])), 4)


@pytest.fixture(scope="module")
def pairs(mini_reference: SlowReference) -> list[tuple[list[int], Tensor]]:
    """Prompts and passages of many lengths, some prompts and one passage more than once."""
    prompts = [mini_reference.prompt_ids(QUERIES[name]) for name in ("plain", "chinese", "plain", "empty", "emoji")]
    texts = [DOCUMENTS["plain"], DOCUMENTS["empty"], long_text(40), DOCUMENTS["plain"], DOCUMENTS["hebrew"]]
    passages = [mean_of_groups(mini_reference.states(mini_reference.passage_ids(text)), 4) for text in texts]
    return list(zip(prompts, passages, strict=True))


@pytest.fixture(scope="module")
def all_pairs(pairs: list[tuple[list[int], Tensor]]) -> list[tuple[list[int], Tensor]]:
    """Every prompt over every passage: enough to measure errors of rounding by."""
    return [(ids, pooled) for ids, _ in pairs for _, pooled in pairs]


@pytest.fixture(scope="module")
def exact(mini_reference: SlowReference, all_pairs: list[tuple[list[int], Tensor]]) -> list[float]:
    return [mini_reference.margin(ids, pooled) for ids, pooled in all_pairs]


@pytest.fixture(scope="module")
def shared(mini_reference: SlowReference) -> int:
    """Tokens that every prompt begins with: all before the query."""
    before = "<bos><start_of_turn>user\n" + SYSTEM + "\n\n<Instruct>: " + INSTRUCTION + "\n<Query>:"
    return len(mini_reference.tokenizer(before, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("query", [*QUERIES.values(), long_text(80)], ids=[*QUERIES, "long"])
def test_margins_equal_the_references(decoder: QueryDecoder, mini_reference: SlowReference, pooled: Tensor, query: str):
    ids = mini_reference.prompt_ids(query)
    assert decode(decoder, [(ids, pooled)]) == [pytest.approx(mini_reference.margin(ids, pooled), abs=2e-5)]


@pytest.mark.parametrize(
    "shape",
    [
        replace(MINI, final_logit_softcapping=3.0),
        replace(MINI, rope_factor=8.0),
        replace(MINI, sliding_window=7),
        replace(MINI, sliding_window=1),
        replace(MINI, num_key_value_heads=4),
        replace(MINI, num_key_value_heads=1),
        replace(MINI, query_pre_attn_scalar=100),
        replace(MINI, layer_types=(SLIDING, SLIDING)),
        replace(MINI, layer_types=(FULL, FULL)),
        replace(MINI, layer_types=(FULL,)),
        replace(MINI, layer_types=(SLIDING,)),
    ],
    ids=[
        "softcap",
        "linear rope",
        "odd window",
        "window of one",
        "as many kv heads",
        "one kv head",
        "scale",
        "sliding only",
        "full only",
        "one full layer",
        "one sliding layer",
    ],
)
def test_every_option_of_the_architecture_equals_the_reference(tmp_path: Path, kernels: Kernels, shape):
    folder = make_checkpoint(tmp_path, shape)
    reference = load_slow_reference(folder)
    decoder = load(folder, reference, kernels)
    states = reference.states(reference.passage_ids(DOCUMENTS["plain"]))
    pairs = [(reference.prompt_ids(QUERIES[name]), states) for name in ("plain", "specials")]
    expected = [reference.margin(ids, states) for ids, states in pairs]
    assert decode(decoder, pairs) == pytest.approx(expected, abs=2e-5)
    # and with the beginning kept: a one-layer decoder keeps what nothing has run before
    assert decode_after(decoder, pairs, 20, torch.float32) == pytest.approx(expected, abs=3e-5)


def test_softcapping_bounds_the_logits(tmp_path: Path, kernels: Kernels):
    margins = []
    for cap in (None, 0.25):
        folder = make_checkpoint(tmp_path / str(cap), replace(MINI, final_logit_softcapping=cap))
        reference = load_slow_reference(folder)
        ids = reference.prompt_ids(QUERIES["plain"])
        states = reference.states(reference.passage_ids(DOCUMENTS["plain"]))
        margins += decode(load(folder, reference, kernels), [(ids, states)])
    assert abs(margins[1]) < 0.5 < abs(margins[0])


def test_the_window_is_shorter_than_the_prompts(pairs: list[tuple[list[int], Tensor]], shared: int):
    assert min(len(ids) for ids, _ in pairs) > shared > MINI.sliding_window


def test_the_pairs_of_a_batch_change_no_margin(decoder: QueryDecoder, pairs: list[tuple[list[int], Tensor]]):
    alone = [decode(decoder, [pair])[0] for pair in pairs]
    assert max(alone) - min(alone) > 1  # the agreement below means something
    assert decode(decoder, pairs) == pytest.approx(alone, abs=1e-5)
    assert decode(decoder, pairs[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
    assert decode(decoder, pairs[1:4] * 3) == pytest.approx(alone[1:4] * 3, abs=1e-5)


def test_prompts_of_one_batch_may_be_the_same_or_each_its_own(
    decoder: QueryDecoder, pairs: list[tuple[list[int], Tensor]]
):
    states, counts = torch.cat([pooled for _, pooled in pairs]), [len(pooled) for _, pooled in pairs]
    own = decoder.margins(Prompts([ids for ids, _ in pairs], list(range(len(pairs)))), states, counts)
    assert own.tolist() == pytest.approx(decode(decoder, pairs), abs=1e-5)


def test_margins_are_float32_in_every_run(mini_folder: Path, mini_reference: SlowReference, pairs):
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8):
        decoder = load_decoder(open_checkpoint(str(mini_folder)), answer_ids(mini_reference), CPU, dtype)
        ids, pooled = pairs[0]
        margin = decoder.margins(Prompts([ids], [0]), pooled.to(decoder.stack.dtype), [len(pooled)])
        assert margin.dtype == torch.float32
        # some five times the error of rounding: how near they are is for tests/test_reranker.py
        assert margin.item() == pytest.approx(mini_reference.margin(ids, pooled), abs=0.3)


def test_the_order_of_pooled_states_does_not_matter(
    decoder: QueryDecoder, mini_reference: SlowReference, pooled: Tensor
):
    ids = mini_reference.prompt_ids(QUERIES["plain"])
    assert decode(decoder, [(ids, pooled.flip(0))]) == pytest.approx(decode(decoder, [(ids, pooled)]), abs=1e-5)


def test_a_prompt_of_one_token_and_a_passage_of_one_state_have_a_margin(
    decoder: QueryDecoder, mini_reference: SlowReference, pooled: Tensor
):
    expected = mini_reference.margin([2], pooled[:1])
    assert decode(decoder, [([2], pooled[:1])]) == [pytest.approx(expected, abs=2e-5)]


def test_pooled_states_are_left_as_they_were(decoder: QueryDecoder, pairs: list[tuple[list[int], Tensor]]):
    states, counts = torch.cat([pooled for _, pooled in pairs]), [len(pooled) for _, pooled in pairs]
    before = states.clone()
    decoder.margins(Prompts([pairs[0][0]], [0] * len(pairs)), states, counts)
    decoder.prefill((1, 2, 3), states, counts, torch.float32)
    assert torch.equal(states, before)


@pytest.mark.parametrize("dtype", list(KEPT_WITHIN), ids=str)
def test_margins_after_a_kept_prefix_equal_margins_of_the_whole(
    decoder: QueryDecoder, pairs: list[tuple[list[int], Tensor]], shared: int, dtype: torch.dtype
):
    assert shared > MINI.sliding_window  # some of what is kept is out of sight
    whole = decode(decoder, pairs)
    assert decode_after(decoder, pairs, shared, dtype) == pytest.approx(whole, abs=KEPT_WITHIN[dtype])


@pytest.mark.parametrize("cut", [1, 5, 15, 16, 17, 40])
def test_a_prefix_of_any_length_may_be_kept(decoder: QueryDecoder, pairs: list[tuple[list[int], Tensor]], cut: int):
    # the window is 16 tokens
    whole = decode(decoder, pairs)
    assert decode_after(decoder, pairs, cut, torch.float32) == pytest.approx(whole, abs=1e-5)


def test_all_but_the_last_token_may_be_kept(decoder: QueryDecoder, pairs: list[tuple[list[int], Tensor]]):
    ids, _ = pairs[0]
    same = [(ids, pooled) for _, pooled in pairs]
    margins = decode_after(decoder, same, len(ids) - 1, torch.float32)
    assert margins == pytest.approx(decode(decoder, same), abs=1e-5)


def test_what_is_kept_serves_any_prompt_that_goes_on_from_it_in_any_batch(
    decoder: QueryDecoder, pairs: list[tuple[list[int], Tensor]], shared: int
):
    prompts = [ids for ids, _ in pairs]
    states, counts = torch.cat([pooled for _, pooled in pairs]), [len(pooled) for _, pooled in pairs]
    cached = decoder.prefill(tuple(prompts[0][:shared]), states, counts, torch.float32)
    for chosen in ([2], [4, 0], [1, 1, 3, 0, 2]):
        for ids in prompts:
            margins = decoder.margins_after(Prompts([ids[shared:]], [0] * len(chosen)), [cached[i] for i in chosen])
            whole = decode(decoder, [(ids, pairs[i][1]) for i in chosen])
            assert margins.tolist() == pytest.approx(whole, abs=1e-5)


def test_different_prefixes_of_one_length_may_stand_in_one_batch(
    decoder: QueryDecoder, mini_reference: SlowReference, pooled: Tensor
):
    prompts = [mini_reference.prompt_ids(QUERIES["plain"], instruction) for instruction in ("Find it.", "Judge it.")]
    cut = next(i for i, (left, right) in enumerate(zip(*prompts, strict=False)) if left != right) + 3
    cached = [decoder.prefill(tuple(ids[:cut]), pooled, [len(pooled)], torch.float32)[0] for ids in prompts]
    assert cached[0].prefix != cached[1].prefix
    margins = decoder.margins_after(Prompts([ids[cut:] for ids in prompts], [0, 1]), cached).tolist()
    whole = [decode(decoder, [(ids, pooled)])[0] for ids in prompts]
    assert abs(whole[0] - whole[1]) > 0.05
    assert margins == pytest.approx(whole, abs=1e-5)


# times what the whole run is off by: bfloat16 was rounded already; int8 rounds about as much again
@pytest.mark.parametrize(("kept_dtype", "times"), [(torch.bfloat16, 1.5), (torch.int8, 2.0)])
def test_a_bfloat16_run_goes_on_from_what_it_kept(
    mini_folder: Path,
    mini_reference: SlowReference,
    kernels: Kernels,
    all_pairs,
    exact: list[float],
    shared: int,
    kept_dtype: torch.dtype,
    times: float,
):
    decoder = load(mini_folder, mini_reference, kernels, torch.bfloat16)
    whole = rms_error(decode(decoder, all_pairs), exact)
    assert rms_error(decode_after(decoder, all_pairs, shared, kept_dtype), exact) <= times * whole


def test_an_int8_run_goes_on_from_what_it_kept(
    mini_folder: Path, mini_reference: SlowReference, kernels: Kernels, all_pairs, exact: list[float], shared: int
):
    decoder = load(mini_folder, mini_reference, kernels, torch.int8)
    whole = decode(decoder, all_pairs)
    # the same numbers, but for those at the edge of a step that another order of summing moves over it
    after = decode_after(decoder, all_pairs, shared, torch.float32)
    assert rms_error(after, whole) <= 0.5 * rms_error(whole, exact)


def test_what_is_kept_has_the_layers_keys_and_values_of_prefix_and_passage(
    decoder: QueryDecoder, pairs: list[tuple[list[int], Tensor]]
):
    _, first = pairs[0]
    _, second = pairs[2]
    cached = decoder.prefill((2, 4, 8), torch.cat((first, second)), [len(first), len(second)], torch.bfloat16)
    for entry, pooled in zip(cached, (first, second), strict=True):
        assert isinstance(entry, PrefixKV)
        assert (entry.prefix, entry.pooled) == ((2, 4, 8), len(pooled))
        shape = (len(MINI.layer_types), 2, MINI.num_key_value_heads, 3 + len(pooled), MINI.head_dim)
        assert entry.states.shape == shape
        assert entry.nbytes == entry.states.numel() * 2
        assert entry.states.untyped_storage().nbytes() == entry.nbytes  # it holds on to nothing else


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_the_same_batch_gives_the_same_bits(
    mini_folder: Path, mini_reference: SlowReference, kernels: Kernels, pairs, dtype: torch.dtype
):
    decoder = load(mini_folder, mini_reference, kernels, dtype)
    assert decode(decoder, pairs) == decode(decoder, pairs)
