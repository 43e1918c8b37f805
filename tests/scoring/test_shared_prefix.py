"""The prefix that prompts share: the mean of what passages have, as a slow mean has it, and what depends on it."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from indexer.change.add_delete import delete_passages
from indexer.change.set_calibration import set_calibration
from kalm_cache import PassageIndex
from kalm_cache.errors import UsageError
from kalm_cache.generations.generation import open_current
from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.prompts import Prompt, PromptTokens
from kalm_cache.scoring.batching import SharedPrompt
from kalm_cache.scoring.shared_prefix import KEPT, MeanPrefixes
from query_service.server import open_text_service
from tests.calibrated import calibration, curve
from tests.indexes import TEXTS, build, settings_for
from tests.query_service.conftest import serving

IDS = list(TEXTS)
QUERY = "when does the ferry leave"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mini_folder: Path, embedder_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("shared-prefix")
    build(root / "index", settings_for(mini_folder, embedder_folder), TEXTS)
    return root / "index"


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[PassageIndex]:
    with PassageIndex.open(folder, device="cpu", dtype="float32") as index:
        yield index


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[PassageIndex]:
    with PassageIndex.open(folder, device="cpu", dtype="float32", shared_prefix="mean") as index:
        yield index


def expected_margins(index: PassageIndex, query: str, chunk_size: int, instruction: str) -> list[float]:
    """Each passage's cached prefix, with the mean over all passages written over its keys and values of the prefix."""
    side = index.query_side
    prompt = side.tokenize(Prompt(query, instruction))
    prefix = side.prefix(prompt.prompt)
    pooled = [passage.states for passage in index.pooled(IDS, chunk_size=chunk_size)]
    own = side.prefill(prefix, pooled, 1, torch.float32)
    mean = torch.stack([each.states[..., : len(prefix), :] for each in own]).mean(0)
    replaced = [
        PrefixKV(prefix, each.pooled, torch.cat((mean, each.states[..., len(prefix) :, :]), dim=-2)) for each in own
    ]
    return side.margins([prompt] * len(IDS), replaced, 32)


@pytest.mark.parametrize("chunk_size", [4, 8])
@pytest.mark.parametrize("instruction", ["Find the passage.", "Given a query, retrieve documents that answer it."])
def test_margins_are_those_over_the_mean_of_all_passages_prefixes(
    plain: PassageIndex, shared: PassageIndex, chunk_size: int, instruction: str
) -> None:
    expected = expected_margins(plain, QUERY, chunk_size, instruction)
    for _ in range(2):  # computed, then found
        got = shared.margins(QUERY, IDS, chunk_size=chunk_size, instruction=instruction)
        np.testing.assert_allclose(got, expected, atol=2e-5)
    assert np.abs(np.subtract(expected, plain.margins(QUERY, IDS, chunk_size=chunk_size))).max() > 1e-3


def test_search_ranks_by_the_margins_that_are_computed_so(shared: PassageIndex) -> None:
    results = shared.search(QUERY, k=12, top_n=12).results
    margins = dict(zip(IDS, shared.margins(QUERY, IDS), strict=True))
    assert [result.margin for result in results] == pytest.approx([margins[r.doc_id] for r in results], abs=2e-5)


def test_a_prompt_whose_query_changes_the_prefixs_end_shares_what_comes_before(shared: PassageIndex) -> None:
    prompt = shared.query_side.tokenize(Prompt(QUERY))
    prefix = shared.query_side.prefix(prompt.prompt)
    odd = PromptTokens([*prefix[:-2], prefix[-2] + 1, *prompt.ids[len(prefix) :]], False, prompt.prompt)
    [whole, part] = shared.stored.share([prompt, odd])
    assert isinstance(whole, SharedPrompt)
    assert isinstance(part, SharedPrompt)
    assert part.shared.prefix == prefix[:-2]
    assert torch.equal(part.shared.states, whole.shared.states[..., : len(prefix) - 2, :])
    unlike = PromptTokens([prefix[0] + 1, *prefix[1:]], False, prompt.prompt)
    assert shared.stored.share([unlike]) == [unlike]


def test_prompts_that_share_different_prefixes_are_decoded_in_batches_of_their_own(shared: PassageIndex) -> None:
    side = shared.query_side
    prompts = [side.tokenize(Prompt(QUERY, instruction)) for instruction in ("One.", "Two, and longer.", "Six.")]
    states = shared.pooled(["d1"])[0].states
    alone = [side.margins([prompt], [states], 8)[0] for prompt in shared.stored.share(prompts)]
    assert side.margins(shared.stored.share(prompts), [states] * 3, 8) == pytest.approx(alone, abs=2e-5)
    assert len(set(alone)) == 3


