"""What people see and do on the search page."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.query_service.page.conftest import EMOJI, HOSTILE, KEY, QUERY, TEXTS

Visit = Callable[..., Page]


def results(api: httpx.Client, query: str = QUERY, **options: object) -> list[dict]:
    """What the page asks for: all candidates."""
    answer = api.post("/search", json={"query": query, "k": 100, "top_n": 0} | options)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def ids(page: Page, column: str) -> list[str | None]:
    return [row.get_attribute("data-id") for row in page.locator(f"#{column} .row").all()]


def row(page: Page, doc_id: str, column: str = "after"):
    return page.locator(f'#{column} .row[data-id="{doc_id}"]')


def searched(page: Page) -> Page:
    expect(page.locator("#after .row").first).to_be_visible()
    return page


def test_a_search_shows_both_orders_side_by_side(visit: Visit, api: httpx.Client):
    page = visit()
    expect(page.locator("#facts")).to_contain_text(f"{len(TEXTS)} passages")
    page.fill("#query", QUERY)
    page.press("#query", "Enter")
    searched(page)
    expected = results(api)
    by_first_stage = sorted(expected, key=lambda hit: hit["first_stage_rank"])
    assert ids(page, "after") == [hit["doc_id"] for hit in expected[:10]]
    assert ids(page, "before") == [hit["doc_id"] for hit in by_first_stage[:10]]
    left, right = page.locator("#before").bounding_box(), page.locator("#after").bounding_box()
    assert left and right and left["x"] + left["width"] < right["x"]
    assert left["y"] == right["y"]


def test_marks_and_lines_say_who_moved_and_by_how_much(visit: Visit, api: httpx.Client):
    page = searched(visit(q=QUERY))
    expected = results(api)[:10]
    assert {hit["first_stage_rank"] > hit["rank"] for hit in expected} == {True, False}  # up, and down or neither
    for hit in expected:
        by = hit["first_stage_rank"] - hit["rank"]
        mark = row(page, hit["doc_id"]).locator(".moved")
        expect(mark).to_have_text(f"▲ {by}" if by > 0 else f"▼ {-by}" if by < 0 else "=")
        line = page.locator(f'#links path[data-id="{hit["doc_id"]}"]')
        way = "up" if by > 0 else "down" if by < 0 else "same"
        assert (line.get_attribute("class") or "").split() == [way] + ["far"] * (hit["first_stage_rank"] > 10)


def test_who_left_the_list_is_marked_with_its_new_rank(visit: Visit, api: httpx.Client):
    page = searched(visit(q=QUERY, n=3))
    gone = [hit for hit in results(api) if hit["first_stage_rank"] <= 3 < hit["rank"]]
    assert gone
    for hit in gone:
        expect(row(page, hit["doc_id"], "before").locator(".moved")).to_have_text(f"→ {hit['rank']}")


def test_probabilities_are_bars_with_numbers_and_the_margin_beside(visit: Visit, api: httpx.Client):
    page = searched(visit(q=QUERY))
    first = results(api)[0]
    bar = row(page, first["doc_id"]).locator(".prob")
    width = bar.locator(".fill").evaluate("node => node.getBoundingClientRect().width / node.parentNode.clientWidth")
    assert width == pytest.approx(first["score"], abs=0.02)
    assert f"{first['score']:.3f}" in bar.inner_text()
    bar.hover()
    expect(bar.locator(".tip")).to_have_css("opacity", "1")
    assert f"{abs(first['margin']):.2f}" in bar.locator(".tip").inner_text()


def test_milliseconds_are_shown_stage_by_stage(visit: Visit):
    page = searched(visit(q=QUERY))
    assert page.locator("#legend li").evaluate_all("items => items.map(item => item.className)") == [
        *("queue", "first_stage", "read", "decode", "other")
    ]
    shown = [float(text.replace(",", "")) for text in page.locator("#legend b").all_inner_texts()]
    total = float(page.locator("#summary strong").nth(1).inner_text().removesuffix(" ms").replace(",", ""))
    assert sum(shown) == pytest.approx(total, abs=4)  # each is rounded


def test_settings_reach_the_service_and_the_address(visit: Visit, api: httpx.Client):
    page = searched(visit(q=QUERY))
    page.get_by_role("radio", name="bm25").check()
    expect(page.locator("#stage-name")).to_have_text("bm25")
    page.select_option("#ratio", "8")
    page.fill("#k", "5")
    page.fill("#instruction", "Find bees.")
    # every setting that changes asks again: this is the answer to the last
    with page.expect_response(lambda one: "Find bees." in (one.request.post_data or "")) as answered:
        page.press("#instruction", "Enter")
    sent = answered.value.request.post_data_json
    assert sent == {
        "query": QUERY,
        "k": 5,
        "top_n": 0,
        "chunk_size": 8,
        "first_stage": "bm25",
        "instruction": "Find bees.",
    }
    expect(page.locator("#after .row")).to_have_count(5)
    assert page.url.endswith("k=5&r=8&stage=bm25&instruction=Find+bees.")
    again = searched(visit(**dict(httpx.URL(page.url).params.items())))
    assert ids(again, "after") == ids(page, "after")
    assert again.input_value("#instruction") == "Find bees."


def test_back_returns_to_the_query_before(visit: Visit):
    page = searched(visit(q=QUERY))
    page.fill("#query", "gravity")
    page.press("#query", "Enter")
    expect(page).to_have_title("gravity · kalm-cache")
    page.go_back()
    expect(page).to_have_title(f"{QUERY} · kalm-cache")
    assert page.input_value("#query") == QUERY


def test_more_can_be_shown(visit: Visit):
    page = searched(visit(q=QUERY, n=4))
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#after .row")).to_have_count(8)
    expect(page.locator("#before .row")).to_have_count(8)
    assert page.evaluate("document.activeElement.dataset.id") == ids(page, "after")[4]


def test_pointing_at_a_passage_lights_it_in_both_columns(visit: Visit):
    page = searched(visit(q=QUERY))
    both = next(doc_id for doc_id in ids(page, "after") if doc_id in ids(page, "before"))
    row(page, both).hover()
    lit = page.locator("#results .on").evaluate_all("nodes => nodes.map(node => node.dataset.id)")
    assert lit == [both] * 3  # a row, a line, a row


def test_the_keyboard_is_enough(visit: Visit):
    page = visit()
    page.locator("#facts li").first.wait_for()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    searched(page)
    here = "(({dataset, parentNode}) => [dataset.id, parentNode.id])(document.activeElement)"
    after, before = ids(page, "after"), ids(page, "before")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(here) == [after[0], "after"]
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    assert page.evaluate(here) == [after[1], "after"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("w")
    expect(row(page, str(after[1])).locator("mark").first).to_be_visible()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(here) == [after[1] if after[1] in before else before[1], "before"]
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.tagName") == "BODY"


def test_the_skip_link_is_first_and_leads_to_the_results(visit: Visit):
    page = searched(visit(q=QUERY))
    page.evaluate("document.activeElement.blur()")
    page.locator(".skip").focus()
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"


@pytest.mark.parametrize(("doc_id", "chunk_size"), [("emoji", "2"), ("emoji", "8"), ("hostile", "4"), ("hive", "2")])
def test_why_marks_the_very_characters_that_were_attended_to(
    visit: Visit, api: httpx.Client, doc_id: str, chunk_size: str
):
    page = searched(visit(q=QUERY, r=chunk_size, n=100))
    row(page, doc_id).get_by_role("button").click()
    marks = row(page, doc_id).locator("mark")
    marks.first.wait_for()
    told = api.post("/explain", json={"query": QUERY, "id": doc_id, "chunk_size": int(chunk_size)}).json()
    assert marks.all_text_contents() == [TEXTS[doc_id][one["start"] : one["end"]] for one in told["chunks"]]
    assert row(page, doc_id).locator(".text").text_content() == TEXTS[doc_id]
    densities = [one["weight"] / one["tokens"] for one in told["chunks"]]
    shown = marks.evaluate_all("marks => marks.map(mark => Number(mark.style.getPropertyValue('--w')))")
    assert shown == pytest.approx([density / max(densities) for density in densities], abs=0.001)
    assert row(page, doc_id).locator(".cut").count() == (doc_id == "hive")
    row(page, doc_id).get_by_role("button").click()
    expect(marks).to_have_count(0)


def test_html_in_a_passage_or_a_query_is_text_and_runs_nothing(visit: Visit):
    page = searched(visit(q=HOSTILE, instruction=HOSTILE, n=100))
    expect(page.locator('#before .row[data-id="hostile"]')).to_contain_text("<script>")
    why = row(page, "hostile")
    assert why.locator(".text").text_content() == HOSTILE
    why.get_by_role("button").click()
    why.locator("mark").first.wait_for()
    assert page.locator("img").count() == 1  # the page's own
    assert page.locator("main b").count() == 3 + 5  # of the welcome and of the milliseconds
    assert page.evaluate("window.hacked") is None
    assert page.title() == f"{HOSTILE} · kalm-cache"


def test_html_in_an_error_is_text(visit: Visit):
    page = visit()
    message = {"error": {"type": "UsageError", "message": HOSTILE}}
    page.route("**/search", lambda route: route.fulfill(status=422, json=message))
    page.fill("#query", QUERY)
    page.press("#query", "Enter")
    expect(page.get_by_role("alert")).to_have_text(f"422: {HOSTILE}")
    assert page.evaluate("window.hacked") is None


def test_the_services_own_words_say_what_went_wrong(visit: Visit):
    page = visit(q=QUERY, r=3)
    expect(page.get_by_role("alert")).to_contain_text("422: chunk size 3 was asked for")
    page.select_option("#ratio", "2")
    page.press("#query", "Enter")
    searched(page)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_busy_service_and_one_that_is_gone_are_told_apart(visit: Visit):
    page = visit()
    busy = {"error": {"type": "BusyError", "message": "256 requests are under way"}}
    page.route("**/search", lambda route: route.fulfill(status=429, headers={"Retry-After": "2"}, json=busy))
    page.fill("#query", QUERY)
    page.press("#query", "Enter")
    expect(page.get_by_role("alert")).to_have_text("429: 256 requests are under way Try again in 2 s.")
    page.unroute("**/search")

    def refuse(route: Route) -> None:
        route.abort("connectionrefused")

    page.route("**/search", refuse)
    page.press("#query", "Enter")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")


def test_a_locked_service_asks_for_its_key_and_forgets_it(visit: Visit, locked_api: httpx.Client):
    page = visit(locked_api, q=QUERY)
    expect(page.get_by_label("This service asks for a key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-problem")).to_contain_text("401: this key is none of the service's")
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    searched(page)
    expect(page.locator("#unlock")).to_be_hidden()
    assert KEY not in page.url
    assert KEY not in page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    page.reload()
    expect(page.locator("#unlock")).to_be_visible()


def test_light_and_dark_follow_the_system_until_the_button_says_otherwise(visit: Visit):
    def brightness(page: Page) -> int:
        return page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")

    assert brightness(visit(color_scheme="light")) > 200
    page = visit(color_scheme="dark")
    button = page.get_by_role("button", name="Dark theme")
    expect(button).to_have_attribute("aria-pressed", "true")
    assert brightness(page) < 60
    button.click()
    assert brightness(page) > 200
    page.reload()
    expect(button).to_have_attribute("aria-pressed", "false")
    assert brightness(page) > 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_controls_have_names_and_texts_have_contrast(visit: Visit, scheme: str):
    page = searched(visit(q=QUERY, color_scheme=scheme))
    row(page, "emoji").get_by_role("button").click()
    row(page, "emoji").locator("mark").first.wait_for()
    assert page.evaluate(NAMELESS) == []
    assert (
        page.evaluate(
            "[...document.querySelectorAll('[id]')].map(n => n.id).filter((id, i, all) => all.indexOf(id) < i)"
        )
        == []
    )
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("main").count() == page.locator("h1").count() == 1
    assert page.evaluate(LOW_CONTRAST) == []


def test_a_phone_needs_no_sideways_scrolling(visit: Visit):
    page = searched(visit(q=QUERY, viewport={"width": 360, "height": 700}))
    row(page, "emoji").get_by_role("button").click()
    row(page, "emoji").locator("mark").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert row(page, "emoji").locator(".text").text_content() == EMOJI


NAMELESS = """
[...document.querySelectorAll("input, select, button, a, [role=img], ol[aria-labelledby]")].filter((node) => {
  const labelledBy = document.getElementById(node.getAttribute("aria-labelledby") ?? "");
  const label = node.labels?.[0]?.textContent ?? labelledBy?.textContent ?? node.getAttribute("aria-label");
  return !(label ?? node.textContent).trim();
}).map((node) => node.outerHTML)
"""
# WCAG 2.2, 1.4.3: 4.5 to 1; backgrounds are the nearest opaque ones, marks painted over them
LOW_CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const paint = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility({opacityProperty: true})) continue;
    if (node.closest(".unseen, .skip, option, .cut, :disabled + span")) continue;
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.unshift(getComputedStyle(at).backgroundColor);
    const back = luminance(paint(layers));
    const front = luminance(paint([...layers, getComputedStyle(node).color]));
    const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${node.className} ${walker.currentNode.textContent.slice(0, 30)}`);
  }
  return low;
})()
"""
