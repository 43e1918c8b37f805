"""The page of a service without an index: passages are pasted into it, and ranked."""

from __future__ import annotations

import httpx
from playwright.sync_api import expect

from tests.query_service.page.conftest import HOSTILE, QUERY
from tests.query_service.page.test_page import Visit, ids, row, searched


def test_without_an_index_passages_are_pasted_and_ranked(visit: Visit, text_api: httpx.Client):
    page = visit(text_api)
    expect(page.locator("#facts")).to_contain_text("no index")
    expect(page.locator("#k")).to_be_hidden()
    pasted = ["A stone lies still.", "The queen leads the bees to the flowers.", HOSTILE]
    page.fill("#passages", "\n\n".join(pasted))
    page.fill("#query", QUERY)
    page.press("#query", "Enter")
    searched(page)
    answer = text_api.post("/rerank", json={"query": QUERY, "documents": pasted}).json()
    assert ids(page, "after") == [f"passage {hit['index'] + 1}" for hit in answer["results"]]
    assert ids(page, "before") == ["passage 1", "passage 2", "passage 3"]
    expect(row(page, "passage 3").locator(".text")).to_have_text(HOSTILE)
    expect(page.locator(".why")).to_have_count(0)
    assert page.evaluate("window.hacked") is None
