"""Where the services of shards are: listed in a file, or found under a name. Looked up anew every time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from kalm_cache.errors import UsageError
from kalm_cache.process.system import explained

Addresses = Callable[[], Awaitable[list[str]]]


def addresses_in_file(file: Path) -> Addresses:
    """The URLs in a file, one a line; empty lines and `#` lines do not count.

    A service's shards are not in it: the service says which ones it has.

    Raises:
        UsageError: the file cannot be read, has no address, or a line is none; now, and at each look.
    """
    _read(file)

    async def look_up() -> list[str]:
        return _read(file)

    return look_up


def addresses_of_name(url: str) -> Addresses:
    """A URL for every address that the URL's name has in DNS, as that of a headless service of Kubernetes.

    Raises:
        UsageError: it is no URL; later, where the name is not known.
    """
    parts = urlsplit(_checked(url, "--discover"))
    port = parts.port or (443 if parts.scheme == "https" else 80)

    async def look_up() -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except OSError as exc:
            raise UsageError(f"--discover: {parts.hostname!r} has no address: {exc}") from exc
        hosts = sorted({str(address[0]) for *_, address in found})
        return [f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}" for host in hosts]

    return look_up


def _read(file: Path) -> list[str]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"--shards-file {file}: cannot be read: {explained(exc, file)}") from exc
    named = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    addresses = [_checked(line, f"{file}:{number}") for number, line in named if line and not line.startswith("#")]
    if not addresses:
        raise UsageError(
            f"--shards-file {file}: names no service; write the URL of one a line, as http://10.0.0.5:8080"
        )
    return list(dict.fromkeys(addresses))


def _checked(url: str, where: str) -> str:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_url = False
    if not is_url or parts.path.strip("/") or parts.query or parts.fragment:
        raise UsageError(f"{where}: {url!r} is not the URL of a service; expected http://HOST:PORT")
    return url.rstrip("/")
