"""What is deployed on Ray Serve, and what is refused before anything is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kalm_cache.cli.app import app
from kalm_cache.errors import IndexMismatchError, UsageError
from kalm_cache.generations.sharding import Sharding
from kalm_cache.settings import load_settings
from query_service.on_ray.application import ServedOnRay, application, application_of, served_on_ray, sharding_of

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # Ray's


def deployments_of(given: ServedOnRay) -> dict[str, Any]:
    """By name, those of an index of three shards."""
    pytest.importorskip("ray")
    from ray.serve._private.build_app import build_app

    built = build_app(application_of(given, load_settings(queue_limit=7), Sharding(3)), name="any")
    return {deployment.name: deployment for deployment in built.deployments}


def test_there_is_a_deployment_for_each_shard_and_one_for_the_router() -> None:
    found = deployments_of(ServedOnRay(index="i", replicas=2, cpus_per_replica=4, gpus_per_replica=0.5, routers=3))
    assert sorted(found) == ["router", "shard-0", "shard-1", "shard-2"]
    numbers = {name: one.num_replicas for name, one in found.items()}
    assert numbers == {"router": 3, "shard-0": 2, "shard-1": 2, "shard-2": 2}
    assert found["shard-1"].ray_actor_options == {"num_cpus": 4, "num_gpus": 0.5}
    assert {one.max_ongoing_requests for one in found.values()} == {14}


def test_replicas_are_added_where_queues_are_long() -> None:
    found = deployments_of(ServedOnRay(index="i", replicas=1, max_replicas=4, queue_per_replica=6))
    scaling = found["shard-2"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 4, 6)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"index": "i", "replicsa": 2}, "replicsa: Extra inputs are not permitted"),
        ({"index": "i", "replicas": 0}, "replicas: Input should be greater than or equal to 1"),
        ({"index": "i", "replicas": 3, "max_replicas": 2}, "max_replicas is 2, less than replicas"),
        ({}, "index: Field required"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        served_on_ray(fields)
    with pytest.raises(UsageError, match=said):
        application(fields)


def test_an_index_without_shards_is_refused(index_folder: Path) -> None:
    with pytest.raises(IndexMismatchError, match="the index has no shards; leave --engine ray out"):
        sharding_of(str(index_folder), load_settings())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--index", "i", "--engine", "dask"], "--engine dask: must be ray"),
        (["--index", "i", "--replicas", "2", "--max-replicas", "3"], "--replicas, --max-replicas: of --engine ray"),
        (["--engine", "ray"], "give --index"),
        (["--index", "i", "--engine", "ray", "--workers", "2"], "leave --shards and --workers out"),
        (["--index", "i", "--engine", "ray", "--queue-per-replica", "0"], "queue_per_replica: Input should be greater"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["serve", *flags])
    assert (result.exit_code, said in " ".join(result.stderr.split())) == (2, True), result.stderr
