"""Checks of the machine as this process sees it: threads, dtype, OpenMP, compiled kernels, limits."""

from __future__ import annotations

import math
import os
import re
import resource
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from kalm_cache.doctor.check import Report
from kalm_cache.errors import UsageError
from kalm_cache.model.kernels import CHOICE, choose_kernels
from kalm_cache.model.kernels.library_folder import NoKernelsError, cache_folder, own_folder
from kalm_cache.model.layers.int8 import int8_products, multiply_int8
from kalm_cache.model.layers.linear import multiply
from kalm_cache.model.precision import describe_device, dtype_name, resolve_device, resolve_dtype, synchronise

CGROUP = Path("/sys/fs/cgroup")
OPENMP = re.compile(r"/lib(gomp|omp|iomp5)[-.][^/]*$")
LEAST_FILES, LEAST_MAPS, LEAST_SHARED_BYTES = 1024, 65_530, 64 << 20
ROWS, WIDTH, OUTPUTS = 512, 640, 1536  # the shape of a small decoder's products
MEASURED_S = 0.012  # for each dtype
FASTER = 1.3  # a dtype is advised from so many times the chosen dtype's speed on


def check_threads(workers: int) -> Report:
    """Cores against threads: too many wait for each other, too few leave cores idle."""
    cores, threads = usable_cores(), torch.get_num_threads()
    setting = os.environ.get("OMP_NUM_THREADS")
    # serve gives each of several workers its share of the affinity, whatever torch would take
    running = threads if workers == 1 else workers * max(1, len(os.sched_getaffinity(0)) // workers)
    found = f"{cores:g} cores usable of {os.cpu_count()}, torch takes {threads} threads, "
    found += f"OMP_NUM_THREADS {setting or 'unset'}"
    found += f", {workers} workers with {running} in all" if workers > 1 else ""
    warn = []
    if running > math.ceil(cores):
        fewer = f"OMP_NUM_THREADS={math.ceil(cores)}" if workers == 1 else f"--workers {max(1, math.floor(cores))}"
        warn.append(f"{running} threads share {cores:g} cores and wait for each other: set {fewer}")
    elif running < math.floor(cores):
        way = "unset OMP_NUM_THREADS, or set it" if setting else "set OMP_NUM_THREADS"
        warn.append(f"{math.floor(cores) - running} of {cores:g} cores stay idle: {way} to {math.floor(cores)}")
    return Report(found, warn=warn)


def usable_cores() -> float:
    """Cores that this process may use: its affinity, and its control group's quota if it has one."""
    return min([float(len(os.sched_getaffinity(0))), *_quotas()])


def check_dtype(device: str, dtype: str) -> Report:
    """What `device` and `dtype` resolve to, and how fast dtypes are here: some 50 ms of matrix products.

    Raises:
        UsageError: the device or the dtype is unknown.
    """
    resolved = resolve_device(device)
    chosen = resolve_dtype(dtype, resolved)
    speeds = {candidate: gflops(candidate, resolved) for candidate in _measured_dtypes(resolved)}
    shown = ", ".join(f"{dtype_name(name)} {speed:,.0f}" for name, speed in speeds.items())
    found = f"dtype {dtype} is {dtype_name(chosen)} on {describe_device(resolved)}; GFLOP/s: {shown}"
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if torch.int8 in speeds:
        products = int8_products()
        found += f"; int8 by {products.name}" + (f", refused: {products.problem}" if products.problem else "")
    found += f" (beside other work: load {load:.1f} on {cores} cores)" if load > cores else ""
    exact = {name: speed for name, speed in speeds.items() if name != torch.int8}  # int8 moves margins: never advised
    best = max(exact, key=exact.__getitem__)
    warn = []
    if chosen in speeds and exact[best] > FASTER * speeds[chosen]:
        times = exact[best] / speeds[chosen]
        warn.append(f"{dtype_name(best)} is {times:.1f} times as fast here: set dtype {dtype_name(best)}")
    return Report(found, warn=warn)


def gflops(dtype: torch.dtype, device: torch.device) -> float:
    """Billions of operations a second in a matrix product of a dtype: the best run of those that fit in the time."""
    x, weight = (torch.ones(rows, WIDTH, dtype=dtype, device=device) for rows in (ROWS, OUTPUTS))
    call = partial(multiply_int8 if dtype == torch.int8 else multiply, x, weight)
    _seconds(call, device)  # the first call sets up
    best, spent = float("inf"), 0.0
    while spent < MEASURED_S:
        seconds = _seconds(call, device)
        best, spent = min(best, seconds), spent + seconds
    return 2 * ROWS * WIDTH * OUTPUTS / best / 1e9


def check_openmp() -> Report:
    """The OpenMP runtimes that torch and FAISS bring along: each has a thread pool of its own."""
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
    return Report(found, warn=warn)


def openmp_runtimes() -> list[Path]:
    """The OpenMP libraries that are mapped into this process, each file once."""
    lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    paths = {Path(line.split(maxsplit=5)[5]).resolve() for line in lines if OPENMP.search(line)}
    return sorted(paths)


def check_kernels() -> Report:
    """Whether the native kernels are there, or can be compiled and kept."""
    choice = os.environ.get(CHOICE) or "auto"
    try:
        folder = cache_folder()
    except RuntimeError:  # no HOME, and a user that the system does not know
        return Report("none", warn=["plain torch is slower; there is no home folder: set XDG_CACHE_HOME to one"])
    try:
        kernels = choose_kernels(torch.device("cpu"), torch.float32)
    except UsageError as exc:
        return Report(str(exc), [f"unset {CHOICE}, or install a C++ compiler"])
    found = f"{kernels.name} ({CHOICE} {choice}), kept in {folder}"
    if kernels.name == "native":
        return Report(found)
    if choice == "torch":
        return Report(found, warn=[f"plain torch is slower: unset {CHOICE} to compile the native kernels"])
    if not _is_writable(folder):
        way_out = f"{folder} cannot be written: set XDG_CACHE_HOME to a folder that can"
    elif not (os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))):
        way_out = "there is no C++ compiler: install one (Debian: apt-get install g++), or set CXX"
    else:
        way_out = _folder_problem() or "they could not be compiled: see the warning that was logged"
    return Report(found, warn=[f"plain torch is slower; {way_out}"])


