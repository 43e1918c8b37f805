"""Arrays that `numpy.save` wrote, in memory: mapped without a descriptor that stays open. Knows nothing of postings.

`numpy.load(mmap_mode=…)` keeps one open for every array (Python's mmap does, until 3.13 lets it not to): eight for each
segment, so that a service with a hundred segments would have eight hundred.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COPIED_BYTES = 64 << 10  # a smaller file is read: a map takes a page table, and one of the system's limited maps


def read_array(path: Path, *, mapped: bool) -> NDArray[Any]:
    """The array of a file, mapped or read.

    Raises:
        OSError, EOFError, ValueError, RuntimeError, SyntaxError, TokenError: it is missing or damaged.
    """
    size = path.stat().st_size
    if not mapped or size <= COPIED_BYTES:
        return np.asarray(np.load(path))
    import torch

    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"{path.name} is of format {version}")
        shape, _, dtype = read_header[version](file)
        start = file.tell()
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()  # torch maps, and closes
    array: NDArray[Any] = np.frombuffer(content, dtype, int(np.prod(shape)), start).reshape(shape)
    array.flags.writeable = False
    return array
