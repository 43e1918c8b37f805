"""Settings, who may call, and installed packages."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from kalm_cache.doctor.check import Check, verdict
from kalm_cache.doctor.port import is_loopback
from kalm_cache.settings import Settings, unknown_variables

SHOWN = ("torch", "faiss-cpu", "transformers", "lmdb", "fastapi")
FOR_DEVELOPERS = {"bench", "clients", "dev"}
_REQUIREMENT = re.compile(r"""([\w.-]+)[^;]*(?:;.*extra == ['"]([\w-]+)['"])?""")


def check_settings(problem: str | None) -> Check:
    """`problem`: why the settings could not be read, if they could not. Unknown variables are what nobody reads."""
    unknown = [
        f"{name} ({f'did you mean {near}?' if near else 'nothing like it'})" for name, near in unknown_variables()
    ]
    warn = [f"no such setting: {', '.join(unknown)}; see kalm-cache config show"] if unknown else []
    if problem is not None:
        return verdict("settings", "cannot be read; the other checks go by the defaults", fail=[problem], warn=warn)
    return verdict("settings", f"{len(unknown)} unknown variables" if unknown else "all are known", warn=warn)


def check_access(settings: Settings) -> Check:
    """Who may call: a service that others can reach should ask for a key."""
    has_keys = bool(settings.api_keys.get_secret_value() or settings.api_keys_file)
    found = f"binds {settings.host}, {'asks for a key' if has_keys else 'asks for no key'}"
    fail, warn = [], []
    for name in ("api_keys_file", "admin_keys_file"):
        file = getattr(settings, name)
        if file is not None and not file.is_file():
            fail.append(f"{name} {file} is not there")
    if not has_keys and not is_loopback(settings.host):
        warn.append(f"whoever reaches {settings.host} may call: set KALM_CACHE_API_KEYS, or --host 127.0.0.1")
    return verdict("access", found, fail=fail, warn=warn)


def check_packages() -> Check:
    """Versions of what matters most, what is missing, and which extras are there."""
    needed = _requirements()
    missing = [name for name in needed.pop("", []) if _version(name) is None]
    extras = [extra for extra, names in needed.items() if extra not in FOR_DEVELOPERS and all(map(_version, names))]
    found = f"Python {sys.version.split()[0]}, {', '.join(f'{name} {_version(name)}' for name in SHOWN)}"
    found += f"; extras: {', '.join(extras) or 'none'}"
    fail = [f"not installed: {', '.join(missing)}; run: pip install --upgrade kalm-cache"] if missing else []
    return verdict("packages", found, fail=fail)


def _requirements() -> dict[str, list[str]]:
    """Names of packages by extra, those that are always needed under the empty name."""
    found: dict[str, list[str]] = {}
    for line in requires("kalm-cache") or []:
        if match := _REQUIREMENT.match(line):
            found.setdefault(match[2] or "", []).append(match[1])
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
