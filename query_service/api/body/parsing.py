"""Request bodies → request models, off the event loop, and refused before they cost much. Knows nothing of endpoints.

A parser of JSON holds Python's lock, for seconds where a body of 16 MB has millions of values, and takes fifty times
their bytes. So brackets and commas are counted first, in numpy, without the lock; then a body is small, or it is parsed
and validated on the one thread that large bodies have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from query_service.answering.errors import TooManyError
from query_service.api.body.limits import MAX_DEPTH, VALUES_PER_DOCUMENT, shown
from query_service.middleware.http.dialects import note_dialect

SMALL_BYTES = 1 << 16  # parsed at once, in a millisecond or two
SCANNED_BYTES = 1 << 20  # of a body, scanned together
_QUOTE, _BACKSLASH, _COMMA = b'"\\,'


def bounded_route(max_documents: int) -> type[APIRoute]:
    """A class of routes that read bodies as `parse` does."""
    one_at_a_time = CapacityLimiter(1)

    class BoundedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            model = self.body_field.field_info.annotation if self.body_field else None

            if not (isinstance(model, type) and issubclass(model, BaseModel)):
                return handle

            async def bounded(request: Request) -> Response:
                reading = _Reading(request, model, max_documents, one_at_a_time)
                try:
                    if not await reading.body():
                        note_dialect(request.scope, ())
                        raise _empty(model)
                    return await handle(reading)
                except HTTPException:
                    if reading.problem is not None:  # FastAPI makes a 400 without a reason of it
                        raise reading.problem from None
                    raise

            return bounded

    return BoundedRoute


class _Reading(Request):
    """A request whose JSON is a validated model: FastAPI takes it as it is."""

    def __init__(
        self, request: Request, model: type[BaseModel], max_documents: int, one_at_a_time: CapacityLimiter
    ) -> None:
        super().__init__(request.scope, request.receive)
        self._model, self._max_documents, self._one_at_a_time = model, max_documents, one_at_a_time
        self.problem: Exception | None = None

    async def json(self) -> BaseModel:
        """The model. `problem` is what `parse` raised."""
        body = await self.body()
        note = partial(note_dialect, self.scope)
        note(())  # by the path alone, until the fields are known
        read = partial(parse, body, self._model, self._max_documents, note)
        try:
            return read() if len(body) <= SMALL_BYTES else await to_thread.run_sync(read, limiter=self._one_at_a_time)
        except Exception as exc:
            self.problem = exc
            raise HTTPException(400) from exc


def parse(
    body: bytes,
    model: type[BaseModel],
    max_documents: int,
    on_fields: Callable[[Collection[str]], object] = lambda names: None,
) -> BaseModel:
    """A body → the model of its endpoint.

    Args:
        body: JSON in UTF-8.
        model: of the endpoint; each of its fields takes lists of at most `max_documents` elements.
        max_documents: as the service is set.
        on_fields: called with the names of the fields that are not null, before they are validated.

    Raises:
        TooManyError: too many values, or elements of a list.
        RequestValidationError: not JSON, or not what the model takes.
    """
    check_shape(body, VALUES_PER_DOCUMENT * max_documents)
    numbers = _Numbers()
    try:
        fields = json.loads(
            body.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_constant=numbers.read,
            parse_float=numbers.read,
        )
    except json.JSONDecodeError as exc:
        raise _malformed(exc.msg, exc.pos) from exc
    except UnicodeDecodeError as exc:
        raise _malformed("it is not UTF-8", exc.start) from exc
    except _TwiceError as exc:
        raise _malformed(str(exc), 0) from exc
    except ValueError as exc:
        raise _malformed("a number has more than 4300 digits", 0) from exc
    if isinstance(fields, dict):
        on_fields([name for name, value in fields.items() if value is not None])
    if numbers.endless:
        raise _faulty(fields, [_endless(fields)])
    for name, value in fields.items() if isinstance(fields, dict) else ():
        if isinstance(value, list) and name in model.model_fields and len(value) > max_documents:
            raise TooManyError(name, len(value), max_documents)
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        raise _faulty(fields, _problems(exc)) from exc


def _problems(error: ValidationError) -> list[dict[str, Any]]:
    return [dict(one) for one in error.errors(include_url=False, include_input=False, include_context=False)]


def _faulty(fields: object, problems: list[dict[str, Any]]) -> RequestValidationError:
    return RequestValidationError([one | {"loc": ("body", *one["loc"])} for one in problems], body=fields)


def _empty(model: type[BaseModel]) -> RequestValidationError:
    """What is said of a body without a byte: that it is empty, what it lacks, and what one looks like."""
    example = json.dumps(model.model_config["json_schema_extra"]["examples"][0])  # type: ignore[index]
    problem = {"type": "missing", "loc": (), "msg": f"The body is empty; send JSON such as {example}"}
    try:
        model.model_validate({})
    except ValidationError as exc:
        return _faulty(None, [problem, *_problems(exc)])
    return _faulty(None, [problem])


@dataclass(slots=True)
class _Numbers:
    """Reads what is no integer. `endless`: NaN, Infinity or a number as large was among it, wherever it stood."""

    endless: bool = False

    def read(self, literal: str) -> float:
        value = float(literal)
        self.endless = self.endless or not math.isfinite(value)
        return value


def _endless(fields: object) -> dict[str, Any]:
    """The problem that the first number without end is."""
    path = next(_paths_to_endless(fields))
    where = ".".join(shown(str(part)) for part in path) or "the body"
    return {"type": "finite_number", "loc": (), "msg": f"{where}: Input should be a finite number"}


def _paths_to_endless(value: object) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield ()
    items: Iterable[tuple[str | int, object]] = ()
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in items:
        yield from ((name, *path) for path in _paths_to_endless(item))


class _TwiceError(Exception):
    """A key that stands twice in one object: one of its values would be lost."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in fields if names.count(name) > 1)
        raise _TwiceError(f"the key {shown(twice)!r} stands twice in one object")
    return fields


