"""Tests of the HTML report in headless Chromium: no errors, no requests, no markup.

Needs Chromium and playwright (`pip install playwright`; its own browsers are not needed), and
axe-playwright-python for the test of accessibility.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.hostile_names import HOSTILE
from helpers.page_facts import (
    check_facts,
    curve_of,
    facts_of,
    freeze_report,
    map_of,
    suspects_facts,
)

from finetune.report.page import render_check_page, render_page, render_suspects_page

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
    mapped = replace(
        facts_of(freeze, plain),
        embedding_map=map_of(plain),
        curve=curve_of(plain),
        suspects="suspects.html",
    )
    (folder / "map.html").write_text(render_page(mapped))
    drawn = facts_of(freeze_report(["conv1.*", "stage2.*"]), list(LABELS))
    (folder / "labels.html").write_text(render_page(drawn))
    many = facts_of(freeze, [f"class {at:04d}" for at in range(1000)], images=2000)
    (folder / "many.html").write_text(render_page(many))
    (folder / "data.html").write_text(render_check_page(check_facts()))
    hostile = replace(
        facts_of(freeze, list(HOSTILE)),
        embedding_map=map_of(list(HOSTILE)),
        curve=curve_of(list(HOSTILE)),
    )
    (folder / "suspects.html").write_text(render_suspects_page(suspects_facts(plain)))
    flowers = suspects_facts(["daisy", "rose", "tulip"])
    (folder / "again.html").write_text(render_suspects_page(flowers))
    odd = suspects_facts(list(HOSTILE))
    (folder / "odd.html").write_text(render_suspects_page(odd))
    hostile = replace(facts_of(freeze, list(HOSTILE)), embedding_map=map_of(list(HOSTILE)))
    (folder / "hostile.html").write_text(render_page(hostile))
    return folder


@pytest.fixture
def open_page(chromium: Any, pages: Path) -> Iterator[Open]:
    """Opens a page from disk; fails the test for whatever the page said or asked for."""
    messages: list[str] = []
    contexts: list[Any] = []

    def open_(name: str = "plain", address: str = "", **options: Any) -> Any:
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: _note(request.url, messages))
        page.goto((pages / f"{name}.html").as_uri() + address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert messages == []


def _note(url: str, messages: list[str]) -> None:
    if not url.startswith(("file:", "data:")):
        messages.append(f"asked for {url}")


@pytest.mark.parametrize("name", ["plain", "map", "many", "data", "suspects"])
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


def pictured(page: Any) -> list[list[str]]:
    """True and predicted class of each mistake that is shown."""
    return page.locator("#mistakes figure:visible").evaluate_all(
        "all => all.map(f => [...f.querySelectorAll('figcaption b')].map(b => b.textContent))"
    )


def test_a_click_on_a_cell_shows_its_pictures_and_a_chip_takes_it_back(open_page: Open) -> None:
    page = open_page()
    every = len(pictured(page))
    page.locator('#matrix [data-t="0"][data-p="1"]').click()
    assert 0 < len(pictured(page)) < every
    assert {tuple(pair) for pair in pictured(page)} == {("ants", "bees")}
    assert page.locator("#tip").is_hidden()
    chips = page.locator("#chips button")
    assert chips.all_inner_texts() == ["ants predicted as bees ✕"]
    chips.first.click()
    assert len(pictured(page)) == every
    assert chips.count() == 0


def test_filters_that_exclude_each_other_say_so(open_page: Open) -> None:
    page = open_page()
    page.locator('#matrix [data-t="0"][data-p="1"]').click()
    page.locator("#filter").fill("wasps")
    assert page.locator("#matching").inner_text() == "no picture matches"
    assert pictured(page) == []
    notes = page.locator(".none:visible")
    assert notes.count() == 2  # below the mistakes and the least certain
    assert page.locator("#copy").is_disabled()
    notes.first.locator("button").click()
    assert page.locator(".none:visible").count() == 0
    assert page.locator("#filter").input_value() == ""
    assert len(pictured(page)) == 24


def test_rows_and_names_of_the_matrix_are_filters(open_page: Open) -> None:
    page = open_page()
    page.locator("#classes tbody tr", has_text="bees").click()
    assert all("bees" in pair for pair in pictured(page))
    assert page.locator("#class").evaluate("select => select.selectedOptions[0].text") == "bees"
    page.locator("#classes tbody tr", has_text="bees").locator("button").click()
    assert page.locator("#chips button").count() == 0
    page.locator("#matrix text.pick", has_text="wasps").first.click()
    assert all("wasps" in pair for pair in pictured(page))
    page.locator("#confusion tr[data-pair]").first.click()
    said = page.locator("#confusion tr[data-pair]").first.locator("button").inner_text()
    assert page.locator("#chips button").all_inner_texts() == [f"{said} ✕"]
    page.locator("#class").select_option(label="flies")
    assert page.locator("#chips button").all_inner_texts() == ["flies ✕"]
    page.locator("#kind").select_option("uncertain")
    assert page.locator("#chips button").count() == 3
    page.locator("#chips .clear").click()
    assert len(pictured(page)) == 24


def test_a_header_sorts_its_table_in_both_directions(open_page: Open) -> None:
    page = open_page()
    header = page.locator("#classes th", has_text="images")
    cells = page.locator("#classes tbody td:nth-child(2)")
    header.locator("button").click()
    numbers = [int(text) for text in cells.all_inner_texts()]
    assert numbers == sorted(numbers, reverse=True)
    assert header.get_attribute("aria-sort") == "descending"
    header.locator("button").click()
    assert [int(text) for text in cells.all_inner_texts()] == sorted(numbers)
    page.locator("#classes th", has_text="class").locator("button").click()
    names = page.locator("#classes td.name").all_inner_texts()
    assert names == sorted(names)
    assert page.locator("#classes th[aria-sort]").count() == 1


def test_a_picture_is_enlarged_with_what_the_network_saw_and_its_best_classes(
    open_page: Open,
) -> None:
    page = open_page()
    figure = page.locator("#mistakes figure").first
    figure.locator(".open").click()
    view = page.locator("#view")
    assert view.is_visible()
    panels = view.locator("#view-pictures figure")
    assert panels.count() == 3  # the photo, what the network saw, the heat map
    assert panels.nth(1).locator("svg").get_attribute("viewBox") == "16 16 224 224"
    shapes = [panels.nth(at).locator("img, svg").bounding_box() for at in (1, 2)]
    assert shapes[0]["width"] / shapes[0]["height"] == pytest.approx(
        shapes[1]["width"] / shapes[1]["height"], rel=0.02
    )
    assert view.locator("tbody tr").count() == 4
    assert view.locator("tbody tr").first.inner_text().split("\t")[0] == "ants (true class)"
    assert "val/0ants.jpg" in view.locator("#view-text").inner_text()
    page.keyboard.press("ArrowRight")
    assert "val/1bees.jpg" in view.locator("#view-text").inner_text()
    view.locator("#view-back").click()
    assert "val/0ants.jpg" in view.locator("#view-text").inner_text()
    assert view.locator("#view-back").is_disabled()
    page.keyboard.press("Escape")
    assert view.is_hidden()
    figure.locator(".open").click()
    view.locator("#view-close").click()
    assert view.is_hidden()


def test_the_paths_of_a_selection_are_copied(open_page: Open) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.locator('#matrix [data-t="2"][data-p="3"]').click()
    page.locator("#copy").click()
    copied = page.evaluate("navigator.clipboard.readText()").split()
    assert len(copied) == 6
    assert copied[0] == "val/2wasps.jpg"
    assert page.locator("#copy").inner_text() == "6 paths copied"
    page.locator("#mistakes figure:visible .open").first.click()
    page.locator("#view-copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == "val/2wasps.jpg\n"


def test_a_selection_is_saved_as_a_table(open_page: Open) -> None:
    page = open_page("hostile")
    page.locator("#kind").select_option("mistake")
    with page.expect_download() as started:
        page.locator("#save").click()
    with Path(started.value.path()).open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "true", "predicted", "probability"]
    assert len(rows) == 150
    assert {row[1] for row in rows} <= set(HOSTILE)


@pytest.mark.parametrize(
    ("address", "chips"),
    [
        ("#class=bees", ["bees ✕"]),
        ("#true=ants&predicted=bees&only=mistake", ["ants predicted as bees ✕", "mistakes only ✕"]),
        ("#text=wasp", ["“wasp” ✕"]),
        ("#class=unicorns", ["“unicorns” ✕"]),
        ("#classes", []),
    ],
)
def test_an_address_holds_the_filter(open_page: Open, address: str, chips: list[str]) -> None:
    page = open_page(address=address)
    shown = page.locator("#chips .chip").all_inner_texts()
    assert shown == chips
    if chips:
        page.locator("#chips .chip").first.click()
    page.locator("#class").select_option(label="flies")
    assert "class=flies" in page.evaluate("location.hash")


def test_the_filter_stays_in_sight_below_which_sections_begin(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 800})
    page.locator("nav a", has_text="Mistakes").click()
    bar, title = page.locator("#bar").bounding_box(), page.locator("#mistakes h2").bounding_box()
    assert bar["y"] == 0
    assert bar["height"] < 130
    assert bar["height"] <= title["y"] < 300


def test_of_many_classes_the_first_are_shown_until_a_button_shows_all(open_page: Open) -> None:
    page = open_page("many", address="#class=class 0777")
    rows = page.locator("#classes tbody tr:visible")
    assert rows.count() == 41  # the picked one among them
    assert page.locator("#classes tr.picked").inner_text().startswith("class 0777")
    more = page.locator("#classes .more")
    assert more.inner_text() == "Show all 1,000"
    more.click()
    assert rows.count() == 1000
    more.click()
    assert rows.count() == 41


def test_the_keyboard_reaches_the_cells_too(open_page: Open) -> None:
    page = open_page()
    stops = page.locator('#matrix [tabindex="0"]')
    assert stops.count() == 1
    stops.focus()
    said = page.locator("#tip").inner_text()
    assert " predicted as " in said
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip").inner_text() != said
    page.keyboard.press("ArrowLeft")
    assert page.locator("#tip").inner_text() == said
    page.keyboard.press("Enter")
    assert page.locator("#chips .chip").inner_text() == f"{said.partition(':')[0]} ✕"


def test_a_word_filters_classes_and_pictures(open_page: Open) -> None:
    page = open_page()
    page.locator("#filter").fill("WASP")
    rows = page.locator("#classes tbody tr:visible")
    assert rows.count() == 1
    assert rows.first.locator("td").first.inner_text() == "wasps"
    assert pictured(page)
    assert all("wasps" in pair for pair in pictured(page))


def test_the_pairs_of_the_data_are_filtered_and_enlarged(open_page: Open) -> None:
    page = open_page("data")
    pairs = page.locator("#pairs figure:visible")
    assert pairs.count() == 2
    page.locator("#kind").select_option("classes")
    assert pairs.count() == 1
    assert "ants" in pairs.inner_text()
    pairs.locator(".open").click()
    view = page.locator("#view")
    assert view.locator("#view-pictures img").count() == 2
    assert "a.jpg" in view.inner_text()
    page.keyboard.press("Escape")
    page.locator("#kind").select_option("odd")
    assert page.locator("#matching").inner_text() == "1 of 3 entries, 1 picture"
    assert page.locator("#pairs .none").is_visible()


@pytest.mark.parametrize("name", ["map", "data"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(open_page: Open, name: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is missing")
    script = Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    page = open_page(name, color_scheme=scheme)
    page.evaluate(script)
    found = page.evaluate("axe.run().then(result => result.violations)")
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


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
    assert page.locator("#bar").is_hidden()
    assert page.locator("#mistakes img").first.is_visible()


# The page of suspects, on which a person decides


def saved(page: Any) -> list[list[str]]:
    """The rows of the file that the page saves."""
    with page.expect_download() as started:
        page.locator("#save-decisions").click()
    assert started.value.suggested_filename == "corrections.csv"
    with Path(started.value.path()).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def decision(page: Any, at: int, section: str = "#labels") -> Any:
    return page.locator(f"{section} .decision").nth(at)


def test_decisions_are_counted_and_saved(open_page: Open) -> None:
    page = open_page("suspects")
    assert page.locator("#save-decisions").is_disabled()
    decision(page, 0).locator("text=Keep").click()
    decision(page, 1).locator("text=Relabel").click()
    decision(page, 2).locator("text=Drop").click()
    said = page.locator("#decided").inner_text()
    assert said == "Decided: 1 kept, 1 relabelled, 1 dropped."
    assert saved(page) == [
        ["path", "action", "label"],
        ["ants/0.jpg", "keep", ""],
        ["bees/1.jpg", "relabel", "wasps"],
        ["wasps/2.jpg", "drop", ""],
    ]


def test_a_decision_is_changed_and_taken_back(open_page: Open) -> None:
    page = open_page("suspects")
    decision(page, 0).locator("text=Drop").click()
    decision(page, 0).locator("select").focus()  # it has all classes only then
    decision(page, 0).locator("select").select_option(label="flies")
    assert saved(page)[1:] == [["ants/0.jpg", "relabel", "flies"]]
    pressed = decision(page, 0).locator("[aria-pressed=true]").all_inner_texts()
    assert pressed == ["Relabel"]
    decision(page, 0).locator("text=Relabel").click()
    assert page.locator("#decided").inner_text() == "Nothing is decided yet."


def test_all_suggestions_that_are_shown_are_accepted_at_once(open_page: Open) -> None:
    page = open_page("suspects")
    decision(page, 0).locator("text=Keep").click()
    page.locator("#class").select_option(label="ants")
    shown = page.locator("#labels figure:visible").count()
    page.locator("#accept").click()
    rows = saved(page)[1:]
    assert [row[1] for row in rows] == ["keep", *["relabel"] * (shown - 1)]


def test_decisions_outlive_the_page(open_page: Open) -> None:
    page = open_page("suspects")
    decision(page, 0, "#pairs").locator("text=Drop").click()
    page.reload()
    assert saved(page)[1:] == [["ants/2000.jpg", "drop", ""]]
    page.locator("#clear-decisions").click()
    page.reload()
    assert page.locator("#save-decisions").is_disabled()


def test_earlier_corrections_are_saved_again(open_page: Open) -> None:
    page = open_page("again")
    assert page.locator("#decided").inner_text() == "Decided: 1 dropped."
    decision(page, 0).locator("text=Keep").click()
    assert saved(page)[1:] == [["earlier/1.jpg", "drop", ""], ["daisy/0.jpg", "keep", ""]]


def test_what_is_not_decided_yet_is_a_filter(open_page: Open) -> None:
    page = open_page("suspects")
    page.locator("#kind").select_option("undecided")
    before = page.locator("#labels figure:visible").count()
    first = page.locator("#labels figure:visible .path").first.inner_text()
    decision(page, 0).locator("text=Keep").click()
    assert page.locator("#labels figure:visible .path").first.inner_text() != first
    page.locator("#kind").select_option("decided")
    assert page.locator("#labels figure:visible").count() == 1 < before


def test_decisions_on_hostile_names_are_read_back(open_page: Open) -> None:
    page = open_page("odd")
    for at in range(12):
        decision(page, at).locator("text=Relabel").click()
    rows = saved(page)[1:]
    assert [row[2] for row in rows] == [(list(HOSTILE) * 2)[at + 1] for at in range(12)]
