"""What encoders there are on a Ray cluster, and what each may use of it. Builds nothing."""

from __future__ import annotations

from dataclasses import dataclass

from kalm_cache.errors import UsageError


@dataclass(frozen=True, slots=True)
class Workforce:
    """So many encoders, and what each of them holds of its machine."""

    encoders: int
    cpus: int
    gpus: float


def workforce(encoders: int | None, gpus_per_encoder: float | None) -> Workforce:
    """How many encoders there are, and what each may use: an equal part of the cluster, on whichever machine.

    Args:
        encoders: `None` = as many as there are GPUs for; without GPUs, one a machine.
        gpus_per_encoder: `None` = 1 where there are GPUs.

    Raises:
        UsageError: no machine has so many GPUs.
    """
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most_gpus = max(machine.get("GPU", 0.0) for machine in machines)
    gpus = min(most_gpus, 1.0) if gpus_per_encoder is None else gpus_per_encoder
    if gpus > most_gpus:
        raise UsageError(f"--gpus-per-encoder {gpus:g}: the machine with the most GPUs has {most_gpus:g}")
    cpus = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0.0) >= 1.0]
    if not cpus:
        raise UsageError("no machine of the Ray cluster has a CPU for an encoder")
    if encoders is None:
        encoders = sum(int(machine.get("GPU", 0.0) // gpus) for machine in machines) if gpus else len(cpus)
    return Workforce(encoders, max(1, min(min(cpus), sum(cpus) // encoders)), gpus)
