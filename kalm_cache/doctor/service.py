"""Checks of how `serve` is set up: settings, access, installed packages, port."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from kalm_cache.doctor.check import Report
from kalm_cache.settings import Settings, unknown_variables

SHOWN_PACKAGES = ("torch", "faiss-cpu", "transformers", "lmdb", "fastapi")
EXTRAS_FOR_DEVELOPERS = {"bench", "clients", "dev"}
TIMEOUT_S = 2.0
LOOPBACK_OF = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # a wildcard address is bound, but not called
BIND_ADVICE = {
    errno.EACCES: "ports below 1024 are root's: set --port 8080, and put a proxy before it",
    errno.EADDRNOTAVAIL: "the address is not this machine's: set --host 127.0.0.1, or 0.0.0.0",
}
_REQUIREMENT = re.compile(r"""([\w.-]+)[^;]*(?:;.*extra == ['"]([\w-]+)['"])?""")


def check_settings(problem: str | None) -> Report:
    """Settings that cannot be read (`problem` says why), and KALM_CACHE_* variables that are no settings."""
    unknown = [
        f"{name} ({f'did you mean {near}?' if near else 'nothing like it'})" for name, near in unknown_variables()
    ]
    warn = [f"no such setting: {', '.join(unknown)}; see kalm-cache config show"] if unknown else []
    if problem is not None:
        return Report("cannot be read; the other checks go by the defaults", [problem], warn)
    return Report(f"{len(unknown)} unknown variables" if unknown else "all are known", warn=warn)


def check_access(settings: Settings) -> Report:
    """Whether a service that other machines can reach asks for a key, and whether its files of keys exist."""
    has_keys = bool(settings.api_keys.get_secret_value() or settings.api_keys_file)
    files = [(name, getattr(settings, name)) for name in ("api_keys_file", "admin_keys_file")]
    fail = [f"{name} {file} is not there" for name, file in files if file is not None and not file.is_file()]
    warn = []
    if not has_keys and not _is_loopback(settings.host):
        warn.append(f"whoever reaches {settings.host} may call: set KALM_CACHE_API_KEYS, or --host 127.0.0.1")
    return Report(f"binds {settings.host}, {'asks for a key' if has_keys else 'asks for no key'}", fail, warn)


def check_packages() -> Report:
    """Versions of the main packages, packages that are missing, and the extras that are installed."""
    packages = _required_packages()
    missing = [name for name in packages.pop("", []) if _version(name) is None]
    extras = [
        extra for extra, names in packages.items() if extra not in EXTRAS_FOR_DEVELOPERS and all(map(_version, names))
    ]
    versions = ", ".join(f"{name} {_version(name)}" for name in SHOWN_PACKAGES)
    fail = [f"not installed: {', '.join(missing)}; run: pip install --upgrade kalm-cache"] if missing else []
    return Report(f"Python {sys.version.split()[0]}, {versions}; extras: {', '.join(extras) or 'none'}", fail)


def check_port(host: str, port: int) -> Report:
    """Whether `serve` can bind its address; where it is taken, whether by kalm-cache."""
    address = f"{host}:{port}"
    if port == 0:
        return Report(f"{address}: any free one")
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return Report(f"{address} is free")
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            return Report(f"{address}: {exc.strerror}", [BIND_ADVICE.get(exc.errno or 0, "set --host and --port")])
    service = _kalm_cache_at(LOOPBACK_OF.get(host, host), port)
    if service is not None:
        return Report(f"{address} is taken by kalm-cache: {service}")
    return Report(f"{address} is taken, not by kalm-cache", ["stop what has it, or set another --port"])


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _required_packages() -> dict[str, list[str]]:
    """Names of packages by extra; those that are always required under the empty name."""
    packages: dict[str, list[str]] = {}
    for line in requires("kalm-cache") or []:
        if match := _REQUIREMENT.match(line):
            packages.setdefault(match[2] or "", []).append(match[1])
    return packages


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _kalm_cache_at(host: str, port: int) -> str | None:
    """What a kalm-cache service at the address serves; `None` for any other server, or none."""
    import httpx

    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/health"
    try:
        body = httpx.get(url, timeout=TIMEOUT_S, trust_env=False).json()
        return f"model {body['model']}, generation {body['index_version']}, {body['passages']:,} passages"
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
