import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.reference import MarginOracle, load_slow_reference
from kalm_cache.errors import CheckpointError, NonFiniteLogitsError, UsageError
from kalm_cache.model.precision import dtype_name
from kalm_cache.reranker import KaLMReranker
from kalm_cache.scoring.query_side import score_of
from tests.checkpoints import MINI, edit_tensors, make_checkpoint, name_text_model
from tests.rounding import TIMES, rms_error
from tests.texts import DOCUMENTS, QUERIES, SENTENCES, long_text

TEXT_PAIRS = [(query, document) for query in QUERIES.values() for document in DOCUMENTS.values()]
LONG_PASSAGE = long_text(700)  # 512 < tokens < 1024: longer than the sliding window
OVERLONG_PASSAGE = long_text(1300, seed=1)  # more than 1024 tokens
LONG_QUERY = long_text(440, seed=2)  # a prompt longer than the sliding window
OVERLONG_QUERY = long_text(700, seed=3)  # more than 512 tokens
WIDE_PAIRS = [
    (QUERIES["plain"], DOCUMENTS["plain"]),
    (QUERIES["chinese"], LONG_PASSAGE),
    (LONG_QUERY, DOCUMENTS["empty"]),
    (OVERLONG_QUERY, OVERLONG_PASSAGE),
    (QUERIES["emoji"], DOCUMENTS["end_of_image"]),
]


def margins(reranker: KaLMReranker, pairs: list[tuple[str, str]], **options: object) -> list[float]:
    return [scored["margin"] for scored in reranker.predict(pairs, return_margin=True, **options)]


def expected(oracle: MarginOracle, pairs: list[tuple[str, str]], ratio: int = 4, **options: object) -> list[float]:
    return [oracle.margin(query, document, ratio, **options) for query, document in pairs]


def test_every_kind_of_text_scores_like_the_reference(mini_reranker: KaLMReranker, mini_oracle: MarginOracle):
    wanted = expected(mini_oracle, TEXT_PAIRS)
    assert max(wanted) - min(wanted) > 5  # the agreement below means something
    assert margins(mini_reranker, TEXT_PAIRS) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 4, 8, 16, 32, 128])
def test_every_chunk_size_scores_like_the_reference(
    mini_folder: Path, mini_oracle: MarginOracle, chunk_size: int | None
):
    reranker = KaLMReranker(str(mini_folder), device="cpu", chunk_size=chunk_size)
    pairs = [*TEXT_PAIRS[::13], (QUERIES["plain"], LONG_PASSAGE)]
    assert margins(reranker, pairs) == pytest.approx(expected(mini_oracle, pairs, chunk_size or 1), abs=1e-4)


def test_the_wide_pairs_are_as_long_as_they_claim(nano_oracle: MarginOracle):
    reference = nano_oracle.reference
    assert 512 < len(reference.passage_ids(LONG_PASSAGE, 10_000)) < 1024
    assert len(reference.passage_ids(OVERLONG_PASSAGE, 10_000)) > 1024
    assert len(reference.prompt_ids(LONG_QUERY, query_max_length=512)) > 512
    assert reference.prompt_ids(LONG_QUERY) == reference.prompt_ids(LONG_QUERY, query_max_length=10_000)
    assert reference.prompt_ids(OVERLONG_QUERY) != reference.prompt_ids(OVERLONG_QUERY, query_max_length=10_000)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_nano_shaped_model_scores_like_the_reference(
    nano_folder: Path, nano_oracle: MarginOracle, chunk_size: int | None
):
    reranker = KaLMReranker(str(nano_folder), device="cpu", dtype="float32", chunk_size=chunk_size)
    wanted = expected(nano_oracle, WIDE_PAIRS, chunk_size or 1)
    assert max(wanted) - min(wanted) > 2
    assert margins(reranker, WIDE_PAIRS) == pytest.approx(wanted, abs=1e-4)


def test_a_small_shaped_model_scores_like_the_reference(small_folder: Path, small_oracle: MarginOracle):
    reranker = KaLMReranker(str(small_folder), device="cpu", dtype="float32")
    pairs = [*TEXT_PAIRS[::60], (QUERIES["plain"], long_text(500))]
    assert len(small_oracle.reference.passage_ids(pairs[-1][1])) > 512
    assert margins(reranker, pairs) == pytest.approx(expected(small_oracle, pairs), abs=1e-4)


