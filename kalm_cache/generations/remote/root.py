"""URL/CURRENT: which generations a remote index has, and which is live. Everything else there is named by its digest.

URL/CURRENT          the root: changed by one put-if-absent or if-match, and by nothing else
URL/files/SHA256     a file of a generation, or its manifest; never changed
URL/leases/NAME      a generation that somebody pulls (see lease.py)
URL/partitions/…     a plan whose partitions are being built, and their receipts (see indexer/distributed)
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from kalm_cache.errors import IndexNotFoundError, StoreError
from kalm_cache.foreign_files import STRICT, Count, GenerationName, checked_fields, parse_json
from kalm_cache.generations.current import CURRENT
from kalm_cache.generations.journal import HighestName, Journal
from kalm_cache.generations.manifest import Manifest, parse_manifest
from kalm_cache.object_store.backend import Found
from kalm_cache.object_store.store import ObjectStore
from kalm_cache.storage.checked_json import pack_checked, unpack_checked

FILES, PARTITIONS = "files", "partitions"
OPEN_PLAN = f"{PARTITIONS}/PLAN"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Token = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


@dataclass(frozen=True, slots=True)
class Root:
    """What `CURRENT` holds.

    `index_id` tells an index from another one that was made later at the same URL. `generations`: the SHA-256 of the
    manifest of each. `highest_generation` and `next_ordinal` as in the journal. `collecting`: a gc is deleting. Every
    write has a `revision` of its own: what is as it was before a gc is not taken for what it was.
    """

    index_id: Token
    live: GenerationName
    generations: dict[GenerationName, Digest]
    highest_generation: HighestName
    next_ordinal: Count
    revision: Token
    collecting: Token | None = None
    __pydantic_config__ = STRICT

    def to_bytes(self) -> bytes:
        """The object's content: every field, and a checksum over them."""
        return pack_checked(asdict(self))

    def changed(self, **changes: Any) -> Root:
        """The root that is written in the place of this one."""
        return replace(self, revision=new_token(), **changes)

    @property
    def live_manifest(self) -> str:
        """The digest of the live generation's manifest."""
        return self.generations[self.live]

    def journal(self) -> Journal:
        """What a local copy must remember."""
        return Journal(self.highest_generation, self.next_ordinal)

    def follows(self, base: Root | None) -> bool:
        """Whether nothing was published since `base`: what gc dropped does not count."""
        return base is not None and self._state() == base._state()

    def _state(self) -> tuple[object, ...]:
        return self.index_id, self.live, self.live_manifest, self.journal()


def parse_root(content: bytes, name: str) -> Root:
    """Inverse of `Root.to_bytes`. Raises `StoreError` that begins with `name`."""
    try:
        raw = parse_json(content)
        fields = unpack_checked(raw) if isinstance(raw, dict) else None
        if fields is None:
            raise ValueError("checksum mismatch")
        root = checked_fields(Root, fields)
        if root.live not in root.generations:
            raise ValueError(f"live: {root.live} is none of the generations")
    except ValueError as exc:
        raise StoreError(f"{name}: is no {CURRENT} of an index: {exc}") from exc
    return root


def read_root(store: ObjectStore) -> tuple[Root | None, Found | None]:
    """The root and the object that it is in; two `None` where nothing was published. Raises `StoreError`."""
    found = store.get(CURRENT)
    return (None, None) if found is None else (parse_root(found.content, f"{store}/{CURRENT}"), found)


def require_root(store: ObjectStore) -> tuple[Root, Found]:
    """As `read_root`. Raises `IndexNotFoundError` where nothing was published."""
    root, found = read_root(store)
    if root is None or found is None:
        raise IndexNotFoundError(f"{store}: no published index here; run: kalm-cache index CORPUS --index {store}")
    return root, found


def read_remote_manifest(store: ObjectStore, digest: str) -> tuple[bytes, Manifest]:
    """A manifest by its digest. Raises `FileNotFoundError` where it is not there any more, `StoreError`."""
    name = object_name(digest)
    found = store.get(name)
    if found is None:
        raise FileNotFoundError(name)
    if hashlib.sha256(found.content).hexdigest() != digest:
        raise StoreError(f"{store}/{name}: its SHA-256 is not its name; push the index again")
    return found.content, parse_manifest(found.content, f"{store}/{name}")


def object_name(digest: str) -> str:
    """Where the file with a SHA-256 lies."""
    return f"{FILES}/{digest}"


def new_token() -> str:
    """A name that nobody else has."""
    return uuid.uuid4().hex
