"""Guards evaluation against training text: shared n-grams of words between what trains and what is measured.

    python -m training.overlap --data DIR --text DIR --out DIR

compares word 13-grams (as GPT-3's report does) of every passage and word 8-grams of every query:
- text of `collect_text.py` that shares one with a passage or query of any evaluation set is left out of OUT;
- training queries that share one with a test query, and passages of the training sets that evaluation-only sets hold,
  too, are listed in OUT/overlap.json: `prepare.py` leaves them out.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from training.data import CORPORA, read_corpus, read_pairs

PASSAGE_N, QUERY_N = 13, 8
WORD = re.compile(r"\w+")


def grams(text: str, size: int) -> Iterator[int]:
    """Hashes of a text's word n-grams, lower-cased; of the whole text where it is shorter and has four words."""
    words = WORD.findall(text.lower())
    if 4 <= len(words) < size:
        yield hash(tuple(words))
    for start in range(len(words) - size + 1):
        yield hash(tuple(words[start : start + size]))


def read_lines(path: Path) -> list[dict[str, str]]:
    """A JSONL file's objects."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def evaluation_queries(data: Path) -> set[int]:
    """n-grams of the test queries of every set, and of all queries of the sets that train nothing."""
    found: set[int] = set()
    for folder in sorted((data / "beir").iterdir()):
        texts = {r["_id"]: r["text"] for r in read_lines(folder / "queries.jsonl")}
        test = folder / "qrels" / "test.tsv"
        asked = set(texts) if folder.name not in CORPORA else set()
        if test.exists():
            asked |= {line.split("\t")[0] for line in test.read_text().splitlines()[1:]}
        found.update(g for i in asked for g in grams(texts[i], QUERY_N))
    return found


def evaluation_passages(data: Path) -> set[int]:
    """n-grams of the passages of the sets that train nothing."""
    found: set[int] = set()
    for folder in sorted((data / "beir").iterdir()):
        if folder.name not in CORPORA:
            for row in read_lines(folder / "corpus.jsonl"):
                found.update(grams(f"{row.get('title', '')} {row['text']}", PASSAGE_N))
    return found


def main() -> None:
    """Writes the text that is left, and OUT/overlap.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    queries, passages = evaluation_queries(args.data), evaluation_passages(args.data)
    report: dict[str, object] = {"passage n-gram": PASSAGE_N, "query n-gram": QUERY_N}
    for name in ("passages.jsonl", "pairs.jsonl"):
        rows = read_lines(args.text / name)
        kept = [
            row
            for row in rows
            if passages.isdisjoint(grams(f"{row['title']} {row['text']}", PASSAGE_N))
            and queries.isdisjoint(grams(row.get("query", ""), QUERY_N))
        ]
        with (args.out / name).open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        report[f"text, {name}"] = {"read": len(rows), "left out": len(rows) - len(kept)}
    dropped: dict[str, dict[str, list[str]]] = {}
    for corpus in CORPORA:
        pairs, texts = read_pairs(args.data, corpus), read_corpus(args.data, corpus)
        asked = [p.query for p in pairs if not queries.isdisjoint(grams(p.query, QUERY_N))]
        held = [p.passage_id for p in texts if not passages.isdisjoint(grams(f"{p.title} {p.text}", PASSAGE_N))]
        dropped[corpus] = {"queries": asked, "passages": held}
        report[corpus] = {
            "queries": len(pairs),
            "queries left out": len(asked),
            "passages": len(texts),
            "passages left out": len(held),
        }
    (args.out / "overlap.json").write_text(json.dumps({"report": report, **dropped}, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
