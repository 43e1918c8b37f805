"""Connecting to Ray: what cannot be had is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from indexer.distributed.on_ray.cluster import connected
from kalm_cache.cli.app import app
from kalm_cache.errors import MissingExtraError


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match=r"ray is not installed; run: pip install 'kalm-cache\[ray\]'"),
        connected(None),
    ):
        pass


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
