import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.reference import INSTRUCTION, SYSTEM, SlowReference, mean_of_groups
from kalm_cache.errors import NonFiniteLogitsError
from kalm_cache.model import precision
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.decoder import QueryDecoder
from kalm_cache.model.layers.decoder_pass import Prompts
from kalm_cache.model.prompts import Prompt, Tokens
from kalm_cache.scoring import batching
from kalm_cache.scoring.query_side import QuerySide, load_query_side, score_of
from tests.checkpoints import MINI, edit_tensors, make_checkpoint
from tests.texts import DOCUMENTS, QUERIES, long_text


def prompts_of(side: QuerySide, *names: str) -> list[Tokens]:
    return [side.tokenize(Prompt(QUERIES[name], INSTRUCTION, SYSTEM)) for name in names]


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> QuerySide:
    return load_query_side(checkpoint, device=torch.device("cpu"), dtype=dtype, query_max_length=512)


@pytest.fixture(scope="module")
def side(mini: Checkpoint) -> QuerySide:
    return load(mini)


@pytest.fixture(scope="module")
def passages(mini_reference: SlowReference) -> list[Tensor]:
    """Pooled states of every document, of many lengths."""
    documents = [*DOCUMENTS.values(), long_text(60)]
    return [mean_of_groups(mini_reference.states(mini_reference.passage_ids(text)), 4) for text in documents]


def test_one_prompt_over_many_passages_equals_the_reference(
    side: QuerySide, mini_reference: SlowReference, passages: list[Tensor]
):
    prompt = side.tokenize(Prompt(QUERIES["plain"], INSTRUCTION, SYSTEM))
    expected = [mini_reference.margin(mini_reference.prompt_ids(QUERIES["plain"]), pooled) for pooled in passages]
    assert side.margins([prompt] * len(passages), passages, 32) == pytest.approx(expected, abs=2e-5)


def test_ragged_prompts_and_passages_equal_the_reference_in_the_order_given(
    side: QuerySide, mini_reference: SlowReference, passages: list[Tensor]
):
    queries = [*QUERIES.values(), long_text(40)]
    pairs = [(query, pooled) for query in queries for pooled in passages[::3]]
    prompts = [side.tokenize(Prompt(query, INSTRUCTION, SYSTEM)) for query, _ in pairs]
    expected = [mini_reference.margin(mini_reference.prompt_ids(query), pooled) for query, pooled in pairs]
    assert side.margins(prompts, [pooled for _, pooled in pairs], 5) == pytest.approx(expected, abs=2e-5)


def test_bfloat16_on_a_processor_that_lacks_it_gives_margins_near_the_exact_ones(
    monkeypatch: pytest.MonkeyPatch, mini: Checkpoint, side: QuerySide, passages: list[Tensor]
):
    prompts = prompts_of(side, "plain") * len(passages)
    exact = side.margins(prompts, passages, 32)
    monkeypatch.setattr(precision, "lacks_bfloat16", lambda: True)
    margins = load(mini, torch.bfloat16).margins(prompts, passages, 32)
    assert margins == pytest.approx(exact, abs=0.3)
    assert margins != exact


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.float32, r"float32 on a CPU with [^,]+(, [^,]+)*, (native|torch) kernels"),
        (torch.int8, r"int8 on a CPU with .*, (native|torch) kernels, products by (oneDNN|native, .+|float32)"),
    ],
)
def test_what_it_computes_in_is_said(mini: Checkpoint, dtype: torch.dtype, said: str):
    assert re.fullmatch(said, load(mini, dtype).computation)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
def test_the_batch_size_changes_no_margin(side: QuerySide, passages: list[Tensor], batch_size: int):
    prompts = [
        side.tokenize(Prompt(query, INSTRUCTION, SYSTEM)) for query in (*QUERIES.values(), "one more", "and two")
    ]
    expected = side.margins(prompts, passages, 3)
    assert side.margins(prompts, passages, batch_size) == pytest.approx(expected, abs=1e-5)


