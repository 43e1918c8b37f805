"""Corpora in an object store, of each kind: the same passages as from a folder, and places that are URLs."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("obstore")

from indexer.corpus import CorpusLine, RejectedLine, read_corpus
from indexer.corpus.files.find_objects import find_objects
from kalm_cache.errors import CorpusError, MissingExtraError, StoreError, UsageError
from kalm_cache.object_store.object_file import BUFFER_BYTES
from kalm_cache.object_store.store import ObjectStore
from kalm_cache.passage import Passage
from tests.indexer.corpora import COMPRESS, TWO, write
from tests.object_store.places import CREDENTIALS, Place, S3Place

FILES = {
    "a b/z%20é.jsonl": b'{"id": 1, "text": "one"}\n{"id": 2}\n',
    "b.tsv": b"3\tthree\n",
    "c.csv.gz": gzip.compress(b'id,text\n4,"four\nlines"\n'),
    "d.ndjson.zst": COMPRESS[".zst"](TWO[".ndjson"]),
    ".hidden.jsonl": b"no corpus",
    "_SUCCESS": b"",
}


@pytest.fixture
def bucket(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place that commands find by its URL and the environment."""
    if isinstance(place, S3Place):
        endpoint = {"AWS_ENDPOINT_URL": place.endpoint, "AWS_ALLOW_HTTP": "true"}
        for name, value in (CREDENTIALS | endpoint).items():
            monkeypatch.setenv(name, value)
    return place


def put(place: Place, files: dict[str, bytes]) -> ObjectStore:
    store = place.store()
    for name, content in files.items():
        store.put(name, content)
    return store


def test_a_prefix_is_read_as_a_folder_of_the_same_files(bucket: Place, tmp_path: Path) -> None:
    put(bucket, {f"corpus/{name}": content for name, content in FILES.items()})
    for name, content in FILES.items():
        write(tmp_path / "corpus" / name, content)
    url = f"{bucket.url}/corpus"
    lines = list(read_corpus(f"{url}/"))
    assert [line.location for line in lines] == [
        f"{url}/a b/z%20é.jsonl:1",
        f"{url}/a b/z%20é.jsonl:2",
        f"{url}/b.tsv:1",
        f"{url}/c.csv.gz:2",
        f"{url}/d.ndjson.zst:1",
        f"{url}/d.ndjson.zst:2",
    ]
    assert isinstance(lines[1], RejectedLine)
    assert (lines[1].doc_id, lines[1].raw) == ("2", '{"id": 2}')
    here = [line for line in read_corpus(tmp_path / "corpus") if isinstance(line, CorpusLine)]
    assert [line.passage for line in lines if isinstance(line, CorpusLine)] == [line.passage for line in here]


def test_one_object_is_read_and_its_neighbours_are_not(bucket: Place) -> None:
    put(bucket, {"c.jsonl": TWO[".jsonl"], "c.jsonl.gz": b"", "c.jsonl2/d.jsonl": b""})
    lines = list(read_corpus(f"{bucket.url}/c.jsonl"))
    assert lines == [
        CorpusLine(Passage("d1", "Sun It shines."), f"{bucket.url}/c.jsonl:1"),
        CorpusLine(Passage("2", "café"), f"{bucket.url}/c.jsonl:2"),
    ]


def test_a_prefix_may_have_the_suffix_of_a_file(bucket: Place) -> None:
    put(bucket, {"c.jsonl/part-0.jsonl": TWO[".jsonl"], "c.jsonl/_SUCCESS": b""})
    assert [line.location for line in read_corpus(f"{bucket.url}/c.jsonl")] == [
        f"{bucket.url}/c.jsonl/part-0.jsonl:1",
        f"{bucket.url}/c.jsonl/part-0.jsonl:2",
    ]


def test_of_a_beir_prefix_only_the_corpus_is_read(bucket: Place) -> None:
    put(bucket, {"b/corpus.jsonl": TWO[".jsonl"], "b/qrels/test.tsv": b"q\td\t1\n", "b/x.jsonl": b"no corpus"})
    assert [file.name for file in find_objects(f"{bucket.url}/b")] == [f"{bucket.url}/b/corpus.jsonl"]


