"""The store's benchmark runs, and measures what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import store


def test_it_prints_a_line_for_each_measurement_and_shares_of_a_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(store, "SIZES", (300, 5160))
    monkeypatch.setattr(store, "SIZED_BYTES", 1 << 20)
    monkeypatch.setattr(store, "COLD_SAMPLES", 2)
    options = ["--passages", "300", "--tokens", "32", "--width", "64", "--repeats", "1", "--records", "10"]
    monkeypatch.setattr(sys, "argv", ["store", *options, "--decode-ms", "100", "--folder", str(tmp_path)])
    store.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    written, *others = lines
    assert written["overhead"] == round(written["states_bytes"] / written["payload_bytes"], 4)
    reads = {line["what"]: line for line in others if "what" in line}
    assert {"copy of the payloads", "records", "read", "cold read"} <= set(reads)
    assert reads["read"]["share_of_decode"] == pytest.approx(reads["read"]["median_ms"] / 100, rel=1e-3)
    assert [line["record_bytes"] for line in others if "record_bytes" in line] == [300, 5160]
    assert list(tmp_path.iterdir()) == []
