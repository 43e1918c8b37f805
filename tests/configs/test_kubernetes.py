"""The manifests of `configs/ops/kubernetes` are valid, run as nobody, fit each other, and start commands that exist."""

from __future__ import annotations

import importlib
import re

import pytest
import yaml

from kalm_cache.cli.output import EXIT_PARTIAL
from kalm_cache.errors import IndexMismatchError, UsageError
from kalm_cache.object_store.location import parse_location
from kalm_cache.settings import ENV_PREFIX, Settings
from query_service.middleware.keys import PUBLIC_PATHS
from query_service.on_ray.application import application, served_on_ray
from tests.configs.manifests import (
    FOLDER,
    OBJECTS,
    ROOT,
    SETTINGS,
    TEMPLATES,
    Object,
    commands,
    container_of,
    expanded,
    named,
    parsed,
    templates_in,
)

VERSION = "1.37"
CUSTOM = "ray.io/v1"  # kinds that Kubernetes has no schema for
each_template = pytest.mark.parametrize("template", [one for _, one in TEMPLATES], ids=[name for name, _ in TEMPLATES])


@pytest.mark.parametrize("manifest", OBJECTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_a_manifest_is_valid(manifest: Object) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": one["spec"]} for one in templates_in(manifest)]
    checked = pods if manifest["apiVersion"] == CUSTOM else [manifest]
    assert len(checked) >= 1
    assert [validator.validate(one, VERSION, strict=True) for one in checked] == [VERSION] * len(checked)


def test_a_wrong_manifest_is_seen() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    wrong = named("Deployment", "kalm-cache-router")
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, VERSION, strict=True)


def test_every_command_is_one_that_the_command_line_takes() -> None:
    found = commands()
    assert list(found) == [
        "kalm-cache-plan: partition plan",
        "kalm-cache-build: partition build",
        "kalm-cache-commit: partition commit",
        "kalm-cache-reindex: reindex",
        "kalm-cache-router: router",
        "kalm-cache-shards-a: serve",
        "kalm-cache-index: index",
    ]
    places = {str(params["index"]) for params in found.values() if "index" in params}
    assert places == {SETTINGS["INDEX"]}
    assert {params["corpus"] for params in found.values() if "corpus" in params} == {SETTINGS["CORPUS"]}


def test_shards_are_as_many_wherever_they_are_counted() -> None:
    planned = commands()["kalm-cache-plan: partition plan"]["shards"]
    assert commands()["kalm-cache-index: index"]["shards"] == planned
    build, services = named("Job", "kalm-cache-build")["spec"], named("StatefulSet", "kalm-cache-shards-a")["spec"]
    assert (build["completions"], services["replicas"]) == (planned, planned)
    assert build["completionMode"] == "Indexed"


def test_settings_are_ones_that_exist_and_places_are_urls() -> None:
    names = {name.removeprefix(ENV_PREFIX).lower(): value for name, value in SETTINGS.items() if ENV_PREFIX in name}
    assert names.keys() <= Settings.model_fields.keys()
    Settings(**names)
    assert parse_location(SETTINGS["CORPUS"]).scheme == parse_location(SETTINGS["INDEX"]).scheme == "s3"
    text = "".join(file.read_text("utf-8") for file in FOLDER.glob("*.yaml"))
    said = {name.lower() for name in re.findall(rf"{ENV_PREFIX}(\w+)", text)}
    assert said <= Settings.model_fields.keys()


@each_template
def test_a_pod_runs_as_nobody_and_writes_only_where_a_volume_is(template: Object) -> None:
    spec, container = template["spec"], container_of(template)
    assert spec["securityContext"]["runAsNonRoot"]
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    assert f"useradd --create-home --uid {spec['securityContext']['runAsUser']} " in dockerfile
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    assert container["image"].split("-ray")[0] == compose["services"]["index"]["image"]


@each_template
def test_what_a_pod_writes_lies_in_its_volumes(template: Object) -> None:
    mounts = {mount["mountPath"] for mount in container_of(template)["volumeMounts"]}
    written = ["/tmp"]
    if "cache" in {mount["name"] for mount in container_of(template)["volumeMounts"]}:
        written += [SETTINGS[name] for name in ("KALM_CACHE_CACHE_FOLDER", "HF_HOME", "HOME")]
    assert [path for path in written if not any(path == at or path.startswith(f"{at}/") for at in mounts)] == []


