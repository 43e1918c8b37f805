"""A real Ray cluster of several nodes on this machine."""

from __future__ import annotations

import os
from typing import Any

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


def start_cluster() -> Any:
    """Two nodes with a processor each; the tests' process is on the first."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # else all that runs beside the tests goes first
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # however busy the machine is
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    cluster.add_node(**NODE)
    return cluster
