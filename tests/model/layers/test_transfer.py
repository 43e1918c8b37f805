"""Many tensors in one copy. `meta` stands for a device: what is copied there has shape, dtype and place in memory."""

import torch

from kalm_cache.model.layers.transfer import move_together, pack, unpack
from tests.model.posing import Posing

CPU, DEVICE = torch.device("cpu"), torch.device("meta")


def test_on_a_cpu_the_very_same_tensors_come_back():
    tensors = [torch.arange(3), torch.ones(2, 2)]
    assert [id(moved) for moved in move_together(tensors, CPU)] == [id(tensor) for tensor in tensors]


def test_tensors_of_any_dtype_and_shape_go_in_one_copy_and_each_begins_where_kernels_can_load_it():
    here = torch.ones(3, device=DEVICE)
    tensors = [torch.arange(3), torch.ones(5, 3, dtype=torch.bfloat16), here, torch.zeros(0, 4), torch.tensor(7)]
    with Posing(DEVICE) as posing:
        moved = move_together(tensors, DEVICE)
    assert posing.copies_in == 1
    assert [(each.device, each.dtype, each.shape) for each in moved] == [(DEVICE, t.dtype, t.shape) for t in tensors]
    assert moved[2] is here
    assert [each.storage_offset() * each.itemsize for each in moved] == [0, 32, 0, 64, 64]


def test_what_is_packed_holds_the_same_numbers():
    tensors = [torch.tensor([1, -2]), torch.tensor([[0.5]], dtype=torch.bfloat16), torch.zeros(0, 4), torch.tensor(7)]
    torch.testing.assert_close(unpack(pack(tensors), tensors), tensors, rtol=0, atol=0)
