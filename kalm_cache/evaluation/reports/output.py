"""Writes what an evaluation found into a folder: report.md, report.json, plots, and each query's measures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from kalm_cache.evaluation.measures.metrics import MEASURES
from kalm_cache.evaluation.measures.significance import load_scipy_stats
from kalm_cache.evaluation.reports.markdown import markdown_report
from kalm_cache.evaluation.reports.plots import load_figure, plot_all
from kalm_cache.evaluation.reports.results import CollectionResult, PerQuery
from kalm_cache.storage.durable import write_atomically

RUNS, PER_QUERY = "runs", "per-query"


def require_extras() -> None:
    """Raise `MissingExtraError` where a report could not be written: before hours are spent on it."""
    load_figure()
    load_scipy_stats()


def write_per_query(folder: Path, name: str, values: dict[str, PerQuery]) -> None:
    """FOLDER/per-query/NAME.tsv: query id, system, and each measure."""
    lines = ["\t".join(("query-id", "system", *MEASURES))]
    for system, queries in values.items():
        for query_id, found in queries.items():
            lines.append("\t".join((query_id, system, *(f"{found[measure]:.6f}" for measure in MEASURES))))
    (folder / PER_QUERY).mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PER_QUERY / f"{name}.tsv", ("\n".join(lines) + "\n").encode())


def write_report(folder: Path, results: Sequence[CollectionResult], command: str) -> None:
    """FOLDER/report.md, report.json and the plots, of all that was evaluated until now.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}."
    report = {"command": command, "machine": machine, "collections": [result.to_json() for result in results]}
    write_atomically(folder / "report.json", (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    plot_all(results, folder, command)
    write_atomically(folder / "report.md", markdown_report(results, command, machine).encode())
