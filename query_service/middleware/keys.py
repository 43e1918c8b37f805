"""Bearer keys: where they come from, and which paths need them. Keys themselves are never kept, logged or shown.

A line of a file of keys may bind its key to a filter, so that its holder sees the passages alone that match:

    sk-acme {"tenant": "acme"}
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kalm_cache.errors import UsageError
from query_service.middleware.bound import HIDDEN, Bound, bound_to
from query_service.middleware.paths import route_path
from query_service.middleware.refusal import refusal

# Probes, and what a browser opens by address, where it can send no key: the search page, the API's description.
PUBLIC_PATHS = frozenset({"/", "/health", "/infinity/health", "/ready", "/docs", "/openapi.json"})
PUBLIC_FOLDERS = ("/page/", "/docs/")
ADMIN_FOLDER = "/admin"
# What a key that is bound to a filter does not open: numbers of all passages and requests, and questions of routers
UNBOUND_PATHS, UNBOUND_FOLDERS = frozenset({"/metrics"}), ("/shard/",)


class KeyRing:
    """The keys that open something. Holds SHA-256 digests only."""

    def __init__(self, keys: Iterable[str] = (), bound: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Without keys the ring is false, and matches nothing. `bound`: further keys, and the filter of each."""
        filters: dict[bytes, Mapping[str, Any] | None] = {_digest(key.encode()): None for key in keys}
        filters |= {_digest(key.encode()): filter for key, filter in (bound or {}).items()}
        self._digests, self._filters = tuple(filters), tuple(filters.values())

    @classmethod
    def load(cls, name: str, keys: SecretStr, file: Path | None) -> KeyRing:
        """The keys of a setting (with commas) and of a file (one a line; empty lines and `#` lines do not count).

        A key of the file may have a filter behind it, an object of JSON.

        Args:
            name: of the setting, for messages: `api_keys`.
            keys: the setting's value.
            file: the value of the setting `name` + `_file`.

        Raises:
            UsageError: the file cannot be read, either was given but holds no key, or a key could not be sent; a
                filter is no object, or a key is there twice and not with the same one.
        """
        given = keys.get_secret_value()
        ring = list(_checked(((name, key) for key in given.split(",")), name)) if given else []
        bound: dict[str, Mapping[str, Any]] = {}
        for where, key, filter in [] if file is None else _from_file(f"{name}_file", file):
            if (key in ring and filter is not None) or bound.get(key, filter) != filter:
                raise UsageError(f"{where}: this key is there already, with another filter or none; give it one line")
            if filter is None:
                ring.append(key)
            else:
                bound[key] = filter
        return cls(ring, bound)

    def matches(self, key: bytes) -> bool:
        """Whether the key is one of the ring. Takes as long for any key, right or wrong."""
        return self._place(key) is not None

    def filter_of(self, key: bytes) -> Mapping[str, Any] | None:
        """The filter that the key is bound to; `None` for others."""
        place = self._place(key)
        return None if place is None else self._filters[place]

    @property
    def has_filters(self) -> bool:
        """Whether some keys are bound."""
        return any(filter is not None for filter in self._filters)

    def _place(self, key: bytes) -> int | None:
        digest, found = _digest(key), None
        for place, known in enumerate(self._digests):  # no early end: the time must not tell which key it was
            if hmac.compare_digest(known, digest):
                found = place
        return found

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"KeyRing({len(self)} keys)"


