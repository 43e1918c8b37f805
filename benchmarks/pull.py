"""What a pull moves after 1% of a corpus changed: bytes over the network, of those in the index.

    OMP_NUM_THREADS=1 python -m benchmarks.pull [--passages 20000] [--changed 0.01] [--folder DIR]

The index job, `add`, `delete` and `reindex` are the command line's own, and the store is a folder through obstore. The
models are not there, as in `benchmarks.scale`: every passage of 128 tokens gets 1,280 bytes of states. Of the changed
passages, half get another text, a quarter are new, and as many are gone. Prints a Markdown table, after one JSON line
for each row.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.scale.first_stage import BATCH, texts
from benchmarks.scale.store import doc_id_of, prepared
from benchmarks.timing import emit, markdown
from indexer.build.index_job import run_index_job
from indexer.change.reindex import run_reindex
from indexer.change.reindex_small import run_small_reindex
from indexer.corpus import CorpusLine
from kalm_cache.generations.remote.pull import PullReport, pull
from kalm_cache.generations.remote.push import push
from kalm_cache.object_store.location import parse_location
from kalm_cache.object_store.store import open_store
from kalm_cache.passage import Passage

COLUMNS = ("what was run", "moved", "of", "share")


def lines(passages: int, changed: int = 0) -> Iterator[CorpusLine]:
    """A corpus; with `changed`, one that differs from it in so many passages."""
    first_new = passages - changed // 4
    for batch, start in enumerate(range(0, passages, BATCH)):
        for ordinal, text in enumerate(texts(batch, min(BATCH, passages - start)), start):
            is_new = changed and ordinal >= first_new  # in the place of those that are gone
            name = doc_id_of(ordinal + passages if is_new else ordinal)
            is_other = changed and not is_new and ordinal % (passages // max(1, changed // 2)) == 0
            yield CorpusLine(Passage(name, text + " changed" * bool(is_other)), f"made:{ordinal}")


def measure(passages: int, share: float, folder: Path) -> Iterator[tuple[str, PullReport]]:
    """Each way of bringing an index to the changed corpus, and what a pull moved then."""
    settings, encoders = prepared(bm25=True)
    silent = {"on_reject": lambda line: None, "on_progress": lambda counts: None}
    store = open_store(parse_location(f"file://{folder.resolve() / 'store'}"), create=True)
    index, there = folder / "index", folder / "there"
    run_index_job(lines(passages), index, settings, encoders, **silent)
    push(store, index)
    yield "kalm-cache index", pull(store, there)
    changed = round(passages * share)
    run_small_reindex(lines(passages, changed), index, settings, encoders, **silent)
    push(store, index)
    yield "kalm-cache reindex --incremental", pull(store, there)
    run_reindex(lines(passages, changed), index, settings, encoders, **silent)
    push(store, index)
    yield "kalm-cache reindex", pull(store, there)


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--changed", type=float, default=0.01, help="share of the corpus")
    parser.add_argument("--folder", type=Path, help="where everything is made and stays; default: a temporary folder")
    args = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, pulled in measure(args.passages, args.changed, args.folder or Path(temporary)):
            share = pulled.moved_bytes / pulled.bytes
            emit({"run": name, "moved_bytes": pulled.moved_bytes, "bytes": pulled.bytes, "share": round(share, 4)})
            moved, total = (f"{count / 2**20:,.1f} MiB" for count in (pulled.moved_bytes, pulled.bytes))
            rows.append([name, moved, total, f"{share:.1%}"])
    print(markdown(COLUMNS, rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
