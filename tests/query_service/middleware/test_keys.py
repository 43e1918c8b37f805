from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from kalm_cache.errors import UsageError
from query_service.middleware import keys as keys_module
from query_service.middleware.keys import BearerKeys, KeyRing
from tests.query_service.middleware.served import serving, small_app

NONE = SecretStr("")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def locked() -> Iterator[httpx.Client]:
    with serving(BearerKeys(small_app(), KeyRing(["alpha", "beta"]), KeyRing(["root"]))) as client:
        yield client


def test_keys_come_from_the_setting_and_the_file_without_blanks_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\ufeff# of the search team\n\n  gamma \n#delta\nwith,comma\n", "utf-8")
    ring = KeyRing.load("api_keys", SecretStr(" alpha, beta,,alpha"), file)
    assert len(ring) == 4
    assert all(map(ring.matches, (b"alpha", b"beta", b"gamma", b"with,comma")))
    assert not any(map(ring.matches, (b"delta", b"#delta", b"", b"alph", b"alphaa", b"Alpha", b" alpha")))


def test_a_key_of_a_file_may_be_bound_to_a_filter(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text('alpha\nbeta {"tenant": "b"}\nbeta   {"tenant": "b"}\n')
    ring = KeyRing.load("api_keys", NONE, file)
    assert (len(ring), ring.has_filters) == (2, True)
    assert (ring.filter_of(b"alpha"), ring.filter_of(b"beta"), ring.filter_of(b"gamma")) == (
        None,
        {"tenant": "b"},
        None,
    )


@pytest.mark.parametrize("line", ['alpha {"tenant": "b"}', 'beta {"tenant": "c"}', "gamma [1]", "gamma {}", "gamma b"])
def test_a_filter_that_cannot_be_meant_so_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f'alpha\nbeta {{"tenant": "b"}}\n{line}\n')
    with pytest.raises(UsageError, match=rf"api_keys_file {file}:3: ") as caught:
        KeyRing.load("api_keys", NONE, file)
    assert "tenant" not in str(caught.value).replace('{"tenant": "acme"}', "")


def test_without_keys_a_ring_is_false_and_matches_nothing() -> None:
    ring = KeyRing.load("api_keys", NONE, None)
    assert not ring
    assert not ring.matches(b"")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"# only a comment\n", "holds no key"),
        (b"", "holds no key"),
        (b"\xff\xfe", "UTF-8"),
        (b"a b\n", "printable"),
        (b"a\x0bb\n", "printable"),
        ("a\u2028b".encode(), "printable"),
    ],
)
def test_a_file_that_cannot_be_meant_so_is_refused_by_name(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=problem) as caught:
        KeyRing.load("api_keys", NONE, file)
    assert f"api_keys_file {file}" in str(caught.value)


def test_a_bad_line_is_named_by_its_number_without_the_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("fine\n# comment\nsécret\n", "utf-8")
    with pytest.raises(UsageError) as caught:
        KeyRing.load("admin_keys", NONE, file)
    assert f"admin_keys_file {file}:3" in str(caught.value)
    assert "cret" not in str(caught.value).replace(str(file), "")


def test_a_missing_file_and_a_setting_of_commas_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        KeyRing.load("api_keys", NONE, tmp_path / "nowhere")
    with pytest.raises(UsageError, match="api_keys: holds no key"):
        KeyRing.load("api_keys", SecretStr(" , ,"), None)


def test_a_ring_shows_how_many_keys_it_holds_and_keeps_none() -> None:
    ring = KeyRing(["alpha", "beta"])
    assert repr(ring) == "KeyRing(2 keys)"
    assert "alpha" not in str(vars(ring))


def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bool] = []
    compare = keys_module.hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append(compare(one, other))
        return compared[-1]

    monkeypatch.setattr(keys_module.hmac, "compare_digest", counting)
    ring = KeyRing(["alpha", "beta", "gamma"])
    for key in (b"alpha", b"beta", b"gamma", b"wrong"):
        ring.matches(key)
    assert len(compared) == 12


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/page/app.js"])
def test_probes_and_the_page_need_no_key(locked: httpx.Client, path: str) -> None:
    assert locked.get(path).status_code == 200
    assert locked.get(path, headers=bearer("wrong")).status_code == 200


@pytest.mark.parametrize("path", ["/search", "/metrics", "/items/1", "/admins", "/nowhere", "/health/", "/page"])
def test_other_paths_need_any_key(locked: httpx.Client, path: str) -> None:
    refused = locked.get(path)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["type"] == "Unauthorized"
    for key in ("alpha", "beta", "root"):
        assert locked.get(path, headers=bearer(key)).status_code != 401


@pytest.mark.parametrize(
    "header", ["Bearer", "Basic alpha", "alpha", "Bearer alph", "Bearer alpha beta", "Bearer Alpha", "Bearer ä"]
)
def test_headers_without_a_known_key_get_401(locked: httpx.Client, header: str) -> None:
    answer = locked.get("/search", headers={"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_the_scheme_is_written_in_any_case(locked: httpx.Client) -> None:
    assert locked.get("/search", headers={"Authorization": "bearer alpha"}).status_code == 200


@pytest.mark.parametrize("path", ["/admin", "/admin/reload", "/admin/other", "/%61dmin/reload"])
def test_admin_asks_for_an_admin_key(locked: httpx.Client, path: str) -> None:
    assert locked.post(path).status_code == 401
    assert locked.post(path, headers=bearer("wrong")).status_code == 401
    forbidden = locked.post(path, headers=bearer("alpha"))
    assert (forbidden.status_code, forbidden.json()["error"]["type"]) == (403, "Forbidden")
    assert locked.post(path, headers=bearer("root")).status_code in (200, 404)


def test_without_admin_keys_there_is_no_admin() -> None:
    with serving(BearerKeys(small_app(), KeyRing(["alpha"]), KeyRing())) as client:
        for headers in ({}, bearer("alpha"), bearer("wrong")):
            answer = client.post("/admin/reload", headers=headers)
            assert (answer.status_code, answer.json()["error"]["type"]) == (404, "NotFound")


def test_without_keys_the_service_is_open_and_admin_is_not() -> None:
    with serving(BearerKeys(small_app(), KeyRing(), KeyRing(["root"]))) as client:
        assert client.get("/search").status_code == 200
        assert client.post("/admin/reload").status_code == 401
        assert client.post("/admin/reload", headers=bearer("root")).status_code == 200


def test_a_proxys_prefix_hides_no_admin_path() -> None:
    import anyio

    async def call(path: str, root_path: str) -> int:
        sent: list[int] = []

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                sent.append(int(str(message["status"])))

        async def receive() -> dict[str, object]:
            return {"type": "http.request"}

        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "root_path": root_path,
            "headers": [],
            "query_string": b"",
        }
        await BearerKeys(small_app(), KeyRing(), KeyRing(["root"]))(scope, receive, send)  # type: ignore[arg-type]
        return sent[0]

    assert anyio.run(call, "/api/admin/reload", "/api") == 401
    assert anyio.run(call, "/api/search", "/api") == 200


def test_no_key_is_logged(locked: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        locked.get("/search", headers=bearer("alpha"))
        locked.get("/search", headers=bearer("not-a-key"))
    assert "alpha" not in caplog.text
    assert "not-a-key" not in caplog.text