def _folder_problem() -> str | None:
    """Why nothing is loaded from the folder of compiled kernels, if that is so."""
    try:
        own_folder()
    except (OSError, NoKernelsError) as exc:
        return str(exc)
    return None


def check_limits(queue_limit: int, workers: int, index_files: int = 0) -> Report:
    """Open files, memory maps, shared memory. `index_files`: what an open index holds; a swap holds two of them."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = files == resource.RLIM_INFINITY
    maps_file = Path("/proc/sys/vm/max_map_count")
    maps = int(maps_file.read_text("ascii")) if maps_file.is_file() else LEAST_MAPS
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    connections = max(LEAST_FILES, 2 * queue_limit)  # connections that wait, and as many that are idle
    needed = connections + 2 * index_files
    warn = []
    if not unlimited and files < connections:
        warn.append(f"few open files for {queue_limit} requests under way: ulimit -n {needed}")
    elif not unlimited and files < needed:
        warn.append(
            f"few open files for an index that takes 2 × {index_files:,} of them while a new generation is taken over: "
            f"ulimit -n {needed}, or fold the segments: kalm-cache fold"
        )
    if maps < LEAST_MAPS:
        warn.append(f"few memory maps: sysctl -w vm.max_map_count={LEAST_MAPS}")
    if workers > 1 and shared < LEAST_SHARED_BYTES:
        warn.append("little shared memory for several workers: give /dev/shm 64 MiB (docker: --shm-size)")
    files_text = "unlimited" if unlimited else f"{files:,}"
    taken = f" (the index takes 2 × {index_files:,} at a swap)" if index_files else ""
    found = f"{files_text} open files{taken}, {maps:,} memory maps, {shared >> 20:,} MiB free in /dev/shm"
    return Report(found, warn=warn)


def _quotas() -> list[float]:
    """CPUs that each control group above this process grants; both versions of cgroups."""
    quotas = []
    for folder in _control_groups():
        for name in ("cpu.max", "cpu.cfs_quota_us"):
            if (folder / name).is_file():
                words = [*(folder / name).read_text("ascii").split()]
                if name == "cpu.cfs_quota_us":
                    words.append((folder / "cpu.cfs_period_us").read_text("ascii").strip())
                if words[0] not in ("max", "-1"):
                    quotas.append(int(words[0]) / int(words[1]))
    return quotas


def _control_groups() -> list[Path]:
    """Folders of this process's control groups and of those above them."""
    file = Path("/proc/self/cgroup")
    folders = {CGROUP, CGROUP / "cpu"}
    for line in file.read_text("utf-8").splitlines() if file.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            folder = (CGROUP if not controllers else CGROUP / controllers) / path.lstrip("/")
            folders |= {folder, *(parent for parent in folder.parents if parent.is_relative_to(CGROUP))}
    return sorted(folders)


def _is_writable(folder: Path) -> bool:
    """Whether the folder, or what would be made on the way to it, can be written."""
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def _measured_dtypes(device: torch.device) -> list[torch.dtype]:
    return [torch.float32, torch.bfloat16, *([torch.int8] if device.type == "cpu" else [])]
