"""The random models that every step runs with: saved once, loaded once a worker, shared by its children."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import indexer.build.plan
import indexer.integrity.verify
import kalm_cache.index.opening
from indexer.build.index_job import Encoders, load_encoders
from kalm_cache.settings import Settings
from tests.checkpoints import MINI, make_checkpoint
from tests.indexes import make_embedder, settings_for
from tests.torture.forked import run_forked

WINDOW = 16  # so that the corpora here have several
BATCH_TOKENS = 150  # some four passages

_loaded: list[Path] = []


def save_models(folder: Path) -> Path:
    """Write the checkpoint and the embedder below `folder`, and return it."""
    make_checkpoint(folder / "model", MINI)
    make_embedder(folder / "embedder")
    return folder


def load_models(folder: Path) -> None:
    """Load what the steps need, and keep it: a child begins with all of it in memory."""
    _loaded[:] = [folder]
    logging.disable()  # queries name every damaged passage
    indexer.build.plan.WINDOW = WINDOW
    indexer.integrity.verify.subprocess = SimpleNamespace(run=run_forked)  # type: ignore[attr-defined]
    loaders = (
        (kalm_cache.index.opening, "open_checkpoint"),
        (kalm_cache.index.opening, "load_embedder"),
        (kalm_cache.index.opening, "load_query_side"),
    )
    for module, name in loaders:
        setattr(module, name, _once(getattr(module, name)))
    encoders()
    warm_up()


@functools.cache
def settings(**changes: Any) -> Settings:
    """The settings of every job; `changes` as those of `load_settings`."""
    (folder,) = _loaded
    return settings_for(folder / "model", folder / "embedder", batch_tokens=BATCH_TOKENS, **changes)


@functools.cache
def encoders(**changes: Any) -> Encoders:
    """The models of every job."""
    return load_encoders(settings(**changes))


def warm_up() -> None:
    """Build and search a small index, so that every lazy import is done before the first child is forked."""
    import tempfile

    from tests.torture.content import content
    from tests.torture.operations import build

    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        build(index, {"a": "The ferry leaves at nine", "b": "Honey bees dance"})
        content(index)


def _once(load: Any) -> Any:
    kept: dict[str, Any] = {}

    def loaded(*arguments: Any, **options: Any) -> Any:
        key = repr((arguments, options))
        if key not in kept:
            kept[key] = load(*arguments, **options)
        return kept[key]

    return loaded
