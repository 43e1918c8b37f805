"""Variables of Kubernetes, of Docker, and empty ones are no settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kalm_cache import settings as settings_module
from kalm_cache.model.kernels import choose_kernels
from kalm_cache.process.environment import service_links, variables
from kalm_cache.settings import Settings, load_settings, source_of

KUBERNETES = {  # of a Service called kalm-cache with a port called http, and of one called kalm-cache-workers
    "KALM_CACHE_SERVICE_HOST": "10.0.0.1",
    "KALM_CACHE_SERVICE_PORT": "80",
    "KALM_CACHE_SERVICE_PORT_HTTP": "80",
    "KALM_CACHE_PORT": "tcp://10.0.0.1:80",
    "KALM_CACHE_PORT_80_TCP": "tcp://10.0.0.1:80",
    "KALM_CACHE_PORT_80_TCP_PROTO": "tcp",
    "KALM_CACHE_PORT_80_TCP_PORT": "80",
    "KALM_CACHE_PORT_80_TCP_ADDR": "10.0.0.1",
    "KALM_CACHE_WORKERS_PORT": "udp://[fd00::1]:53",
    "KALM_CACHE_WORKERS_SERVICE_HOST": "10.0.0.2",
    "KALM_CACHE_WORKERS_PORT_53_UDP_ADDR": "fd00::1",
}
DOCKER = {"KALM_CACHE_NAME": "/app/kalm-cache", "KALM_CACHE_ENV_PATH": "/usr/bin"}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("KALM_CACHE_")]:
        monkeypatch.delenv(name)
    settings_module._hint_at_links.cache_clear()


def test_service_links_are_no_settings_and_are_said_to_be_ignored_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (KUBERNETES | DOCKER).items():
        monkeypatch.setenv(name, value)
    assert service_links() == sorted(KUBERNETES | DOCKER)
    assert variables() == {}
    assert load_settings() == load_settings() == Settings()
    assert load_settings().port == 8080
    assert source_of(load_settings(), "port", None) == "default"
    (said,) = caplog.messages
    assert said.startswith("ignored KALM_CACHE_ENV_PATH and 12 more such variables")
    assert "enableServiceLinks: false" in said


def test_a_port_that_is_no_link_is_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KALM_CACHE_PORT", "80")
    assert load_settings().port == 80
    assert service_links() == []


@pytest.mark.parametrize("name", [*Settings.model_fields])
def test_an_empty_variable_is_an_unset_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"KALM_CACHE_{name.upper()}", "")
    settings = load_settings()
    assert settings == Settings.model_construct()
    assert source_of(settings, name, None) == "default"


def test_an_empty_variable_leaves_the_value_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('served_model_name = "ours"\n')
    monkeypatch.setenv("KALM_CACHE_SERVED_MODEL_NAME", "")
    assert load_settings(tmp_path / "config.toml").served_model_name == "ours"


def test_an_empty_choice_of_kernels_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("KALM_CACHE_KERNELS", "")
    assert choose_kernels(torch.device("cpu"), torch.float32).name in ("native", "torch")
