"""Named fields → Passage: which names are understood and which values are refused. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kalm_cache.passage import MAX_ID_BYTES, Passage, join_title
from kalm_cache.text.lines import BadLineError

# Of several names the first one present counts, whatever its value.
ID_NAMES = ("_id", "id", "doc_id", "docid")
TEXT_NAMES = ("text", "contents")
TITLE_NAME = "title"
_JSON_TYPES = {dict: "an object", list: "a list", int: "an integer", float: "a float", bool: "a boolean"}


def to_passage(fields: Mapping[str, object]) -> Passage:
    """The passage that the fields describe; other fields are ignored.

    Raises:
        BadLineError: the id, the text or the title is missing, of another type, or cannot be stored.
    """
    doc_id = _read_id(fields)
    try:
        return Passage(doc_id, join_title(_read_title(fields), _read_text(fields)))
    except BadLineError as exc:
        raise BadLineError(exc.reason, doc_id) from exc


def first_present(names: Iterable[str], fields: Iterable[str]) -> str | None:
    """The first of `names` that is among `fields`."""
    present = set(fields)
    return next((name for name in names if name in present), None)


def _read_id(fields: Mapping[str, object]) -> str:
    name = first_present(ID_NAMES, fields)
    if name is None:
        raise BadLineError(f"no id; give the passage one under {_either(ID_NAMES)}")
    doc_id = str(fields[name]) if type(fields[name]) is int else _string(name, fields[name], "a string or an integer")
    if not doc_id.strip():
        raise BadLineError(f"the id in {name!r} is empty; give every passage an id")
    size = len(doc_id.encode("utf-8"))
    if size > MAX_ID_BYTES:
        raise BadLineError(f"the id in {name!r} takes {size} bytes, at most {MAX_ID_BYTES} can be stored; shorten it")
    return doc_id


def _read_text(fields: Mapping[str, object]) -> str:
    name = first_present(TEXT_NAMES, fields)
    if name is None:
        raise BadLineError(f"no text; give the passage one under {_either(TEXT_NAMES)} (it may be empty)")
    return _string(name, fields[name], "a string")


def _read_title(fields: Mapping[str, object]) -> str:
    title = fields.get(TITLE_NAME)
    return "" if title is None else _string(TITLE_NAME, title, "a string or null")


def _string(name: str, value: object, expected: str) -> str:
    if not isinstance(value, str):
        raise BadLineError(f"{name!r} is {_type_name(value)}; make it {expected}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        escape = f"\\u{ord(value[exc.start]):04x}"
        raise BadLineError(
            f"{name!r} holds half a surrogate pair, {escape}, at character {exc.start}, which UTF-8 cannot store; "
            "write both halves or remove it"
        ) from exc
    return value


def _type_name(value: object) -> str:
    return "null" if value is None else _JSON_TYPES.get(type(value), f"a {type(value).__name__}")


def _either(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names[:-1]) + f" or {names[-1]!r}"
