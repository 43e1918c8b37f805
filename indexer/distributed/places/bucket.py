"""A plan in an object store. Nothing is shared but the store; each builder has a folder of its own.

URL/partitions/PLAN                   the plan that is being built: put if absent, or swapped for one that replaces it
URL/partitions/DIGEST/00003/NAME      a receipt of partition 3 of the plan with this digest
URL/files/SHA256                      texts of the plan, and files of segments, as those of any generation

While there is a plan, gc removes no object. CACHE/remote/KEY/partitions/DIGEST/ is as an unfinished build's folder.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from indexer.build.shards.one_process import PLAN_FOLDER
from indexer.distributed.plan import Plan
from indexer.distributed.receipt import Receipt, parse_receipt
from kalm_cache.errors import StoreError
from kalm_cache.foreign_files import STRICT, checked_fields, parse_json
from kalm_cache.generations.generation import Generation, open_generation
from kalm_cache.generations.remote.copies import RemoteCopy
from kalm_cache.generations.remote.pull import pull_part
from kalm_cache.generations.remote.root import (
    FILES,
    OPEN_PLAN,
    PARTITIONS,
    Root,
    new_token,
    object_name,
    read_root,
)
from kalm_cache.generations.remote.transfer import download, upload_missing
from kalm_cache.generations.sharding import Shard
from kalm_cache.object_store.backend import Found
from kalm_cache.object_store.store import ObjectStore
from kalm_cache.storage.checked_json import pack_checked, unpack_checked

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenPlan:
    """What the object has: a plan, and the root that it was made on; `None`: nothing was published."""

    plan: Plan
    base: Root | None
    __pydantic_config__ = STRICT

    def to_bytes(self) -> bytes:
        """The object's content: every field, and a checksum over them."""
        return pack_checked(asdict(self))


def read_open_plan(store: ObjectStore) -> tuple[OpenPlan | None, Found | None]:
    """The plan and the object that it is in; two `None` where nothing is planned. Raises `StoreError`."""
    found = store.get(OPEN_PLAN)
    if found is None:
        return None, None
    try:
        raw = parse_json(found.content)
        fields = unpack_checked(raw) if isinstance(raw, dict) else None
        if fields is None:
            raise ValueError("checksum mismatch")
        return checked_fields(OpenPlan, fields), found
    except ValueError as exc:
        raise StoreError(f"{store}/{OPEN_PLAN}: cannot be read: {exc}; run kalm-cache partition plan again") from exc


def require_open_plan(store: ObjectStore) -> OpenPlan:
    """As `read_open_plan`. Raises `StoreError`, also where nothing is planned."""
    opened, _ = read_open_plan(store)
    if opened is None:
        raise StoreError(
            f"{store}: nothing is planned here, or it was committed; run: kalm-cache partition plan CORPUS"
        )
    return opened


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """A remote index, with its local copies. See `Place` for its methods."""

    copy: RemoteCopy

    @property
    def store(self) -> ObjectStore:
        """The object store."""
        return self.copy.open_store()

    def plan(self) -> Plan:
        """See `Place.plan`."""
        return require_open_plan(self.store).plan

    def building(self, plan: Plan) -> Path:
        """See `Place.building`."""
        return self.copy.home / PARTITIONS / plan.digest

    def finished(self, plan: Plan, partition: int) -> Receipt | None:
        """See `Place.finished`."""
        receipts = self.receipts(plan, partition)
        there = self.store.list(FILES) if receipts else {}
        sizes = {name: listed.bytes for name, listed in there.items()}
        return next((receipt for receipt in receipts if not lacking(receipt, sizes)), None)

    def receipts(self, plan: Plan, partition: int | None = None) -> list[Receipt]:
        """Receipts of a plan, or of one of its partitions; what cannot be read is left out."""
        below = f"{PARTITIONS}/{plan.digest}" + ("" if partition is None else f"/{partition:05d}")
        receipts = []
        for name in sorted(self.store.list(below)):
            found = self.store.get(name)
            try:
                if found is not None:
                    receipts.append(parse_receipt(found.content, f"{self.store}/{name}"))
            except StoreError as exc:
                logger.warning("%s", exc)
        return [receipt for receipt in receipts if receipt.plan == plan.digest]

    def texts(self, plan: Plan, partition: int) -> Path:
        """See `Place.texts`."""
        planned = plan.partitions[partition]
        path = self.building(plan) / PLAN_FOLDER / planned.texts
        if not path.is_file() or not planned.receipt.has_digest_of(path):
            try:
                download(self.store, [(path, planned.receipt)])
            except FileNotFoundError as exc:
                raise StoreError(
                    f"{self.store}: lacks the texts of partition {partition}: the plan is still being written, or was "
                    "cut short; run kalm-cache partition plan again"
                ) from exc
        return path

    @contextmanager
    def source(self, plan: Plan, shard: Shard) -> Iterator[Generation | None]:
        """See `Place.source`; what is not at hand of its segments is fetched, and removed again."""
        root, _ = read_root(self.store)
        digest = None if root is None or plan.source is None else root.generations.get(plan.source)
        if digest is None:
            yield None
            return
        with self.fetched(digest, lambda part: part.shard is None or part.shard.overlaps(shard)) as generation:
            yield generation

    @contextmanager
    def fetched(self, digest: str, wants: Callable[[Generation], bool]) -> Iterator[Generation]:
        """Some segments of a generation, by the digest of its manifest, as long as this lasts. See `pull_part`."""
        self.copy.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="part-", dir=self.copy.home) as home:
            folder = Path(home) / "generation"
            pull_part(self.store, digest, folder, wants, at_hand=[self.copy.reading, self.copy.writing])
            yield open_generation(folder)

    def hand_in(self, plan: Plan, receipt: Receipt) -> None:
        """See `Place.hand_in`: files first, then the receipt that names them."""
        attempt = self.building(plan) / receipt.folder
        upload_missing(self.store, [(attempt / name, file) for name, file in receipt.files.items()])
        if require_open_plan(self.store).plan.digest != plan.digest:
            raise StoreError(f"{self.store}: another plan is to be built by now; run kalm-cache partition build again")
        name = f"{PARTITIONS}/{plan.digest}/{receipt.partition:05d}/{new_token()}"
        self.store.put(name, receipt.to_bytes())
        shutil.rmtree(attempt)

    def forget(self) -> None:
        """Remove the plan with its receipts; what they name is for gc, unless it was published."""
        self.store.delete([OPEN_PLAN])  # first: nobody begins another attempt
        self.store.delete(list(self.store.list(PARTITIONS)))
        shutil.rmtree(self.copy.home / PARTITIONS, ignore_errors=True)


def lacking(receipt: Receipt, sizes: dict[str, int]) -> list[str]:
    """Files of a receipt that a store does not have in their sizes. `sizes`: of objects, by name."""
    return [name for name, file in receipt.files.items() if sizes.get(object_name(file.sha256)) != file.bytes]
