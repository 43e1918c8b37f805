from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.roofline import __main__ as roofline
from benchmarks.roofline.matmuls import BareProducts, Batched, Linear, decoder_products, encoder_products
from kalm_cache.model.checkpoint import Checkpoint
from tests.benchmarks.conftest import Run


def test_a_ratio_for_each_side_and_a_profile(mini_folder: Path, run_benchmark: Run) -> None:
    (_, *lines), table = run_benchmark(
        roofline.main, "--model", mini_folder, "--dtypes", "float32", "--candidates", 2, "--passages", 2,
        "--tokens", 24, "--repeats", 1, "--turn-s", 0, "--profile",
    )  # fmt: skip
    rows = [line for line in lines if "side" in line]
    assert [(row["side"], row["dtype"]) for row in rows] == [("decoder", "float32"), ("encoder", "float32")]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["ours_median_ms"] / row["products_median_ms"], rel=5e-3)
        assert row["gflop"] > 0
    operators = [line for line in lines if "profile" in line]
    assert {line["profile"] for line in operators} == {"decoder", "encoder"}
    assert all(line["own_ms"] >= 0 and 0 <= line["share"] <= 1 for line in operators)
    assert "decoder, float32" in table


# mini: 4 layers, 64 wide, MLP 128, 4 heads and 2 key/value heads of 32
def test_the_decoder_computes_shared_and_last_rows_once(mini: Checkpoint) -> None:
    products = decoder_products(mini.config.decoder, candidates=3, prompt=10, pooled=5)
    linears = [product for product in products if isinstance(product, Linear)]
    assert Counter(product.name for product in products) == {
        "qkv": 3, "q": 1, "kv": 1, "cross_kv": 4, "scores": 4, "mix": 4, "o": 4, "gate_up": 4, "down": 4
    }  # fmt: skip
    assert [product for product in linears if product.name == "qkv"] == [
        Linear("qkv", rows, 64, 256)
        for rows in (10, 30, 30)  # the first layer: the prompt alone
    ]
    assert {(product.rows, product.outputs) for product in linears if product.name == "cross_kv"} == {(15, 128)}
    last = products[-8:]
    assert last == [
        Linear("q", 3, 64, 128),
        Linear("kv", 30, 64, 128),
        Linear("cross_kv", 15, 64, 128),
        Batched("scores", 6, 2, 32, 15),
        Batched("mix", 6, 2, 15, 32),
        Linear("o", 3, 128, 64),
        Linear("gate_up", 3, 64, 256),
        Linear("down", 3, 128, 64),
    ]


def test_the_encoder_computes_every_token_in_every_layer(mini: Checkpoint) -> None:
    products = encoder_products(mini.config.encoder, passages=2, tokens=7)
    assert products == 4 * [
        Linear("qkv", 14, 64, 256),
        Batched("scores", 4, 14, 32, 7),
        Batched("mix", 4, 14, 7, 32),
        Linear("o", 14, 128, 64),
        Linear("gate_up", 14, 64, 256),
        Linear("down", 14, 128, 64),
    ]
    assert products[0].operations == 2 * 14 * 64 * 256


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_bare_products_run_in_every_dtype(mini: Checkpoint, dtype: torch.dtype) -> None:
    products = encoder_products(mini.config.encoder, passages=3, tokens=8)
    bare = BareProducts(products, dtype, torch.device("cpu"))
    bare.run()
    assert len(bare.steps) == len(products)
