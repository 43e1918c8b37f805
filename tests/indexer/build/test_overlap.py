"""Batches side by side: the same results in the same order, a bound on what is begun, and an end without threads."""

from __future__ import annotations

import functools
import itertools
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import indexer.models
from indexer.build import overlap
from indexer.build.batching import batched
from indexer.build.compute import ComputedBatch, compute, encode
from indexer.build.counts import BuildCounts
from indexer.build.overlap import batches_in_flight, computed_in_order
from indexer.build.plan import EncodeBatch, PlannedPassage
from indexer.models import BuildModels, Encoders, load_encoders, on_all_gpus
from kalm_cache.passage import Passage
from kalm_cache.scoring.passage_side import PassageSide
from tests.indexes import settings_for
from tests.texts import long_text

TEXTS = [long_text(3 + 5 * i % 40, seed=i) for i in range(24)]


@pytest.fixture(scope="module")
def encoders(mini_folder: Path, embedder_folder: Path) -> Encoders:
    return load_encoders(settings_for(mini_folder, embedder_folder, codec="int8", dtype="float32"))


def planned(encoders: Encoders, size: int = 3) -> list[EncodeBatch]:
    passages = [Passage(f"d{i}", text) for i, text in enumerate(TEXTS)]
    return [
        EncodeBatch(
            [PlannedPassage(passage, passage.content_hash()) for passage in some],
            encoders.passage_side.tokenize([passage.text for passage in some]),
        )
        for some in batched(passages, size)
    ]


def on_devices(encoders: Encoders, count: int) -> BuildModels:
    """The models, as a machine with so many devices has them."""
    return replace(encoders.build_models, passage_sides=(encoders.passage_side,) * count)


def contents(computed: ComputedBatch) -> tuple[list[str], list[bytes], bytes]:
    vectors = b"" if computed.vectors is None else computed.vectors.tobytes()
    doc_ids = [wanted.passage.doc_id for wanted in computed.batch.wanted]
    return doc_ids, [bytes(record.payload) for record in computed.records], vectors


def threads_of_stages() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("encode", "finish"))]


@pytest.mark.parametrize("devices", [1, 3])
def test_batches_come_back_in_order_with_the_bytes_of_one_thread(encoders: Encoders, devices: int) -> None:
    batches, seconds = planned(encoders), BuildCounts().stage_seconds
    results = computed_in_order(iter(batches), on_devices(encoders, devices), seconds)
    alone = [contents(compute(batch, encoders.build_models)) for batch in batches]
    assert [contents(each) for each in results] == alone
    assert [stage for stage, spent in seconds.items() if spent > 0] == ["plan", "encode", "finish"]
    assert threads_of_stages() == []


@pytest.mark.parametrize("devices", [1, 2])
def test_no_more_batches_are_planned_than_may_be_lost(encoders: Encoders, devices: int) -> None:
    models, asked = on_devices(encoders, devices), itertools.count()
    endless = (batch for batch in itertools.cycle(planned(encoders)) if next(asked) is not None)
    with closing(computed_in_order(endless, models, BuildCounts().stage_seconds)) as results:
        for _ in range(4):
            next(results)
    assert next(asked) == 3 + batches_in_flight(models)
    assert threads_of_stages() == []


def test_what_was_planned_before_an_error_in_planning_comes_first(encoders: Encoders) -> None:
    def damaged() -> Iterator[EncodeBatch]:
        yield from planned(encoders)[:2]
        raise ValueError("line 7")

    results = computed_in_order(damaged(), encoders.build_models, BuildCounts().stage_seconds)
    assert [len(next(results).records) for _ in range(2)] == [3, 3]
    with pytest.raises(ValueError, match="line 7") as raised:
        next(results)
    assert "damaged" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert threads_of_stages() == []


class FailsAtThird:
    """The embedder, which fails with its third batch."""

    dimension, digest = 4, ""

    def __init__(self) -> None:
        self._calls = 0

    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self._calls += 1
        if self._calls == 3:
            raise ArithmeticError("of the third batch")
        return np.zeros((len(texts), self.dimension), np.float32)

    embed_queries = embed_passages


def test_an_error_of_a_stage_comes_behind_the_batches_before_it_with_its_traceback(encoders: Encoders) -> None:
    models = replace(encoders.build_models, embedder=FailsAtThird())
    results = computed_in_order(iter(planned(encoders)), models, BuildCounts().stage_seconds)
    assert [len(next(results).records) for _ in range(2)] == [3, 3]
    with pytest.raises(ArithmeticError, match="of the third batch") as raised:
        next(results)
    assert "embed_passages" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert threads_of_stages() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_who_takes_the_batches_may_stop_at_any_of_them(encoders: Encoders, error: type[BaseException]) -> None:
    def take_one() -> None:
        with closing(
            computed_in_order(iter(planned(encoders)), encoders.build_models, BuildCounts().stage_seconds)
        ) as results:
            next(results)
            raise error

    with pytest.raises(error):
        take_one()
    assert threads_of_stages() == []


def test_builds_in_several_threads_do_not_wait_for_each_other(encoders: Encoders) -> None:
    def taken(_: int) -> int:
        results = computed_in_order(iter(planned(encoders)), encoders.build_models, BuildCounts().stage_seconds)
        return sum(len(each.records) for each in results)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(taken, range(4), timeout=120)) == [len(TEXTS)] * 4


def test_another_device_gets_its_encoder_when_there_is_work_for_it(
    encoders: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other_is_loaded = encoders.passage_side, threading.Event()
    loaded: list[PassageSide] = []

    def load() -> PassageSide:
        loaded.append(replace(first))
        other_is_loaded.set()
        return loaded[0]

    models = replace(encoders.build_models, on_other_devices=(functools.cache(load),))
    for batch in planned(encoders)[:2]:  # one after the other: the device that is there has time for both
        list(computed_in_order(iter([batch]), models, BuildCounts().stage_seconds))
    assert loaded == []

    def encode_after_the_other(batch: EncodeBatch, side: PassageSide) -> list[Tensor]:
        assert side is not first or other_is_loaded.wait(60)
        return encode(batch, side)

    monkeypatch.setattr(overlap, "encode", encode_after_the_other)
    expected = [contents(compute(batch, encoders.build_models)) for batch in planned(encoders)]
    for _ in range(2):
        results = computed_in_order(iter(planned(encoders)), models, BuildCounts().stage_seconds)
        assert [contents(each) for each in results] == expected
    assert len(loaded) == 1  # for both builds


@pytest.mark.parametrize(("device", "others"), [("auto", ["cuda:1", "cuda:2"]), ("cuda:0", [])])
def test_a_job_may_encode_on_every_gpu_unless_it_names_one(
    encoders: Encoders, device: str, others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[torch.device] = []

    def loaded(_: object, *, device: torch.device, **__: object) -> object:
        loads.append(device)
        return replace(encoders.passage_side, device=device)

    monkeypatch.setattr(indexer.models, "load_passage_side", loaded)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    settings = settings_for(Path("tiny"), Path("static")).model_copy(update={"device": device})
    posed = replace(encoders, passage_side=replace(encoders.passage_side, device=torch.device("cuda")))
    models = on_all_gpus(posed, settings).build_models
    assert ([str(side.device) for side in models.passage_sides], loads) == (["cuda"], [])
    assert [str(load().device) for load in models.on_other_devices] == others
    assert on_all_gpus(encoders, settings) is encoders  # of the CPU
