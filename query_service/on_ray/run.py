"""`run_on_ray`: an index served by a Ray cluster, until a signal."""

from __future__ import annotations

import logging
import os
import time
from threading import Event
from typing import Any

from kalm_cache.errors import KalmCacheError, UsageError
from kalm_cache.process.ray_connection import connected
from kalm_cache.process.stopping import is_stopping, signals_call, stop_if_asked
from kalm_cache.settings import Settings
from query_service.middleware.logs import configure_logging
from query_service.on_ray.application import ServedOnRay, application_of, sharding_of
from query_service.server import address_of, bind

NAME = "kalm-cache"  # of the application
OF_CONNECTIONS = {"header_seconds", "body_seconds", "max_connections"}
OF_RAY = {  # of a Ray that is begun here, unless the environment says otherwise
    "RAY_worker_niceness": "0",  # 15, and all that runs beside a service went first
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # 5, and a busy machine could not start a proxy
}
LOOK_SECONDS, SAY_SECONDS = 1.0, 30.0
logger = logging.getLogger(__name__)


def run_on_ray(given: ServedOnRay, settings: Settings, address: str | None) -> None:
    """Serve until SIGTERM or SIGINT; then take the application down, and return.

    Args:
        given: what is served, and by how many.
        settings: as in `run_server`, of router and shards.
        address: of a Ray cluster, as in `connected`.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: there is no such cluster, it serves an application of this name already, or the address cannot be
            bound.
        KalmCacheError: the index has no shards, or cannot be opened.
    """
    configure_logging(settings.log_format)
    for name in sorted(OF_CONNECTIONS & settings.model_fields_set):
        logger.warning("%s has no effect: the proxies of Ray Serve hold the connections", name)
    sharding = sharding_of(given.index, settings)
    needed = sharding.count * given.most_replicas * given.cpus_per_replica
    cpus = max(os.cpu_count() or 1, round(needed) + 1)  # on one machine replicas share its processors
    for name, value in OF_RAY.items():
        os.environ.setdefault(name, value)
    with connected(address, cpus=cpus, show_logs=True):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        found = serve.status()
        if NAME in found.applications:
            raise UsageError(f"the cluster serves {NAME!r} already; stop that first")
        is_ours = not found.proxies  # else Ray Serve runs there for others, too, at an address of its own
        where = _start(settings) if is_ours else "the address of the Ray Serve that runs there"
        try:
            _deploy(application_of(given, settings, sharding), given)
            logger.info("serving %d shards of %s on %s (API: /docs)", sharding.count, given.index, where)
            _wait_for_signal()
        finally:
            if is_ours:
                serve.shutdown()
            else:
                serve.delete(NAME)
    logger.info("stopped")


def _start(settings: Settings) -> str:
    """Start Ray Serve, and one proxy; returns its URL.

    Raises:
        UsageError: its address cannot be bound.
        KalmCacheError: Ray Serve does not start.
    """
    from ray import serve

    with bind(settings.host, settings.port) as listener:
        url, port = address_of(listener), listener.getsockname()[1]
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.host, "port": port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
    except Exception as exc:  # Ray raises bare ones, too
        serve.shutdown()
        first_line = str(exc).strip().partition("\n")[0]
        raise KalmCacheError(f"Ray Serve could not be started at {url}: {first_line}") from exc
    return url


def _wait_for_signal() -> None:
    """Return at SIGTERM, SIGINT or SIGHUP."""
    stop = Event()
    with signals_call(lambda *_: stop.set()):
        if not is_stopping():  # one that came before, and that a library swallowed
            stop.wait()


def _deploy(application: Any, given: ServedOnRay) -> None:
    """Return when all replicas are ready."""
    from ray.serve import status
    from ray.serve.api import RunTarget, run_many
    from ray.serve.schema import ApplicationStatus

    run_many(
        [RunTarget(application, NAME)], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
    )
    said = time.monotonic()
    while True:
        time.sleep(LOOK_SECONDS)
        stop_if_asked()
        found = status().applications[NAME]
        if found.status == ApplicationStatus.RUNNING:
            return
        if found.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            problems = [f"{name}: {one.message}" for name, one in found.deployments.items() if one.message]
            raise KalmCacheError(f"the index could not be served: {'; '.join(problems) or found.message}")
        if time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            logger.warning(
                "not all replicas are ready yet; each needs %g CPUs and %g GPUs of one machine",
                given.cpus_per_replica, given.gpus_per_replica,
            )  # fmt: skip
