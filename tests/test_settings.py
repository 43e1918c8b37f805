"""Settings: who wins, and what a wrong value's message names."""

from __future__ import annotations

import os
import pickle
import tomllib
from pathlib import Path

import pytest

from kalm_cache.errors import UsageError
from kalm_cache.model.checkpoint import ALIASES
from kalm_cache.settings import Settings, load_settings, source_of

CONFIGS = Path(__file__).parent.parent / "configs"
MODEL_FILES = sorted(path for path in CONFIGS.glob("*.toml") if path.stem != "base")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing from the machine that runs the tests: no variables, and a folder of their own."""
    for name in [name for name in os.environ if name.upper().startswith("KALM_CACHE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A file that sets three fields."""
    path = tmp_path / "config.toml"
    path.write_text('chunk_size = 16\ncodec = "int8"\nstore_text = false\n')
    return path


def test_defaults_are_the_bundled_offline_model():
    settings = load_settings()
    assert (settings.model, settings.embedder, settings.codec, settings.chunk_size) == ("tiny", "static", "fp16", 4)
    assert settings.first_stage is None


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    config: Path, monkeypatch: pytest.MonkeyPatch
):
    assert load_settings().chunk_size == 4
    assert load_settings(config).chunk_size == 16
    monkeypatch.setenv("KALM_CACHE_CHUNK_SIZE", "32")
    assert load_settings(config).chunk_size == 32
    assert load_settings(config, chunk_size=64).chunk_size == 64
    assert load_settings(config, chunk_size=None).chunk_size == 32  # a flag that was not given


def test_each_field_is_taken_from_its_own_best_source(config: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KALM_CACHE_BM25", "false")
    settings = load_settings(config, k=7)
    assert (settings.k, settings.bm25, settings.codec, settings.max_length) == (7, False, "int8", 1024)
    assert settings.store_text is False


def test_false_and_zero_flags_count_as_given(config: Path):
    assert load_settings(config, bm25=False, port=0).bm25 is False
    assert load_settings(config, port=0).port == 0


def test_one_file_does_not_stay_behind_for_the_next_call(config: Path):
    assert load_settings(config).chunk_size == 16
    assert load_settings().chunk_size == 4


def test_dotenv_files_are_not_read(tmp_path: Path):
    (tmp_path / ".env").write_text("KALM_CACHE_CHUNK_SIZE=32\n")
    assert load_settings().chunk_size == 4


def test_settings_travel_to_other_processes(config: Path):
    settings = load_settings(config, k=7)
    assert type(settings) is Settings
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().k = 3  # type: ignore[misc]


def test_an_unknown_key_names_the_key_and_the_file(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text("chunk_sise = 8\n")
    with pytest.raises(UsageError, match=r"chunk_sise from .*config\.toml: Extra inputs are not permitted"):
        load_settings(path)


def test_an_unknown_flag_is_refused_too():
    with pytest.raises(UsageError, match="chunk_sise from flag --chunk-sise"):
        load_settings(chunk_sise=8)


def test_a_bad_value_names_field_source_and_value(config: Path, monkeypatch: pytest.MonkeyPatch):
    config.write_text('chunk_size = 500\ncodec = "int8"\n')
    monkeypatch.setenv("KALM_CACHE_PORT", "http")
    with pytest.raises(UsageError) as raised:
        load_settings(config, top_n=0)
    assert f"chunk_size from {config}: Input should be less than or equal to 128 (given: 500)" in str(raised.value)
    assert "port from KALM_CACHE_PORT: Input should be a valid integer" in str(raised.value)
    assert "top_n from flag --top-n: Input should be greater than or equal to 1 (given: 0)" in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_bad_value_that_is_overridden_does_no_harm(config: Path):
    config.write_text("chunk_size = 500\n")
    assert load_settings(config, chunk_size=8).chunk_size == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [("dtype", "int4"), ("first_stage", "sparse"), ("max_length", 0), ("batch_tokens", -1), ("k", "many")],
)
def test_values_out_of_range_are_refused(name: str, value: object):
    with pytest.raises(UsageError, match=f"{name} from flag --{name.replace('_', '-')}"):
        load_settings(**{name: value})


@pytest.mark.parametrize("content", [b"chunk_size = ", b"[[", b"\xff\xfe", b"chunk_size = 8\nchunk_size = 9\n"])
def test_a_file_that_is_no_toml_is_a_usage_error_with_its_name(tmp_path: Path, content: bytes):
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"--config .*config\.toml: not valid TOML"):
        load_settings(tmp_path / "config.toml")


