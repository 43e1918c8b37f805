import itertools
from pathlib import Path

import pytest

from benchmarks.reference import INSTRUCTION, SYSTEM, SlowReference
from kalm_cache.errors import CheckpointError, UsageError
from kalm_cache.model.prompts import (
    DEFAULT_INSTRUCTION,
    DEFAULT_SYSTEM_INSTRUCTION,
    Prompt,
    PromptTokenizer,
    Tokens,
    load_prompt_tokenizer,
)
from tests.texts import DOCUMENTS, QUERIES, long_text


@pytest.fixture(scope="module")
def tokenizer(mini_folder: Path) -> PromptTokenizer:
    return load_prompt_tokenizer(mini_folder)


def test_the_default_instructions_are_the_references():
    assert (DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION) == (INSTRUCTION, SYSTEM)


@pytest.mark.parametrize("limit", [1, 5, 12, 1024])
def test_passage_tokens_equal_the_references(tokenizer: PromptTokenizer, mini_reference: SlowReference, limit: int):
    documents = [*DOCUMENTS.values(), long_text(20)]
    expected = [mini_reference.passage_ids(document, limit) for document in documents]
    assert [tokens.ids for tokens in tokenizer.passages(documents, limit)] == expected
    assert [tokenizer.passage(document, limit).ids for document in documents] == expected


@pytest.mark.parametrize("limit", [1, 3, 512])
@pytest.mark.parametrize("query", [*QUERIES.values(), long_text(600)], ids=[*QUERIES, "long"])
def test_prompt_tokens_equal_the_references(
    tokenizer: PromptTokenizer, mini_reference: SlowReference, query: str, limit: int
):
    expected = mini_reference.prompt_ids(query, query_max_length=limit)
    assert tokenizer.prompt(Prompt(query, INSTRUCTION, SYSTEM), limit).ids == expected


def test_a_query_cut_inside_a_character_is_decoded_as_the_reference_does(
    tokenizer: PromptTokenizer, mini_reference: SlowReference
):
    # 🕺 is four byte tokens, of which two are kept
    limit = len(mini_reference.tokenizer("dance", add_special_tokens=False)["input_ids"]) + 3
    query = "dance 🕺"
    expected = mini_reference.prompt_ids(query, query_max_length=limit)
    assert tokenizer.prompt(Prompt(query, INSTRUCTION, SYSTEM), limit).ids == expected
    assert expected != mini_reference.prompt_ids(query)


def test_instructions_may_hold_braces_specials_and_nothing(tokenizer: PromptTokenizer, mini_reference: SlowReference):
    for instruction, system in (("{query} {system}", "{0}"), ("<end_of_turn>", "<bos>"), ("", "")):
        expected = mini_reference.prompt_ids("a query", instruction, system)
        assert tokenizer.prompt(Prompt("a query", instruction, system), 512).ids == expected


def test_literal_specials_become_special_tokens(tokenizer: PromptTokenizer):
    end_of_turn, bos = (tokenizer.tokenizer.token_to_id(name) for name in ("<end_of_turn>", "<bos>"))
    assert end_of_turn in tokenizer.passage("no<end_of_turn>", 1024).ids
    assert tokenizer.prompt(Prompt("<bos>", INSTRUCTION, SYSTEM), 512).ids.count(bos) == 2


def test_a_passage_has_no_bos_and_a_prompt_has_one(tokenizer: PromptTokenizer):
    bos = tokenizer.tokenizer.token_to_id("<bos>")
    assert bos not in tokenizer.passage("plain", 1024).ids
    prompt = tokenizer.prompt(Prompt("plain", INSTRUCTION, SYSTEM), 512).ids
    assert prompt[0] == bos
    assert prompt.count(bos) == 1


def test_truncated_says_whether_a_limit_cut_the_text(tokenizer: PromptTokenizer):
    length = len(tokenizer.passage("a plain passage", 1024).ids)
    assert not tokenizer.passage("a plain passage", length).truncated
    assert tokenizer.passage("a plain passage", length - 1).truncated
    assert not tokenizer.prompt(Prompt("short", INSTRUCTION, SYSTEM), 512).truncated
    assert tokenizer.prompt(Prompt("a query of more than two tokens", INSTRUCTION, SYSTEM), 2).truncated


