"""A real browser: Chromium, as Debian packages it or as Playwright brought it, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

WIDE, NARROW = (1280, 900), (380, 800)
# A microphone that beeps, and leave to use it, in place of a question to a person.
_FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser; skips the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        except Error as error:
            pytest.skip(f"there is no Chromium to look at the page with: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, size: tuple[int, int] = WIDE, dark: bool = False) -> Iterator[Page]:
    """An empty page of a new profile, in a window of this size."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",  # what moves while a job runs is drawn again sixty times a second
        permissions=["microphone", "clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()


def watch(page: Page, home: str) -> list[str]:
    """Return the list that collects a page's console errors and warnings, and its requests to other origins."""
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith((home, "blob:")) else problems.append(sent.url))
    return problems
