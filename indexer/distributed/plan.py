"""What a plan says: all that building a partition depends on, beside the models. Written once, read by everyone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from indexer.build.shards.one_process import PLAN_FOLDER
from kalm_cache.errors import StoreError
from kalm_cache.foreign_files import STRICT, Count, GenerationName, Positive, RelativePath, checked_fields
from kalm_cache.foreign_files import read_json_object as read_object
from kalm_cache.generations.build_folders import unfinished_builds
from kalm_cache.generations.manifest import FileReceipt, Manifest
from kalm_cache.generations.sharding import Shard
from kalm_cache.storage.checked_json import digest_of_fields, pack_checked, unpack_checked
from kalm_cache.storage.durable import write_atomically

PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class Partition:
    """The texts of one shard, and how many passages these are."""

    texts: RelativePath
    passages: Count
    receipt: FileReceipt
    __pydantic_config__ = STRICT


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built.

    operation: the command, as the manifest names it.
    template: the manifest to publish, but for what follows from the build; it names the models and the shards.
    source: the generation that passages are copied or recoded from, if there is one to take them from.
    first_ordinal, next_ordinal: the range of the ordinals that are new in it.
    batch_tokens: padded tokens of a batch.
    rejected: lines of the corpus that make no passage; kept: passages that it does not have, and that stay;
        deleted: passages that the live generation shows, and this one will not.
    partitions: one a shard, by number.
    """

    operation: str
    template: Manifest
    source: GenerationName | None
    first_ordinal: Count
    next_ordinal: Count
    batch_tokens: Positive
    rejected: Count
    kept: Count
    deleted: Count
    partitions: list[Partition]
    __pydantic_config__ = STRICT

    @property
    def digest(self) -> str:
        """SHA-256 of all that it says, and so of the texts: the same corpus and settings make the same plan."""
        return digest_of_fields(asdict(self))

    def shard(self, partition: int) -> Shard:
        """The shard that a partition becomes."""
        assert self.template.sharding is not None
        return Shard(self.template.sharding, partition)

    def write(self, building: Path) -> None:
        """Make it the plan of an unfinished build, durably."""
        write_atomically(building / PLAN_FOLDER / PLAN_FILE, pack_checked(asdict(self)))


def read_plan(building: Path) -> Plan:
    """The plan of an unfinished build. Raises `StoreError` where there is none, or it is damaged."""
    path = building / PLAN_FOLDER / PLAN_FILE
    try:
        fields = unpack_checked(read_object(path))
        if fields is None:
            raise ValueError("checksum mismatch")
        return checked_fields(Plan, fields)
    except FileNotFoundError as exc:
        raise _no_plan(building.parent.parent) from exc
    except (OSError, ValueError) as exc:
        raise StoreError(f"{path}: cannot be read: {exc}; run kalm-cache partition plan again") from exc


def planned_build(index: Path) -> Path:
    """The unfinished build of an index that has a plan. Raises `StoreError` where none has."""
    for building in unfinished_builds(index):
        if (building / PLAN_FOLDER / PLAN_FILE).exists():
            return building
    raise _no_plan(index)


def _no_plan(index: Path) -> StoreError:
    return StoreError(f"{index}: nothing is planned here, or it was committed; run: kalm-cache partition plan CORPUS")
