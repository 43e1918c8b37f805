"""A reranker over a text cache: the scores are those without it, and a passage is encoded once."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kalm_cache.errors import UsageError
from kalm_cache.process.progress_bar import progress_bar
from kalm_cache.reranker import KaLMReranker
from kalm_cache.storage.text_cache import named
from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions
from tests.checkpoints import with_other_decoder
from tests.texts import DOCUMENTS, QUERIES, long_text

PASSAGES = [*list(DOCUMENTS.values())[:6], long_text(60)]
PAIRS = [(query, passage) for query in list(QUERIES.values())[:2] for passage in PASSAGES]
DISTINCT = len(set(PASSAGES))
Load = Callable[..., KaLMReranker]


@pytest.fixture
def load(mini_folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Load:
    def loaded(cache: Any = tmp_path / "cache", **options: Any) -> KaLMReranker:
        size = {} if isinstance(cache, TextCache) else {"cache_gib": 0.05}
        reranker = KaLMReranker(str(mini_folder), device="cpu", cache=cache, **(size | options))
        request.addfinalizer(reranker.close)
        return reranker

    return loaded


def counts(reranker: KaLMReranker) -> tuple[int, int]:
    assert reranker.cache is not None
    return reranker.cache.counts.hits, reranker.cache.counts.misses


@pytest.mark.parametrize(("codec", "error"), [("fp32", 1e-6), ("fp16", 2e-2), ("bf16", 0.2)])
def test_cached_scores_equal_uncached_scores(load: Load, mini_reranker: KaLMReranker, codec: str, error: float) -> None:
    wanted = [scored["margin"] for scored in mini_reranker.predict(PAIRS, return_margin=True)]
    first = load(cache_codec=codec)
    encoded = [scored["margin"] for scored in first.predict(PAIRS, return_margin=True)]
    first.close()
    again = load(cache_codec=codec)
    cached = [scored["margin"] for scored in again.predict(PAIRS, return_margin=True)]
    assert counts(again) == (DISTINCT, 0)
    assert cached == encoded  # to the bit: what is encoded is rounded as it is stored
    assert cached == pytest.approx(wanted, abs=max(error, 1e-5))
    assert (cached == pytest.approx(wanted, abs=1e-7)) <= (codec == "fp32")


def test_another_decoder_finds_what_the_same_encoder_cached(load: Load, mini_folder: Path, tmp_path: Path) -> None:
    first = load()
    first.encode(PASSAGES)
    first.close()
    tuned = with_other_decoder(mini_folder, tmp_path / "tuned")
    with KaLMReranker(str(tuned), device="cpu", cache=tmp_path / "cache", cache_gib=0.05) as other:
        cached = other.predict(PAIRS)
        assert counts(other) == (DISTINCT, 0)
    assert cached == pytest.approx(KaLMReranker(str(tuned), device="cpu").predict(PAIRS), abs=1e-3)


def test_states_come_back_as_the_codec_rounds_them(load: Load, mini_reranker: KaLMReranker) -> None:
    first = load()
    encoded = torch.cat(first.encode(PASSAGES))
    first.close()
    exact, cached = torch.cat(mini_reranker.encode(PASSAGES)), torch.cat(load().encode(PASSAGES))
    assert cached.dtype == torch.float32
    assert torch.equal(cached, encoded)
    assert not torch.equal(cached, exact)
    torch.testing.assert_close(cached, exact, rtol=2**-10, atol=2**-24)  # once as documented, once for another batch


def test_a_second_reranker_of_the_process_finds_what_the_first_one_encoded(load: Load) -> None:
    first, second = load(), load(max_length=512)
    first.predict(PAIRS)
    assert first.cache is not None
    first.cache.flush()
    second.rank(PAIRS[0][0], PASSAGES)
    assert counts(second) == (DISTINCT, 0)


def test_a_shorter_limit_of_a_call_has_entries_of_its_own(load: Load, mini_reranker: KaLMReranker) -> None:
    cached, pair = load(cache_codec="fp32"), PAIRS[-1]
    cached.predict([pair])
    for _ in range(2):
        assert cached.predict([pair], max_length=9) == pytest.approx(
            mini_reranker.predict([pair], max_length=9), abs=1e-6
        )
    assert cached.predict([pair], max_length=9) != pytest.approx(cached.predict([pair]), abs=1e-6)


def test_other_models_ratios_and_dtypes_share_no_entry(load: Load) -> None:
    load().encode(PASSAGES[:2])
    for options in ({"chunk_size": 2}, {"dtype": "bfloat16"}, {"cache_codec": "int8"}):
        other = load(**options)
        other.encode(PASSAGES[:2])
        assert counts(other)[0] == 0


def test_an_open_cache_stays_open(load: Load, tmp_path: Path) -> None:
    with TextCache(TextCacheOptions(tmp_path / "own", 32 << 20)) as cache:
        with load(cache) as reranker:
            reranker.predict(PAIRS[:2])
        assert cache.counts.written == 2
        assert load(cache).predict(PAIRS[:2])
        assert cache.counts.hits == 2


def test_a_closed_reranker_computes_and_keeps_nothing(load: Load, mini_reranker: KaLMReranker) -> None:
    reranker = load()
    reranker.close()
    reranker.close()
    assert reranker.cache is None
    assert reranker.predict(PAIRS[:2]) == pytest.approx(mini_reranker.predict(PAIRS[:2]), abs=1e-6)


def test_a_pickled_reranker_uses_the_same_folder(load: Load) -> None:
    reranker = load(cache_codec="fp32")
    wanted = reranker.predict(PAIRS)
    with pickle.loads(pickle.dumps(reranker)) as copy:  # what waited here is not written twice
        assert copy.predict(PAIRS) == pytest.approx(wanted, abs=1e-6)
    reranker.close()
    assert counts(again := load(cache_codec="fp32")) == (0, 0)
    assert again.predict(PAIRS) == pytest.approx(wanted, abs=1e-6)
    assert counts(again) == (DISTINCT, 0)


def test_a_forked_child_reads_and_writes(load: Load) -> None:
    reranker = load()
    reranker.predict(PAIRS[:2])
    assert reranker.cache is not None
    reranker.cache.flush()

    def in_child() -> None:
        reranker.predict(PAIRS[:3])
        assert counts(reranker) == (2, 3)  # what the parent counted goes on

    child = multiprocessing.get_context("fork").Process(target=in_child)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    again = load()
    again.predict(PAIRS[:3])
    assert counts(again) == (3, 0)


def test_what_waits_is_written_when_the_interpreter_ends(mini_folder: Path, load: Load, tmp_path: Path) -> None:
    program = (
        "from kalm_cache import KaLMReranker\n"
        f"KaLMReranker({str(mini_folder)!r}, device='cpu', dtype='float32', cache={str(tmp_path / 'cache')!r}, "
        f"cache_gib=0.05)"
        f".predict({PAIRS[:2]!r})"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    again = load()
    again.predict(PAIRS[:2])
    assert counts(again) == (2, 0)


def test_true_is_the_platforms_folder_said_once(
    mini_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "kalm-cache" / "texts"
    caplog.set_level("INFO", logger="kalm_cache")
    for _ in range(2):
        with KaLMReranker(str(mini_folder), device="cpu", cache=True) as reranker:
            assert reranker.cache is not None
            assert reranker.cache.options.folder == folder
            assert reranker.cache.options.max_bytes == 4 << 30
    assert sum(str(folder) in record.getMessage() for record in caplog.records) == 1


def test_without_xdg_the_folder_is_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(named.sys, "platform", "linux")
    assert named.platform_folder() == tmp_path / ".cache/kalm-cache/texts"
    monkeypatch.setattr(named.sys, "platform", "darwin")
    assert named.platform_folder() == tmp_path / "Library/Caches/kalm-cache/texts"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": 7}, "cache is 7; expected a folder, True, or an open TextCache"),
        ({"cache": ""}, "cache is ''; expected a folder"),
        ({"cache": None, "cache_gib": 1}, "cache_gib is 1, but cache names no folder"),
        ({"cache": "x", "cache_gib": 0}, "it needs 16 MiB at least"),
        ({"cache": "x", "cache_gib": "much"}, "cache_gib is 'much', expected a number"),
        ({"cache": "x", "cache_codec": "zip"}, "codec 'zip' is not known"),
    ],
)
def test_what_is_no_cache_is_refused(mini_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        KaLMReranker(str(mini_folder), device="cpu", **options)


def test_states_that_half_precision_cannot_hold_are_dropped_and_answered(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = load()
    encode = type(reranker.passage_side).encode
    monkeypatch.setattr(type(reranker.passage_side), "encode", lambda *args: [each * 1e6 for each in encode(*args)])
    for _ in range(2):
        assert len(reranker.predict(PAIRS[:2])) == 2
    assert reranker.cache is not None
    reranker.cache.flush()
    assert (reranker.cache.counts.off, reranker.cache.counts.written) == ("", 0)


def test_a_progress_bar_is_shown_where_asked_for_and_on_no_pipe(
    mini_reranker: KaLMReranker, capsys: pytest.CaptureFixture[str]
) -> None:
    mini_reranker.predict(PAIRS)
    assert capsys.readouterr().err == ""
    mini_reranker.predict(PAIRS, show_progress_bar=True)
    shown = capsys.readouterr().err
    assert "encoding" in shown and "scoring" in shown and "100%" in shown


def test_on_a_terminal_the_bar_comes_once_work_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    now = [0.0]
    monkeypatch.setattr("kalm_cache.process.progress_bar.monotonic", lambda: now[0])
    with progress_bar("encoding", 10, None) as advance:
        advance(5)
        assert capsys.readouterr().err == ""
        now[0] = 4.0
        advance(1)
    assert "encoding" in capsys.readouterr().err
