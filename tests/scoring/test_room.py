"""What does not fit into a device's memory at once: an allocator that refuses stands for a full GPU."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kalm_cache.errors import DeviceLostError, DeviceMemoryError
from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.encoder import PassageEncoder
from kalm_cache.scoring.passage_side import load_passage_side
from kalm_cache.scoring.room import Room
from tests.texts import DOCUMENTS

CPU = torch.device("cpu")


class Allocator:
    """Doubles numbers, of which at most `most` together; `ran`: the batches that it was given."""

    def __init__(self, most: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.most, self.error = most, error
        self.ran: list[list[int]] = []
        self.alive: list[weakref.ref[Tensor]] = []

    def __call__(self, some: Sequence[int]) -> list[int]:
        self.ran.append(list(some))
        assert not any(ref() is not None for ref in self.alive), "what did not fit is still held"
        buffer = torch.zeros(sum(some))
        self.alive.append(weakref.ref(buffer))
        if sum(some) > self.most:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [2 * number for number in some]


def test_a_batch_without_room_is_computed_in_halves_and_in_order() -> None:
    allocator = Allocator(most=6)
    assert Room(CPU).compute([1, 2, 3, 4, 5], int, allocator) == [2, 4, 6, 8, 10]
    assert allocator.ran[0] == [1, 2, 3, 4, 5]
    assert all(sum(some) <= 7 for some in allocator.ran[1:])


def test_what_did_not_fit_once_is_not_tried_again() -> None:
    allocator, room = Allocator(most=6), Room(CPU)
    room.compute([4, 4], int, allocator)
    allocator.ran.clear()
    assert room.compute([2, 2, 2, 2], int, allocator) == [4, 4, 4, 4]
    assert allocator.ran == [[2, 2], [2, 2]]
    assert room.compute([5], int, allocator) == [10]  # one alone is always tried


def test_one_item_without_room_is_an_error_that_names_device_and_size() -> None:
    with pytest.raises(DeviceMemoryError, match="cpu has no memory for a batch of one, 9 tokens"):
        Room(CPU).compute([1, 9], int, Allocator(most=8))


@pytest.mark.parametrize("message", ["CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`"])
def test_a_lost_device_is_told_in_one_line_and_nothing_is_tried_again(message: str) -> None:
    ran = []

    def fail(some: Sequence[int]) -> list[int]:
        ran.append(some)
        raise RuntimeError(message)

    with pytest.raises(DeviceLostError, match="cpu failed and is lost to this process: CUDA error: device-side assert"):
        Room(CPU).compute([1, 2], int, fail)
    assert ran == [[1, 2]]


def test_another_failure_is_raised_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        Room(CPU).compute([1, 2], int, Allocator(0, lambda _: RuntimeError("shapes")))  # type: ignore[arg-type]


def test_a_passage_has_the_same_states_where_the_batch_is_halved(
    mini: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = load_passage_side(mini, device=CPU, dtype=torch.float32, max_length=1024, chunk_size=4)
    batch = side.tokenize(list(DOCUMENTS.values()))
    expected = side.encode(batch)
    encode, sizes = PassageEncoder.__call__, []

    def with_little_memory(self: PassageEncoder, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        sizes.append(len(lengths))
        if len(lengths) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(self, ids, lengths)

    monkeypatch.setattr(PassageEncoder, "__call__", with_little_memory)
    for states, whole in zip(side.encode(batch), expected, strict=True):
        torch.testing.assert_close(states, whole, atol=1e-5, rtol=1e-5)
    assert sizes[0] == len(batch) > 2 >= sizes[-1]
