"""What is served: a generation, swapped for the next one while requests run, or a model alone. Knows nothing of HTTP.

A request leases what is live when it begins and keeps it to its end; a generation that was replaced is closed when the
last lease on it ends. A generation that cannot be opened changes nothing: the one before goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from kalm_cache.errors import UsageError
from kalm_cache.generations.current import current_name
from kalm_cache.generations.manifest import MANIFEST
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.storage.text_cache.text_cache import TextCache
from query_service.answering.errors import KeyFilterError, NoIndexError, OtherGenerationError
from query_service.engine.documents import DocumentEncoder
from query_service.engine.served import ServedModel, model_of_index

VIEWS = 64  # of keys with filters, that are kept open: some bytes for each passage
NO_INDEX = "none"  # in the place of a generation's name
logger = logging.getLogger(__name__)
Open = Callable[[PassageIndex | None], PassageIndex]


@dataclass(slots=True, eq=False)
class Served:
    """A model, its encoder (`None` = off), the open generation of an index, if any, and how many requests use it.

    signature: the generation's name, and a digest of its manifest, decoder and shared prefix: another index has
        another one.
    """

    model: ServedModel
    documents: DocumentEncoder | None
    index: PassageIndex | None = None
    leases: int = field(default=0)
    signature: str = field(init=False)
    _views: OrderedDict[str, Served] = field(default_factory=OrderedDict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(self.model.decoder.digest.encode(), digest_size=8)
        if self.model.shared_prefix is not None:
            digest.update(f", shared prefix: {self.model.shared_prefix}".encode())
        if self.index is not None:
            digest.update((self.index.generation.folder / MANIFEST).read_bytes())
        self.signature = f"{self.version}-{digest.hexdigest()}"

    @property
    def version(self) -> str:
        """The name of the generation; `none` without an index."""
        return NO_INDEX if self.index is None else self.index.generation.name

    @property
    def passages(self) -> int:
        """Of the index."""
        return 0 if self.index is None else len(self.index)

    def within(self, bound: Mapping[str, Any] | None) -> Served:
        """What a key that is bound to a filter sees of it; `None` = all. The latest views are kept.

        Raises:
            KeyFilterError: the filter does not fit the index.
        """
        if bound is None or self.index is None:
            return self
        name = json.dumps(bound, sort_keys=True)
        with self._lock:
            if name not in self._views:
                try:
                    view = replace(self, index=self.index.within(bound), leases=0, _views=OrderedDict(), _lock=Lock())
                except UsageError as exc:
                    logger.error("a key is bound to a filter that the index does not fit: %s", exc)
                    raise KeyFilterError from exc
                self._views[name] = view
            self._views.move_to_end(name)
            while len(self._views) > VIEWS:
                self._views.popitem(last=False)
            return self._views[name]

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

    def lease(self, generation: str | None = None) -> AbstractContextManager[Served]:
        """What is served. Raises `NoIndexError` where a generation is asked for."""
        if generation is not None:
            raise NoIndexError
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
        keep_previous: bool = False,
    ) -> None:
        """Open the live generation of `folder`.

        Args:
            folder: of the index.
            open_index: opens its live generation, with what it can share with the one that is open.
            with_encoder: raw documents are encoded too.
            model: where the model lies, if not where the manifest says.
            text_cache: keeps what is encoded; the caller closes it.
            refresh: brings the folder to what is published elsewhere, before each look at it.
            keep_previous: the generation before stays open, too, until the one after is: a router asks several
                services for the same one, and they do not change at the same moment.
        """
        self._refresh = refresh
        self._folder, self._open, self._with_encoder, self._model = folder, open_index, with_encoder, model
        self._text_cache = text_cache
        self._keep_previous = keep_previous
        self._state = Lock()  # guards _served, _previous and leases
        self._previous: Served | None = None
        self._swapping = Lock()
        self.on_swap: Callable[[bool], None] = lambda succeeded: None
        self.behind: Behind | None = None
        self._served = self._serve(None)

    @property
    def served(self) -> Served:
        """What is live now, to look at; a request leases it."""
        return self._served

    @property
    def generations(self) -> list[str]:
        """The signatures of what can be leased, the live one first."""
        with self._state:
            return [served.signature for served in self._kept]

    @contextmanager
    def lease(self, generation: str | None = None) -> Iterator[Served]:
        """What is live now, or the open generation of that signature, until the end of the block.

        Raises:
            OtherGenerationError: that generation is not open.
        """
        with self._state:
            served = next((each for each in self._kept if generation in (None, each.signature)), None)
            if served is None:
                raise OtherGenerationError(str(generation), [each.signature for each in self._kept])
            served.leases += 1
        try:
            yield served
        finally:
            with self._state:
                served.leases -= 1
                unused = served.leases == 0 and served not in self._kept
            if unused:
                _close(served)

    @property
    def _kept(self) -> list[Served]:
        return [self._served, *([] if self._previous is None else [self._previous])]

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
                before, left = self._served, self._previous if self._keep_previous else self._served
                self._served, self._previous = served, before if self._keep_previous else None
                unused = left is not None and left.leases == 0
            self.behind = None
            self.on_swap(True)
            logger.info("serving generation %s in place of %s", served.version, before.version)
            if left is not None and unused:
                _close(left)
            return True

    def close(self) -> None:
        """Close what is open; nothing may be leased any more."""
        for served in self._kept:
            _close(served)

    def _serve(self, before: Served | None) -> Served:
        index = self._open(before.index if before else None)
        index.warm_up(before.index if before else None)
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
