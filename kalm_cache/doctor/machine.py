"""Cores, threads, OpenMP, compiled kernels and limits of the machine, as this process sees them."""

from __future__ import annotations

import math
import os
import re
import resource
import shutil
from pathlib import Path

import torch

from kalm_cache.doctor.check import Check, verdict
from kalm_cache.errors import UsageError
from kalm_cache.model.kernels import CHOICE, choose_kernels
from kalm_cache.model.kernels.compile import cache_folder

CGROUP = Path("/sys/fs/cgroup")
OPENMP = re.compile(r"/lib(gomp|omp|iomp5)[-.][^/]*$")
LEAST_FILES, LEAST_MAPS, LEAST_SHARED_BYTES = 1024, 65_530, 64 << 20


def usable_cores() -> float:
    """Cores that this process may use: its affinity, and its control group's quota if it has one."""
    return min([float(len(os.sched_getaffinity(0))), *_quotas()])


def check_threads(workers: int) -> Check:
    """Cores against threads: too many wait for each other, too few leave cores idle."""
    cores, threads = usable_cores(), torch.get_num_threads()
    said = os.environ.get("OMP_NUM_THREADS")
    # serve gives each of several workers its share of the affinity, whatever torch would take
    working = threads if workers == 1 else workers * max(1, len(os.sched_getaffinity(0)) // workers)
    found = (
        f"{cores:g} cores usable of {os.cpu_count()}, torch takes {threads} threads, OMP_NUM_THREADS {said or 'unset'}"
    )
    found += f", {workers} workers with {working} in all" if workers > 1 else ""
    warn = []
    if working > math.ceil(cores):
        fewer = f"OMP_NUM_THREADS={math.ceil(cores)}" if workers == 1 else f"--workers {max(1, math.floor(cores))}"
        warn.append(f"{working} threads share {cores:g} cores and wait for each other: set {fewer}")
    elif working < math.floor(cores):
        way = "unset OMP_NUM_THREADS, or set it" if said else "set OMP_NUM_THREADS"
        warn.append(f"{math.floor(cores) - working} of {cores:g} cores stay idle: {way} to {math.floor(cores)}")
    return verdict("threads", found, warn=warn)


def check_openmp() -> Check:
    """The OpenMP runtimes that torch and FAISS bring along: each has a pool of threads of its own."""
    import faiss

    runtimes = openmp_runtimes()
    found = ", ".join("/".join(path.parts[-3:]) for path in runtimes) or "none loaded"
    found += f"; FAISS takes {faiss.omp_get_max_threads()} threads, torch {torch.get_num_threads()}"
    kinds = {match[1] for path in runtimes if (match := OPENMP.search(str(path)))}
    warn = []
    if len(kinds) > 1:
        warn.append(
            f"runtimes of {len(kinds)} kinds ({', '.join(sorted(kinds))}) in one process can crash or spin: install "
            "torch and faiss-cpu from one source (both from PyPI, or both from conda-forge)"
        )
    return verdict("openmp", found, warn=warn)


def openmp_runtimes() -> list[Path]:
    """The OpenMP libraries that are mapped into this process, each file once."""
    lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    paths = {Path(line.split(maxsplit=5)[5]).resolve() for line in lines if OPENMP.search(line)}
    return sorted(paths)


def check_kernels() -> Check:
    """Whether the native kernels are there, or can be compiled and kept."""
    choice, folder = os.environ.get(CHOICE, "auto"), cache_folder()
    try:
        kernels = choose_kernels(torch.device("cpu"), torch.float32)
    except UsageError as exc:
        return Check("kernels", "fail", str(exc), f"unset {CHOICE}, or install a C++ compiler")
    found = f"{kernels.name} ({CHOICE} {choice}), kept in {folder}"
    if kernels.name == "native":
        return Check("kernels", "ok", found)
    if choice == "torch":
        return Check("kernels", "warn", found, f"plain torch is slower: unset {CHOICE} to compile the native kernels")
    if not _is_writable(folder):
        way_out = f"{folder} cannot be written: set XDG_CACHE_HOME to a folder that can"
    elif not (os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))):
        way_out = "there is no C++ compiler: install one (Debian: apt-get install g++), or set CXX"
    else:
        way_out = "they could not be compiled: see the warning that was logged"
    return Check("kernels", "warn", found, f"plain torch is slower; {way_out}")


def check_limits(queue_limit: int, workers: int) -> Check:
    """Open files, memory maps, shared memory."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files_text = "unlimited" if files == resource.RLIM_INFINITY else f"{files:,}"
    maps_file = Path("/proc/sys/vm/max_map_count")
    maps = int(maps_file.read_text("ascii")) if maps_file.is_file() else LEAST_MAPS
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    wanted = max(LEAST_FILES, 2 * queue_limit)  # connections that wait, and as many that are idle
    warn = []
    if files != resource.RLIM_INFINITY and files < wanted:
        warn.append(f"few open files for {queue_limit} requests under way: ulimit -n {wanted}")
    if maps < LEAST_MAPS:
        warn.append(f"few memory maps: sysctl -w vm.max_map_count={LEAST_MAPS}")
    if workers > 1 and shared < LEAST_SHARED_BYTES:
        warn.append("little shared memory for several workers: give /dev/shm 64 MiB (docker: --shm-size)")
    found = f"{files_text} open files, {maps:,} memory maps, {shared >> 20:,} MiB free in /dev/shm"
    return verdict("limits", found, warn=warn)


def _quotas() -> list[float]:
    """CPUs that each control group above this process grants; both versions of cgroups."""
    quotas = []
    for folder in _groups():
        for name in ("cpu.max", "cpu.cfs_quota_us"):
            if (folder / name).is_file():
                words = [*(folder / name).read_text("ascii").split()]
                if name == "cpu.cfs_quota_us":
                    words.append((folder / "cpu.cfs_period_us").read_text("ascii").strip())
                if words[0] not in ("max", "-1"):
                    quotas.append(int(words[0]) / int(words[1]))
    return quotas


def _groups() -> list[Path]:
    own = Path("/proc/self/cgroup")
    lines = own.read_text("utf-8").splitlines() if own.is_file() else []
    folders = {CGROUP, CGROUP / "cpu"}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            at = (CGROUP if not controllers else CGROUP / controllers) / path.lstrip("/")
            folders |= {at, *(parent for parent in at.parents if parent.is_relative_to(CGROUP))}
    return sorted(folders)


def _is_writable(folder: Path) -> bool:
    """Whether the folder, or what would be made on the way to it, can be written."""
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
