"""What both clients make of their arguments, of httpx's answers and of its errors."""

from __future__ import annotations

import os
from typing import Any

import httpx

from kalm_cache.client.reply import NoReply, Reply
from kalm_cache.client.retries import Retries
from kalm_cache.errors import UsageError

API_KEY_VARIABLE = "KALM_CACHE_API_KEY"
BASE_URL_VARIABLE = "KALM_CACHE_BASE_URL"
DEFAULT_BASE_URL = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT_SECONDS = 60.0


def http_options(base_url: str | None, api_key: str | None, timeout: float | None) -> dict[str, Any]:
    """Arguments of `httpx.Client` and `httpx.AsyncClient`; what is `None` comes from the environment.

    Raises:
        UsageError: an address that is no http(s) one, or a key that no header can hold.
    """
    from kalm_cache import __version__

    address = base_url or os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL
    key = os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key
    headers = {"accept": "application/json", "user-agent": f"kalm-cache/{__version__}"}
    if key:
        if not key.isascii() or not key.isprintable():
            raise UsageError("the api_key holds characters that no HTTP header can hold; expected printable ASCII")
        headers["authorization"] = f"Bearer {key}"
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as exc:
        raise UsageError(f"base_url {address!r} is not an address: {exc}") from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(f"base_url is {address!r}; expected http://HOST:PORT or https://…")
    return {"base_url": url, "headers": headers, "timeout": timeout}


def retries_of(retries: int | Retries) -> Retries:
    """The policy that a number of further tries, or a policy, stands for."""
    policy = Retries(attempts=retries) if isinstance(retries, int) else retries
    if policy.attempts < 0:
        raise UsageError(f"retries is {policy.attempts}; it must be 0 or more")
    return policy


def as_reply(response: httpx.Response) -> Reply:
    """httpx's answer, read whole."""
    return Reply(response.status_code, response.content, str(response.url), dict(response.headers))


def as_no_reply(error: httpx.RequestError, url: str) -> NoReply:
    """httpx's error."""
    return NoReply(f"{type(error).__name__}: {error}".rstrip(": "), url, isinstance(error, httpx.TimeoutException))
