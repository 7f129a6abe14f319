"""The page of the play command in Chromium, by key presses."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from play_server import save_played_run, serving

pytest.importorskip("starlette", reason="the extra play is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(save_played_run(tmp_path_factory.mktemp("play"))) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as starter:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = starter.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page that has begun a dream; it must neither report an error nor ask another host."""
    page, errors = browser.new_page(viewport={"width": 320, "height": 640}), []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    own = (address, "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(own) or errors.append(request.url))
    page.goto(address)
    page.get_by_text("press an action key").wait_for()
    yield page
    page.close()
    assert errors == []


def state(page: Any) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(
        "({step: play.state.last.step, actions: play.state.actions, codes: play.state.last.codes,"
        " width: document.documentElement.scrollWidth})"
    )
    return found


def press(page: Any, key: str, step: int) -> None:
    """Press a key and wait for the frame with this number."""
    page.keyboard.press(key)
    playwright.expect(page.locator("#step")).to_have_text(str(step))


def test_keys_dream_and_undo_repeats_exactly(page: Any) -> None:
    for step, key in enumerate(("ArrowRight", "d", "ArrowLeft"), 1):
        press(page, key, step)
    first = state(page)
    assert first["actions"] == [1, 1, 0] and first["width"] == 320
    press(page, "Shift+U", 0)
    for step, key in enumerate(("ArrowRight", "d", "ArrowLeft"), 1):
        press(page, key, step)
    assert state(page) == first
    press(page, "u", 2)
    press(page, "ArrowRight", 3)
    assert state(page)["actions"] == [1, 1, 1]


def test_buttons_pause_and_the_command(page: Any) -> None:
    page.get_by_role("button", name="right").click()
    playwright.expect(page.locator("#step")).to_have_text("1")
    page.keyboard.press("p")
    press(page, "a", 2)
    page.get_by_role("button", name="Copy the actions").click()
    place = page.locator("#starts button[aria-pressed=true]").get_attribute("data-place")
    command = f"python -m worldmodel.dream run=tiny --actions 'right*1,left*1' --seed 0 --start {place}"
    playwright.expect(page.locator("#script")).to_have_value(command)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save contact sheet").click()
    assert download.value.suggested_filename == "tiny-2.png"
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_the_agent_plays_until_a_key_is_pressed(page: Any) -> None:
    page.keyboard.press("l")
    playwright.expect(page.locator("#step")).to_have_text(re.compile("[1-9]"))
    page.keyboard.press("ArrowRight")
    assert not page.locator("#drive").is_checked()
