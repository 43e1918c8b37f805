"""The page's files, as they are sent."""

from __future__ import annotations

import re
from importlib.resources import files

import httpx
import pytest

from query_service.page import MEDIA_TYPES

PATHS = {"/" if name == "index.html" else f"/page/{name}": kind for name, kind in MEDIA_TYPES.items()}
ASSETS = {name: files("query_service.page").joinpath(name).read_text("utf-8") for name in MEDIA_TYPES}


@pytest.mark.parametrize("path", PATHS)
def test_each_file_has_its_type_and_a_strict_policy(api: httpx.Client, path: str):
    answer = api.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == PATHS[path]
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_file_that_did_not_change_is_not_sent_again(api: httpx.Client):
    tag = api.get("/page/page.js").headers["etag"]
    again = api.get("/page/page.js", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/page/__init__.py", "/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/", "/page/x.js"]
)
def test_no_other_path_leads_to_a_file(api: httpx.Client, path: str):
    assert api.get(path).status_code == 404


def test_every_file_of_the_page_is_served():
    kept = {
        one.name for one in files("query_service.page").iterdir() if one.name.endswith((".js", ".css", ".html", ".svg"))
    }
    assert kept == set(MEDIA_TYPES)


@pytest.mark.parametrize("name", ASSETS)
def test_nothing_points_outside_and_nothing_is_inline(name: str):
    asset = ASSETS[name].replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]+\.", asset)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", asset)
    if name == "index.html":
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", asset)
