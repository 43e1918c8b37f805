"""The engine with a real decoder. A gate (a call that waits) holds the thread while requests gather behind it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor

from kalm_cache.errors import DeviceLostError, NonFiniteLogitsError
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.decoder import QueryDecoder
from kalm_cache.model.prompts import Prompt, Tokens
from kalm_cache.scoring.batching import DistinctPairs, Pair
from kalm_cache.scoring.query_side import QuerySide, load_query_side
from query_service.engine.cost import CostModel
from query_service.engine.engine import Decoded, Engine, Step


class Batches:
    """What the engine says of its batches."""

    def __init__(self) -> None:
        self.pairs: list[int] = []

    def __call__(self, *, pairs: int, tokens: int) -> None:
        self.pairs.append(pairs)
        assert tokens > pairs


class Clock:
    """Seconds that pass when a test says so, and a microsecond at every look."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        self.seconds += 1e-6
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def side(mini_folder: Path) -> QuerySide:
    checkpoint = open_checkpoint(str(mini_folder))
    return load_query_side(checkpoint, device=torch.device("cpu"), dtype=torch.float32, query_max_length=64)


@pytest.fixture
def batches() -> Batches:
    return Batches()


@pytest.fixture
def engine(batches: Batches, clock: Clock) -> Iterator[Engine]:
    opened = Engine(CostModel(ms_per_unit=1.0), batches, batch_pairs=8, clock=clock)
    opened.start()
    yield opened
    opened.close()


@pytest.fixture
def gate(engine: Engine) -> Iterator[Event]:
    """Closed until it is set."""
    event, entered = Event(), Event()
    engine.call(lambda: (entered.set(), event.wait()))
    entered.wait()
    yield event
    event.set()