def test_pooled_states_of_another_dtype_are_cast_to_the_runs(side: QuerySide, passages: list[Tensor]):
    prompt = side.tokenize(Prompt(QUERIES["plain"], INSTRUCTION, SYSTEM))
    stored = passages[0].to(torch.float16)
    assert side.margins([prompt], [stored], 1) == pytest.approx(side.margins([prompt], [stored.float()], 1), abs=1e-6)


def test_passages_of_different_dtypes_may_stand_in_one_batch(side: QuerySide, passages: list[Tensor]):
    prompt = side.tokenize(Prompt(QUERIES["plain"], INSTRUCTION, SYSTEM))
    half, full = passages[1].to(torch.float16), passages[0]
    assert len(half) < len(full)  # the shorter one stands first in the batch
    alone = [side.margins([prompt], [pooled], 1)[0] for pooled in (half, full)]
    assert side.margins([prompt] * 2, [half, full], 2) == pytest.approx(alone, abs=1e-5)


def test_no_pairs_have_no_margins(side: QuerySide):
    assert side.margins([], [], 32) == []


def test_a_cut_query_is_marked(mini: Checkpoint):
    side = load_query_side(mini, device=torch.device("cpu"), dtype=torch.float32, query_max_length=5)
    assert side.tokenize(Prompt("What is the capital of China?", INSTRUCTION, SYSTEM)).truncated
    assert not side.tokenize(Prompt("yes", INSTRUCTION, SYSTEM)).truncated


def test_float16_overflow_is_an_error_that_names_the_way_out(tmp_path: Path, passages: list[Tensor]):
    folder = make_checkpoint(tmp_path, MINI)
    name = "model.decoder.layers.1.mlp.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors | {name: tensors[name] * 3e4})  # 65504 is float16's largest
    checkpoint = open_checkpoint(str(folder))
    prompt = load(checkpoint).tokenize(Prompt(QUERIES["plain"], INSTRUCTION, SYSTEM))
    message = "not finite in float16; use bfloat16 or float32"
    with pytest.raises(NonFiniteLogitsError, match=message):
        load(checkpoint, torch.float16).margins([prompt], passages[:1], 1)
    for dtype in (torch.bfloat16, torch.float32):
        [margin] = load(checkpoint, dtype).margins([prompt], passages[:1], 1)
        assert math.isfinite(margin)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_pooled_states_that_are_not_finite_are_an_error(
    mini: Checkpoint, passages: list[Tensor], value: float, dtype: torch.dtype
):
    side = load(mini, dtype)
    damaged = passages[0].clone()
    damaged[1, 5] = value
    [prompt] = prompts_of(side, "plain")
    with pytest.raises(NonFiniteLogitsError):
        side.margins([prompt] * 2, [passages[1], damaged], 2)
    assert math.isfinite(side.margins([prompt], [passages[1]], 2)[0])


