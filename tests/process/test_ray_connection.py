"""Connecting to Ray: what cannot be had is named, at once."""

from __future__ import annotations

import socket
import sys

import pytest

from kalm_cache.errors import MissingExtraError, UsageError
from kalm_cache.process.ray_connection import connected


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match=r"ray is not installed; run: pip install 'kalm-cache\[ray\]'"),
        connected(None),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:{free}", "Connection refused"),
        ("ray://127.0.0.1:{free}", "Connection refused"),
        ("nobody.invalid:6379", "not known|resolution"),
        ("nowhere", "neither HOST:PORT nor auto"),
        ("host:port", "cast to integer"),
    ],
)
def test_an_address_where_no_cluster_is_is_named_and_not_waited_for(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # the tests' own cluster, if there is one
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        given = address.format(free=unused.getsockname()[1])
        with pytest.raises(UsageError, match=rf"no Ray cluster could be used at {given}: .*({said})"), connected(given):
            pass