def passages(side: QuerySide, count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = side.decoder.stack.config.hidden_size
    return [torch.randn(2 + i % 5, width, generator=generator) for i in range(count)]


def prompt(side: QuerySide, query: str = "bees") -> Tokens:
    return side.tokenize(Prompt(query, "Find it.", "Judge."))


def pairs(side: QuerySide, count: int) -> list[Pair]:
    return DistinctPairs.of([prompt(side)] * count, passages(side, count)).pairs


def alone(side: QuerySide, one: Tokens, states: list[Tensor]) -> list[float]:
    return [side.margins([one], [each], 1)[0] for each in states]


def test_pairs_of_several_requests_share_batches(
    engine: Engine, gate: Event, side: QuerySide, batches: Batches
) -> None:
    asked = [(prompt(side, query), passages(side, 3, seed)) for seed, query in enumerate(["a", "b c", "d", "e"])]
    futures = [engine.decode(side, [one] * 3, states) for one, states in asked]
    gate.set()
    for future, (one, states) in zip(futures, asked, strict=True):
        assert future.result().margins == pytest.approx(alone(side, one, states), abs=1e-5)
    assert batches.pairs == [8, 4]


def test_a_request_of_many_pairs_is_decoded_in_several_batches_and_answered_in_its_order(
    engine: Engine, side: QuerySide, batches: Batches
) -> None:
    states = passages(side, 20)
    decoded = engine.decode(side, [prompt(side)] * 20, states).result()
    assert decoded.margins == pytest.approx(alone(side, prompt(side), states), abs=1e-5)
    assert batches.pairs == [8, 8, 4]
    assert decoded.decode_ms > 0


def test_a_request_that_was_given_up_is_never_decoded(
    engine: Engine, gate: Event, side: QuerySide, batches: Batches
) -> None:
    given_up = engine.decode(side, [prompt(side)] * 5, passages(side, 5))
    cached = engine.decode(side, [prompt(side)] * 2, passages(side, 2))
    assert engine.depth == 2
    assert given_up.cancel()
    assert engine.depth == 1
    gate.set()
    assert len(cached.result().margins) == 2
    assert batches.pairs == [2]
    with pytest.raises(CancelledError):
        given_up.result()


def test_the_failure_of_one_request_is_not_that_of_others_in_its_batch(
    engine: Engine, gate: Event, side: QuerySide
) -> None:
    broken = [torch.full((3, side.decoder.stack.config.hidden_size), float("nan"))]
    states = passages(side, 3)
    before = engine.decode(side, [prompt(side)] * 3, states)
    failing = engine.decode(side, [prompt(side)], broken)
    after = engine.decode(side, [prompt(side)] * 3, states)
    gate.set()
    with pytest.raises(NonFiniteLogitsError):
        failing.result()
    expected = pytest.approx(alone(side, prompt(side), states), abs=1e-5)
    assert (before.result().margins, after.result().margins) == (expected, expected)
    assert engine.decode(side, [prompt(side)] * 3, states).result().margins == expected


def test_a_lost_device_fails_all_of_a_batch_at_once_and_is_told(
    engine: Engine, gate: Event, side: QuerySide, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, lost = [], []

    def fail(self: QueryDecoder, *_: object) -> Tensor:
        tried.append(self)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(QueryDecoder, "margins", fail)
    engine.on_lost = lost.append
    futures = [engine.decode(side, [prompt(side)] * 3, passages(side, 3)) for _ in range(2)]
    gate.set()
    for future in futures:
        with pytest.raises(DeviceLostError, match="an illegal memory access"):
            future.result()
    assert len(tried) == 1
    assert len(lost) == 2


def test_a_short_request_passes_a_long_one_that_came_before_it(engine: Engine, gate: Event, side: QuerySide) -> None:
    ended: list[str] = []
    long = engine.decode(side, [prompt(side)] * 40, passages(side, 40))
    short = engine.decode(side, [prompt(side)], passages(side, 1))
    long.add_done_callback(lambda _: ended.append("long"))
    short.add_done_callback(lambda _: ended.append("short"))
    gate.set()
    long.result(), short.result()
    assert ended == ["short", "long"]


def test_requests_of_equal_size_are_served_in_the_order_of_arrival(
    engine: Engine, gate: Event, side: QuerySide
) -> None:
    ended: list[int] = []
    futures = [engine.decode(side, [prompt(side)] * 8, passages(side, 8)) for _ in range(5)]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: ended.append(number))
    gate.set()
    for future in futures:
        future.result()
    assert ended == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("after_its_turn_s", "order"), [(-0.001, ["late", "long"]), (0.001, ["long", "late"])])
def test_a_long_request_is_passed_until_its_arrival_plus_its_cost_and_no_longer(
    engine: Engine, gate: Event, side: QuerySide, clock: Clock, after_its_turn_s: float, order: list[str]
) -> None:
    def cost_s(count: int) -> float:
        return engine.cost.ms(sum(engine.cost.units(side, pairs(side, count)))) / 1000

    ended: list[str] = []
    long = engine.decode(side, [prompt(side)] * 20, passages(side, 20))
    clock.seconds += cost_s(20) - cost_s(1) + after_its_turn_s
    late = engine.decode(side, [prompt(side)], passages(side, 1))
    long.add_done_callback(lambda _: ended.append("long"))
    late.add_done_callback(lambda _: ended.append("late"))
    gate.set()
    long.result(), late.result()
    assert ended == order


def test_short_requests_are_decoded_between_the_steps_of_a_long_one(
    engine: Engine, gate: Event, side: QuerySide
) -> None:
    ended: list[str] = []
    long = engine.run([Step(partial(ended.append, f"step {i}"), tokens=1000) for i in range(3)])
    short = engine.decode(side, [prompt(side)], passages(side, 1))
    short.add_done_callback(lambda _: ended.append("short"))
    gate.set()
    assert long.result() == [None, None, None]
    assert ended == ["short", "step 0", "step 1", "step 2"]


def test_one_that_comes_during_a_step_is_decoded_before_the_next_step(engine: Engine, side: QuerySide) -> None:
    ended: list[str] = []

    def first() -> None:
        engine.decode(side, [prompt(side)], passages(side, 1)).add_done_callback(lambda _: ended.append("short"))
        ended.append("first")

    engine.run([Step(first, 1000), Step(partial(ended.append, "second"), 1000)]).result()
    assert ended == ["first", "short", "second"]


