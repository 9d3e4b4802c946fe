"""The HTML page of a study in a browser: sorting, filtering, colours, scrolling and printing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.pages import HOSTILE, study
from tutelage.report.page import write_page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browsers = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not browsers:
        pytest.skip("no Chromium on this machine")
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browsers[0], args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def report(tmp_path: Path) -> str:
    path = tmp_path / "report.html"
    write_page(study(tmp_path, methods=("hinton", "at", HOSTILE), failed_methods=("at",)), path)
    return path.as_uri()


def open_page(browser: Any, address: str, **options: Any) -> Any:
    """Open the page and record requests and console messages, of which there must be none."""
    tab = browser.new_page(**options)
    tab.events = []
    tab.on("console", lambda message: tab.events.append(message.text))
    tab.on("pageerror", lambda error: tab.events.append(str(error)))
    tab.on("dialog", lambda dialog: tab.events.append(dialog.message))
    tab.on("request", lambda request: tab.events.append(request.url) if request.url != address else None)
    tab.goto(address)
    return tab


def visible_methods(tab: Any) -> list[str]:
    return [text.strip() for text in tab.locator("#numbers > tbody:visible > tr > th").all_inner_texts()]


def test_page_opens_without_errors_sorts_filters_and_unfolds(browser: Any, report: str) -> None:
    tab = open_page(browser, report)
    assert len(visible_methods(tab)) == 15
    head = tab.locator("#numbers > thead th", has_text="accuracy, %").first
    for order, sign in (("descending", -1), ("ascending", 1)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        values = tab.eval_on_selector_all(
            "#numbers > tbody > tr:first-child > td:nth-child(3)", "cells => cells.map(cell => cell.dataset.value)"
        )
        assert values[-3:] == [None] * 3  # missing values come last in both orders
        numbers = [float(value) for value in values[:-3]]
        assert numbers == sorted(numbers, key=lambda value: sign * value)
    tab.fill("#search", "hinton")
    assert visible_methods(tab) == ["hinton"] * 3
    tab.select_option("[data-filter=condition]", "noise 0.2")
    assert visible_methods(tab) == ["hinton"]
    assert tab.locator("#count").inner_text() == "1 of 15 lines"
    tab.locator(".open:visible").click()
    assert tab.locator(".behind:visible .folder").all_inner_texts() == [
        f"runs/hinton-0.2-seed{seed}" for seed in range(3)
    ]
    tab.fill("#search", "")
    tab.select_option("[data-filter=condition]", "")
    tab.select_option("[data-filter=method]", HOSTILE)
    assert visible_methods(tab) == [HOSTILE] * 3
    assert tab.events == []
    tab.close()


@pytest.mark.parametrize(("scheme", "light"), [("light", True), ("dark", False)])
@pytest.mark.parametrize("width", [390, 1200])
def test_page_follows_the_colour_scheme_and_fits_the_window(
    browser: Any, report: str, scheme: str, light: bool, width: int
) -> None:
    tab = open_page(browser, report, color_scheme=scheme, viewport={"width": width, "height": 800})
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = (int(part) for part in re.findall(r"\d+", colour)[:3])
    assert (min(red, green, blue) > 200) if light else (max(red, green, blue) < 60)
    ink = tab.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert (sum(int(part) for part in re.findall(r"\d+", ink)[:3]) < 384) == light
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.events == []
    tab.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_wide_tables_keep_their_first_column_and_indicate_scrolling(browser: Any, report: str, width: int) -> None:
    tab = open_page(browser, report, viewport={"width": width, "height": 800})
    wide = tab.locator("#table .wide")
    assert wide.evaluate("it => it.scrollWidth > it.clientWidth")
    assert "local" in wide.evaluate("it => getComputedStyle(it).backgroundAttachment")
    first = tab.locator("#numbers > thead th").first, tab.locator("#numbers > tbody > tr > th").first
    before = [cell.bounding_box()["x"] for cell in first]
    wide.evaluate("it => { it.scrollLeft = 200 }")
    assert [cell.bounding_box()["x"] for cell in first] == before
    assert tab.events == []
    tab.close()


def test_page_prints(browser: Any, report: str) -> None:
    tab = open_page(browser, report, color_scheme="dark")
    pdf = tab.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
    assert not tab.locator(".controls").is_visible()
    assert tab.events == []
    tab.close()
