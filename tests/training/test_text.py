"""How collected text is read, cut and selected, with values by hand."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from training import collect_text
from training.text.code import function_items
from training.text.collection import RUN, excluded, select
from training.text.documents import article_items, page_items
from training.text.entries import dictd_items, dictd_number, wordnet_senses
from training.text.fetch import Package, Source
from training.text.passage import Item, chunks, clean, is_prose, section_query, words
from training.text.sources import SOURCES, read_table, table_row, write_table

PROSE = (
    "The lamp was lit each evening by the keeper of the tower, and it could be seen from all the ships "
    "that came to the harbour in the dark months of the year, when storms are strong."
)


def sentence(size: int, word: str = "word") -> str:
    return " ".join([word.capitalize(), *[word] * (size - 2), f"{word}."])


def source(read: object = None, **options: object) -> Source:
    return Source("made", "made-package", "CC0-1.0", "example.org", read, **options)  # type: ignore[arg-type]


def test_paragraphs_are_joined_up_to_the_aim_and_never_cut_under_the_maximum():
    # 50 + 60 = 110 < 130 takes the third paragraph, too; 170 >= 130 does not take 40 more, although 210 <= 220
    sizes = [words(text) for text in chunks(sentence(size) for size in (50, 60, 60, 40, 219))]
    assert sizes == [170, 40, 219]


def test_a_long_paragraph_is_cut_at_sentence_ends():
    # 300 words in ten sentences: four of them are 120 words, a fifth would make 150 > 130
    long = " ".join(sentence(30, word) for word in "abcdefghij")
    assert words(long) == 300
    # pieces of 120, 120 and 60 words: 120 + 120 > 220 parts the first two, 120 + 60 joins the last two
    found = list(chunks([long]))
    assert [words(text) for text in found] == [120, 180]
    assert all(text.endswith(".") for text in found)
    assert " ".join(found) == long


def test_a_text_is_cleaned_of_entities_link_marks_and_stray_spaces():
    assert clean("Install&nbsp;it¶  ( see [1] below ) , then\n run .") == "Install it (see below), then run."


@pytest.mark.parametrize(
    ("text", "expected"),
    [(PROSE, True), ("int main ( ) { return 0 ; }", False), ("Der Turm steht am Hafen und leuchtet weit", False)],
)
def test_prose_has_common_english_words_and_few_signs(text: str, expected: bool):
    assert is_prose(text) is expected


def test_equal_texts_are_kept_once_whatever_their_case_and_punctuation():
    seen: set[bytes] = set()
    items = [Item("Lamp", PROSE), Item("Lamp again", PROSE.upper().replace(",", ";"))]
    kept = select(source(), items, set(), seen)
    assert kept.passages == [{"source": "made", "licence": "CC0-1.0", "title": "Lamp", "text": PROSE}]
    # what another source has already is dropped, too
    assert select(source(), [Item("Lamp", PROSE)], set(), seen).passages == []


def test_a_query_is_asked_of_one_text_only():
    items = [Item("Lamp", PROSE, "harbour lamp"), Item("Lamp", f"{PROSE} Indeed it is so.", "Harbour lamp")]
    kept = select(source(), items, set(), set())
    assert (len(kept.passages), len(kept.pairs)) == (2, 1)


def test_short_texts_make_pairs_and_no_passages():
    gloss = "a tower with a lamp that warns the ships"
    kept = select(source(), [Item("lighthouse", gloss, "lighthouse definition"), Item("x", "too short")], set(), set())
    assert kept.passages == []
    assert [pair["query"] for pair in kept.pairs] == ["lighthouse definition"]


def test_a_source_gives_no_more_than_its_share():
    items = [Item("Lamp", f"{PROSE} Number {number} of the list.", f"lamp {number}") for number in range(5)]
    kept = select(source(most=3), items, set(), set())
    assert (len(kept.passages), len(kept.pairs)) == (3, 3)


def test_texts_that_share_a_run_of_words_with_an_excluded_corpus_are_dropped(tmp_path: Path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": PROSE.lower().replace(",", "")}), "utf-8")
    barred = excluded([corpus])
    # about a quarter of the runs are compared
    assert 0 < len(barred) < words(PROSE) - RUN + 1
    other = "Bread is made of flour and water, and it is left to rise in a warm place for an hour or two. " * 2
    kept = select(source(), [Item("Lamp", f"{PROSE} {other.strip()}"), Item("Bread", other.strip())], barred, set())
    assert [p["title"] for p in kept.passages] == ["Bread"]
    assert kept.barred == 1


def test_a_wordnet_line_gives_its_gloss_to_each_of_its_words():
    line = (
        "02137000 03 n 02 abstraction 0 abstract_entity 0 002 @ 00001740 n 0000 ~ 00024264 n 0000 | a general concept "
        'formed by extracting common features; "truth is an abstraction"  '
    )
    gloss = '(noun) a general concept formed by extracting common features; "truth is an abstraction".'
    assert list(wordnet_senses(line)) == [
        ("abstraction", f"{gloss} Also: abstract entity."),
        ("abstract entity", f"{gloss} Also: abstraction."),
    ]


def test_wordnets_licence_lines_are_no_entries():
    assert list(wordnet_senses("  1 This software and database is being provided to you | the licensee")) == []


def test_a_foldoc_entry_loses_its_links_labels_and_date():
    entry = (
        "DEX\n\n   <language> A cross between {Modula-2} and {C (C Programming Language)}\n   by W. van Oortmerssen.\n"
        "\n   E-mail: someone at example.org\n\n   (1995-04-13)\n\n"
    )
    (item,) = dictd_items("dex", entry)
    assert (item.title, item.text) == ("DEX", "A cross between Modula-2 and C by W. van Oortmerssen.")
    assert item.query in ("DEX", "what is DEX?")


def test_dictd_numbers_have_base_64():
    assert [dictd_number(digits) for digits in ("A", "Z", "a", "9", "/", "BA", "BAA")] == [0, 25, 26, 61, 63, 64, 4096]


def test_a_documented_function_is_paired_with_its_source_without_the_docstring():
    module = '''
class Lamp:
    def light(self, minutes):
        """Light the ``lamp`` for some minutes.

        Longer than an hour is refused.
        """
        if minutes > 60:
            raise ValueError(minutes)

        self.burning = minutes
        return self
'''
    (item,) = function_items("harbour/lamps/__init__.py", module)
    assert item.query == "Light the lamp for some minutes"
    assert item.title == "harbour.lamps"
    assert item.text == (
        "def light(self, minutes):\n    if minutes > 60:\n        raise ValueError(minutes)\n"
        "    self.burning = minutes\n    return self"
    )


@pytest.mark.parametrize(
    "docstring", ["Too short.", "Deprecated: use the other one instead.", "Return {a: b} as it is."]
)
def test_a_docstring_that_says_little_makes_no_pair(docstring: str):
    module = f'def light():\n    """{docstring}"""\n    a = 1\n    b = 2\n    return a + b\n'
    assert list(function_items("lamp.py", module)) == []


def test_a_page_is_cut_at_its_headings_and_loses_menus_and_listings():
    page = (
        "<html><body><div class='sphinxsidebar'>Table of contents of all pages</div><h1>1. Lamps¶</h1>"
        f"<p>{PROSE}</p><pre>lamp --light now</pre><h2>Lighting a lamp</h2><p>{PROSE[:-1]}, too.</p></body></html>"
    )
    first, second = page_items(page, "Harbour")
    assert (first.title, first.text) == ("Harbour – Lamps", PROSE)
    assert (second.title, second.text) == ("Harbour – Lamps – Lighting a lamp", f"{PROSE[:-1]}, too.")
    assert second.query in ("Lighting a lamp", "Harbour Lighting a lamp")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (["Lamps", "How is it lit?"], "How is it lit?"),
        (["lamps.light(minutes=60)"], "Harbour lamps.light"),
        (["Lamps", "See also"], None),
        (["Overview"], None),
    ],
)
def test_a_section_is_asked_for_by_its_heading(path: list[str], expected: str | None):
    assert section_query("Harbour", path) == expected


def test_an_article_loses_its_markup_and_its_queries_name_it():
    wikitext = (
        "{{Infobox|a={{b}}}}\n'''Pharos''' was a [[tower]] of [[Egypt|the Egyptians]].<ref>Strabo</ref>\n"
        f"== Its lamp ==\n{PROSE}\n"
    )
    first, second = article_items("Pharos", wikitext)
    assert (first.title, first.text) == ("Pharos", "Pharos was a tower of the Egyptians.")
    assert (second.title, second.text, second.query) == ("Pharos – Its lamp", PROSE, "Pharos Its lamp")


@pytest.mark.parametrize(
    ("registry", "name", "file", "version"),
    [
        ("debian", "dict-foldoc", "dict-foldoc_1%3a2023-1_all.deb", "dict-foldoc 1:2023-1"),
        ("pypi", "more-itertools", "more_itertools-11.2.1-py3-none-any.whl", "more-itertools 11.2.1"),
        ("npm", "caniuse-db", "caniuse-db-1.0.3.tgz", "caniuse-db 1.0.3"),
    ],
)
def test_versions_are_those_of_the_archives(registry: str, name: str, file: str, version: str):
    assert Package(registry, name, Path(file)).version == version


def test_sources_have_their_own_names_and_all_state_a_licence():
    assert len({s.name for s in SOURCES}) == len(SOURCES)
    assert all(s.licence and s.upstream and s.packages.split() for s in SOURCES)


def test_the_table_of_sources_is_read_as_it_was_written(tmp_path: Path):
    table = {s.name: table_row(s, ["made 1.0"], 3, 4) for s in SOURCES[:2]}
    write_table(tmp_path / "SOURCES.md", table)
    found = read_table(tmp_path / "SOURCES.md")
    assert {name: found[name] for name in table} == table
    assert found["**all**"] == ["", "", "", "", "6", "8"]


def archive(folder: Path, file: str, path: str, content: str) -> None:
    folder.mkdir(parents=True)
    with tarfile.open(folder / file, "w:gz") as tar:
        member = tarfile.TarInfo(path)
        member.size = len(content.encode())
        tar.addfile(member, io.BytesIO(content.encode()))


def test_collecting_one_source_again_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def read(package: Package, source: Source) -> Iterable[Item]:
        return [Item(name, data.decode(), f"{name} of {source.name}") for name, data in package.files(r"\.txt$")]

    sources = [
        Source(name, f"{name}-package", "CC0-1.0", "example.org", read, "pypi") for name in ("lamps", "bread", "none")
    ]
    monkeypatch.setattr(collect_text, "SOURCES", sources)
    monkeypatch.setattr("training.text.sources.SOURCES", sources)
    for name in ("lamps", "bread"):
        archive(tmp_path / f"packages/pypi/{name}-package", f"{name}-1.5.tar.gz", "a.txt", f"{PROSE} So are {name}.")
    (tmp_path / "packages/pypi/none-package").mkdir()
    monkeypatch.setattr("training.text.fetch.COMMANDS", {"pypi": ("true",)})  # fetches nothing

    def collect(*options: str) -> tuple[list[str], dict[str, list[str]]]:
        out, scratch = str(tmp_path / "out"), str(tmp_path / "packages")
        monkeypatch.setattr(sys, "argv", ["collect_text", "--out", out, "--scratch", scratch, *options])
        collect_text.main()
        lines = (tmp_path / "out/pairs.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line)["query"] for line in lines], read_table(tmp_path / "out/SOURCES.md")

    queries, table = collect()
    assert queries == ["a.txt of lamps", "a.txt of bread"]
    assert table["lamps"] == ["lamps-package 1.5", "pypi", "CC0-1.0", "example.org", "1", "1"]
    assert "none" not in table
    assert collect("--only", "lamps") == (["a.txt of bread", "a.txt of lamps"], table)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["SOURCES.md", "pairs.jsonl", "passages.jsonl"]
