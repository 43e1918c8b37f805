"""The flags of `--engine ray`: which go together."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from kalm_cache.cli.app import app


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--engine", "dask"], "--engine dask: must be ray"),
        (["--encoders", "2"], "are of --engine ray; add that"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path: Path, flags: list[str], said: str):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "a", "text": "b"}\n')
    result = CliRunner().invoke(app, ["index", str(corpus), "--index", str(tmp_path / "index"), *flags])
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "index").exists()
