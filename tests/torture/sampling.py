"""A few of many points, spread over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spread(points: Sequence[T], count: int) -> list[T]:
    """`count` of them at equal distances, the first and the last among them; all, where there are not so many."""
    if len(points) <= count:
        return list(points)
    return [points[round(i * (len(points) - 1) / (count - 1))] for i in range(count)]
