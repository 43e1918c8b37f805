"""A device that poses as a GPU: it computes nothing, and counts what a GPU would be asked for.

Tensors on torch's `meta` device have shapes and no numbers. So whatever would make the CPU wait for a GPU, a number of
one of its tensors, is an error there, but for a copy to the CPU, which is counted, and gives zeros.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NO_LAUNCH = ("empty", "new_empty", "empty_like")
COPIES = ("to", "_to_copy", "copy_")


class Posing(TorchDispatchMode):
    """Counts, while it is entered, what torch asks of `device`.

    launches: by operator: each is one kernel or more. copies_in, copies_out: from the CPU and to it; the latter wait.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.launches: Counter[str] = Counter()
        self.copies_in = self.copies_out = 0

    def clear(self) -> None:
        """Count from zero."""
        self.launches.clear()
        self.copies_in = self.copies_out = 0

    def launched(self, name: str) -> None:
        """A kernel that torch knows nothing of."""
        self.launches[name] += 1

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        leaves = tree_leaves((args, kwargs))
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if name in COPIES:
            places = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
            source, target = self._is_here(given[-1].device), self._is_here([*places, given[0].device][0])
            if source and not target:  # the CPU waits for it; what it gets is nothing
                self.copies_out += 1
                return torch.zeros(given[-1].shape, dtype=given[-1].dtype)
            if target and not source:
                self.copies_in += 1
                return func(*args, **kwargs)
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and self._is_here(leaf.device)]
        if made and name not in NO_LAUNCH and not _are_views(func, made, given):
            self.launches[name] += 1
        return out

    def _is_here(self, device: torch.device) -> bool:
        return device.type == self.device.type


def _are_views(func: Any, made: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    """Whether what an operator returned is its input's memory, unchanged."""
    if any(result.alias_info is not None and result.alias_info.is_write for result in func._schema.returns):
        return False
    memory = {tensor.untyped_storage()._cdata for tensor in given}
    return all(tensor.untyped_storage()._cdata in memory for tensor in made)
