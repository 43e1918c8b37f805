"""Which fields of a corpus are kept as metadata: the setting `metadata`, read. Knows nothing of columns' files.

    lang,year,tags        these fields, of the types that their values have
    year:number,sku:text  of these types, whatever the values look like; `tags:text[]`: a list
    all                   every field that is no part of the passage
    all,sku:text          the same, one of them of this type

The members of an object called `metadata` are fields, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kalm_cache.errors import UsageError
from kalm_cache.metadata.column_types import NO_VALUES, ColumnType, Schema, as_column_type
from kalm_cache.passage import ID_NAMES, TEXT_NAMES, PassageTemplate

EVERYTHING = "all"
NESTED = "metadata"  # the object whose members are fields


@dataclass(frozen=True, slots=True)
class MetadataFields:
    """`types`: of the fields that are named, `None` where the values decide. `everything`: all others are kept, too."""

    everything: bool = False
    types: Mapping[str, ColumnType | None] = field(default_factory=dict)

    @staticmethod
    def parse(setting: str) -> MetadataFields:
        """Raises `UsageError` for an empty name, one that is given twice, or a type that there is not."""
        types: dict[str, ColumnType | None] = {}
        parts = [part.strip() for part in setting.split(",")] if setting.strip() else []
        for part in parts:
            name, colon, type = part.rpartition(":") if ":" in part else (part, "", "")
            try:
                if not name or name in types:
                    raise ValueError("a name is empty" if not name else f"{name!r} is named twice")
                if name in (*ID_NAMES, *TEXT_NAMES):
                    raise ValueError(f"{name!r} is the id or the text of a passage, which are kept as such")
                types[name] = as_column_type(type) if colon else None
            except ValueError as exc:
                raise UsageError(f"metadata is {setting!r}: {exc}; write names with commas, or all") from exc
        everything = types.get(EVERYTHING, "") is None
        if everything:
            del types[EVERYTHING]
        return MetadataFields(everything, types)

    def __bool__(self) -> bool:
        """Whether any field is kept."""
        return self.everything or bool(self.types)

    def keeps(self, name: str) -> bool:
        """Whether a field of that name is kept."""
        return self.everything or name in self.types

    def schema(self, stored: Mapping[str, ColumnType]) -> Schema:
        """The columns whose types are known before a corpus is read: those that are named, and `stored` ones."""
        kept: Schema = {name: type for name, type in stored.items() if self.keeps(name)}
        return kept | {name: type for name, type in self.types.items() if type is not None}

    def columns_to_read(self, names: Iterable[str]) -> set[str]:
        """Of a table's columns, those that have fields to keep."""
        return {name for name in names if self.keeps(name) or (self.types and name == NESTED)}

    def values(self, record: Mapping[str, object], template: PassageTemplate) -> dict[str, object]:
        """The fields of a record that are kept, as they are, where they hold something.

        Raises:
            ValueError: one is in the record and in its `metadata`, too.
        """
        if not self:
            return {}
        found = self._picked(record, template)
        nested = record.get(NESTED)
        if not isinstance(nested, Mapping) or NESTED in self.types:
            return found
        found.pop(NESTED, None)
        for name, value in self._picked(nested, template).items():
            if name in found:
                raise ValueError(f"{name!r} is in the record and in its {NESTED!r}; leave one of them out")
            found[name] = value
        return found

    def _picked(self, record: Mapping[str, object], template: PassageTemplate) -> dict[str, object]:
        names = template.unused(record) if self.everything else []
        wanted = dict.fromkeys([*names, *(name for name in self.types if name in record)])
        return {name: record[name] for name in wanted if record[name] not in NO_VALUES}
