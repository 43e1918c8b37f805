"""Which names a request may be for. Knows nothing of keys and paths.

A page of any site can point its own name at 127.0.0.1, and then call a service there as one of its own (DNS rebinding).
Its requests carry that name in `Host`. A service that asks for no key answers the names that it is known by alone.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from kalm_cache.settings import Settings
from query_service.middleware.refusal import refusal

ANY = "*"


def allowed_hosts(settings: Settings, *, has_keys: bool) -> frozenset[str]:
    """Names that requests may be for; `*` = any. Addresses always pass: no page can take one for its own.

    Without the setting, a service without keys on a loopback address answers its own names. One with keys is safe as it
    is, and of one that binds other addresses nobody can tell the names.
    """
    given = frozenset(name for part in settings.allowed_hosts.split(",") if (name := part.strip().lower()))
    if given:
        return given
    if has_keys or not _is_loopback(settings.host):
        return frozenset({ANY})
    return frozenset({settings.host.lower(), socket.gethostname().lower()})


class HostCheck:
    """Answers 421 to requests for other names. `*.example.org` stands for every name below `example.org`."""

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        """`allowed`: as `allowed_hosts` gives them."""
        self._app, self._allowed = app, frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or ANY in self._allowed:
            await self._app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        if not host or self._allows(name_of(host)):  # HTTP/1.0 may come without one; no browser does
            await self._app(scope, receive, send)
            return
        message = (
            f"this service does not answer for the host {host[:100]!r}; add its name to the setting allowed_hosts "
            f"(KALM_CACHE_ALLOWED_HOSTS), or serve with keys"
        )
        await refusal(scope, 421, "MisdirectedRequest", message)(scope, receive, send)

    def _allows(self, name: str) -> bool:
        if name == "localhost" or name.endswith(".localhost") or _is_address(name) or name in self._allowed:
            return True
        return any(known.startswith("*.") and name.endswith(known[1:]) for known in self._allowed)


def name_of(host: str) -> str:
    """The name or address of a `Host` header, without port, brackets and the dot that may end a name."""
    name, colon, port = host.strip().lower().rpartition(":")
    if not colon or (port and not port.isdigit()) or (":" in name and not name.endswith("]")):
        name = host.strip().lower()
    return name.removeprefix("[").removesuffix("]").removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ip_address(host).is_loopback)