class BearerKeys:
    """Lets requests through that bring the key their path asks for.

    | path                               | asks for                                                          |
    |------------------------------------|-------------------------------------------------------------------|
    | `PUBLIC_PATHS`, `PUBLIC_FOLDERS`   | nothing                                                           |
    | `/admin`, `/admin/…`               | an admin key: 401 without a known key, 403 with one of `keys`;    |
    |                                    | 404 for everyone where no admin key is configured                 |
    | all others                         | any key, if `keys` holds one; without keys, the service is open   |

    What a key is bound to, who answers has from `bound_filter`; such a key gets 403 for `UNBOUND_PATHS` and the like.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, admin_keys: KeyRing) -> None:
        """`admin_keys` open what `keys` open, too."""
        self._app = app
        self._keys = keys
        self._admin_keys = admin_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "websocket":  # there are none; who adds one decides what it asks for
            await send({"type": "websocket.close", "code": 1008})
            return
        refused = self._refuse(scope) if scope["type"] == "http" else None
        with bound_to(self._bound(scope) if scope["type"] == "http" else None):
            await (refused or self._app)(scope, receive, send)

    def _bound(self, scope: Scope) -> Bound:
        """What the one who asks sees."""
        if not self._keys.has_filters:
            return None
        key = _bearer(scope)
        if key is None or not (self._keys.matches(key) | self._admin_keys.matches(key)):
            return HIDDEN
        return None if self._admin_keys.matches(key) else self._keys.filter_of(key)

    def _refuse(self, scope: Scope) -> Response | None:
        path, key = route_path(scope), _bearer(scope)
        if path == ADMIN_FOLDER or path.startswith(f"{ADMIN_FOLDER}/"):
            return self._refuse_admin(scope, key)
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDERS) or not self._keys:
            return None
        if key is None or not (self._keys.matches(key) | self._admin_keys.matches(key)):
            return _unauthorized(scope, key)
        is_bound = self._bound(scope) is not None
        if is_bound and (path in UNBOUND_PATHS or path.startswith(UNBOUND_FOLDERS)):
            return refusal(scope, 403, "Forbidden", f"this key sees some passages alone, and {path} is of all of them")
        return None

    def _refuse_admin(self, scope: Scope, key: bytes | None) -> Response | None:
        if not self._admin_keys:
            return refusal(scope, 404, "NotFound", "Not Found")
        if key is None or not (self._admin_keys.matches(key) | self._keys.matches(key)):
            return _unauthorized(scope, key)
        if not self._admin_keys.matches(key):
            message = "this key does not open /admin; send one of the service's admin keys"
            return refusal(scope, 403, "Forbidden", message)
        return None


def _bearer(scope: Scope) -> bytes | None:
    scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    return key.strip().encode("latin-1") or None if scheme.lower() == "bearer" else None


def _unauthorized(scope: Scope, key: bytes | None) -> Response:
    if key is None:
        message, challenge = "a key is needed; send the header Authorization: Bearer KEY", "Bearer"
    else:
        message, challenge = "this key is none of the service's", 'Bearer error="invalid_token"'  # RFC 6750, 3
    return refusal(scope, 401, "Unauthorized", message, {"WWW-Authenticate": challenge})


def _from_file(name: str, file: Path) -> Iterator[tuple[str, str, Mapping[str, Any] | None]]:
    """Where each key stands, the key, and its filter, if it has one."""
    try:
        lines = file.read_text("utf-8-sig").split("\n")
    except OSError as exc:
        raise UsageError(f"{name} {file}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{name} {file}: is not UTF-8 text") from exc
    numbered = ((f"{name} {file}:{number}", line.strip()) for number, line in enumerate(lines, 1))
    given = [(where, *line.partition(" ")) for where, line in numbered if line and not line.startswith("#")]
    filters = [_filter(where, text.strip()) for where, _, _, text in given]
    keys = _checked([(where, key) for where, key, _, _ in given], f"{name} {file}")
    return iter([(where, key, filter) for (where, *_), key, filter in zip(given, keys, filters, strict=True)])


def _filter(where: str, text: str) -> Mapping[str, Any] | None:
    if not text:
        return None
    try:
        filter = json.loads(text)
    except (ValueError, RecursionError):
        filter = None
    if not isinstance(filter, dict) or not filter:
        raise UsageError(
            f"{where}: a key is made of printable ASCII characters without blanks; behind one, a filter may "
            'stand as an object of JSON: {"tenant": "acme"}'
        )
    return filter


def _checked(keys: Iterable[tuple[str, str]], source: str) -> Iterator[str]:
    """Keys without blanks. One that holds none is refused: it would leave open what was to be closed."""
    count = 0
    for where, given in keys:
        if key := given.strip():
            if not all("!" <= character <= "~" for character in key):
                raise UsageError(
                    f"{where}: a key is made of printable ASCII characters without blanks; this one is not"
                )
            count += 1
            yield key
    if not count:
        raise UsageError(f"{source}: holds no key; give one, or leave the setting out")


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()
