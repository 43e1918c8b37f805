"""Which variables `KALM_CACHE_*` count. Knows nothing of what they set.

An empty variable is an unset one. Kubernetes and Docker describe a service called kalm-cache, or kalm-cache-…, in
variables that happen to have our prefix (`KALM_CACHE_PORT=tcp://10.0.0.1:80`); these are no settings.
"""

from __future__ import annotations

import os
import re

ENV_PREFIX = "KALM_CACHE_"
_URL = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)
_LINK_NAME = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR|START|END))?)|ENV_\w+"
)


def variables() -> dict[str, str]:
    """The variables that count, by their names behind the prefix, in capitals."""
    return {name: value for name, value in _prefixed().items() if value and not _is_link(name, value)}


def service_links() -> list[str]:
    """Full names of the variables that Kubernetes or Docker put there, in order."""
    return sorted(f"{ENV_PREFIX}{name}" for name, value in _prefixed().items() if _is_link(name, value))


def _prefixed() -> dict[str, str]:
    names = {name.upper(): value for name, value in os.environ.items()}
    return {name.removeprefix(ENV_PREFIX): value for name, value in names.items() if name.startswith(ENV_PREFIX)}


def _is_link(name: str, value: str) -> bool:
    is_docker_alias = name.split("_")[-1] == "NAME" and value.startswith("/")  # KALM_CACHE_NAME=/web/kalm-cache
    is_url = name.split("_")[-1] == "PORT" and bool(_URL.match(value))
    return is_url or is_docker_alias or bool(_LINK_NAME.fullmatch(name))
