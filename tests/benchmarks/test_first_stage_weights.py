"""The choice of a first-stage weight on other collections than the one that is measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.first_stage_weights import leave_one_out, main


def test_a_collection_has_no_say_in_its_own_weight() -> None:
    # the first collection likes weight 1 so much that the mean over all does, too; the other two like weight 0
    values = np.array([[0.0, 0.9], [0.5, 0.4], [0.6, 0.5]])
    assert values.mean(0).argmax() == 1
    assert leave_one_out(values).tolist() == [0, 1, 1]


def test_the_tables_hold_what_a_report_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def system(name: str, kind: str, value: float, weight: float = 0.0) -> dict[str, object]:
        cost = {"codec": "fp16", "chunk_size": 4, "first_stage_weight": weight}
        return {"name": name, "kind": kind, "means": {"ndcg@10": value}, "cost": cost}

    def collection(name: str, bm25: float, alone: float, together: float) -> dict[str, object]:
        systems = [system("bm25", "first stage", bm25), system("fused", "first stage", 0.1)]
        systems += [system("p", "reranker", alone), system("p w=1", "interpolated", together, 1.0)]
        return {"name": name, "split": "test", "systems": systems}

    report = tmp_path / "report.json"
    report.write_text(json.dumps({"collections": [collection("a", 0.5, 0.4, 0.6), collection("b", 0.5, 0.7, 0.8)]}))
    monkeypatch.setattr(sys, "argv", ["first_stage_weights", str(report)])
    main()
    printed = capsys.readouterr().out
    assert "better of BM25 and fused: 0.5000" in printed
    assert "| 4 | 0.5500 | 0.7000 | 1 | 0.7000 | +0.0500, below on 1 | +0.2000, below on 0 |" in printed
