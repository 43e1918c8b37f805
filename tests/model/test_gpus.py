"""Which GPU each process of a service has; the machine's are posed."""

from __future__ import annotations

import pytest
import torch

from kalm_cache.errors import DeviceMemoryError, UsageError
from kalm_cache.model import gpus
from kalm_cache.model.gpus import worker_gpus
from kalm_cache.model.runtime import require_room


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpus, "gpus_seen_apart", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_each_process_has_a_gpu_of_its_own() -> None:
    assert worker_gpus("auto", 2) == worker_gpus("cuda", 2) == ["cuda:0", "cuda:1"]
    assert worker_gpus("cpu", 2) == []


@pytest.mark.usefixtures("two_gpus")
def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match=r"3 workers, and torch sees 2 GPUs here: each takes one; use --workers 2"):
        worker_gpus("auto", 3)
    with pytest.raises(UsageError, match=r"2 workers on cuda:1: a GPU takes one"):
        worker_gpus("cuda:1", 2)


def test_a_build_of_torch_without_cuda_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(gpus, "gpus_seen_apart", lambda: pytest.fail("asked"))
    assert worker_gpus("auto", 2) == []


def test_without_a_gpu_automatic_is_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpus, "gpus_seen_apart", lambda: 0)
    assert worker_gpus("auto", 2) == []
    with pytest.raises(UsageError, match="torch sees no CUDA here"):
        worker_gpus("cuda", 2)


def test_gpus_are_counted_in_a_process_of_its_own() -> None:
    assert gpus.gpus_seen_apart() == torch.cuda.device_count()


def test_a_model_larger_than_a_gpus_free_memory_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 80 << 30))
    require_room(torch.device("cuda"), 1 << 30, "a model")
    with pytest.raises(DeviceMemoryError, match=r"cuda has no memory for a model: 2.0 GiB, and 1.0 are free"):
        require_room(torch.device("cuda"), 2 << 30, "a model")
    require_room(torch.device("cpu"), 1 << 60, "a model")
