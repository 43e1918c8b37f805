"""The same margins on a GPU."""

from __future__ import annotations

import pytest
import torch

from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.precision import resolve_device
from kalm_cache.model.prompts import Prompt
from kalm_cache.scoring.passage_side import load_passage_side
from kalm_cache.scoring.query_side import QuerySide, load_query_side
from tests.texts import DOCUMENTS, QUERIES, long_text

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TEXTS = [*DOCUMENTS.values(), long_text(60)]
WITHIN = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}


@pytest.fixture(autouse=True)
def exact_products() -> None:
    """Float32 products in float32, not in TF32."""
    assert not torch.backends.cuda.matmul.allow_tf32


def pooled(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    side = load_passage_side(checkpoint, device=device, dtype=dtype, max_length=1024, chunk_size=4)
    return [passage.states for passage in side.encode_documents(TEXTS, 8)]


def query_side(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> QuerySide:
    return load_query_side(checkpoint, device=device, dtype=dtype, query_max_length=512)


def margins(side: QuerySide, states: list[torch.Tensor], batch_size: int = 8) -> list[float]:
    prompts = [side.tokenize(Prompt(query)) for query in QUERIES.values()]
    pairs = [(prompt, one) for prompt in prompts for one in states]
    return side.margins([prompt for prompt, _ in pairs], [one for _, one in pairs], batch_size)


def test_the_device_is_cuda_where_there_is_one():
    assert resolve_device(None).type == resolve_device("auto").type == "cuda"


@pytest.mark.parametrize("dtype", list(WITHIN), ids=str)
def test_states_and_margins_equal_the_cpus(mini: Checkpoint, dtype: torch.dtype):
    states, exact = pooled(mini, CUDA, dtype), pooled(mini, CPU, torch.float32)
    for ours, theirs in zip(states, exact, strict=True):
        assert (ours.device.type, ours.dtype) == ("cuda", dtype)
        torch.testing.assert_close(ours.cpu().float(), theirs, atol=WITHIN[dtype], rtol=WITHIN[dtype])
    expected = margins(query_side(mini, CPU, torch.float32), exact)
    assert margins(query_side(mini, CUDA, dtype), states) == pytest.approx(expected, abs=WITHIN[dtype])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_changes_no_margin(mini: Checkpoint, batch_size: int):
    side, states = query_side(mini, CUDA, torch.float32), pooled(mini, CPU, torch.float32)
    assert margins(side, states, batch_size) == pytest.approx(margins(side, states), abs=1e-4)


@pytest.mark.parametrize("cached", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_margins_go_on_from_kept_prefixes(mini: Checkpoint, cached: torch.dtype):
    side, states = query_side(mini, CUDA, torch.float32), pooled(mini, CPU, torch.float32)
    prefix = side.prefix(Prompt(""))
    entries = side.prefill(prefix, states, 8, cached)
    prompt = side.tokenize(Prompt(QUERIES["plain"]))
    whole = side.margins([prompt] * len(states), states, 8)
    within = 1e-4 if cached == torch.float32 else 0.2
    assert side.margins([prompt] * len(states), entries, 8) == pytest.approx(whole, abs=within)


def test_everything_lies_on_the_gpu_the_embeddings_too(mini: Checkpoint):
    stack = query_side(mini, CUDA, torch.bfloat16).decoder.stack
    assert {tensor.device.type for tensor in stack.tensors()} == {"cuda"}
    assert stack.embed.table.device.type == "cuda"
    assert stack.kernels.name == "triton"