def test_what_is_not_there_and_what_is_no_corpus_are_errors(bucket: Place) -> None:
    put(bucket, {"docs/README.md": b"hello", "notes.md": b"hello"})
    with pytest.raises(CorpusError, match=rf"^{bucket.url}/none does not exist; give the URL of a file"):
        read_corpus(f"{bucket.url}/none")
    with pytest.raises(CorpusError, match=rf"^{bucket.url}/docs holds no corpus file; accepted suffixes are \.jsonl"):
        read_corpus(f"{bucket.url}/docs")
    with pytest.raises(CorpusError, match=rf"^{bucket.url}/notes\.md: unknown suffix"):
        read_corpus(f"{bucket.url}/notes.md")


def test_urls_that_cannot_be_ones_are_refused() -> None:
    with pytest.raises(UsageError, match="the scheme is none of s3"):
        read_corpus("https://host/corpus.jsonl")
    with pytest.raises(UsageError, match="never in the URL"):
        read_corpus("s3://key:secret@bucket/corpus.jsonl")
    with pytest.raises(UsageError, match="printable"):
        read_corpus("s3://bucket/\udcff.jsonl")
    with pytest.raises(StoreError, match="file:///no/such/folder: there is no such folder"):
        read_corpus("file:///no/such/folder/corpus.jsonl")


def test_a_corpus_that_is_replaced_while_it_is_read_is_an_error(bucket: Place) -> None:
    line = json.dumps({"id": "x", "text": "word " * 200}).encode() + b"\n"
    store = put(bucket, {"c.jsonl": line * (BUFFER_BYTES // len(line) + 2)})
    lines = read_corpus(f"{bucket.url}/c.jsonl")
    next(lines)
    store.put("c.jsonl", line * (BUFFER_BYTES // len(line) + 3))
    with pytest.raises(StoreError, match=rf"^{bucket.url}/c\.jsonl: was replaced or removed while it was read; run"):
        for _ in lines:
            pass


def test_parquet_is_read_by_the_columns_that_count(
    bucket: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows, other = 2000, 4 << 20
    table = pa.table(
        {
            "id": [str(n) for n in range(rows)],
            "vector": [bytes(other // rows)] * rows,
            "text": [f"text {n}" for n in range(rows)],
        }
    )
    pq.write_table(table, tmp_path / "c.parquet", use_dictionary=False, compression="none", row_group_size=500)
    put(bucket, {"c.parquet": (tmp_path / "c.parquet").read_bytes()})
    moved = []
    get_range = ObjectStore.get_range

    def counted(store: ObjectStore, path: str, start: int, length: int, tag: str | None = None) -> bytes:
        moved.append(length)
        return get_range(store, path, start, length, tag)

    monkeypatch.setattr(ObjectStore, "get_range", counted)
    lines = list(read_corpus(f"{bucket.url}/c.parquet"))
    assert len(lines) == rows
    assert lines[-1] == CorpusLine(Passage("1999", "text 1999"), f"{bucket.url}/c.parquet:2000")
    assert 0 < sum(moved) < other / 10


def test_an_empty_object_that_should_be_compressed_and_damaged_ones_are_named(bucket: Place) -> None:
    put(bucket, {"e.jsonl.gz": b"", "cut.jsonl.gz": gzip.compress(TWO[".jsonl"])[:-10], "p.parquet": b"no parquet"})
    for name, problem in (
        ("e.jsonl.gz", "is empty, not even gzip's header is there"),
        ("cut.jsonl.gz", "beyond line 1"),
        ("p.parquet", "beyond row 0"),
    ):
        with pytest.raises(CorpusError, match=f"{bucket.url}/{name} {problem}"):
            list(read_corpus(f"{bucket.url}/{name}"))


def test_a_url_without_obstore_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)  # what an import of an absent package meets
    with pytest.raises(MissingExtraError, match=r"pip install 'kalm-cache\[cloud\]'"):
        read_corpus("s3://bucket/corpus")