@pytest.mark.parametrize(
    ("kind", "name"), [("Deployment", "kalm-cache-router"), ("StatefulSet", "kalm-cache-shards-a")]
)
def test_probes_ports_and_time_to_drain_are_those_of_the_service(kind: str, name: str) -> None:
    template = named(kind, name)["spec"]["template"]
    container = container_of(template)
    _, params = parsed([expanded(word) for word in container["args"]])
    assert params["host"] == "0.0.0.0"
    assert container["ports"] == [{"name": "http", "containerPort": params["port"]}]
    probes = {probe: container[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {get["port"] for get in probes.values()} == {"http"}
    assert {get["path"] for get in probes.values()} == {"/health", "/ready"} <= PUBLIC_PATHS
    assert probes["readinessProbe"]["path"] == "/ready"
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert template["spec"]["terminationGracePeriodSeconds"] > pause + Settings.model_fields["drain_seconds"].default


def test_the_router_looks_where_the_shards_are_and_they_let_it_in() -> None:
    service, shards = named("Service", "kalm-cache-shards"), named("StatefulSet", "kalm-cache-shards-a")
    (port,) = service["spec"]["ports"]
    assert commands()["kalm-cache-router: router"]["discover"] == f"http://kalm-cache-shards:{port['port']}"
    assert port["port"] == container_of(shards["spec"]["template"])["ports"][0]["containerPort"]  # DNS has no ports
    assert service["spec"]["clusterIP"] == "None"
    assert shards["spec"]["serviceName"] == service["metadata"]["name"]
    (rule,) = named("NetworkPolicy", "kalm-cache-shards")["spec"]["ingress"]
    allowed = rule["from"][0]["podSelector"]["matchLabels"]
    assert allowed.items() <= named("Deployment", "kalm-cache-router")["spec"]["template"]["metadata"]["labels"].items()


def test_what_selects_pods_selects_some() -> None:
    labels = [template["metadata"]["labels"] for _, template in TEMPLATES if "metadata" in template]
    selectors = [one["spec"].get("selector", one["spec"].get("podSelector", {})) for one in OBJECTS if "spec" in one]
    wanted = [selector.get("matchLabels", selector) for selector in selectors if selector]
    assert len(wanted) == 7
    assert [one for one in wanted if not any(one.items() <= have.items() for have in labels)] == []


def test_jobs_give_up_where_the_same_would_happen_again() -> None:
    jobs = [one["spec"] for one in OBJECTS if one["kind"] == "Job"]
    jobs += [one["spec"]["jobTemplate"]["spec"] for one in OBJECTS if one["kind"] == "CronJob"]
    given_up = [rule["onExitCodes"]["values"] for job in jobs for rule in job["podFailurePolicy"]["rules"][1:]]
    assert given_up == [[UsageError.exit_code, EXIT_PARTIAL, IndexMismatchError.exit_code]] * 4


def test_the_pods_of_the_three_jobs_differ_in_what_they_do_alone() -> None:
    pods = [named("Job", f"kalm-cache-{step}")["spec"]["template"]["spec"] for step in ("plan", "build", "commit")]
    for pod in pods:
        (container,) = pod["containers"]
        del (
            container["args"],
            container["resources"],
            pod["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"],
        )
    assert pods[0] == pods[1] == pods[2]


def test_ray_is_the_one_that_the_tests_ran_with() -> None:
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert f"ray=={named('RayJob', 'kalm-cache-index')['spec']['rayClusterSpec']['rayVersion']}" in pins
    assert f"ray=={named('RayService', 'kalm-cache-ray')['spec']['rayClusterConfig']['rayVersion']}" in pins


def test_ray_serves_an_application_that_exists_of_the_index_and_has_machines_for_it() -> None:
    spec = named("RayService", "kalm-cache-ray")["spec"]
    (served,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    module, _, name = served["import_path"].partition(":")
    assert getattr(importlib.import_module(module), name) is application
    given = served_on_ray(served["args"])
    assert expanded(given.index) == SETTINGS["INDEX"]
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    shards = commands()["kalm-cache-index: index"]["shards"]
    assert group["replicas"] == shards * given.most_replicas * given.gpus_per_replica
