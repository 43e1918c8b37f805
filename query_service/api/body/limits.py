"""The bounds of request bodies that no setting changes, and the types of bounded values. Knows nothing of endpoints.

Settings bound the rest: `max_body_bytes`, `max_documents`, `max_query_chars`, `max_instruction_tokens`. All are in the
table of bounds in the documentation of the service.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, Strict, StrictInt, WithJsonSchema
from pydantic_core import PydanticCustomError

from kalm_cache.passage import as_doc_id

MAX_DEPTH = 64  # brackets within brackets
VALUES_PER_DOCUMENT = 64  # JSON values, on average: a body may have as many for each of `max_documents`
MAX_NAME_CHARS = 4096  # of an id, a label, the name of a model
SHOWN_NAMES = 20  # of unused fields; a request may have a million of them
LARGEST_INTEGER = 2**63 - 1


def encodable(text: str) -> str:
    """The text, unless UTF-8 cannot encode it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise PydanticCustomError(
            "lone_surrogate",
            "Half of a surrogate pair at character {position}: not valid Unicode",
            {"position": exc.start},
        ) from exc
    return text


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        kind = "a boolean" if isinstance(value, bool) else "a string"
        raise PydanticCustomError("number_type", "Input should be a number; got {kind}", {"kind": kind})
    return value


def _digits(value: object) -> str:
    try:
        return value if isinstance(value, str) else as_doc_id(value, "the id")
    except ValueError as exc:
        raise PydanticCustomError("doc_id", "{problem}", {"problem": str(exc)}) from exc


Text = Annotated[str, AfterValidator(encodable)]
Name = Annotated[str, Field(max_length=MAX_NAME_CHARS), AfterValidator(encodable)]
Whole = Annotated[
    int, Field(le=LARGEST_INTEGER), BeforeValidator(_number)
]  # 5.0 is one, too: some clients know no other
Real = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
Flag = Annotated[bool, Strict()]
DocId = Annotated[  # a number stands for its digits, as in a corpus
    str,
    Field(min_length=1, max_length=MAX_NAME_CHARS),
    AfterValidator(encodable),
    BeforeValidator(_digits),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARS}, {"type": "integer"}]}),
]
ItemId = Name | StrictInt


def exactly_one(**fields: object) -> None:
    """Fail the validation of a body unless one of these fields is given."""
    given = [name for name, value in fields.items() if value is not None]
    if len(given) != 1:
        wanted, got = ", ".join(f"`{name}`" for name in fields), " and ".join(given) or "none"
        raise PydanticCustomError(
            "exactly_one", "Give exactly one of {wanted}; got {got}", {"wanted": wanted, "got": got}
        )


def agreed(names: str, wishes: set[Any]) -> None:
    """Fail the validation of a body whose fields say different things of one matter; `None` = says nothing."""
    if len(wishes - {None}) > 1:
        raise PydanticCustomError("contradiction", "{names} contradict each other; give one", {"names": names})


def nothing_unused(request: BaseModel) -> None:
    """Fail the validation of a body that has fields which it does not know."""
    unused = [shown(name) for name in request.model_extra or ()]
    if unused:
        names = ", ".join(f"`{name}`" for name in unused[:SHOWN_NAMES])
        raise PydanticCustomError("unused", "No such field: {names}; take it out, or correct it", {"names": names})


def shown(name: str) -> str:
    """A field's name as an answer can hold it: not too long, and valid Unicode."""
    return name[:80].encode("utf-8", "backslashreplace").decode("utf-8")
