"""URL/leases/NAME: a generation that somebody is pulling, which gc leaves alone. Ages are by the store's clock."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import Field

from kalm_cache.errors import StoreError
from kalm_cache.foreign_files import STRICT, GenerationName, checked_fields, parse_json
from kalm_cache.generations.remote.root import Digest, new_token
from kalm_cache.object_store.store import ObjectStore
from kalm_cache.storage.checked_json import pack_checked, unpack_checked

LEASES = "leases"
LEASE_SECONDS = 600  # after its last renewal
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseFields:
    """What a lease holds: a generation, the digest of its manifest, and how long the lease lasts when it is written."""

    generation: GenerationName
    manifest: Digest
    seconds: Annotated[int, Field(ge=1, le=86_400)] = LEASE_SECONDS
    __pydantic_config__ = STRICT


class Lease:
    """A lease that is held: renew it now and then."""

    def __init__(self, store: ObjectStore, fields: LeaseFields) -> None:
        self._store, self._fields = store, fields
        self._name: str | None = f"{LEASES}/{new_token()}"
        self._written = 0.0

    def renew(self) -> None:
        """Write it again when a third of its time is over. Where that fails, go on without one."""
        now = time.monotonic()
        if self._name is None or (self._written and now - self._written < self._fields.seconds / 3):
            return
        try:
            self._store.put(self._name, pack_checked(asdict(self._fields)))
            self._written = now
        except StoreError as exc:
            logger.warning("no lease, so that a gc meanwhile would interrupt this pull: %s", exc)
            self._name = None

    def release(self) -> None:
        """Remove it; one that cannot be removed expires."""
        if self._name is not None:
            with suppress(StoreError):
                self._store.delete([self._name])


@contextmanager
def leased(store: ObjectStore, generation: str, manifest: str) -> Iterator[Lease]:
    """Hold a lease on a generation, by the digest of its manifest. Who may only read goes without.

    It holds from the moment on at which the root, read after this, still has the generation.
    """
    lease = Lease(store, LeaseFields(generation, manifest))
    lease.renew()
    try:
        yield lease
    finally:
        lease.release()


def read_leases(store: ObjectStore, now: datetime) -> tuple[list[LeaseFields], list[str]]:
    """The leases that hold at `now`, by the store's clock, and names of those that are over. Raises `StoreError`."""
    held: list[LeaseFields] = []
    over: list[str] = []
    for name, listed in store.list(LEASES).items():
        found = store.get(name)
        fields = None if found is None else _parse(found.content)
        if fields is None or listed.modified + timedelta(seconds=fields.seconds) < now:
            over.append(name)
        else:
            held.append(fields)
    return held, over


def _parse(content: bytes) -> LeaseFields | None:
    try:
        raw = parse_json(content)
        fields = unpack_checked(raw) if isinstance(raw, dict) else None
        return None if fields is None else checked_fields(LeaseFields, fields)
    except ValueError:
        return None
