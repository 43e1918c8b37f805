"""Gradients of margins by pooled states, and the file they go into."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import sensitivity
from benchmarks.reference import load_slow_reference
from kalm_cache.codec.sensitivity import load_sensitivity
from kalm_cache.model.checkpoint import SENSITIVITY_FILE, open_checkpoint
from tests.texts import TRAINING_SENTENCES


def test_gradients_are_those_of_the_margin(mini_folder: Path) -> None:
    reference, width = load_slow_reference(mini_folder), open_checkpoint(str(mini_folder)).config.decoder.hidden_size
    pooled = torch.from_numpy(np.random.default_rng(0).normal(size=(3, width))).float()
    step = torch.from_numpy(np.random.default_rng(1).normal(size=(3, width))).float() * 1e-3
    prompt = reference.prompt_ids("query")
    change = reference.margin(prompt, pooled + step) - reference.margin(prompt, pooled - step)
    expected = 2 * float((sensitivity.gradient(reference, "query", pooled) * step.numpy()).sum())
    assert change == pytest.approx(expected, rel=0.05)


def test_the_file_holds_a_square_whose_diagonal_is_one_on_average(mini_folder: Path, tmp_path: Path) -> None:
    toy = tmp_path / "toy"
    (toy / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "text": text} for i, text in enumerate(TRAINING_SENTENCES[:4])]
    (toy / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)), "utf-8")
    (toy / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "query"}), "utf-8")
    (toy / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td1\t1\n")
    out = tmp_path / SENSITIVITY_FILE
    case = ["--model", str(mini_folder), "--beir", str(toy), "--split", "test", "--pairs", "2", "--out", str(out)]
    assert sensitivity.main(case) == 0
    found = load_sensitivity(tmp_path / SENSITIVITY_FILE)
    assert found is not None
    np.testing.assert_allclose(found, found.T, rtol=1e-4, atol=1e-6)
    assert np.diag(found).mean() == pytest.approx(1)
