"""Bearer keys: where they come from, and which paths need them. Keys themselves are never kept, logged or shown."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kalm_cache.errors import UsageError
from query_service.middleware.paths import route_path
from query_service.middleware.refusal import refusal

# Probes, and what a browser opens by address, where it can send no key: the search page, the API's description.
PUBLIC_PATHS = frozenset({"/", "/health", "/infinity/health", "/ready", "/docs", "/openapi.json"})
PUBLIC_FOLDERS = ("/page/", "/docs/")
ADMIN_FOLDER = "/admin"


class KeyRing:
    """The keys that open something. Holds SHA-256 digests only."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Without keys the ring is false, and matches nothing."""
        self._digests = tuple({_digest(key.encode()) for key in keys})

    @classmethod
    def load(cls, name: str, keys: SecretStr, file: Path | None) -> KeyRing:
        """The keys of a setting (with commas) and of a file (one a line; empty lines and `#` lines do not count).

        Args:
            name: of the setting, for messages: `api_keys`.
            keys: the setting's value.
            file: the value of the setting `name` + `_file`.

        Raises:
            UsageError: the file cannot be read, either was given but holds no key, or a key could not be sent.
        """
        given = keys.get_secret_value()
        ring = list(_checked(((name, key) for key in given.split(",")), name)) if given else []
        return cls(ring if file is None else [*ring, *_from_file(f"{name}_file", file)])

    def matches(self, key: bytes) -> bool:
        """Whether the key is one of the ring. Takes as long for any key, right or wrong."""
        digest = _digest(key)
        matches = False
        for known in self._digests:  # no early end: the time must not tell which key it was
            matches |= hmac.compare_digest(known, digest)
        return matches

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
        await (refused or self._app)(scope, receive, send)

    def _refuse(self, scope: Scope) -> Response | None:
        path, key = route_path(scope), _bearer(scope)
        if path == ADMIN_FOLDER or path.startswith(f"{ADMIN_FOLDER}/"):
            return self._refuse_admin(scope, key)
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDERS) or not self._keys:
            return None
        if key is not None and (self._keys.matches(key) | self._admin_keys.matches(key)):
            return None
        return _unauthorized(scope, key)

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


def _from_file(name: str, file: Path) -> Iterator[str]:
    try:
        lines = file.read_text("utf-8-sig").split("\n")
    except OSError as exc:
        raise UsageError(f"{name} {file}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{name} {file}: is not UTF-8 text") from exc
    numbered = ((f"{name} {file}:{number}", line.strip()) for number, line in enumerate(lines, 1))
    return _checked(((where, line) for where, line in numbered if not line.startswith("#")), f"{name} {file}")


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