@pytest.mark.parametrize("kept_dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_kept_states_that_are_not_finite_are_an_error(side: QuerySide, passages: list[Tensor], kept_dtype: torch.dtype):
    damaged = passages[0].clone()
    damaged[0, 0] = math.nan
    cached = side.prefill(side.prefix(Prompt("", INSTRUCTION, SYSTEM)), [passages[1], damaged], 2, kept_dtype)
    with pytest.raises(NonFiniteLogitsError):
        side.margins(prompts_of(side, "plain") * 2, cached, 2)
    assert math.isfinite(side.margins(prompts_of(side, "plain"), cached[:1], 2)[0])


def test_a_pair_given_twice_has_one_margin(side: QuerySide, passages: list[Tensor]):
    prompts = prompts_of(side, "plain", "chinese", "plain")
    pairs = [(prompts[i % 2], passages[i % 3]) for i in range(12)]
    margins = side.margins([prompt for prompt, _ in pairs], [pooled for _, pooled in pairs], 2)
    assert margins[:6] == margins[6:]


@pytest.mark.parametrize(
    "names",
    [
        ("plain",),
        tuple(QUERIES),
    ],
    ids=["one prompt", "many prompts"],
)
def test_no_batch_is_larger_than_its_tokens_allow(
    side: QuerySide, passages: list[Tensor], monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
):
    sizes = _watch_batches(monkeypatch, 300)
    pairs = [(prompt, pooled) for prompt in prompts_of(side, *names) for pooled in passages]
    side.margins([prompt for prompt, _ in pairs], [pooled for _, pooled in pairs], 32)
    assert max(count for count, _ in sizes) > 1
    assert all(count == 1 or count * longest <= 300 for count, longest in sizes)


def test_the_tokens_of_a_batch_change_no_margin(
    side: QuerySide, passages: list[Tensor], monkeypatch: pytest.MonkeyPatch
):
    pairs = [(prompt, pooled) for prompt in prompts_of(side, *QUERIES) for pooled in passages]
    given = [prompt for prompt, _ in pairs], [pooled for _, pooled in pairs], 32
    expected = side.margins(*given)
    sizes = _watch_batches(monkeypatch, 300)
    assert side.margins(*given) == pytest.approx(expected, abs=1e-5)
    assert sum(count for count, _ in sizes) == len(pairs)


def _watch_batches(monkeypatch: pytest.MonkeyPatch, batch_tokens: int) -> list[tuple[int, int]]:
    """Pairs of each batch from now on, and its longest prompt and passage together."""
    sizes: list[tuple[int, int]] = []
    margins = QueryDecoder.margins

    def watched(self: QueryDecoder, prompts: Prompts, pooled: Tensor, counts: list[int], shared: None) -> Tensor:
        sizes.append((len(counts), max(map(len, prompts.ids)) + max(counts)))
        return margins(self, prompts, pooled, counts, shared)

    monkeypatch.setattr(batching, "BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(QueryDecoder, "margins", watched)
    return sizes


def test_warming_up_decodes_and_leaves_nothing_behind(side: QuerySide, passages: list[Tensor]):
    [prompt] = prompts_of(side, "plain")
    before = side.margins([prompt], passages[:1], 1)
    side.warm_up()
    assert side.margins([prompt], passages[:1], 1) == before


def test_prompts_begin_with_the_prefix_of_their_instruction_whatever_the_query(side: QuerySide):
    prefix = side.prefix(Prompt("", INSTRUCTION, SYSTEM))
    for query in QUERIES.values():
        ids = side.tokenize(Prompt(query, INSTRUCTION, SYSTEM)).ids
        assert tuple(ids[: len(prefix)]) == prefix
        assert len(ids) > len(prefix)
    other = side.prefix(Prompt("", "Find the ferry's timetable.", SYSTEM))
    assert other != prefix
    assert tuple(side.tokenize(Prompt("q", "Find the ferry's timetable.", SYSTEM)).ids[: len(other)]) == other


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_margins_go_on_from_kept_prefixes(side: QuerySide, passages: list[Tensor], batch_size: int):
    prefix = side.prefix(Prompt("", INSTRUCTION, SYSTEM))
    cached = side.prefill(prefix, passages, batch_size, torch.float32)
    assert [(entry.prefix, entry.pooled) for entry in cached] == [(prefix, len(pooled)) for pooled in passages]
    for name in ("plain", "empty", "specials"):
        prompts = prompts_of(side, name) * len(passages)
        expected = side.margins(prompts, passages, batch_size)
        assert side.margins(prompts, cached, batch_size) == pytest.approx(expected, abs=1e-5)


# in a float32 run, what is rounded is the same on every processor: 0.012 and 0.044 were seen
@pytest.mark.parametrize(("dtype", "within"), [(torch.bfloat16, 0.05), (torch.int8, 0.1)])
def test_prefixes_kept_in_fewer_bits_give_margins_nearby(
    side: QuerySide, passages: list[Tensor], dtype: torch.dtype, within: float
):
    cached = side.prefill(side.prefix(Prompt("", INSTRUCTION, SYSTEM)), passages, 32, dtype)
    prompts = prompts_of(side, "plain") * len(passages)
    assert side.margins(prompts, cached, 32) == pytest.approx(side.margins(prompts, passages, 32), abs=within)


def test_kept_and_pooled_passages_may_stand_in_one_call(side: QuerySide, passages: list[Tensor]):
    prompts = prompts_of(side, *QUERIES)
    expected = side.margins(prompts, passages[: len(prompts)], 32)
    cached = side.prefill(side.prefix(Prompt("", INSTRUCTION, SYSTEM)), passages, 32, torch.float32)
    mixed = [cached[i] if i % 3 else passages[i] for i in range(len(prompts))]
    for batch_size in (1, 4, 32):
        assert side.margins(prompts, mixed, batch_size) == pytest.approx(expected, abs=1e-5)


def test_passages_kept_in_different_dtypes_may_stand_in_one_call(side: QuerySide, passages: list[Tensor]):
    prefix, [prompt] = side.prefix(Prompt("", INSTRUCTION, SYSTEM)), prompts_of(side, "plain")
    cached = [
        side.prefill(prefix, [pooled], 1, dtype)[0]
        for pooled, dtype in zip(passages, (torch.float32, torch.bfloat16, torch.int8), strict=False)
    ]
    alone = [side.margins([prompt], [entry], 1)[0] for entry in cached]
    assert side.margins([prompt] * 3, cached, 32) == pytest.approx(alone, abs=1e-5)


def test_passages_kept_under_different_instructions_may_stand_in_one_call(side: QuerySide, passages: list[Tensor]):
    instructions = [INSTRUCTION, "Find it.", "Judge it.", ""]
    prompts = [side.tokenize(Prompt(QUERIES["plain"], instruction, SYSTEM)) for instruction in instructions]
    expected = side.margins(prompts, passages[:4], 32)
    cached = [
        side.prefill(side.prefix(Prompt("", instruction, SYSTEM)), [pooled], 1, torch.float32)[0]
        for instruction, pooled in zip(instructions, passages, strict=False)
    ]
    assert side.margins(prompts, cached, 32) == pytest.approx(expected, abs=1e-5)


def test_nothing_to_keep_keeps_nothing(side: QuerySide):
    assert side.prefill(side.prefix(Prompt("", INSTRUCTION, SYSTEM)), [], 32, torch.bfloat16) == []


@pytest.mark.parametrize(
    ("margin", "score"), [(0.0, 0.5), (math.log(3), 0.75), (-math.log(3), 0.25), (-math.log(9), 0.1)]
)
def test_the_score_is_the_sigmoid_of_the_margin(margin: float, score: float):
    assert score_of(margin) == pytest.approx(score, rel=1e-12)


def test_scores_reproduce_the_published_check():
    # Large: margins 8.78125 and −14.1875 were published with these scores
    assert score_of(8.78125) == pytest.approx(0.99985, abs=5e-6)
    assert score_of(-14.1875) == pytest.approx(6.894e-07, rel=1e-3)


def test_scores_of_extreme_margins_neither_overflow_nor_leave_the_unit_interval():
    assert score_of(1e4) == 1.0
    assert score_of(-1e4) == 0.0
    assert 0.0 < score_of(-700.0) < score_of(-699.0) < score_of(30.0) < score_of(31.0) < 1.0


def test_a_gpu_decodes_eight_times_as_much_together(side: QuerySide):
    on_gpu = replace(side, device=torch.device("cuda"))
    assert (side.batch_pairs, side.batch_tokens) == (32, 16_384)
    assert (on_gpu.batch_pairs, on_gpu.batch_tokens) == (256, 131_072)