def check_shape(body: bytes, max_values: int) -> None:
    """Refuse JSON of too many values or brackets within brackets, in little memory, and without Python's lock.

    Raises:
        TooManyError: more than `max_values` values.
        RequestValidationError: more than `MAX_DEPTH` brackets within brackets.
    """
    values, depth, in_string, escaped = 1, 0, False, False
    for start in range(0, len(body), SCANNED_BYTES):
        part = np.frombuffer(body, np.uint8, min(SCANNED_BYTES, len(body) - start), start)
        outside, in_string, escaped = _outside_strings(part, in_string, escaped)
        opening, closing = outside & ((part | 0x20) == ord("{")), outside & ((part | 0x20) == ord("}"))  # [{ and ]}
        values += int(np.count_nonzero(outside & (part == _COMMA))) + int(np.count_nonzero(opening))
        depths = depth + np.cumsum(opening.astype(np.int8) - closing.astype(np.int8), dtype=np.int32)
        if int(depths.max()) > MAX_DEPTH:
            raise _malformed(f"more than {MAX_DEPTH} brackets within brackets", start)
        if values > max_values:
            raise TooManyError("values", None, max_values)
        depth = int(depths[-1])


def _outside_strings(part: NDArray[np.uint8], in_string: bool, escaped: bool) -> tuple[NDArray[np.bool_], bool, bool]:
    """Which bytes (n,) stand outside of strings; and whether the next part begins in one, and with an escaped byte."""
    backslash = part == _BACKSLASH
    quote = part == _QUOTE
    if escaped or backslash.any():
        places, escaped = _escaped(backslash, escaped)
        quote[places] = False
    inside = np.bitwise_xor.accumulate(quote)
    if in_string:
        inside = ~inside
    return ~inside, bool(inside[-1]), escaped


def _escaped(backslash: NDArray[np.bool_], escaped: bool) -> tuple[NDArray[np.int64], bool]:
    """Places of bytes behind an odd run of backslashes, and whether the byte behind the part is one."""
    if escaped:
        backslash[0] = False  # it is what was escaped: no run begins with it
    edges = np.flatnonzero(np.diff(backslash, prepend=False, append=False)).reshape(-1, 2)  # runs [start, end)
    behind = edges[(edges[:, 1] - edges[:, 0]) % 2 == 1, 1]
    places = np.concatenate([[0] if escaped else [], behind]).astype(np.int64)
    return places[places < len(backslash)], bool(len(places)) and int(places[-1]) == len(backslash)


def _malformed(why: str, position: int) -> RequestValidationError:
    problem = {"type": "json_invalid", "loc": ("body", position), "msg": "JSON decode error", "ctx": {"error": why}}
    return RequestValidationError([problem])
