"""A real browser: Chromium, as Debian packages it or as Playwright brought it, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Error, Page, sync_playwright

WIDE, NARROW = (1000, 900), (380, 800)


@contextmanager
def opened(size: tuple[int, int] = WIDE, dark: bool = False) -> Iterator[Page]:
    """An empty page of a window of this size; skips the test where there is no browser."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"there is no Chromium to look at the page with: {str(error).splitlines()[0]}")
        width, height = size
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        page.set_default_timeout(60_000)
        yield page
        browser.close()
