"""The bounds of request bodies that no setting changes, and the types of bounded values. Knows nothing of endpoints.

Settings bound the rest: `max_body_bytes`, `max_documents`, `max_query_chars`, `max_instruction_tokens`. All are in the
table of bounds in the documentation of the service.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, Strict
from pydantic_core import PydanticCustomError

MAX_DEPTH = 64  # brackets within brackets
VALUES_PER_DOCUMENT = 64  # JSON values, on average: a body may have as many for each of `max_documents`
MAX_NAME_CHARS = 4096  # of an id, a label, the name of a model
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


Text = Annotated[str, AfterValidator(encodable)]
Name = Annotated[str, Field(max_length=MAX_NAME_CHARS), AfterValidator(encodable)]
Whole = Annotated[
    int, Field(le=LARGEST_INTEGER), BeforeValidator(_number)
]  # 5.0 is one, too: some clients know no other
Real = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
Flag = Annotated[bool, Strict()]
