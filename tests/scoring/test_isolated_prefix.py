"""A decoder that isolates its prefix: its margins are those of transformers under a mask, and what depends on it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.reference import SlowReference, mean_of_groups
from indexer.change.set_decoder import set_decoder
from kalm_cache import KaLMReranker, PassageIndex
from kalm_cache.errors import CheckpointError, UsageError
from kalm_cache.evaluation import BeirTask, evaluate
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.digests import decoder_digest, encoder_digest
from kalm_cache.model.kernels import choose_kernels
from kalm_cache.model.kernels.torch_kernels import TorchKernels
from kalm_cache.model.prompts import Prompt
from kalm_cache.scoring.attribution import observe
from kalm_cache.scoring.batching import SharedPrompt
from kalm_cache.scoring.query_side import QuerySide, load_query_side
from tests.checkpoints import edit_config
from tests.indexes import TEXTS, build, settings_for
from tests.query_service.conftest import serving, serving_texts
from tests.texts import DOCUMENTS, QUERIES, long_text

CPU = torch.device("cpu")
INSTRUCTION = "Find the passage that answers."
TEXTS_OF_ALL_LENGTHS = [DOCUMENTS["plain"], DOCUMENTS["empty"], long_text(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mini_folder: Path) -> Path:
    """The random checkpoint, declared to isolate its prefix: what it has learnt does not matter here."""
    copied = Path(shutil.copytree(mini_folder, tmp_path_factory.mktemp("isolated") / "model"))
    edit_config(copied, lambda config: config.update(isolated_prefix=True))
    return copied


@pytest.fixture(scope="module")
def index_folder(tmp_path_factory: pytest.TempPathFactory, mini_folder: Path, embedder_folder: Path) -> Path:
    index = tmp_path_factory.mktemp("isolated-index") / "index"
    build(index, settings_for(mini_folder, embedder_folder), TEXTS)
    return index


@pytest.fixture(scope="module", params=["torch", "auto"])
def side(request: pytest.FixtureRequest, folder: Path) -> QuerySide:
    loaded = load_query_side(open_checkpoint(str(folder)), device=CPU, dtype=torch.float32, query_max_length=512)
    kernels = TorchKernels() if request.param == "torch" else choose_kernels(CPU, torch.float32)
    stack = replace(loaded.decoder.stack, kernels=kernels)
    return replace(loaded, decoder=replace(loaded.decoder, stack=stack))


@torch.inference_mode()
def masked_margin(reference: SlowReference, prompt: list[int], prefix: int, pooled: Tensor) -> float:
    """transformers' whole decoder and head on one pair; the first `prefix` prompt tokens see no pooled state."""
    seen = torch.ones(1, 1, len(prompt), len(pooled), dtype=torch.bool)  # (1, 1, T, P)
    seen[:, :, :prefix] = False
    decoded = reference.model.get_decoder()(
        input_ids=torch.tensor([prompt]),
        encoder_hidden_states=pooled.unsqueeze(0),
        encoder_attention_mask={"full_attention": seen},
        use_cache=False,
    ).last_hidden_state[0, -1]
    rows = reference.model.get_output_embeddings().weight
    yes, no = (reference.tokenizer(word, add_special_tokens=False)["input_ids"][-1] for word in ("yes", "no"))
    logits, cap = rows[[yes, no]] @ decoded, reference.model.config.decoder.final_logit_softcapping
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    return float(logits[0] - logits[1])


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_margins_equal_those_of_transformers_under_a_mask(
    side: QuerySide, mini_reference: SlowReference, chunk_size: int
) -> None:
    encoded = [mini_reference.states(mini_reference.passage_ids(text)) for text in TEXTS_OF_ALL_LENGTHS]
    states = [mean_of_groups(each, chunk_size) for each in encoded]
    prompts = [side.tokenize(Prompt(QUERIES[name], INSTRUCTION)) for name in ("plain", "empty", "chinese")]
    pairs = [(prompt, pooled) for prompt in prompts for pooled in states]
    margins = side.margins([prompt for prompt, _ in pairs], [pooled for _, pooled in pairs], 4)
    prefix = len(side.prefix(Prompt("", INSTRUCTION)))
    expected = [masked_margin(mini_reference, prompt.ids, prefix, pooled) for prompt, pooled in pairs]
    assert margins == pytest.approx(expected, abs=1e-4)
    unmasked = [mini_reference.margin(prompt.ids, pooled) for prompt, pooled in pairs]
    assert max(abs(a - b) for a, b in zip(margins, unmasked, strict=True)) > 1e-2