@pytest.fixture(scope="module")
def rounded_oracle(nano_folder: Path) -> MarginOracle:
    return MarginOracle(load_slow_reference(nano_folder, torch.bfloat16))


@pytest.mark.parametrize("dtype", list(TIMES), ids=dtype_name)
def test_reduced_precision_scores_as_near_the_exact_margins_as_the_references_bfloat16(
    nano_folder: Path, nano_oracle: MarginOracle, rounded_oracle: MarginOracle, dtype: torch.dtype
):
    pairs = TEXT_PAIRS[::3]
    exact = expected(nano_oracle, pairs)
    theirs = rms_error(expected(rounded_oracle, pairs), exact)
    assert max(exact) - min(exact) > 50 * theirs  # the agreement below means something
    ours = margins(KaLMReranker(str(nano_folder), device="cpu", dtype=dtype), pairs)
    assert rms_error(ours, exact) <= TIMES[dtype] * theirs


def test_limits_on_query_and_passage_cut_as_the_reference_does(mini_folder: Path, mini_oracle: MarginOracle):
    reranker = KaLMReranker(str(mini_folder), device="cpu", query_max_length=5, max_length=9)
    wanted = expected(mini_oracle, TEXT_PAIRS[::5], max_length=9, query_max_length=5)
    assert margins(reranker, TEXT_PAIRS[::5]) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"tied": False}, {"max_shard_size": "300KB"}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}],
    ids=["untied", "sharded", "bfloat16 file", "float16 file"],
)
def test_every_way_to_save_a_model_scores_like_the_reference(tmp_path: Path, options: dict):
    folder = make_checkpoint(tmp_path, replace(MINI, rope_factor=8.0), **options)
    reranker = KaLMReranker(str(folder), device="cpu", dtype="float32")
    pairs = TEXT_PAIRS[::9]
    wanted = expected(MarginOracle(load_slow_reference(folder)), pairs)
    assert margins(reranker, pairs) == pytest.approx(wanted, abs=1e-4)


def test_the_other_layout_of_names_scores_alike_here_and_in_transformers(tmp_path: Path):
    folder = make_checkpoint(tmp_path)
    before = margins(KaLMReranker(str(folder), device="cpu"), TEXT_PAIRS[:5])
    edit_tensors(folder, name_text_model)
    assert margins(KaLMReranker(str(folder), device="cpu"), TEXT_PAIRS[:5]) == before
    wanted = expected(MarginOracle(load_slow_reference(folder)), TEXT_PAIRS[:5])
    assert before == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 200])
def test_the_batch_size_changes_no_margin(mini_reranker: KaLMReranker, batch_size: int):
    pairs = TEXT_PAIRS[::2]
    assert margins(mini_reranker, pairs, batch_size=batch_size) == pytest.approx(
        margins(mini_reranker, pairs), abs=1e-5
    )


def test_the_other_pairs_of_a_batch_change_no_margin(mini_reranker: KaLMReranker):
    alone = [margins(mini_reranker, [pair])[0] for pair in TEXT_PAIRS[::8]]
    assert margins(mini_reranker, TEXT_PAIRS)[::8] == pytest.approx(alone, abs=1e-5)


def test_predict_keeps_the_order_of_its_input(mini_reranker: KaLMReranker):
    pairs = [(QUERIES["plain"], text) for text in (long_text(50), "a", long_text(9), "", long_text(30), "a")]
    scores = mini_reranker.predict(pairs)
    assert mini_reranker.predict(pairs[::-1]) == pytest.approx(scores[::-1], abs=1e-6)
    assert scores == pytest.approx([mini_reranker.predict([pair])[0] for pair in pairs], abs=1e-6)


def test_predict_takes_any_iterable_of_pairs(mini_reranker: KaLMReranker):
    pairs = TEXT_PAIRS[:3]
    assert mini_reranker.predict(pair for pair in pairs) == mini_reranker.predict([list(pair) for pair in pairs])


def test_no_pairs_and_no_documents_give_empty_lists(mini_reranker: KaLMReranker):
    assert mini_reranker.predict([]) == []
    assert mini_reranker.rank("query", []) == []