def test_the_answer_ids_are_those_of_yes_and_no(tokenizer: PromptTokenizer):
    yes, no = tokenizer.answer_ids()
    assert tokenizer.tokenizer.id_to_token(yes) == "yes"
    assert tokenizer.tokenizer.id_to_token(no) == "no"


def test_a_tokenizer_file_that_truncates_or_pads_is_told_not_to(mini_folder: Path, tmp_path: Path):
    tokenizer = load_prompt_tokenizer(mini_folder)
    expected = tokenizer.passages(["one two three", "one"], 1024)
    tokenizer.tokenizer.enable_truncation(2)
    tokenizer.tokenizer.enable_padding(length=30)
    tokenizer.tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_prompt_tokenizer(tmp_path).passages(["one two three", "one"], 1024) == expected


def test_a_limit_below_one_token_is_refused(tokenizer: PromptTokenizer):
    with pytest.raises(UsageError, match="a length limit of 0 tokens"):
        tokenizer.passage("text", 0)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_missing_or_broken_tokenizer_is_refused(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        load_prompt_tokenizer(tmp_path)


def test_the_prefix_is_all_that_prompts_have_before_the_query(
    tokenizer: PromptTokenizer, mini_reference: SlowReference
):
    before = "<bos><start_of_turn>user\n" + SYSTEM + "\n\n<Instruct>: " + INSTRUCTION + "\n<Query>:"
    expected = mini_reference.tokenizer(before, add_special_tokens=False)["input_ids"]
    assert tokenizer.prefix(Prompt("", INSTRUCTION, SYSTEM)) == tuple(expected)


@pytest.mark.parametrize("query", [*QUERIES.values(), long_text(30), "\n", "  ", "'", ":", "\u0301"])
def test_prompts_begin_with_the_prefix_and_go_on_after_it(tokenizer: PromptTokenizer, query: str):
    prefix = tokenizer.prefix(Prompt("", INSTRUCTION, SYSTEM))
    ids = tokenizer.prompt(Prompt(query, INSTRUCTION, SYSTEM), 512).ids
    assert tuple(ids[: len(prefix)]) == prefix
    assert len(ids) > len(prefix)


@pytest.mark.parametrize(("instruction", "system"), [("", ""), ("{query}", "<end_of_turn>"), ("é 日", "🐝")])
def test_prefixes_of_odd_instructions_are_true_of_their_prompts(
    tokenizer: PromptTokenizer, instruction: str, system: str
):
    prefix = tokenizer.prefix(Prompt("", instruction, system))
    assert prefix
    assert tuple(tokenizer.prompt(Prompt("a question?", instruction, system), 512).ids[: len(prefix)]) == prefix


def test_the_end_of_a_passage_stands_behind_the_templates_first_tokens(tokenizer: PromptTokenizer) -> None:
    text = " ".join(f"word{n}" for n in range(300))
    whole, head = tokenizer.passage(text, 10**6).ids, tokenizer.passage("other", 10**6).ids
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(whole, head, strict=False)))
    assert 0 < same < 12
    for limit in (12, 40, len(whole) - 1):
        end = tokenizer.passage_end(text, limit)
        assert end == Tokens(whole[:same] + whole[len(whole) - (limit - same) :], True)
    assert tokenizer.passage_end(text, 2).ids == whole[:2]
    for limit in (len(whole), 10**4):
        assert tokenizer.passage_end(text, limit) == Tokens(whole, False) == tokenizer.passage(text, limit)


def test_of_a_large_text_only_the_end_is_tokenised(tokenizer: PromptTokenizer) -> None:
    small, large = "a start " + "b " * 20_000, "x" * 5_000_000 + "b " * 20_000
    assert tokenizer.passage_end(large, 30) == tokenizer.passage_end(small, 30)
    assert tokenizer.passage_end(" " * 5_000_000, 30).truncated
