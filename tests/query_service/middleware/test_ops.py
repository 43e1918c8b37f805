"""The files of `configs/ops` and the compose profile `observe` fit the service and each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import yaml

from kalm_cache.settings import ENV_PREFIX, Settings
from query_service.middleware.keys import KeyRing
from query_service.middleware.metrics import Metrics, Rejection, Stage

ROOT = Path(__file__).parents[3]
OPS = ROOT / "configs" / "ops"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
DASHBOARD = json.loads((OPS / "grafana" / "dashboard.json").read_text("utf-8"))
PROMETHEUS = yaml.safe_load((OPS / "prometheus.yml").read_text("utf-8"))


def rendered_by_a_service_that_did_everything() -> str:
    metrics = Metrics()
    metrics.request("POST", "/search", "200", 0.1)
    metrics.batch(8, 1000)
    metrics.runs("0.1.0", "tiny")
    metrics.serves("000001", 10)
    return metrics.render().decode()


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_every_metric_of_the_dashboard_is_one_that_the_service_renders() -> None:
    rendered = set(re.findall(r"^(kalm_cache_\w+)", rendered_by_a_service_that_did_everything(), re.MULTILINE))
    asked = {name for expression in expressions() for name in re.findall(r"kalm_cache_\w+", expression)}
    assert asked <= rendered
    families = {re.sub("_(total|bucket|sum|count)$", "", name) for name in rendered}
    assert families == {re.sub("_(total|bucket|sum|count)$", "", name) for name in asked}  # and none is left out


def test_every_metric_of_the_dashboard_is_one_that_a_running_service_answers_with(service: httpx.Client) -> None:
    service.post("/search", json={"query": "bees", "k": 5})
    answered = set(re.findall(r"^(kalm_cache_\w+)", service.get("/metrics").text, re.MULTILINE))
    assert {name for expression in expressions() for name in re.findall(r"kalm_cache_\w+", expression)} <= answered


def test_labels_of_the_dashboard_are_ones_that_the_service_renders() -> None:
    rendered = rendered_by_a_service_that_did_everything()
    labels = set(re.findall(r'(\w+)="', rendered))
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels
    by = {label for clause in re.findall(r"by \(([^)]*)\)", " ".join(expressions())) for label in clause.split(", ")}
    assert by <= labels
    assert {stage for stage in get_args(Stage) if f'stage="{stage}"' in rendered} == set(get_args(Stage))
    assert all(f'reason="{reason}"' in rendered for reason in get_args(Rejection))


def test_expressions_close_their_brackets() -> None:
    unbalanced = [
        expression
        for expression in expressions()
        for opening, closing in ("()", "[]", "{}")
        if expression.count(opening) != expression.count(closing)
    ]
    assert (len(expressions()) > 10, unbalanced) == (True, [])


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & cells
        assert at["x"] + at["w"] <= 24
        cells |= own


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = load("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    (provider,) = load("grafana/provisioning/dashboards/kalm-cache.yml")["providers"]
    mounted = mounts("grafana")
    assert mounted["/etc/grafana/provisioning"] == OPS / "grafana" / "provisioning"
    dashboards = {target: path for target, path in mounted.items() if target.startswith(provider["options"]["path"])}
    assert list(dashboards.values()) == [OPS / "grafana" / "dashboard.json"]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert list(dashboards) == [home]


def test_prometheus_scrapes_the_service_of_the_compose_file_with_the_key_it_was_given() -> None:
    (job,) = PROMETHEUS["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    name, port = target.split(":")
    assert COMPOSE["services"][name]["ports"] == [f"127.0.0.1:${{PORT:-8080}}:{port}"]
    assert job["metrics_path"] == "/metrics"
    (start,) = COMPOSE["services"]["prometheus"]["command"]
    assert f"> {job['authorization']['credentials_file']} " in start
    assert mounts("prometheus")["/etc/prometheus/prometheus.yml"] == OPS / "prometheus.yml"


def test_the_environment_of_the_service_names_settings_and_its_defaults_lock_nothing() -> None:
    environment = COMPOSE["services"]["query-service"]["environment"]
    ours = {name: value for name, value in environment.items() if name.startswith(ENV_PREFIX)}
    defaults = {
        name.removeprefix(ENV_PREFIX).lower(): re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in ours.items()
    }
    assert set(defaults) <= set(Settings.model_fields)
    settings = Settings.model_validate(defaults)
    assert not KeyRing.load("api_keys", settings.api_keys, None)
    assert (settings.log_format, settings.workers) == ("json", 1)


def test_what_stops_the_service_waits_for_its_drain() -> None:
    seconds = float(COMPOSE["services"]["query-service"]["stop_grace_period"].removesuffix("s"))
    assert seconds > Settings().drain_seconds


def test_every_port_is_bound_to_this_machine_and_what_observes_is_in_a_profile() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert [name for name, service in COMPOSE["services"].items() if service.get("profiles") == ["observe"]] == [
        "prometheus",
        "grafana",
    ]


def test_docker_compose_accepts_the_observing_profile() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    subprocess.run([docker, "compose", "--profile", "observe", "config", "--quiet"], cwd=ROOT, check=True)


def load(path: str) -> Any:
    return yaml.safe_load((OPS / path).read_text("utf-8"))


def mounts(service: str) -> dict[str, Path]:
    """Files of the clone by where the container sees them."""
    volumes = (volume.split(":") for volume in COMPOSE["services"][service]["volumes"])
    found = {target: (ROOT / source).resolve() for source, target, *_ in volumes if source.startswith("./")}
    assert all(path.exists() for path in found.values())
    return found
