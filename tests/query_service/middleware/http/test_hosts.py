from __future__ import annotations

import socket

import httpx
import pytest

from kalm_cache.settings import Settings
from query_service.middleware.http.hosts import HostCheck, allowed_hosts, name_of
from query_service.middleware.metrics import Metrics
from query_service.middleware.stack import WrappedFastAPI, middleware_stack
from tests.query_service.middleware.served import serving, small_app

OWN = ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:80", "::1", "10.0.0.7", "app.localhost", "localhost."]
OTHERS = [
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example:x",
    "a b",
]


def statuses(client: httpx.Client, hosts: list[str]) -> list[int]:
    return [client.get("/health", headers={"Host": host}).status_code for host in hosts]


def test_a_service_without_keys_on_loopback_answers_its_own_names_alone() -> None:
    with serving(HostCheck(small_app(), allowed_hosts(Settings(), has_keys=False))) as client:
        assert statuses(client, [*OWN, socket.gethostname()]) == [200] * (len(OWN) + 1)
        assert statuses(client, OTHERS) == [421] * len(OTHERS)
        error = client.get("/health", headers={"Host": "evil.example"}).json()["error"]
        assert error["type"] == "MisdirectedRequest"
        assert "'evil.example'" in error["message"]
        assert "allowed_hosts (KALM_CACHE_ALLOWED_HOSTS)" in error["message"]


def test_names_that_are_given_are_allowed_and_no_others() -> None:
    given = Settings(allowed_hosts="search.example, *.pods.example", host="0.0.0.0")
    with serving(HostCheck(small_app(), allowed_hosts(given, has_keys=True))) as client:
        assert statuses(client, ["Search.Example:80", "a.b.pods.example", "10.1.2.3:80", "localhost"]) == [200] * 4
        assert statuses(client, ["a.search.example", "pods.example", "xpods.example"]) == [421] * 3


@pytest.mark.parametrize(
    ("settings", "has_keys"),
    [({}, True), ({"host": "0.0.0.0"}, False), ({"host": "::"}, False), ({"allowed_hosts": "*"}, False)],
)
def test_with_keys_or_on_other_addresses_or_told_so_any_name_will_do(settings: dict[str, str], has_keys: bool) -> None:
    with serving(HostCheck(small_app(), allowed_hosts(Settings(**settings), has_keys=has_keys))) as client:
        assert statuses(client, OTHERS) == [200] * len(OTHERS)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_every_address_of_loopback_is_checked(host: str) -> None:
    assert "*" not in allowed_hosts(Settings(host=host), has_keys=False)


def test_a_host_header_is_a_name_and_perhaps_a_port() -> None:
    hosts = ["A.b:80", "[::1]:80", "[::1]", "::1", "a.", "a:", "a:b", ""]
    assert [name_of(host) for host in hosts] == ["a.b", "::1", "::1", "::1", "a", "a", "a:b", ""]


def test_the_whole_stack_checks_before_anything_else_but_the_log() -> None:
    app = WrappedFastAPI(middleware_stack(Settings(), Metrics()))
    with serving(app) as client:
        answer = client.get("/nowhere", headers={"Host": "evil.example"})
        assert answer.status_code == 421
        assert {"x-request-id", "content-security-policy"} <= set(answer.headers)


def test_the_host_of_an_absolute_target_counts_and_not_the_header() -> None:
    with serving(WrappedFastAPI(middleware_stack(Settings(), Metrics()))) as client:
        for target, host, status in (("evil.example", "localhost", 421), ("localhost", "evil.example", 404)):
            with socket.create_connection((client.base_url.host, client.base_url.port or 80), 30) as connection:
                head = f"GET http://{target}/nowhere HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode())
                assert connection.recv(100).startswith(f"HTTP/1.1 {status} ".encode()), target