def test_steps_of_a_request_that_was_given_up_are_not_run(engine: Engine) -> None:
    run: list[int] = []
    asked: list[Future[list[object]]] = []
    entered = Event()

    def first() -> None:
        entered.wait()
        run.append(1)
        assert asked[0].cancel()

    asked.append(engine.run([Step(first), Step(partial(run.append, 2))]))
    entered.set()
    assert engine.call(lambda: 3).result() == 3
    assert run == [1]
    assert engine.depth == 0


def test_a_step_that_fails_ends_its_request_alone(engine: Engine, gate: Event) -> None:
    failing = engine.run([Step(lambda: 1 / 0), Step(lambda: 1)])
    other = engine.run([Step(lambda: 1), Step(lambda: 2)])
    gate.set()
    with pytest.raises(ZeroDivisionError):
        failing.result()
    assert other.result() == [1, 2]
    assert engine.run([]).result(timeout=1) == []


def test_what_comes_after_a_request_of_average_length_is_no_backlog_for_it(
    engine: Engine, gate: Event, side: QuerySide
) -> None:
    engine.decode(side, [prompt(side)], passages(side, 1))
    before = engine.backlog_ms
    engine.run([Step(lambda: None, tokens=1_000_000)])
    assert engine.backlog_ms == before > 0
    engine.run([Step(lambda: None, tokens=1)])
    assert engine.backlog_ms == before + 1


def test_equal_pairs_tie_even_when_their_request_is_split(engine: Engine, side: QuerySide) -> None:
    states = passages(side, 11)
    margins = engine.decode(side, [prompt(side)] * 12, [states[0], *states[1:], states[0]]).result().margins
    assert margins[0] == margins[11]


def test_the_backlog_is_what_the_waiting_pairs_are_predicted_to_cost(
    engine: Engine, gate: Event, side: QuerySide
) -> None:
    states = passages(side, 4)
    engine.decode(side, [prompt(side)] * 4, states)
    tokens = 4 * len(prompt(side).ids)
    assert tokens < engine.backlog_ms < tokens + sum(map(len, states))
    assert engine.depth == 1


def test_the_cost_of_a_unit_follows_what_batches_take() -> None:
    cost = CostModel()
    assert cost.ms(100) == 0
    cost.learn(100, 50)
    assert cost.ms(100) == pytest.approx(50)
    cost.learn(100, 150)
    assert cost.ms(100) == pytest.approx(60)  # a tenth of the way


def test_nothing_to_decode_is_answered_at_once(engine: Engine, gate: Event, side: QuerySide) -> None:
    assert engine.decode(side, [], []).result(timeout=1) == Decoded([], 0.0, 0.0)


def test_closing_finishes_what_was_asked_for_and_takes_no_more(side: QuerySide) -> None:
    engine = Engine(CostModel())
    event = Event()
    engine.start()
    engine.call(event.wait)
    future = engine.decode(side, [prompt(side)] * 3, passages(side, 3))
    event.set()
    engine.close()
    assert len(future.result(timeout=0).margins) == 3
    with pytest.raises(RuntimeError, match="closed"):
        engine.call(event.wait)


def test_a_steps_tokens_follow_what_a_token_took(engine: Engine) -> None:
    assert engine.tokens_within(100.0) == 100  # before the first one: as a prompt's token, 1 ms
    engine.run([Step(lambda: time.sleep(0.02), tokens=10)]).result()
    assert 0 < engine.tokens_within(100.0) <= 50


@pytest.mark.skipif(sys.platform != "linux", reason="a priority of a thread's own is Linux's")
def test_an_engine_that_is_nice_leaves_the_other_threads_as_they_are() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    nice = Engine(CostModel(), nice=3)
    nice.start()
    theirs = nice.call(lambda: os.getpriority(os.PRIO_PROCESS, 0)).result()
    nice.close()
    assert theirs == min(before + 3, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