def test_an_explanation_has_the_margin_of_the_answer(side: QuerySide, mini_reference: SlowReference) -> None:
    prompt = side.tokenize(Prompt(QUERIES["plain"]))
    pooled = mini_reference.states(mini_reference.passage_ids(DOCUMENTS["plain"]))
    assert isinstance(prompt, SharedPrompt)
    observed, prefix = observe(side, prompt, pooled), len(prompt.shared.prefix)
    assert observed.margin == pytest.approx(side.margins([prompt], [pooled], 1)[0], abs=1e-4)
    for layer in observed.layers[:-1]:
        assert layer.shape[1:] == (len(prompt.ids), len(pooled))
        assert not layer[:, :prefix].any()
        assert (layer[:, prefix:].sum(-1) > 0).all()
    assert len(observed.layers) == len(side.decoder.stack.layers)


def test_isolation_changes_the_decoders_digest_alone(folder: Path, mini_folder: Path) -> None:
    isolated, plain = open_checkpoint(str(folder)), open_checkpoint(str(mini_folder))
    assert encoder_digest(isolated) == encoder_digest(plain)
    assert decoder_digest(isolated) != decoder_digest(plain)


def test_a_field_that_is_no_truth_value_is_refused(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "model"))
    edit_config(copied, lambda config: config.update(isolated_prefix="yes"))
    with pytest.raises(CheckpointError, match="isolated_prefix is 'yes', expected true or false"):
        open_checkpoint(str(copied))


@pytest.fixture
def isolated(index_folder: Path, folder: Path, tmp_path: Path) -> Iterator[PassageIndex]:
    copied = Path(shutil.copytree(index_folder, tmp_path / "index"))
    set_decoder(copied, str(folder))
    with PassageIndex.open(copied, device="cpu", dtype="float32") as index:
        yield index


def test_an_index_answers_with_it_and_so_do_texts_and_the_service(
    isolated: PassageIndex, folder: Path, mini_reference: SlowReference
) -> None:
    query, prefix = QUERIES["plain"], len(isolated.query_side.prefix(Prompt("")))
    pooled = isolated.pooled(["d1"])[0].states
    expected = masked_margin(mini_reference, mini_reference.prompt_ids(query), prefix, pooled)
    assert isolated.margins(query, ["d1"]) == pytest.approx([expected], abs=1e-4)
    score = 1 / (1 + torch.tensor(-expected).exp().item())
    by_text = KaLMReranker(str(folder), device="cpu", dtype="float32", chunk_size=4).rank(query, [TEXTS["d1"]])
    assert by_text[0]["score"] == pytest.approx(score, abs=1e-2)  # the index rounds states to fp16
    with serving(isolated.generation.folder.parent.parent, dtype="float32") as client:
        assert client.get("/info").json()["shared_prefix"] == "isolated"
        answer = client.post("/rerank", json={"query": query, "ids": ["d1"]}).json()
        assert answer["results"][0]["relevance_score"] == pytest.approx(score, abs=1e-4)
    with serving_texts(folder) as client:
        assert client.get("/info").json()["shared_prefix"] == "isolated"


def test_a_prefix_cache_and_a_mean_have_nothing_to_do(isolated: PassageIndex, caplog: pytest.LogCaptureFixture) -> None:
    index_folder = isolated.generation.folder.parent.parent
    with caplog.at_level(logging.WARNING), PassageIndex.open(index_folder, device="cpu", prefix_cache_gib=1) as index:
        assert index.prefix_cache is None
    assert "prefix_cache_gib has no effect" in caplog.text
    with PassageIndex.open(index_folder, device="cpu", dtype="float32", shared_prefix="mean") as index:
        assert index.shared_prefix == "isolated"
        assert index.margins("ferry", ["d1"]) == isolated.margins("ferry", ["d1"])
    task = BeirTask("ferries", "test", {"q": "ferry"}, {"q": {"d1": 1}})
    with pytest.raises(UsageError, match="the decoder isolates its prefix"):
        evaluate(isolated, task, shared_prefix="mean")


def test_a_swap_from_and_to_another_decoder_changes_what_is_kept(isolated: PassageIndex, mini_folder: Path) -> None:
    index_folder = isolated.generation.folder.parent.parent
    before = json.dumps(isolated.margins("ferry", ["d1", "d2"]))
    set_decoder(index_folder, str(mini_folder))
    options = {"device": "cpu", "dtype": "float32", "prefix_cache_gib": 1, "prefix_cache_dtype": "float32"}
    with PassageIndex.open(index_folder, reuse_from=isolated, **options) as plain:
        assert plain.shared_prefix is None
        assert plain.prefix_cache is not None
        assert json.dumps(plain.margins("ferry", ["d1", "d2"])) != before
