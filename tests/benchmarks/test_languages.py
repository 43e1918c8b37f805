"""BM25 by language, on a collection of one's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.languages import main


def collection(folder: Path, texts: dict[str, str], queries: dict[str, str]) -> Path:
    """A collection in which query `qX` is answered by passage `X` alone."""
    (folder / "qrels").mkdir(parents=True)
    for name, each in (("corpus", texts), ("queries", queries)):
        lines = (json.dumps({"_id": key, "title": "", "text": text}) for key, text in each.items())
        (folder / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    judged = "".join(f"{query}\t{query[1:]}\t1\n" for query in queries)
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", "utf-8")
    return folder


def test_a_language_finds_what_english_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"a": "Das Haus am Hafen steht leer und soll verkauft werden.", "b": "Die Fähre fährt um neun Uhr ab."}
    german = collection(tmp_path / "german", texts, {"qa": "Häuser", "qb": "Fähre"})
    monkeypatch.setattr(sys, "argv", ["languages", "--beir", str(german), "--mixed", str(german), str(german)])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert "en: 0.5000 / 0.5000" in lines[2]
    assert "auto: de: 1.0000 / 1.0000" in lines[2]
    assert lines[3].startswith("| mixed |")  # each passage is there twice, and only one of them is the answer
    assert "mean, auto:" in lines[-1]