def test_the_score_is_the_sigmoid_of_the_margin(mini_reranker: KaLMReranker):
    scored = mini_reranker.predict(TEXT_PAIRS[:7], return_margin=True)
    assert [entry["score"] for entry in scored] == mini_reranker.predict(TEXT_PAIRS[:7])
    assert [entry["score"] for entry in scored] == [score_of(entry["margin"]) for entry in scored]


def test_rank_sorts_by_falling_margin_with_positions_in_the_input(mini_reranker: KaLMReranker):
    documents = list(DOCUMENTS.values())
    wanted = margins(mini_reranker, [(QUERIES["plain"], document) for document in documents])
    ranked = mini_reranker.rank(QUERIES["plain"], documents, return_margin=True)
    assert [entry["corpus_id"] for entry in ranked] == sorted(range(len(documents)), key=lambda i: -wanted[i])
    assert [entry["margin"] for entry in ranked] == sorted(wanted, reverse=True)
    assert [entry["score"] for entry in ranked] == [score_of(entry["margin"]) for entry in ranked]


def test_rank_holds_margins_where_asked_for_alone(mini_reranker: KaLMReranker):
    [plain] = mini_reranker.rank("a query", ["a document"])
    [full] = mini_reranker.rank("a query", ["a document"], return_margin=True)
    assert plain == {"corpus_id": 0, "score": full["score"]}
    assert full.keys() == {"corpus_id", "score", "margin"}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 32])
def test_equal_documents_tie_and_keep_their_order(mini_reranker: KaLMReranker, batch_size: int):
    documents = [SENTENCES[i % 3] + (" and more" * (i % 3)) for i in range(14)]
    ranked = mini_reranker.rank(QUERIES["plain"], documents, batch_size=batch_size, return_margin=True)
    for text in set(documents):
        same = [entry for entry in ranked if documents[entry["corpus_id"]] == text]
        assert len({entry["margin"] for entry in same}) == 1
        assert [entry["corpus_id"] for entry in same] == [i for i, other in enumerate(documents) if other == text]


@pytest.mark.parametrize(("top_k", "count"), [(None, 6), (0, 0), (1, 1), (4, 4), (6, 6), (100, 6)])
def test_top_k_keeps_the_first_ones(mini_reranker: KaLMReranker, top_k: int | None, count: int):
    full = mini_reranker.rank(QUERIES["plain"], SENTENCES)
    assert mini_reranker.rank(QUERIES["plain"], SENTENCES, top_k=top_k) == full[:count]


def test_an_instruction_per_call_stands_in_for_the_constructors(
    mini_folder: Path, mini_reranker: KaLMReranker, mini_oracle: MarginOracle
):
    pairs, instruction = TEXT_PAIRS[:4], "Find the ferry's timetable."
    other = KaLMReranker(str(mini_folder), device="cpu", instruction=instruction)
    wanted = expected(mini_oracle, pairs, instruction=instruction)
    assert margins(other, pairs) == pytest.approx(wanted, abs=1e-4)
    assert margins(mini_reranker, pairs, instruction=instruction) == pytest.approx(wanted, abs=1e-4)
    ranked = mini_reranker.rank(pairs[0][0], [pairs[0][1]], instruction=instruction, return_margin=True)
    assert ranked[0]["margin"] == pytest.approx(wanted[0], abs=1e-4)
    assert wanted[0] != pytest.approx(expected(mini_oracle, pairs)[0], abs=1e-2)


def test_an_empty_instruction_is_an_instruction(mini_reranker: KaLMReranker, mini_oracle: MarginOracle):
    wanted = expected(mini_oracle, TEXT_PAIRS[:2], instruction="")
    assert margins(mini_reranker, TEXT_PAIRS[:2], instruction="") == pytest.approx(wanted, abs=1e-4)


def test_a_system_instruction_of_ones_own_stands_in_the_prompt(mini_folder: Path, mini_oracle: MarginOracle):
    system = "Answer yes where the passage helps."
    reranker = KaLMReranker(str(mini_folder), device="cpu", system_instruction=system)
    wanted = expected(mini_oracle, TEXT_PAIRS[:4], system=system)
    assert margins(reranker, TEXT_PAIRS[:4]) == pytest.approx(wanted, abs=1e-4)
    assert wanted[0] != pytest.approx(expected(mini_oracle, TEXT_PAIRS[:1])[0], abs=1e-2)