def test_the_means_used_longest_ago_leave_first(plain: PassageIndex) -> None:
    means = MeanPrefixes(plain.stored.reader, plain.query_side, IDS[:1], lambda problems: None)
    for number in range(KEPT):
        means.mean((5, number), 4)
    means.mean((5, 0), 4)
    means.mean((5, KEPT), 4)
    assert ((5, 0), 4) in means.known
    assert ((5, 1), 4) not in means.known
    stats = means.stats()
    assert (stats.passages, stats.computed, stats.kept) == (1, KEPT + 1, KEPT)
    assert stats.bytes == KEPT * means.mean((5, 0), 4).nbytes


def test_a_sample_is_spread_over_what_is_shown(plain: PassageIndex) -> None:
    assert plain.store.sample(100) == IDS
    assert plain.store.sample(4) == ["d0", "d3", "d6", "d9"]
    assert plain.store.sample(1) == ["d0"]


def test_there_is_no_prefix_cache_beside_a_shared_prefix_which_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        PassageIndex.open(folder, device="cpu", shared_prefix="mean", prefix_cache_gib=1) as index,
    ):
        assert index.prefix_cache is None
    assert "prefix_cache_gib has no effect" in caplog.text


def test_what_cannot_be_shared_is_refused(folder: Path, mini_folder: Path, embedder_folder: Path) -> None:
    with pytest.raises(UsageError, match="shared_prefix 'median' is not known"):
        PassageIndex.open(folder, shared_prefix="median")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="shards alone were asked for"):
        PassageIndex.open(folder, shared_prefix="mean", shards=[0])
    with pytest.raises(UsageError, match="over passages of an index, and there is none"):
        open_text_service(settings_for(mini_folder, embedder_folder, shared_prefix="mean"))


def test_the_service_scores_ids_texts_and_explanations_with_the_shared_prefix_and_says_so(
    folder: Path, shared: PassageIndex
) -> None:
    with serving(folder, shared_prefix="mean", dtype="float32", with_encoder=True) as client:
        info = client.get("/info").json()
        by_id = client.post("/rerank", json={"query": QUERY, "ids": ["d1", "d2"]}).json()["results"]
        by_text = client.post("/rerank", json={"query": QUERY, "documents": [TEXTS["d1"], "A new text."]}).json()
        explained = client.post("/explain", json={"query": QUERY, "doc_id": "d1"}).json()
        metrics = client.get("/metrics").text
    assert (info["shared_prefix"], info["shared_prefix_passages"]) == ("mean", len(IDS))
    margin = shared.margins(QUERY, ["d1"])[0]
    [first] = [result["relevance_score"] for result in by_id if result["doc_id"] == "d1"]
    assert first == pytest.approx(1 / (1 + np.exp(-margin)), abs=1e-5)
    assert first in [pytest.approx(result["relevance_score"], abs=1e-5) for result in by_text["results"]]
    assert explained["margin"] == pytest.approx(margin, abs=1e-4)
    assert "kalm_cache_shared_prefixes 1.0" in metrics


def test_a_sample_leaves_out_what_was_deleted(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "index"
    shutil.copytree(folder, copied)
    delete_passages(["d0", "d3"], copied)
    with PassageIndex.open(copied, device="cpu", shared_prefix="mean") as index:
        left = [doc_id for doc_id in IDS if doc_id not in ("d0", "d3")]
        assert index.store.sample(100) == left
        assert len(index.margins(QUERY, left)) == len(left)


def test_a_generation_that_takes_over_has_the_means_of_the_one_before_at_once(folder: Path) -> None:
    with PassageIndex.open(folder, device="cpu", shared_prefix="mean") as before:
        before.margins(QUERY, ["d1"], chunk_size=8)
        with PassageIndex.open(folder, device="cpu", shared_prefix="mean", reuse_from=before) as after:
            after.warm_up(before)
            assert after.stored.means.known == before.stored.means.known != []


def test_a_calibration_holds_for_margins_with_the_prefix_that_it_was_fitted_with(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "index"
    shutil.copytree(folder, copied)
    decoder = open_current(copied).manifest.decoder
    assert decoder is not None
    fitted = calibration(curve(4), decoder=decoder.digest)
    for made, opened in itertools.product((None, "mean"), repeat=2):
        set_calibration(copied, replace(fitted, shared_prefix=made))
        with PassageIndex.open(copied, device="cpu", shared_prefix=opened) as index:
            assert (index.calibration is not None) == (made == opened)
