"""Errors: what they say arrives in another process as it was said."""

from __future__ import annotations

import pickle

import pytest

from kalm_cache import errors
from kalm_cache.errors import KalmCacheError


def kinds_of(kind: type[KalmCacheError] = KalmCacheError) -> list[type[KalmCacheError]]:
    return [
        kind,
        *(one for child in kind.__subclasses__() for one in kinds_of(child) if one.__module__ == errors.__name__),
    ]


@pytest.mark.parametrize("kind", kinds_of(), ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling(kind: type[KalmCacheError]):
    arguments = {"MissingExtraError": ("ray", "ray"), "UnknownIdError": (["a", "b"],)}
    arguments |= {"DeviceMemoryError": ("cuda:0", "a passage"), "DeviceLostError": ("cuda:0", "gone")}
    error = kind(*arguments.get(kind.__name__, ("what happened",)))
    arrived = pickle.loads(pickle.dumps(error))
    assert (type(arrived), str(arrived), arrived.exit_code) == (kind, str(error), kind.exit_code)
    assert vars(arrived) == vars(error)
