"""All checks in their order. One that cannot be made is a failed check, and the others go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kalm_cache.doctor.check import Check
from kalm_cache.doctor.configuration import check_access, check_packages, check_settings
from kalm_cache.doctor.disk import check_disk
from kalm_cache.doctor.index import check_index, check_page_cache, check_records
from kalm_cache.doctor.machine import check_kernels, check_limits, check_openmp, check_threads
from kalm_cache.doctor.model import check_model
from kalm_cache.doctor.port import check_port
from kalm_cache.doctor.speed import check_dtype
from kalm_cache.errors import KalmCacheError, UsageError
from kalm_cache.settings import Settings, load_settings


def diagnose(index: Path | None = None, config: Path | None = None) -> list[Check]:
    """Check the machine, the settings and, with `index`, its disk and what it holds."""
    try:
        settings, problem = load_settings(config), None
    except UsageError as exc:
        settings, problem = Settings.model_construct(), str(exc)  # the rest is checked as if nothing had been said
    checks: dict[str, Callable[[], Check]] = {
        "settings": lambda: check_settings(problem),
        "access": lambda: check_access(settings),
        "packages": check_packages,
        "threads": lambda: check_threads(settings.workers),
        "dtype": lambda: check_dtype(settings.device, settings.dtype),
        "openmp": check_openmp,
        "kernels": check_kernels,
        "limits": lambda: check_limits(settings.queue_limit, settings.workers),
        "port": lambda: check_port(settings.host, settings.port),
        "model": lambda: check_model(settings, index),
    }
    if index is not None:
        checks |= {
            "disk": lambda: check_disk(index),
            "index": lambda: check_index(index),
            "records": lambda: check_records(index),
            "page cache": lambda: check_page_cache(index),
        }
    made = [_made(name, check) for name, check in checks.items()]
    said = {check.found: check for check in reversed(made)}  # an index that does not open is one finding, not three
    return [check for check in made if said[check.found] is check]


def _made(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (KalmCacheError, OSError) as exc:
        return Check(name, "fail", str(exc))  # our own errors say the way out
