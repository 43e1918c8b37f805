"""The address that `serve` binds: free, or who has it."""

from __future__ import annotations

import errno
import ipaddress
import socket

from kalm_cache.doctor.check import Check

TIMEOUT_S = 2.0
ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # bound everywhere: asked here


def check_port(host: str, port: int) -> Check:
    """Try to bind; where somebody has, ask whether it is kalm-cache."""
    where = f"{host}:{port}"
    if port == 0:
        return Check("port", "ok", f"{where}: any free one")
    try:
        with socket.create_server((host, port), family=_family(host)):
            return Check("port", "ok", f"{where} is free")
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            return _taken(host, port)
        return Check("port", "fail", f"{where}: {exc.strerror}", _WAYS_OUT.get(exc.errno or 0, "set --host and --port"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_WAYS_OUT = {
    errno.EACCES: "ports below 1024 are root's: set --port 8080, and put a proxy before it",
    errno.EADDRNOTAVAIL: "the address is not this machine's: set --host 127.0.0.1, or 0.0.0.0",
}


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _taken(host: str, port: int) -> Check:
    served = _kalm_cache_at(ANY.get(host, host), port)
    if served is not None:
        return Check("port", "ok", f"{host}:{port} is taken by kalm-cache: {served}")
    return Check(
        "port", "fail", f"{host}:{port} is taken, not by kalm-cache", "stop what has it, or set another --port"
    )


def _kalm_cache_at(host: str, port: int) -> str | None:
    """What a kalm-cache service there says that it serves; `None` for anything else."""
    import httpx

    try:
        answer = httpx.get(
            f"http://{f'[{host}]' if ':' in host else host}:{port}/health", timeout=TIMEOUT_S, trust_env=False
        )
        body = answer.json()
        return f"model {body['model']}, generation {body['index_version']}, {body['passages']:,} passages"
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