def test_a_missing_file_is_a_usage_error(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--config .*none\.toml: no such file"):
        load_settings(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="no such file"):
        load_settings(tmp_path)


def test_every_setting_says_what_it_is():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_an_unknown_variable_is_warned_of_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("KALM_CACHE_CHUNKSIZE", "8")
    monkeypatch.setenv("KALM_CACHE_QQQQ", "8")
    for known in ("KALM_CACHE_KERNELS", "KALM_CACHE_KERNEL_MARCH", "KALM_CACHE_API_KEY", "KALM_CACHE_BASE_URL"):
        monkeypatch.setenv(known, "auto")
    assert load_settings().chunk_size == 4
    assert caplog.messages == [
        "KALM_CACHE_CHUNKSIZE is no setting; did you mean KALM_CACHE_CHUNK_SIZE?",
        "KALM_CACHE_QQQQ is no setting",
    ]


def test_known_variables_are_not_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("kalm_cache_chunk_size", "8")
    assert load_settings().chunk_size == 8
    assert not caplog.messages


def test_source_of_names_the_variable_the_file_or_the_default(config: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KALM_CACHE_K", "7")
    settings = load_settings(config)
    assert [source_of(settings, name, config) for name in ("k", "codec", "port")] == [
        "KALM_CACHE_K",
        str(config),
        "default",
    ]


def test_the_base_file_lists_every_setting_with_its_default():
    lines = (CONFIGS / "base.toml").read_text("utf-8").splitlines()
    shown = {line.removeprefix("# ").split(" = ")[0] for line in lines if " = " in line}
    assert shown >= set(Settings.model_fields)
    values = tomllib.loads("\n".join(lines))
    assert values == {name: getattr(Settings(), name) for name in values}
    without_value = {
        "first_stage",
        "first_stage_weight",
        "min_probability",
        "shared_prefix",
        "text_cache_ttl_seconds",
        "api_keys_file",
        "admin_keys_file",
        "hedge_ms",
    }
    secrets = {"api_keys", "admin_keys", "shard_api_key", "text_cache_secret"}
    assert set(Settings.model_fields) - set(values) == without_value | secrets


@pytest.mark.parametrize("file", MODEL_FILES, ids=lambda path: path.stem)
def test_a_models_file_loads_alone_and_holds_only_its_name_and_what_differs_from_the_defaults(file: Path):
    settings, defaults = load_settings(file), Settings()
    assert settings.model == file.stem
    same = {name for name in settings.model_fields_set if getattr(settings, name) == getattr(defaults, name)}
    assert same <= {"model"}


def test_there_is_a_file_for_every_model_that_has_an_alias():
    assert {file.stem for file in MODEL_FILES} == {"tiny", *ALIASES}


@pytest.mark.parametrize(("model", "weight"), [("tiny", 1.0), ("nano", 0.0), ("/models/tiny", 0.0)])
def test_the_first_stages_weight_that_is_left_out_is_the_models_own(model: str, weight: float):
    assert load_settings().first_stage_weight_for(model) == weight
    assert load_settings(CONFIGS / "base.toml").first_stage_weight_for(model) == weight
    assert load_settings(first_stage_weight=0.5).first_stage_weight_for(model) == 0.5
    assert load_settings(first_stage_weight=0.0).first_stage_weight_for(model) == 0.0


@pytest.mark.parametrize("value", [True, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["k", "port", "timeout_ms", "watch_seconds", "prefix_cache_gib", "first_stage_weight"])
def test_booleans_and_infinities_are_no_numbers(name: str, value: float):
    with pytest.raises(UsageError, match=name):
        load_settings(**{name: value})


@pytest.mark.parametrize("line", ["port = true", "drain_seconds = inf", "queue_limit = false", "watch_seconds = nan"])
def test_nor_are_they_in_a_file(line: str, tmp_path: Path):
    (tmp_path / "a.toml").write_text(line)
    with pytest.raises(UsageError, match=line.split(" ")[0]):
        load_settings(tmp_path / "a.toml")
