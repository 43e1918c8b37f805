"""BM25 by analysis: nDCG@10 and recall@100 on BEIR collections, and tantivy's beside it.

    python -m benchmarks.languages --beir DIR [DIR ...] [--split test] [--languages "en;auto"] [--tantivy]

One row a collection, one column for each of `--languages` (with `;` between them): what `kalm-cache index --language`
takes. Several folders after `--mixed` are one collection in several languages. `--tantivy` (pip install tantivy)
indexes the terms of the last analysis there, in one segment without positions, and compares quality, bytes, and the
seconds of building and of searching. Prints a Markdown table, after JSON with --json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import emit, markdown
from indexer.corpus import CorpusLine, read_corpus
from indexer.corpus.languages import SAMPLED
from kalm_cache.evaluation import load_beir
from kalm_cache.evaluation.measures.metrics import measure
from kalm_cache.first_stage import BM25Index
from kalm_cache.first_stage.bm25.analysis import Analysis, terms_of
from kalm_cache.languages import AUTO, languages_of

DEPTH = 100
MEASURES = ("ndcg@10", "recall@100")
Search = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True, slots=True)
class Collection:
    """Passages with their ids, queries and judgments by query id."""

    doc_ids: list[str]
    texts: list[str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def load(folders: Sequence[Path], split: str) -> Collection:
    """One or several collections as one; ids begin with the folder's number."""
    loaded = Collection([], [], {}, {})
    for number, folder in enumerate(folders):
        task = load_beir(folder, split)
        passages = [line.passage for line in read_corpus(folder) if isinstance(line, CorpusLine)]
        loaded.doc_ids.extend(f"{number}/{passage.doc_id}" for passage in passages)
        loaded.texts.extend(passage.text for passage in passages)
        for query, judged in task.qrels.items():
            loaded.queries[f"{number}/{query}"] = task.queries[query]
            loaded.qrels[f"{number}/{query}"] = {f"{number}/{doc}": grade for doc, grade in judged.items()}
    return loaded


def with_bm25(texts: Sequence[str], analysis: Analysis, folder: Path) -> Search:
    """The index that kalm-cache builds."""
    index = BM25Index.build(enumerate(texts), folder, analysis=analysis)
    return lambda queries: [found.ordinals.tolist() for found in index.search(queries, DEPTH)]


def with_tantivy(texts: Sequence[str], analysis: Analysis, folder: Path) -> Search:
    """Tantivy's index of the same terms."""
    import tantivy

    folder.mkdir(parents=True)
    schema = tantivy.SchemaBuilder()
    schema.add_unsigned_field("ordinal", fast=True)
    schema.add_text_field("terms", tokenizer_name="spaces", index_option="freq")
    index = tantivy.Index(schema.build(), str(folder))
    spaces = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build()
    index.register_tokenizer("spaces", spaces)
    writer = index.writer(300_000_000, 1)
    for ordinal, terms in enumerate(terms_of(texts, analysis)):
        document = tantivy.Document()
        document.add_unsigned("ordinal", ordinal)
        document.add_text("terms", " ".join(terms))
        writer.add_document(document)
    writer.commit()
    writer.wait_merging_threads()
    index.reload()

    def search(queries: Sequence[str]) -> list[list[int]]:
        searcher, found = index.searcher(), []
        for terms in terms_of(queries, analysis):
            each = [tantivy.Query.term_query(index.schema, "terms", term, index_option="freq") for term in terms]
            query = tantivy.Query.boolean_query([(tantivy.Occur.Should, one) for one in each])
            hits = searcher.search(query, DEPTH, count=False).hits
            found.append(searcher.fast_field_values("ordinal", [place for _, place in hits]) if hits else [])
        return found

    return search


def measured(
    collection: Collection, build: Callable[[Sequence[str], Analysis, Path], Search], analysis: Analysis
) -> dict[str, Any]:
    """Quality, bytes of the index's files, seconds of building it, and milliseconds a query."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, started = Path(temporary) / "index", time.perf_counter()
        search = build(collection.texts, analysis, folder)
        built = time.perf_counter()
        lists = search(list(collection.queries.values()))
        searched = time.perf_counter()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    runs = {
        query: [collection.doc_ids[ordinal] for ordinal in found]
        for query, found in zip(collection.queries, lists, strict=True)
    }
    return {
        **measure(collection.qrels, runs, MEASURES),
        "bytes": size,
        "build_seconds": built - started,
        "search_ms": 1e3 * (searched - built) / max(1, len(lists)),
    }


def compare(collection: Collection, languages: Sequence[str], *, tantivy: bool) -> dict[str, dict[str, Any]]:
    """What each language measures, by its name, and after `auto` those that were found."""
    found: dict[str, dict[str, Any]] = {}
    for language in languages:
        some = collection.texts[:: max(1, len(collection.texts) // SAMPLED)]
        codes = languages_of(some) if language == AUTO else language
        analysis = Analysis.of(codes)
        name = f"auto: {codes}" if language == AUTO else language
        found[name] = measured(collection, with_bm25, analysis)
    if tantivy:
        found["tantivy"] = measured(collection, with_tantivy, analysis)
    return found


def row(name: str, by_language: dict[str, dict[str, Any]]) -> list[str]:
    """A collection's row of the table."""
    cells = (
        f"{language}: {values['ndcg@10']:.4f} / {values['recall@100']:.4f}, {values['bytes'] / 1e6:.2f} MB, "
        f"{values['build_seconds']:.2f} s, {values['search_ms']:.2f} ms"
        for language, values in by_language.items()
    )
    return [name, *cells]


def main() -> None:
    """Measures every collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beir", type=Path, nargs="*", default=[])
    parser.add_argument("--mixed", type=Path, nargs="*", default=[], help="these together are one more collection")
    parser.add_argument("--split", default="test")
    parser.add_argument("--languages", default="en;auto")
    parser.add_argument("--tantivy", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folders = {path.name: [path] for path in args.beir} | ({"mixed": args.mixed} if args.mixed else {})
    languages = args.languages.split(";")
    found = {name: compare(load(paths, args.split), languages, tantivy=args.tantivy) for name, paths in folders.items()}
    if args.json:
        emit(found)
    rows = [row(name, by_language) for name, by_language in found.items()]
    columns = ["tantivy"] if args.tantivy else []
    print(markdown(["collection", *languages, *columns], rows))
    for name in [*languages, *columns]:
        each = [list(by_language.values())[[*languages, *columns].index(name)] for by_language in found.values()]
        means = (f"{np.mean([values[one] for values in each]):.4f}" for one in MEASURES)
        print(f"mean, {name}: {' / '.join(means)}, {sum(values['bytes'] for values in each) / 1e6:.1f} MB in all")


if __name__ == "__main__":
    main()
