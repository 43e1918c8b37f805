"""What sentence-transformers' `CrossEncoder` does with one label, of a named model; and its own tools on ours."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kalm_cache import KaLMReranker
from kalm_cache.adapters import KaLMCrossEncoder, old_names
from kalm_cache.errors import UsageError
from kalm_cache.model.checkpoint import BUNDLED_TINY

QUERY = "Where do bees dance?"
TEXTS = ["Bees dance in the hive.", "The ferry leaves at noon.", "A dance of bees shows the way to flowers."]
PAIRS = [[QUERY, text] for text in TEXTS]


@pytest.fixture(scope="module")
def model() -> KaLMCrossEncoder:
    return KaLMCrossEncoder("tiny", device="cpu")


@pytest.fixture(scope="module")
def scored() -> list[Any]:
    return KaLMReranker("tiny", device="cpu").predict(PAIRS, return_margin=True)


@pytest.fixture(scope="module")
def margins(scored: list[Any]) -> list[float]:
    return [each["margin"] for each in scored]


@pytest.fixture(scope="module")
def scores(scored: list[Any]) -> list[float]:
    return [each["score"] for each in scored]


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """The warnings since, each of which is given once in a process: here, once in a test."""
    old_names.warn_once.cache_clear()
    return lambda: caplog.text


def test_the_constructor_takes_all_that_the_original_takes() -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    theirs = inspect.signature(library.CrossEncoder.__init__).parameters
    ours = inspect.signature(KaLMCrossEncoder.__init__).parameters
    assert [(key, ours[key].kind, ours[key].default) for key in list(ours)[: len(theirs)]] == [
        (key, each.kind, each.default) for key, each in theirs.items()
    ]


def test_a_model_that_is_named_scores_as_its_reranker(model: KaLMCrossEncoder, scores: list[float]) -> None:
    assert model.predict(PAIRS) == pytest.approx(scores, abs=1e-6)
    assert KaLMCrossEncoder(model_name_or_path=BUNDLED_TINY, device="cpu").predict(PAIRS) == pytest.approx(
        scores, abs=1e-6
    )
    assert (model.num_labels, model.device) == (1, torch.device("cpu"))


def test_a_named_model_keeps_what_it_encodes(tmp_path: Path, scores: list[float]) -> None:
    for hits in (0, 3):
        with KaLMCrossEncoder("tiny", device="cpu", cache=tmp_path, cache_gib=0.05, cache_codec="fp32") as model:
            assert model.predict(PAIRS) == pytest.approx(scores, abs=1e-6)
            assert model._loaded.cache.counts.hits == hits


@pytest.mark.parametrize(
    "pairs",
    [
        [tuple(pair) for pair in PAIRS],
        np.array(PAIRS),
        np.array(PAIRS, dtype=object),
        [np.array(pair) for pair in PAIRS],
        list(zip([QUERY] * 3, TEXTS, strict=True)),
        (pair for pair in PAIRS),
    ],
    ids=["tuples", "array", "array of objects", "list of arrays", "zip", "generator"],
)
def test_every_kind_of_pairs_scores_alike(model: KaLMCrossEncoder, scores: list[float], pairs: Any) -> None:
    got = model.predict(pairs)
    assert (got.shape, got.dtype) == ((3,), np.float32)
    assert got == pytest.approx(scores, abs=1e-6)


def test_a_column_of_a_data_set_is_a_list_of_pairs(model: KaLMCrossEncoder, scores: list[float]) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    column = datasets.Dataset.from_dict({"text": PAIRS})["text"]
    assert model.predict(column, convert_to_tensor=True).tolist() == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize("pair", [PAIRS[0], tuple(PAIRS[0]), np.array(PAIRS[0])], ids=["list", "tuple", "array"])
def test_one_pair_gives_a_scalar(model: KaLMCrossEncoder, scores: list[float], pair: Any) -> None:
    assert model.is_singular_input(pair)
    assert isinstance(model.predict(pair), np.float32)
    assert model.predict(pair) == pytest.approx(scores[0], abs=1e-6)
    assert model.predict(pair, convert_to_tensor=True).shape == ()
    assert model.predict(pair, convert_to_numpy=False).dtype == torch.float32


def test_a_list_of_one_pair_gives_an_array_of_one(model: KaLMCrossEncoder) -> None:
    assert model.predict(PAIRS[:1]).shape == (1,)
    assert not model.is_singular_input(PAIRS)
    assert not model.is_singular_input(np.array(PAIRS))


@pytest.mark.parametrize("empty", [[], (), np.array([], dtype=str), np.empty((0, 2), dtype=object)])
def test_no_pairs_give_no_scores(model: KaLMCrossEncoder, empty: Any) -> None:
    assert not model.is_singular_input(empty)
    assert model.predict(empty).shape == (0,)
    tensor = model.predict(empty, convert_to_tensor=True)
    assert (tensor.numel(), tensor.device) == (0, model.device)
    assert model.predict(empty, convert_to_numpy=False) == []
    assert model.predict(empty, activation_fn=torch.nn.Identity()).shape == (0,)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_every_batch_size_scores_alike(model: KaLMCrossEncoder, scores: list[float], batch_size: int) -> None:
    assert model.predict(PAIRS, batch_size=batch_size) == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_a_batch_size_below_one_is_a_value_error(model: KaLMCrossEncoder, batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size is"):
        model.predict(PAIRS, batch_size=batch_size)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu"), ["cpu"]])
def test_the_models_own_device_may_be_named(model: KaLMCrossEncoder, scores: list[float], device: Any) -> None:
    assert model.predict(PAIRS, device=device) == pytest.approx(scores, abs=1e-6)


def test_a_model_stays_where_it_was_loaded(model: KaLMCrossEncoder) -> None:
    assert model.eval().to("cpu") is model
    with pytest.raises(UsageError, match="device is 'meta', but the model is on cpu"):
        model.to("meta")


def test_softmax_over_one_label_changes_nothing(model: KaLMCrossEncoder, scores: list[float]) -> None:
    assert model.predict(PAIRS, apply_softmax=True) == pytest.approx(scores, abs=1e-6)


def test_an_activation_gets_margins_as_a_column(model: KaLMCrossEncoder, margins: list[float]) -> None:
    seen = []

    def double(values: torch.Tensor) -> torch.Tensor:
        seen.append((values.shape, values.dtype))
        return values[:, 0] * 2

    assert model.predict(PAIRS, activation_fn=double) == pytest.approx([2 * each for each in margins], rel=1e-5)
    assert seen == [((3, 1), torch.float32)]
    assert model.predict(PAIRS, activation_fn=torch.nn.Identity()) == pytest.approx(margins, rel=1e-5)
    with pytest.raises(UsageError, match="expected one score a pair"):
        model.predict(PAIRS, activation_fn=lambda values: values.sum())


def test_the_constructors_activation_holds_until_a_call_gives_another(margins: list[float]) -> None:
    model = KaLMCrossEncoder("tiny", device="cpu", activation_fn=torch.nn.Tanh())
    tanh = np.tanh(margins)
    assert model.predict(PAIRS) == pytest.approx(tanh, abs=1e-5)
    assert model.predict(PAIRS, activation_fn=torch.nn.Identity()) == pytest.approx(margins, rel=1e-5)
    assert isinstance(model.activation_fn, torch.nn.Tanh)
    assert [entry["score"] for entry in model.rank(QUERY, TEXTS)] == pytest.approx(sorted(tanh, reverse=True), abs=1e-5)
    model.activation_fn = torch.nn.Identity()
    assert model.predict(PAIRS) == pytest.approx(margins, rel=1e-5)


def test_the_default_activation_is_a_sigmoid(model: KaLMCrossEncoder) -> None:
    assert isinstance(model.activation_fn, torch.nn.Sigmoid)
    with pytest.warns(DeprecationWarning, match="default_activation_function was renamed"):
        assert isinstance(model.default_activation_function, torch.nn.Sigmoid)


def test_rank_follows_the_score_that_an_activation_gives(model: KaLMCrossEncoder, margins: list[float]) -> None:
    worst_first = model.rank(QUERY, TEXTS, activation_fn=torch.negative)
    assert [entry["corpus_id"] for entry in worst_first] == sorted(range(3), key=lambda i: margins[i])


def test_rank_gives_documents_back_and_python_floats(model: KaLMCrossEncoder, scores: list[float]) -> None:
    ranking = model.rank(query=QUERY, documents=np.array(TEXTS), return_documents=True, top_k=2)
    order = sorted(range(3), key=lambda i: -scores[i])[:2]
    assert [(entry["corpus_id"], entry["text"]) for entry in ranking] == [(i, TEXTS[i]) for i in order]
    assert all(type(entry["score"]) is float for entry in ranking)
    assert model.rank(QUERY, []) == []


def test_renamed_arguments_of_calls_work_with_a_warning(
    model: KaLMCrossEncoder, margins: list[float], warned: Callable[[], str]
) -> None:
    identity = torch.nn.Identity()
    assert model.predict(sentences=PAIRS, activation_fct=identity, num_workers=2) == pytest.approx(margins, rel=1e-5)
    for text in ("sentences was renamed: use inputs", "activation_fct was renamed", "num_workers of predict has no"):
        assert text in warned()
    both = model.predict(PAIRS, activation_fct=torch.nn.Tanh(), activation_fn=identity)
    assert both == pytest.approx(margins, rel=1e-5)
    model.rank(QUERY, TEXTS, apply_softmax=True, convert_to_tensor=True)
    assert "convert_to_tensor of rank has no effect" in warned()


def test_renamed_options_of_the_constructor_work_with_a_warning(
    margins: list[float], warned: Callable[[], str], tmp_path: Path
) -> None:
    model = KaLMCrossEncoder(
        model_name="tiny",
        default_activation_function=torch.nn.Identity(),
        automodel_args={"torch_dtype": torch.float32},
        tokenizer_args={"model_max_length": 9},
        cache_dir=str(tmp_path),
        classifier_dropout=0.1,
        device="cpu",
    )
    assert model.max_seq_length == 9
    assert model.activation_fn(torch.tensor(3.0)) == 3.0
    for old in ("model_name", "default_activation_function", "automodel_args", "tokenizer_args", "cache_dir"):
        assert f"the argument {old} was renamed" in warned()
    assert "classifier_dropout" in warned()


def test_options_by_position_work_with_a_warning(warned: Callable[[], str]) -> None:
    model = KaLMCrossEncoder("tiny", 1, 12, torch.nn.Identity(), "cpu")
    assert (model.max_seq_length, type(model.activation_fn)) == (12, torch.nn.Identity)
    assert "max_length came by its position: use max_length=12" in warned()
    with pytest.raises(UsageError, match="6 arguments by position"):
        KaLMCrossEncoder("tiny", 1, 12, None, "cpu", "more")


def test_max_length_counts_the_tokens_of_a_passage(model: KaLMCrossEncoder, scores: list[float]) -> None:
    cut = KaLMReranker("tiny", device="cpu", max_length=6).predict(PAIRS)
    assert cut != pytest.approx(scores, abs=1e-4)
    short = KaLMCrossEncoder("tiny", device="cpu", max_length=6)
    assert short.predict(PAIRS) == pytest.approx(cut, abs=1e-6)
    by_call = {"text": {"max_length": 6, "truncation": True}}
    assert model.predict(PAIRS, processing_kwargs=by_call) == pytest.approx(cut, abs=1e-6)
    assert model.predict(PAIRS) == pytest.approx(scores, abs=1e-6)
    short.max_seq_length = 1024
    assert short.predict(PAIRS) == pytest.approx(scores, abs=1e-6)
    with pytest.warns(DeprecationWarning, match="max_length was renamed"):
        assert short.max_length == 1024


def test_prompts_are_instructions_by_name(warned: Callable[[], str]) -> None:
    find = "Find the passage that answers."
    plain, model = KaLMReranker("tiny", device="cpu"), KaLMCrossEncoder("tiny", device="cpu", prompts={"find": find})
    wanted = plain.predict(PAIRS, instruction=find)
    assert model.predict(PAIRS, prompt_name="find") == pytest.approx(wanted, abs=1e-6)
    assert model.predict(PAIRS, prompt=find, prompt_name="find") == pytest.approx(wanted, abs=1e-6)
    assert "prompt_name is ignored" in warned()
    with pytest.raises(ValueError, match="prompt_name is 'lose'; the prompts are 'find'"):
        model.predict(PAIRS, prompt_name="lose")
    with pytest.raises(ValueError, match="prompt_name is 'lose'"):
        KaLMCrossEncoder("tiny", prompts={"find": find}, default_prompt_name="lose")
    with pytest.raises(ValueError, match="give batch_size by its name: batch_size=64"):
        model.predict(PAIRS, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": 3}, "num_labels is 3; this model gives one score a pair"),
        ({"config_kwargs": {"num_labels": 2}}, "num_labels is 2"),
        ({"backend": "onnx"}, "backend is 'onnx'; models run in torch"),
        ({"modules": [object()]}, "modules cannot be served"),
        ({"max_length": 0}, "max_length is 0"),
        ({"device": "abacus"}, "device 'abacus'"),
        ({"model_name_or_path": None}, "give a model's name"),
        ({"on_missing": "skip"}, "leaves pairs without a score"),
    ],
)
def test_what_cannot_be_served_is_a_value_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KaLMCrossEncoder(**({"model_name_or_path": "tiny"} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_n": 3}, "predict has no argument 'top_n'"),
        ({"processing_kwargs": {"text": {"stride": 2}}}, "processing_kwargs: stride cannot be served"),
        ({"processing_kwargs": {"text": {"truncation": False}}}, "truncation=False cannot be served"),
        ({"device": "meta"}, "device is 'meta', but the model is on cpu"),
        ({"device": "abacus"}, "device 'abacus' is not one that torch knows"),
        ({"activation_fn": "tanh"}, "activation_fn is 'tanh'; expected a function"),
    ],
)
def test_arguments_that_cannot_be_served_are_named(
    model: KaLMCrossEncoder, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.predict(PAIRS, **options)


def test_what_changes_no_score_is_ignored_aloud(scores: list[float], warned: Callable[[], str]) -> None:
    model = KaLMCrossEncoder(
        "tiny",
        device="cpu",
        trust_remote_code=True,
        token=False,
        local_files_only=True,
        revision="main",
        model_kwargs={"attn_implementation": "sdpa", "device_map": "auto"},
        processor_kwargs={"padding_side": "left"},
        keep_in_fp32_modules=[],
    )
    for ignored in ("attn_implementation", "trust_remote_code", "processor_kwargs['padding_side']"):
        assert ignored in warned()
    assert "keep_in_fp32_modules" not in warned() and "token" not in warned()
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    assert model.predict(PAIRS, pool=pool, chunk_size=1, device=["cpu", "cpu"]) == pytest.approx(scores, abs=1e-6)
    model.stop_multi_process_pool(pool)
    assert "one process computes" in warned()


def test_a_dtype_may_be_given_as_transformers_takes_it() -> None:
    model = KaLMCrossEncoder("tiny", device="cpu", model_kwargs={"torch_dtype": torch.bfloat16})
    assert model._loaded.dtype == torch.bfloat16
    assert model.predict(PAIRS).dtype == np.float32
    assert len(model.rank(QUERY, TEXTS)) == 3


def test_a_copy_in_another_process_scores_alike(tmp_path: Path, scores: list[float]) -> None:
    model = KaLMCrossEncoder("tiny", device="cpu", cache=tmp_path, cache_gib=0.05, cache_codec="fp32")
    with model, pickle.loads(pickle.dumps(model)) as copy:
        assert copy.predict(PAIRS) == pytest.approx(scores, abs=1e-6)


def test_a_progress_bar_is_shown_where_it_is_asked_for(
    model: KaLMCrossEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    model.predict(PAIRS)
    assert capsys.readouterr().err == ""
    model.rank(QUERY, TEXTS, show_progress_bar=True)
    assert "100%" in capsys.readouterr().err
