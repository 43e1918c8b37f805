"""A passage as it enters the system: its id, and its text made of a record's fields. Knows nothing of models or files.

Whoever takes a record reads it here: the index job, requests, the client, the adapters and evaluation. So what is an id
in a corpus is one in a request, and a record that was indexed makes the same passage when it is sent as a document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from string import Formatter
from typing import Literal

from kalm_cache.errors import UsageError

MAX_ID_BYTES = 511  # LMDB's key limit
OnMissing = Literal["error", "skip", "encode"]  # what becomes of a passage asked for that the index does not hold

# Of several names the first one present counts, whatever its value.
ID_NAMES = ("_id", "id", "doc_id", "docid")
TEXT_NAMES = ("text", "contents")
TEXT = TEXT_NAMES[0]
DEFAULT_TEMPLATE = "{title} {text}"  # title and text joined by a space, as BEIR's own loaders do
_TYPES = {dict: "an object", list: "a list", int: "an integer", float: "a float", bool: "a boolean"}


@dataclass(frozen=True, slots=True)
class Passage:
    """One document of a corpus: its id, and its text (with the title, if any, in front)."""

    doc_id: str
    text: str

    def content_hash(self) -> bytes:
        """16 bytes that change when the text changes: what tells a stored passage from an edited one."""
        return hashlib.blake2b(self.text.encode("utf-8"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class PassageTemplate:
    """How the fields of a record become a passage's text: `{title} {text}` puts the title in front.

    `fields`: those that the pattern names. The text must be in every record; others may be missing, null or empty. A
    record that has none of the others is its text as it is.
    """

    pattern: str = DEFAULT_TEMPLATE
    fields: tuple[str, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Raises `UsageError` for a pattern without a field, or with more than a field's name in braces."""
        object.__setattr__(self, "fields", _fields_of(self.pattern))

    @staticmethod
    def joining(names: Iterable[str]) -> PassageTemplate:
        """Some fields, one after the other with a space between them. Raises `UsageError` for none, or an odd name."""
        return PassageTemplate(" ".join(f"{{{name}}}" for name in names))

    def text_of(self, record: Mapping[str, object]) -> str:
        """The passage that a record's fields make.

        Raises:
            ValueError: the text is missing, or every field that counts, or one is no string; names the field.
        """
        if TEXT not in self.fields and first_present(self.fields, record) is None:
            raise ValueError(f"none of the fields that count: {', '.join(map(repr, self.fields))}")
        values = {name: _optional(name, record.get(name)) for name in self.fields if name != TEXT}
        text = read_text(record) if TEXT in self.fields else ""
        if values and not any(values.values()):
            return text
        filled = self.pattern.format_map({**values, TEXT: text})
        return filled.strip() if values else filled

    def unused(self, record: Iterable[str]) -> list[str]:
        """The fields of a record that are no part of its passage: neither id nor text, nor named by the pattern."""
        text_name = first_present(TEXT_NAMES, record) if TEXT in self.fields else None
        return [name for name in record if name not in (*ID_NAMES, *self.fields, text_name)]


def first_present(names: Iterable[str], fields: Iterable[str]) -> str | None:
    """The first of `names` that is among `fields`."""
    present = set(fields)
    return next((name for name in names if name in present), None)


def read_id(record: Mapping[str, object]) -> str:
    """The id of a record. Raises `ValueError` where it has none, or one that cannot be stored."""
    name = first_present(ID_NAMES, record)
    if name is None:
        raise ValueError(f"no id; give the passage one under {_either(ID_NAMES)}")
    doc_id = as_doc_id(record[name], repr(name))
    if not doc_id.strip():
        raise ValueError(f"the id in {name!r} is empty; give every passage an id")
    size = len(doc_id.encode("utf-8"))
    if size > MAX_ID_BYTES:
        raise ValueError(f"the id in {name!r} takes {size} bytes, at most {MAX_ID_BYTES} can be stored; shorten it")
    return doc_id


def read_text(record: Mapping[str, object]) -> str:
    """The text of a record, without its title. Raises `ValueError` where it has none, or no string."""
    name = first_present(TEXT_NAMES, record)
    if name is None:
        raise ValueError(f"no text; give the passage one under {_either(TEXT_NAMES)} (it may be empty)")
    return as_text(record[name], repr(name))


def as_doc_id(value: object, name: str) -> str:
    """The id that a value stands for, wherever one is given: a string is itself, and the whole number 101 is "101".

    Args:
        value: what was given.
        name: of the field or the argument, for the message.

    Raises:
        ValueError: it is neither (a boolean and 101.0 are not), no valid Unicode, or a number that is never stored.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        return as_text(value, name, "a string or an integer")
    if abs(int(value)) >= 10**MAX_ID_BYTES:
        raise ValueError(f"{name} has more than {MAX_ID_BYTES} digits, which no index can store; shorten it")
    return str(int(value))


def as_text(value: object, name: str, expected: str = "a string") -> str:
    """A text as a plain `str`.

    Args:
        value: what was given.
        name: of the field or the argument, for the message.
        expected: what is, in words.

    Raises:
        ValueError: it is no string, or no valid Unicode.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_type_name(value)}; make it {expected}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        escape = f"\\u{ord(value[exc.start]):04x}"
        raise ValueError(
            f"{name} holds half a surrogate pair, {escape}, at character {exc.start}, which UTF-8 cannot store; "
            "write both halves or remove it"
        ) from exc
    return str(value)  # of a subclass, as numpy's, a plain one


def _optional(name: str, value: object) -> str:
    return "" if value is None else as_text(value, repr(name), "a string or null")


def _fields_of(pattern: str) -> tuple[str, ...]:
    try:
        parts = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(pattern)]
    except ValueError as exc:
        raise UsageError(f"passage_template {pattern!r}: {exc}; write {{{{ and }}}} for braces in the text") from exc
    names = [name for name, _, _ in parts if name is not None]
    odd = [name for name, spec, conversion in parts if name is not None and (spec or conversion or not _is_name(name))]
    if odd or not names:
        raise UsageError(
            f"passage_template is {pattern!r}; expected names of fields in braces, as {DEFAULT_TEMPLATE!r}"
        )
    return tuple(dict.fromkeys(names))


def _is_name(name: str) -> bool:
    return bool(name) and not name.isdigit() and not any(character in name for character in ".[]{}!:")


def _type_name(value: object) -> str:
    return "null" if value is None else _TYPES.get(type(value), f"a {type(value).__name__}")


def _either(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names[:-1]) + f" or {names[-1]!r}"
