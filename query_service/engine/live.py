"""What is served: a generation, swapped for the next one while requests run, or a model alone. Knows nothing of HTTP.

A request leases what is live when it begins and keeps it to its end; a generation that was replaced is closed when the
last lease on it ends. A generation that cannot be opened changes nothing: the one before goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread

from kalm_cache.generations.current import current_name
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.storage.text_cache.text_cache import TextCache
from query_service.engine.documents import DocumentEncoder
from query_service.engine.errors import NoIndexError
from query_service.engine.served import ServedModel, model_of_index

NO_INDEX = "none"  # in the place of a generation's name
logger = logging.getLogger(__name__)
Open = Callable[[PassageIndex | None], PassageIndex]


@dataclass(slots=True, eq=False)
class Served:
    """A model, its encoder (`None` = off), the open generation of an index, if any, and how many requests use it."""

    model: ServedModel
    documents: DocumentEncoder | None
    index: PassageIndex | None = None
    leases: int = field(default=0)

    @property
    def version(self) -> str:
        """The name of the generation; `none` without an index."""
        return NO_INDEX if self.index is None else self.index.generation.name

    @property
    def passages(self) -> int:
        """Of the index."""
        return 0 if self.index is None else len(self.index)

    def require_index(self) -> PassageIndex:
        """The open generation. Raises `NoIndexError`."""
        if self.index is None:
            raise NoIndexError
        return self.index


class LiveModel:
    """A model without an index: what is served never changes. The interface of `LiveIndex`."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.on_swap: Callable[[bool], None] = lambda succeeded: None
        self.behind: Behind | None = None

    def lease(self) -> AbstractContextManager[Served]:
        """What is served."""
        return nullcontext(self.served)

    def reload(self) -> bool:
        """There is nothing to reload. Raises `NoIndexError`."""
        raise NoIndexError

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class Behind:
    """A published generation (`None`: which one is not known) that is not served, and why; first seen at `since`.

    `since`: by `time.monotonic`.
    """

    generation: str | None
    reason: str
    since: float

    @property
    def seconds(self) -> float:
        """For how long by now."""
        return time.monotonic() - self.since


class LiveIndex:
    """What is live now. Safe between threads; `close` it.

    `behind`: what should be served instead, where the last reload could not do that.
    """

    def __init__(
        self,
        folder: Path,
        open_index: Open,
        *,
        with_encoder: bool = False,
        model: str | None = None,
        text_cache: TextCache | None = None,
        refresh: Callable[[], object] = lambda: None,
    ) -> None:
        """Open the live generation of `folder`.

        Args:
            folder: of the index.
            open_index: opens its live generation, with what it can share with the one that is open.
            with_encoder: raw documents are encoded too.
            model: where the model lies, if not where the manifest says.
            text_cache: keeps what is encoded; the caller closes it.
            refresh: brings the folder to what is published elsewhere, before each look at it.
        """
        self._refresh = refresh
        self._folder, self._open, self._with_encoder, self._model = folder, open_index, with_encoder, model
        self._text_cache = text_cache
        self._state = Lock()  # guards _served and leases
        self._swapping = Lock()
        self.on_swap: Callable[[bool], None] = lambda succeeded: None
        self.behind: Behind | None = None
        self._served = self._serve(None)

    @property
    def served(self) -> Served:
        """What is live now, to look at; a request leases it."""
        return self._served

    @contextmanager
    def lease(self) -> Iterator[Served]:
        """What is live now, open until the end of the block, whatever is published meanwhile."""
        with self._state:
            served = self._served
            served.leases += 1
        try:
            yield served
        finally:
            with self._state:
                served.leases -= 1
                unused = served.leases == 0 and served is not self._served
            if unused:
                _close(served)

    def reload(self) -> bool:
        """Swap in the generation that CURRENT names; false where it is the one that is served.

        Raises:
            KalmCacheError: it cannot be opened; what was live still is.
        """
        with self._swapping:
            newest: str | None = None
            try:
                self._refresh()
                newest = current_name(self._folder)
                if newest == self._served.version:
                    self.behind = None
                    return False
                served = self._serve(self._served)
            except Exception as exc:
                self.behind = Behind(newest, str(exc), self.behind.since if self.behind else time.monotonic())
                self.on_swap(False)
                raise
            with self._state:
                old, self._served = self._served, served
                unused = old.leases == 0
            self.behind = None
            self.on_swap(True)
            logger.info("serving generation %s in place of %s", served.version, old.version)
            if unused:
                _close(old)
            return True

    def close(self) -> None:
        """Close what is live; nothing may be leased any more."""
        _close(self._served)

    def _serve(self, before: Served | None) -> Served:
        index = self._open(before.index if before else None)
        index.warm_up()
        if before is not None and index.query_side is not before.model.query_side:
            index.query_side.warm_up()  # another decoder: what it loads at its first use, no request waits for
        model = model_of_index(index)
        if not self._with_encoder:
            return Served(model, None, index)
        reuse_from = before.documents if before else None
        encoder = DocumentEncoder(model, self._model, cache=self._text_cache, reuse_from=reuse_from)
        return Served(model, encoder, index)


class Watcher:
    """A thread that reloads whenever CURRENT names another generation. `start` it, `close` it."""

    def __init__(self, live: LiveIndex, every_seconds: float) -> None:
        """Look every `every_seconds`."""
        self._live, self._every = live, every_seconds
        self._stop = Event()
        self._thread = Thread(target=self._run, name="kalm-cache-watcher", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """End, after a swap that is under way."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        logged: str | None = None
        while not self._stop.wait(self._every):
            try:
                self._live.reload()
                logged = None
            except Exception as exc:  # whatever it is, the next look may succeed
                if str(exc) != logged:  # once, not every second
                    logger.error("the new generation cannot be served, the old one goes on: %s", exc)
                logged = str(exc)


def _close(served: Served) -> None:
    served.require_index().close()
    logger.info("closed generation %s", served.version)
