"""`OverHttp`: services of shards at addresses, asked over HTTP."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp
from pydantic import ValidationError

from query_service.router import messages as m
from query_service.router.addresses import Addresses
from query_service.router.errors import ReplicaFailedError
from query_service.router.transport import Reply


class OverHttp:
    """A `Transport` to `kalm-cache serve --shards`."""

    def __init__(self, addresses: Addresses, key: str = "") -> None:
        """`key` goes with every question; empty = none."""
        self.addresses = addresses
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Begin; connections are made when they are needed."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0)  # the services close them after 5 s
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2.0)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self._headers, auto_decompress=False
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def status(self, address: str) -> m.Status:
        """See `Transport.status`."""
        reply = await self._request("GET", address, m.STATUS_PATH)
        if reply.status != 200:
            raise ReplicaFailedError(f"it answers {reply.status} to {m.STATUS_PATH}: is it one of shards?")
        try:
            return m.STATUS.validate_json(reply.content)
        except ValidationError as exc:
            raise ReplicaFailedError(f"what it says of itself is not of this version: {exc}") from exc

    async def ask(self, address: str, path: str, question: bytes, headers: Mapping[str, str]) -> Reply:
        """See `Transport.ask`."""
        return await self._request("POST", address, path, question, headers)

    async def _request(
        self, method: str, address: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        assert self._session is not None
        try:
            async with self._session.request(method, f"{address}{path}", data=body, headers=headers) as response:
                return Reply(response.status, await response.read(), response.headers.get("Retry-After"))
        except (aiohttp.ClientError, OSError) as exc:
            raise ReplicaFailedError(f"{address}: {exc}") from exc
