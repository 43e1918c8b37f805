"""`kalm-cache stats`, `verify`, `rollback`, `fold` and `gc`: maintenance of an index, without a corpus."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.index_places import index_to_change, index_to_read, remote_copy
from kalm_cache.cli.output import EXIT_PARTIAL, exit_codes, human_bytes, print_json, print_report, stdout_console
from kalm_cache.cli.progress import show_progress
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from indexer.change.fold_job import FoldReport
    from indexer.change.gc import GcReport
    from indexer.change.rollback import RollbackReport
    from indexer.integrity.repair import RepairReport
    from indexer.integrity.verify import VerifyReport
    from indexer.integrity.verify_sample import SampleReport
    from kalm_cache.generations.remote.copies import RemoteCopy


def stats(index: opt.IndexPlace, json: opt.AsJson = False) -> None:
    """What an index holds, and what it takes on disk."""
    from kalm_cache.generations.remote.unpulled import remote_stats
    from kalm_cache.generations.stats import index_stats

    with exit_codes():
        remote = remote_copy(index)
        found = index_stats(index) if remote is None else remote_stats(remote.open_store())
        values = dataclasses.asdict(found)
    if json:
        print_json(values)
    else:
        width = max(len(name) for name in values)
        for name, value in values.items():
            stdout_console().print(f"{name:<{width}}  {value}")


def verify(
    index: opt.IndexPlace,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Encode so many passages again, and compare.")] = 0,
    repair: Annotated[bool, typer.Option("--repair", help="Publish a generation without what is damaged.")] = False,
    device: opt.Device = None,
    json: opt.AsJson = False,
) -> None:
    """Check every record and file of the live generation; exit code 1 when something is damaged.

    `--repair` publishes a generation of all that is whole, encodes damaged passages again from their stored texts, and
    sets the others aside: it lists them, and the generation before keeps their bytes until gc. Exit code 3 then.
    """
    with exit_codes(resumable=True):
        from indexer.integrity.verify import verify_index

        if repair and sample:
            raise UsageError("give --sample or --repair: a sample says nothing of what is repaired")
        with index_to_change(index) if repair else index_to_read(index) as folder:
            report = verify_index(folder)
            sampled = _sample(folder, sample, device) if sample and report.ok else None
            repaired = _repair(folder, report, device) if repair and not report.ok else None
        report = _with_remote_damage(index, report)
    if json:
        extra: dict[str, Any] = {"sample": sampled, "repair": repaired}
        done = {name: dataclasses.asdict(part) for name, part in extra.items() if part is not None}
        print_json(dataclasses.asdict(report) | done)
    else:
        _show(report, sampled, repaired)
    if repaired is not None:
        raise typer.Exit(EXIT_PARTIAL if repaired.quarantined else 0)
    if not report.ok:
        raise typer.Exit(1)


def rollback(
    index: opt.IndexPlace,
    to: Annotated[str | None, typer.Option("--to", help="Name of a generation; its parent by default.")] = None,
    json: opt.AsJson = False,
) -> None:
    """Make an earlier generation live again; nothing is copied or removed."""
    with exit_codes():
        from indexer.change.rollback import roll_back

        remote = remote_copy(index)
        report = roll_back(Path(index), to) if remote is None else _roll_back_remote(remote, to)
    was = f" (was {report.before})" if report.before else ""
    in_words = f"generation {report.generation} of {report.index} is live: {report.passages:,} passages{was}"
    print_report(report, in_words, json)


def fold(
    index: opt.IndexPlace,
    everything: Annotated[
        bool, typer.Option("--all", help="Into one base, BM25's statistics computed anew; else answers stay the same.")
    ] = False,
    json: opt.AsJson = False,
) -> None:
    """Make few segments of many small ones, so that an index of many additions opens few files.

    `add` and `delete` do so by themselves, as far as that takes about a second. Killed, it changes nothing.
    """
    with exit_codes():
        from indexer.change.fold_job import run_fold

        with index_to_change(index) as folder, show_progress(None) as on_progress:
            report = run_fold(folder, everything=everything, on_progress=on_progress)
        report = dataclasses.replace(report, index=index)
    print_report(report, _folded(report), json)


def gc(
    index: opt.IndexPlace,
    keep: Annotated[int, typer.Option("--keep", min=0, help="Generations to keep for a rollback.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")] = False,
    json: opt.AsJson = False,
) -> None:
    """Remove generations that nobody needs or reads, and every byte of deleted passages.

    Generations that still hold deleted passages are not kept, whatever `--keep` says.
    """
    with exit_codes():
        from indexer.change.gc import collect_garbage

        with index_to_change(index) as folder:
            report = collect_garbage(folder, keep, dry_run=dry_run)
        report.index = index
        remote = remote_copy(index)
        if remote is not None and not dry_run:
            _collect_remote(remote, report)
    if json:
        print_json(dataclasses.asdict(report) | {"dry_run": dry_run})
    else:
        _show_gc(report, dry_run)


def _roll_back_remote(remote: RemoteCopy, to: str | None) -> RollbackReport:
    from indexer.change.rollback import RollbackReport
    from kalm_cache.generations.remote.unpulled import roll_back_remote

    before, manifest = roll_back_remote(remote.open_store(), to)
    return RollbackReport(str(remote.location), before, manifest.generation, manifest.counts.passages)


def _collect_remote(remote: RemoteCopy, report: GcReport) -> None:
    """Remove from the store what no generation has any more; the report says what that freed."""
    from indexer.change.gc import OldGeneration
    from kalm_cache.generations.remote.collect import collect

    collected = collect(remote.open_store())
    report.freed_bytes = collected.bytes
    report.in_use += [OldGeneration(name, "somebody pulls it") for name in collected.leased]


def _with_remote_damage(index: str, report: VerifyReport) -> VerifyReport:
    """The report of the local copy, and what the store lacks."""
    remote = remote_copy(index)
    if remote is None:
        return report
    from indexer.integrity.damage import IndexDamage
    from kalm_cache.generations.remote.unpulled import damaged_files

    problem = f"is missing in {remote.location}, or has another size there: push the index again"
    damaged = [IndexDamage(path, None, problem) for path in damaged_files(remote.open_store())]
    return dataclasses.replace(report, ok=report.ok and not damaged, damaged=[*report.damaged, *damaged])


def _folded(report: FoldReport) -> str:
    if report.segments == report.segments_before and not report.left_out:
        return f"generation {report.generation} of {report.index} has {report.segments:,} segments: nothing to fold"
    return (
        f"generation {report.generation} of {report.index} holds {report.passages:,} passages in {report.segments:,} "
        f"segments (were {report.segments_before:,}); {report.left_out:,} deleted or replaced ones left out, "
        f"{report.seconds:.1f} s"
    )


def _sample(index: Path, passages: int, device: str | None) -> SampleReport:
    from indexer.integrity.verify_sample import verify_sample
    from kalm_cache.settings import load_settings

    return verify_sample(index, passages, load_settings(device=device))


def _repair(index: Path, report: VerifyReport, device: str | None) -> RepairReport:
    from indexer.integrity.repair import repair_index
    from kalm_cache.settings import load_settings

    return repair_index(index, load_settings(device=device))


def _show(report: VerifyReport, sampled: SampleReport | None, repaired: RepairReport | None) -> None:
    console = stdout_console()
    for damage in report.damaged:
        what = f"{damage.file}" + (f", {damage.doc_id!r}" if damage.doc_id is not None else "")
        console.print(f"damaged: {what}: {damage.problem}", soft_wrap=True)
    console.print("ok" if report.ok else f"{len(report.damaged)} damaged")
    if sampled is not None:
        console.print(
            f"{sampled.passages} passages encoded again, {sampled.queries} queries: margins differ by "
            f"{sampled.margin_drift_mean:.4f} on average, {sampled.margin_drift_max:.4f} at most; rank agreement "
            f"(Kendall) {sampled.rank_agreement:.4f}",
            soft_wrap=True,
        )
    if repaired is not None:
        console.print(
            f"generation {repaired.generation} holds {repaired.passages:,} passages: {repaired.copied:,} copied, "
            f"{repaired.encoded:,} encoded again, {len(repaired.quarantined):,} set aside",
            soft_wrap=True,
        )
        for doc_id in repaired.quarantined:
            console.print(f"set aside: {doc_id!r}; generation {repaired.damaged_generation} has what is left of it")


def _show_gc(report: GcReport, dry_run: bool) -> None:
    console = stdout_console()
    would = "would be " if dry_run else ""
    if report.compacted:
        console.print(
            f"a base {would}written without {report.compacted:,} deleted or replaced passages", soft_wrap=True
        )
    lists = ((f"{would}removed", report.removed), ("kept", report.kept), ("in use, run gc again later", report.in_use))
    for what, generations in lists:
        for generation in generations:
            console.print(f"{generation.generation} {what}: {generation.why}", soft_wrap=True)
    console.print(
        f"generation {report.generation} is live; {human_bytes(report.freed_bytes)} freed, {report.seconds:.1f} s",
        soft_wrap=True,
    )
