"""Tests of the HTML report in headless Chromium: no errors, no requests, no markup.

Needs Chromium and playwright (`pip install playwright`; its own browsers are not needed).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.hostile_names import HOSTILE
from helpers.page_facts import facts_of, freeze_report, map_of

from finetune.report.page import render_page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

Open = Callable[..., Any]

LABELS = (
    *("ant", "bee", "a name of over twenty-two letters"),
    *("蜜蜂和蚂蚁还有许多其他的昆虫", "WOMBAT MUMMY"),
)
"""Labels of different widths."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The system's Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(names)}")
    with playwright.sync_playwright() as running:
        # A container's root user has no sandbox.
        browser = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of plain names, and one of hostile ones."""
    folder = tmp_path_factory.mktemp("pages")
    freeze = freeze_report(["*", "!conv5.*"])
    plain = ["ants", "bees", "wasps", "flies"]
    (folder / "plain.html").write_text(render_page(facts_of(freeze, plain)))
    mapped = replace(facts_of(freeze, plain), embedding_map=map_of(plain))
    (folder / "map.html").write_text(render_page(mapped))
    drawn = facts_of(freeze_report(["conv1.*", "stage2.*"]), list(LABELS))
    (folder / "labels.html").write_text(render_page(drawn))
    hostile = replace(facts_of(freeze, list(HOSTILE)), embedding_map=map_of(list(HOSTILE)))
    (folder / "hostile.html").write_text(render_page(hostile))
    return folder


@pytest.fixture
def open_page(chromium: Any, pages: Path) -> Iterator[Open]:
    """Opens a page from disk; fails the test for whatever the page said or asked for."""
    messages: list[str] = []
    contexts: list[Any] = []

    def open_(name: str = "plain", **options: Any) -> Any:
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: _note(request.url, messages))
        page.goto((pages / f"{name}.html").as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert messages == []


def _note(url: str, messages: list[str]) -> None:
    if not url.startswith(("file:", "data:")):
        messages.append(f"asked for {url}")


@pytest.mark.parametrize("name", ["plain", "map"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1100])
def test_the_page_fits_and_says_nothing_on_the_console(
    open_page: Open, name: str, scheme: str, width: int
) -> None:
    page = open_page(name, color_scheme=scheme, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    backs = {
        "light": "rgb(251, 250, 248)",
        "dark": "rgb(21, 23, 26)",
    }
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == backs[scheme]
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert page.evaluate(broken) == 0


@pytest.mark.parametrize("name", ["plain", "labels", "hostile"])
def test_every_label_of_a_drawing_has_its_room(open_page: Open, name: str) -> None:
    page = open_page(name, viewport={"width": 1100, "height": 800})
    clipped = page.locator("svg text").evaluate_all(
        """all => all.filter(text => {
            const one = text.getBoundingClientRect();
            const room = text.closest('svg').getBoundingClientRect();
            return one.left < room.left - 1 || one.right > room.right + 1
                || one.top < room.top - 1 || one.bottom > room.bottom + 1;
        }).map(text => text.textContent)"""
    )
    assert clipped == []


def test_a_cell_of_the_matrix_names_itself_under_the_pointer(open_page: Open) -> None:
    page = open_page()
    assert page.locator("#tip").is_hidden()
    cell = page.locator('svg [data-t="0"][data-p="1"]')
    cell.hover()
    count, of = cell.get_attribute("data-n"), cell.get_attribute("data-of")
    assert page.locator("#tip").inner_text() == f"ants predicted as bees: {count} of {of}"
    page.mouse.move(1, 1)
    assert page.locator("#tip").is_hidden()


def test_a_point_of_a_curve_says_its_value(open_page: Open) -> None:
    page = open_page()
    page.locator("#curves .dot").first.hover()
    assert page.locator("#tip").inner_text() == "epoch 1: training 1"


def test_a_click_on_a_cell_shows_its_pictures_and_can_be_taken_back(open_page: Open) -> None:
    page = open_page()
    shown = page.locator("#mistakes figure:visible")
    every = shown.count()
    page.locator('svg [data-t="0"][data-p="1"]').click()
    assert 0 < shown.count() < every
    words = shown.evaluate_all("all => all.map(f => f.querySelector('figcaption b').textContent)")
    assert set(words) == {"ants"}
    assert page.locator("#chosen-text").inner_text().startswith("ants predicted as bees: ")
    assert page.locator("#tip").is_hidden()
    page.locator("#clear").click()
    assert shown.count() == every
    assert page.locator("#chosen").is_hidden()


def test_the_keyboard_reaches_the_cells_too(open_page: Open) -> None:
    page = open_page()
    page.locator('svg [data-t="1"][data-p="2"]').focus()
    assert "bees predicted as wasps" in page.locator("#tip").inner_text()
    page.keyboard.press("Enter")
    assert page.locator("#chosen").is_visible()


def test_a_word_filters_classes_and_pictures(open_page: Open) -> None:
    page = open_page()
    page.locator("#filter").fill("WASP")
    rows = page.locator("tr[data-name]:visible")
    assert rows.count() == 1
    assert rows.first.locator("td").first.inner_text() == "wasps"
    words = page.locator("figure[data-words]:visible").evaluate_all(
        "all => all.map(f => f.dataset.words)"
    )
    assert words
    assert all("wasps" in one for one in words)


def test_hostile_names_run_nothing_and_stay_readable(open_page: Open) -> None:
    page = open_page("hostile")
    assert page.evaluate("document.scripts.length") == 1
    handlers = "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes])"
    assert page.evaluate(f"{handlers}.filter(a => a.name.startsWith('on')).length") == 0
    for mark in page.locator("svg [data-t]").all()[:40]:
        mark.hover(force=True)
    texts = page.locator("#classes td.name").all_inner_texts()
    assert {" ".join(text.split()) for text in texts} == {" ".join(n.split()) for n in HOSTILE}


POINT = "[data-photo]"


def test_a_point_of_the_map_shows_its_image_under_the_pointer(open_page: Open) -> None:
    page = open_page("map")
    card, point = page.locator("#card"), page.locator(f"rect.wrong{POINT}").first
    assert card.is_hidden()
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    number = point.get_attribute("data-path").removeprefix("val/").partition(".")[0]
    names = ["ants", "bees", "wasps", "flies"]
    true = names.index(number.lstrip("0123456789"))
    said = card.inner_text().split("\n")
    assert said == [f"{names[true]} predicted as {names[(true + 1) % 4]}", f"val/{number}.jpg"]
    assert card.locator("img").evaluate("image => image.naturalWidth") == 48
    page.mouse.move(1, 1)
    assert card.is_hidden()


def test_a_tap_shows_an_image_of_the_map_and_a_tap_elsewhere_hides_it(open_page: Open) -> None:
    page = open_page("map", viewport={"width": 390, "height": 800}, has_touch=True)
    card, point = page.locator("#card"), page.locator(f"circle{POINT}").nth(5)
    point.scroll_into_view_if_needed()
    point.tap(force=True)
    assert card.is_visible()
    box = card.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.locator("#map h2").tap()
    assert card.is_hidden()


def test_the_keyboard_steps_through_the_map_from_one_stop(open_page: Open) -> None:
    page = open_page("map")
    at = "document.activeElement.getAttribute('aria-label')"
    assert page.locator(f'{POINT}[tabindex="0"]').count() == 1
    page.locator(f'{POINT}[tabindex="0"]').focus()
    first = page.evaluate(at)
    assert "predicted as" in first
    card = page.locator("#card")
    assert card.inner_text().startswith(first)
    page.keyboard.press("ArrowRight")
    assert card.inner_text().startswith(page.evaluate(at))
    assert page.locator(f'{POINT}[tabindex="0"]').count() == 1
    page.keyboard.press("End")
    assert page.evaluate(at).endswith(", correct")
    page.keyboard.press("Escape")
    assert card.is_hidden()
    page.keyboard.press("Home")
    assert page.evaluate(at) == first
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.only") == "c0"
    assert card.is_hidden()


def test_a_name_of_the_legend_and_the_filter_highlight_images(open_page: Open) -> None:
    page = open_page("map")
    bright = page.locator(f"{POINT}:not(.faded)")
    every = bright.count()
    button = page.locator('.legend [data-only="wrong"]')
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert bright.count() == page.locator(f"rect.wrong{POINT}").count() < every
    page.locator("#filter").fill("wasps")
    assert 0 < bright.count() < page.locator(f"rect.wrong{POINT}").count()
    page.locator("#filter").fill("")
    button.click()
    assert bright.count() == every


def test_a_printed_page_is_white_and_without_controls(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#filter").is_hidden()
    assert page.locator("#mistakes img").first.is_visible()
