"""The language of an index: found in the corpus or named, kept with it, and the same for all that is added to it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from indexer.build.index_job import Encoders, load_encoders
from indexer.change.reindex_small import run_small_reindex
from kalm_cache.doctor.index import check_index
from kalm_cache.errors import IndexMismatchError, UsageError
from kalm_cache.generations.generation import open_current, segment_folder
from kalm_cache.generations.manifest import MANIFEST, parse_manifest
from kalm_cache.generations.stats import index_stats
from kalm_cache.settings import Settings
from tests.indexer.changes import add, found, payloads_of, reindex, scores_of, valid
from tests.indexes import TEXTS, build, lines_of, settings_for

GERMAN = {
    "haus": "Das alte Haus am Hafen wurde im vorigen Jahr verkauft.",
    "bienen": "Im Frühling tragen die Bienen den Blütenstaub in ihren Stock.",
    "fähre": "Die letzte Fähre zur Insel fährt um neun Uhr abends ab.",
}
MORE = {"häuser": "Viele Häuser in dieser Straße stehen seit Jahren leer."}


def analyses_of(index: Path) -> set[str]:
    """What `bm25.json` says in every segment."""
    live = open_current(index)
    folders = [segment_folder(live.folder, segment.name) for segment in live.manifest.segments]
    return {json.loads((folder / "first_stage/bm25/bm25.json").read_text())["analysis"] for folder in folders}


def test_the_language_is_found_in_the_corpus_and_sealed(
    tmp_path: Path, settings: Settings, encoders: Encoders, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    build(tmp_path, settings, GERMAN, encoders=encoders)
    assert "language: de, by the first 3 passages" in caplog.text
    assert index_stats(tmp_path).language == "de"
    assert analyses_of(tmp_path) == {"snowball-de-cjk-bigrams-2"}
    assert found(tmp_path, "Häusern")["bm25"] == ["haus"]


def test_what_is_added_and_reindexed_is_analysed_as_the_index(tmp_path: Path, settings: Settings, encoders: Encoders):
    build(tmp_path, settings, GERMAN, encoders=encoders)
    add(tmp_path, settings, encoders, MORE)
    assert set(found(tmp_path, "Haus")["bm25"]) == {"haus", "häuser"}
    kept = settings.model_copy(update={"language": "de"})  # as the command has it of the manifest
    reindex(tmp_path, kept, encoders, TEXTS | GERMAN)
    assert analyses_of(tmp_path) == {"snowball-de-cjk-bigrams-2"}
    assert found(tmp_path, "Häusern")["bm25"] == ["haus"]
    assert valid(tmp_path)


@pytest.mark.parametrize("shards", [None, 3])
def test_another_language_analyses_texts_again_and_encodes_nothing(
    tmp_path: Path, settings: Settings, encoders: Encoders, shards: int | None
):
    english = settings.model_copy(update={"language": "en"})
    build(tmp_path / "index", english, GERMAN | MORE, encoders=encoders, shards=shards)
    assert found(tmp_path / "index", "Haus")["bm25"] == ["haus"]
    states = payloads_of(tmp_path / "index")
    wanted = settings.model_copy(update={"language": "de,en", "fold_diacritics": True})
    report = reindex(tmp_path / "index", wanted, encoders, GERMAN | MORE)
    assert (report.reused, report.encoded) == (4, 0)
    assert payloads_of(tmp_path / "index") == states
    assert analyses_of(tmp_path / "index") == {"snowball-de+en-folded-cjk-bigrams-2"}
    build(tmp_path / "fresh", wanted, GERMAN | MORE, encoders=encoders)
    for query in ("Haus", "fahre", "Fähre", "Jahren"):
        assert scores_of(tmp_path / "index", query) == scores_of(tmp_path / "fresh", query)
        assert scores_of(tmp_path / "fresh", query)


def test_shards_of_a_corpus_have_one_language_and_answer_as_one(tmp_path: Path, settings: Settings, encoders: Encoders):
    texts = {f"{name}{i}": text for i in range(4) for name, text in (GERMAN | MORE).items()}
    build(tmp_path / "one", settings, texts, encoders=encoders)
    build(tmp_path / "three", settings, texts, encoders=encoders, shards=3)
    assert analyses_of(tmp_path / "one") == analyses_of(tmp_path / "three") == {"snowball-de-cjk-bigrams-2"}
    assert scores_of(tmp_path / "three", "Häuser im Jahr") == scores_of(tmp_path / "one", "Häuser im Jahr")


def test_an_index_of_an_earlier_version_stays_english(tmp_path: Path, settings: Settings, encoders: Encoders):
    english = settings.model_copy(update={"language": "en"})
    build(tmp_path, english, GERMAN, encoders=encoders)
    manifest = open_current(tmp_path).manifest
    written = json.loads((open_current(tmp_path).folder / MANIFEST).read_text())
    assert not {"language", "fold_diacritics"} & written.keys()  # what an earlier version wrote, and reads
    german = replace(manifest, language="de", fold_diacritics=True)
    assert parse_manifest(german.to_json(), "m") == german
    assert analyses_of(tmp_path) == {"english-snowball-cjk-bigrams-2"}


def test_a_small_reindex_refuses_another_language(tmp_path: Path, settings: Settings, encoders: Encoders):
    build(tmp_path, settings, GERMAN, encoders=encoders)
    french = settings.model_copy(update={"language": "fr"})
    with pytest.raises(IndexMismatchError, match="built with language 'de'"):
        run_small_reindex(
            lines_of(GERMAN), tmp_path, french, encoders, on_reject=lambda line: None, on_progress=lambda counts: None
        )


def test_passages_without_texts_cannot_be_kept_in_another_language(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path
):
    settings = settings_for(mini_folder, embedder_folder, store_text=False)
    encoders = load_encoders(settings)
    build(tmp_path, settings, GERMAN, encoders=encoders)
    english = settings.model_copy(update={"language": "en"})
    with pytest.raises(UsageError, match="the postings of segment"):
        reindex(tmp_path, english, encoders, MORE, keep_missing=True)
    reindex(tmp_path, english, encoders, GERMAN)  # the corpus has all their texts
    assert analyses_of(tmp_path) == {"english-snowball-cjk-bigrams-2"}


def test_models_that_know_english_alone_are_named(
    tmp_path: Path, settings: Settings, encoders: Encoders, caplog: pytest.LogCaptureFixture
):
    static = settings.model_copy(update={"embedder": "static", "model": "tiny"})
    build(tmp_path, static, GERMAN, encoders=encoders)
    assert [record.levelname for record in caplog.records][-2:] == ["WARNING", "WARNING"]
    assert "the embedder 'static' is English, and the corpus has de" in caplog.text
    assert "the embedder 'static' is English" in check_index(tmp_path).advice
