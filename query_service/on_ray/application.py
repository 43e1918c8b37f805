"""An index and settings -> an application of Ray Serve: a deployment for each shard, and the router before them.

`import_path: query_service.on_ray.application:application` of a RayService, whose `args` are the fields of
`ServedOnRay`; settings then come from the variables `KALM_CACHE_…` of the cluster, as `$INDEX` in `index` does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from kalm_cache.errors import IndexMismatchError, UsageError
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.remote.root import read_remote_manifest, require_root
from kalm_cache.generations.sharding import Sharding
from kalm_cache.index.remote import remote_copy
from kalm_cache.settings import Settings, load_settings
from query_service.app import create_app
from query_service.middleware.logs import configure_logging
from query_service.on_ray.shard import ShardReplica
from query_service.on_ray.transport import OnRay
from query_service.router.service import Router

ROUTER = "router"
TRIES = 3  # to open a shard, until that is given up


class ServedOnRay(BaseModel):
    """What is served, and by how many."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: str = Field(description="folder that all machines see, or URL")
    replicas: int = Field(1, ge=1, description="of each shard, at least")
    max_replicas: int | None = Field(None, ge=1, description="of each shard, where queues are long; none: `replicas`")
    queue_per_replica: float = Field(8.0, gt=0.0, description="questions under way, above which another one is started")
    cpus_per_replica: float = Field(1.0, ge=0.0, description="that a replica holds of its machine, and its threads")
    gpus_per_replica: float = Field(0.0, ge=0.0, description="that a replica holds of its machine")
    routers: int = Field(1, ge=1, description="replicas of the router")

    @model_validator(mode="after")
    def _most_is_not_least(self) -> ServedOnRay:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, less than replicas ({self.replicas})")
        return self

    @property
    def most_replicas(self) -> int:
        """Of each shard, at most."""
        return self.max_replicas or self.replicas


class Ingress:
    """What a replica of the router's deployment does. Ray Serve runs its application."""

    def __init__(self, settings: Settings, shards: Mapping[str, Any]) -> None:
        """`shards`: handles of the deployments, by name."""
        configure_logging(settings.log_format)
        self._router = Router(OnRay(shards), settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve."""
        return create_app(self._router)


def served_on_ray(fields: Mapping[str, Any]) -> ServedOnRay:
    """What the fields describe. Raises `UsageError` for one that does not exist, or whose value does not fit."""
    try:
        return ServedOnRay(**fields)
    except ValidationError as exc:
        problems = [": ".join([*map(str, error["loc"]), error["msg"]]) for error in exc.errors()]
        raise UsageError("; ".join(problems)) from exc


def application(args: Mapping[str, Any]) -> Any:
    """The application that `args` describe: fields of `ServedOnRay`. Called by Ray Serve.

    Raises:
        UsageError: a field that does not exist, or a value that does not fit.
        KalmCacheError: as `application_of`.
    """
    fields = dict(args)
    if isinstance(fields.get("index"), str):
        fields["index"] = os.path.expandvars(fields["index"])
    given = served_on_ray(fields)
    settings = load_settings(host="0.0.0.0")  # which the cluster's proxies bind
    return application_of(given, settings, sharding_of(given.index, settings))


def application_of(given: ServedOnRay, settings: Settings, sharding: Sharding) -> Any:
    """The application: `serve.Application`, as `serve.run` takes it."""
    from ray import serve

    # refused is what is too much by the service itself, with 429; Ray Serve holds nothing back
    common: dict[str, Any] = {
        "max_ongoing_requests": 2 * settings.queue_limit,
        "max_constructor_retry_count": TRIES,
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
    }
    threads = max(1, round(given.cpus_per_replica))
    resources = {"num_cpus": given.cpus_per_replica, "num_gpus": given.gpus_per_replica}
    shards = {
        f"shard-{shard.number}": serve.deployment(
            name=f"shard-{shard.number}", ray_actor_options=resources, **_number_of_replicas(given), **common
        )(ShardReplica).bind(given.index, _of_shard(settings, shard.number), threads)
        for shard in sharding.shards()
    }
    ingress = serve.deployment(name=ROUTER, num_replicas=given.routers, ray_actor_options={"num_cpus": 0}, **common)(
        serve.ingress()(Ingress)
    )
    return ingress.bind(settings.model_copy(update={"device": "cpu"}), shards)


def sharding_of(index: str, settings: Settings) -> Sharding:
    """The shards of what is live in a folder or at a URL.

    Raises:
        IndexMismatchError: the index has no shards.
        KalmCacheError: there is no index, or it cannot be read.
    """
    remote = remote_copy(index, settings)
    if remote is None:
        sharding = open_current(Path(index)).manifest.sharding
    else:
        store = remote.open_store()
        sharding = read_remote_manifest(store, require_root(store)[0].live_manifest)[1].sharding
    if sharding is None:
        raise IndexMismatchError(
            f"{index}: the index has no shards; leave --engine ray out, or run: kalm-cache reindex CORPUS --shards N"
        )
    return sharding


def _number_of_replicas(given: ServedOnRay) -> dict[str, Any]:
    if given.most_replicas == given.replicas:
        return {"num_replicas": given.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": given.replicas,
            "max_replicas": given.most_replicas,
            "target_ongoing_requests": given.queue_per_replica,
        }
    }


def _of_shard(settings: Settings, number: int) -> Settings:
    """Those of a replica: nobody but the router can ask it, which has asked for keys and looked at names."""
    secrets = {name: SecretStr("") for name in ("api_keys", "admin_keys", "shard_api_key")}
    others = {"api_keys_file": None, "admin_keys_file": None, "allowed_hosts": "*", "workers": 1, "shards": str(number)}
    return settings.model_copy(update=secrets | others)
