"""The table of all checks, in their order, and what runs it. A check that breaks off has failed; the others go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kalm_cache.doctor.check import Check, Report
from kalm_cache.doctor.index import check_disk, check_index, check_model, check_page_cache, check_records, count_files
from kalm_cache.doctor.machine import check_dtype, check_kernels, check_limits, check_openmp, check_threads
from kalm_cache.doctor.service import check_access, check_packages, check_port, check_settings
from kalm_cache.doctor.speed import check_speed
from kalm_cache.doctor.text_cache import check_text_cache
from kalm_cache.errors import KalmCacheError, UsageError
from kalm_cache.process.system import describe
from kalm_cache.settings import Settings, load_settings


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked: settings (the defaults where `problem` says why they could not be read), maybe an index.

    measured_s: how long dtypes are measured; 0 = not at all.
    """

    settings: Settings
    problem: str | None
    index: Path | None
    measured_s: float = 0.0


def of_index(check: Callable[[Path], Report]) -> Callable[[Subject], Report | None]:
    """A check of an index; without one, there is nothing to check."""
    return lambda subject: None if subject.index is None else check(subject.index)


CHECKS: dict[str, Callable[[Subject], Report | None]] = {
    "settings": lambda subject: check_settings(subject.problem),
    "access": lambda subject: check_access(subject.settings),
    "packages": lambda _: check_packages(),
    "threads": lambda subject: check_threads(subject.settings.workers),
    "dtype": lambda subject: check_dtype(subject.settings.device, subject.settings.dtype),
    "openmp": lambda _: check_openmp(),
    "kernels": lambda _: check_kernels(),
    "limits": lambda subject: check_limits(
        subject.settings.queue_limit, subject.settings.workers, count_files(subject.index)
    ),
    "port": lambda subject: check_port(subject.settings.host, subject.settings.port),
    "model": lambda subject: check_model(subject.settings, subject.index),
    "speed": lambda subject: (
        check_speed(subject.settings, subject.index, subject.measured_s) if subject.measured_s else None
    ),
    "text cache": lambda subject: check_text_cache(subject.settings),
    "disk": of_index(check_disk),
    "index": of_index(check_index),
    "records": of_index(check_records),
    "page cache": of_index(check_page_cache),
}


def diagnose(index: Path | None = None, config: Path | None = None, measured_s: float = 0.0) -> list[Check]:
    """Check the machine, the settings and, with `index`, its disk and what it holds.

    `measured_s`: seconds for the speed of each dtype; 0 = it is not measured.
    """
    try:
        subject = Subject(load_settings(config), None, index, measured_s)
    except UsageError as exc:
        subject = Subject(Settings.model_construct(), str(exc), index, measured_s)
    checks = [check for name in CHECKS if (check := _run(name, subject))]
    first = {check.found: check for check in reversed(checks)}  # an index that does not open is reported once
    return [check for check in checks if first[check.found] is check]


def _run(name: str, subject: Subject) -> Check | None:
    try:
        report = CHECKS[name](subject)
    except KalmCacheError as exc:
        return Check(name, "fail", str(exc))  # the project's errors name the way out themselves
    except OSError as exc:
        return Check(name, "fail", describe(exc))
    return None if report is None else Check(name, report.status, report.found, report.advice)