def test_encode_gives_pooled_states_in_input_order(mini_reranker: KaLMReranker):
    documents = [long_text(30), "short", long_text(12)]
    for document, pooled in zip(documents, mini_reranker.encode(documents, batch_size=2), strict=True):
        [alone] = mini_reranker.encode([document])
        torch.testing.assert_close(pooled, alone, atol=1e-5, rtol=1e-5)


def test_float16_overflow_names_the_way_out(tmp_path: Path):
    folder = make_checkpoint(tmp_path)
    name = "model.encoder.layers.0.mlp.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors | {name: tensors[name] * 3e4})  # 65504 is float16's largest
    with pytest.raises(NonFiniteLogitsError, match="not finite in float16; use bfloat16 or float32"):
        KaLMReranker(str(folder), device="cpu", dtype="float16").predict(TEXT_PAIRS[:2])
    assert len(KaLMReranker(str(folder), device="cpu", dtype="bfloat16").predict(TEXT_PAIRS[:2])) == 2


def test_options_for_transformers_are_ignored_with_a_warning(mini_folder: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="kalm_cache"):
        reranker = KaLMReranker(
            str(mini_folder), device="cpu", trust_remote_code=True, attn_implementation="eager", revision="main"
        )
    [record] = caplog.records
    assert record.getMessage().endswith(": attn_implementation, trust_remote_code")
    assert len(reranker.predict(TEXT_PAIRS[:1])) == 1


def test_no_warning_without_unknown_options(mini_folder: Path, caplog: pytest.LogCaptureFixture):
    KaLMReranker(str(mini_folder), device="cpu", local_files_only=True)
    assert caplog.records == []


@pytest.mark.parametrize(
    "pair",
    ["ab", ("query",), ("query", "document", "more"), ("query", None), (1, "document"), None, 7, {"a": 1, "b": 2}],
)
def test_a_pair_that_is_not_two_strings_is_named_by_its_position(mini_reranker: KaLMReranker, pair: object):
    with pytest.raises(UsageError, match=r"pairs\[1\] is .*; expected two strings: \(query, document\)"):
        mini_reranker.predict([("query", "document"), pair])


@pytest.mark.parametrize("pair", [("half \ud83d", "document"), ("query", "\udc1d half")])
def test_half_a_surrogate_pair_is_refused(mini_reranker: KaLMReranker, pair: tuple[str, str]):
    with pytest.raises(UsageError, match=r"pairs\[1\] holds half a surrogate pair"):
        mini_reranker.predict([("query", "document"), pair])


@pytest.mark.parametrize("chunk_size", [0, -1, 2.5, "4"])
def test_a_chunk_size_below_one_or_not_whole_is_refused(mini_folder: Path, chunk_size: object):
    with pytest.raises(UsageError, match=f"chunk_size is {chunk_size!r}; it must be a whole number, 1 or more"):
        KaLMReranker(str(mini_folder), chunk_size=chunk_size)


@pytest.mark.parametrize("option", ["batch_size", "max_length", "query_max_length"])
def test_sizes_below_one_are_refused_at_once(mini_folder: Path, option: str):
    with pytest.raises(UsageError, match=f"{option} is 0; it must be a whole number, 1 or more"):
        KaLMReranker(str(mini_folder), **{option: 0})


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused_in_calls_too(mini_reranker: KaLMReranker, batch_size: int):
    with pytest.raises(UsageError, match=f"batch_size is {batch_size}; it must be"):
        mini_reranker.predict(TEXT_PAIRS[:2], batch_size=batch_size)


def test_a_negative_top_k_is_refused(mini_reranker: KaLMReranker):
    with pytest.raises(UsageError, match="top_k is -1; it must be a whole number, 0 or more"):
        mini_reranker.rank("query", SENTENCES, top_k=-1)


def test_one_string_in_place_of_documents_is_refused(mini_reranker: KaLMReranker):
    with pytest.raises(UsageError, match="documents is one string; expected a list of strings"):
        mini_reranker.rank("query", "a document")


def test_a_folder_without_a_tokenizer_is_refused(mini_folder: Path, tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(mini_folder / name)
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        KaLMReranker(str(tmp_path), device="cpu")
