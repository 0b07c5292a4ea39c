"""The page in a real browser: it plays, a prompt is answered, a branch plays, a reload goes on, a phone can show it."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve import browser, running
from serve.browser import Page
from serve.running import OTHER

SECOND = "document.getElementById('video').currentTime"
RECEIPTS = "document.getElementById('receipts').innerText"
BLOCKS = "document.getElementById('strip').children.length"


def click(page: Page, name: str) -> None:
    page.ask(f"document.getElementById('{name}').click()")


def write(page: Page, name: str, text: str) -> None:
    page.ask(f"document.getElementById('{name}').value = {text!r}")


@pytest.mark.slow
@pytest.mark.skipif(browser.PROGRAM is None, reason="no chromium on PATH")
def test_the_page_in_chromium(toy: Path, tmp_path: Path) -> None:
    server = running.begin(toy, tmp_path / "data", hosts=("127.0.0.1",))
    try:
        with Page(tmp_path / "profile") as page:
            page.open(server.address)
            page.until("document.getElementById('model').innerText.includes('embedded-toy')")
            plays(page)
            is_directed(page)
            goes_back(page)
            goes_on_after_a_reload(page)
            makes_a_video(page)
            fits_a_phone(page)
            assert page.problems == []
            assert all(url.startswith((server.address, "blob:", "data:")) for url in page.requests), page.requests
    finally:
        server.stop()


def plays(page: Page) -> None:
    click(page, "begin")
    page.ask("document.getElementById('begin').requestSubmit()")
    page.until(f"{SECOND} > 1")
    assert page.ask("document.getElementById('video').videoWidth") == 128
    assert page.until(f"{BLOCKS} >= 3")


def is_directed(page: Page) -> None:
    write(page, "next", OTHER)
    page.ask("document.getElementById('change').requestSubmit()")
    page.until(f"{RECEIPTS}.includes('prompt: block')")
    page.until("document.querySelector('#strip .changed') !== null")
    assert OTHER in page.ask("document.querySelector('#strip .changed').getAttribute('aria-label')")
    click(page, "target")
    page.until(f"{RECEIPTS}.includes('knob: block')")


def goes_back(page: Page) -> None:
    """By keyboard alone: to the strip, to its first block, one to the right, Enter; then a branch by B."""
    page.ask("document.getElementById('strip').focus()")
    page.press("Home", 36)
    page.press("ArrowRight", 39)
    assert "Block 1 " in page.until("document.getElementById('chosen').innerText")
    page.press("Enter", 13)
    page.until(f"{RECEIPTS}.includes('rewind: block 1')")
    page.until(f"{BLOCKS} >= 3 && {SECOND} > 0.6")
    page.ask("document.getElementById('strip').focus()")
    page.press("End", 35)
    block = page.until("document.getElementById('chosen').innerText.match(/Block (\\d+) /)?.[1]")
    page.press("b", 66)
    page.until(f"{RECEIPTS}.includes('branch: block {block} ')")
    page.until(f"{BLOCKS} > {block}")
    assert OTHER in page.ask(f"document.getElementById('block-{block}').getAttribute('aria-label')")
    page.until(f"{SECOND} > 0.6 + 0.75 * ({block} - 1)")


def goes_on_after_a_reload(page: Page) -> None:
    before = page.ask("sessionStorage.session"), page.ask(SECOND)
    page.call("Page.reload")
    page.until("document.readyState === 'complete' && document.getElementById('model').innerText.includes('toy')")
    page.until(f"{SECOND} > {before[1]}")
    assert page.ask("sessionStorage.session") == before[0]
    assert page.ask(BLOCKS) >= 3
    click(page, "stop")
    page.until("document.getElementById('direct').hidden")


def makes_a_video(page: Page) -> None:
    write(page, "length", "1")
    click(page, "submit")
    page.until("document.querySelector('#list img')?.naturalWidth > 0")
    page.ask("[...document.querySelectorAll('#list button')].find((b) => b.innerText === 'Play').click()")
    page.until("document.querySelector('#list video')?.currentTime > 0.1")


def fits_a_phone(page: Page) -> None:
    page.resize(360, 740)
    assert page.ask("document.documentElement.scrollWidth") <= 360
    small = "[...document.querySelectorAll('main button')].filter((b) => b.offsetParent && b.offsetHeight < 32).length"
    assert page.ask(small) == 0
    named = "[...document.querySelectorAll('input, textarea, select')].filter((f) => !f.labels.length).map((f) => f.id)"
    assert page.ask(named) == []
