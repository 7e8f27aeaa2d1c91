"""The page in a real browser, on the whole service with the shipped model: from a dropped file to stems that sound."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import launched, opened, watch
from tests.end_to_end.deployment import ROOT

RECORDINGS = ROOT / "app" / "demo" / "recordings"
# Number of drawn pixels of each canvas, read from a copy: Chromium warns of canvases that are read often.
DRAWN = """(selector) => [...document.querySelectorAll(selector)].map((canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((value, at) => at % 4 === 3 && value > 0).length;
})"""

expect.set_options(timeout=120_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, service: str) -> Iterator[Page]:
    """The page; it must neither complain nor call another origin."""
    with opened(browser) as page:
        problems = watch(page, service)
        page.goto(service)
        yield page
        assert problems == []


def choose(page: Page, name: str) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Choose a file").click()
    chooser.value.set_files(RECORDINGS / name)
    page.get_by_label("Playback").wait_for()


def drag(page: Page, row: str, start: float, end: float) -> None:
    """Drag over parts of a row, of its width."""
    box = page.locator(f"{row} [data-lane]").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * start, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * end, box["y"] + 40, steps=5)
    page.mouse.up()


def separate(page: Page) -> None:
    page.get_by_role("button", name="Separate", exact=True).click()
    page.get_by_text("Done in").wait_for()


def drawn(page: Page, rows: str) -> None:
    """Wait until something is drawn in each of the rows."""
    page.wait_for_function(f"(rows) => ({DRAWN})(rows).every((pixels) => pixels > 2000)", arg=f":is({rows}) canvas")


def hear(page: Page) -> None:
    """Play what was separated, and wait until it moves."""
    page.get_by_role("button", name="Hear it").click()
    page.wait_for_function("() => parseFloat(document.querySelector('[role=slider]').ariaValueNow) > 0.3")


def test_an_example_leads_to_its_stem_in_three_clicks(page: Page) -> None:
    page.get_by_role("listitem").get_by_role("button").first.click()
    page.get_by_role("button", name="Remove").first.wait_for()  # what to ask for is there already
    separate(page)
    hear(page)
    expect(page.locator(".stem").first.get_by_role("button", name="Solo")).to_have_attribute("aria-pressed", "true")
    drawn(page, ".waveform, .spectrogram, .stem")


def test_every_way_of_asking_at_once(page: Page, service: str, tmp_path: Path) -> None:
    """A span, a detected class, words, an example that is no other sound, and a saved query; then the call for it."""
    choose(page, "mixture.flac")
    drag(page, ".spectrogram", 0.25, 0.5)
    assert abs(float(page.get_by_label("From").input_value()) - 1.5) < 0.1
    page.get_by_role("button", name="This sound here").click()
    page.get_by_role("button", name="Chirp, tweet").click()
    page.get_by_label("Describe a sound").fill("an electric guitar")
    page.get_by_role("button", name="Add", exact=True).click()
    with page.expect_file_chooser() as chooser:
        page.locator(".targets").get_by_text("File", exact=True).click()
    chooser.value.set_files(RECORDINGS / "example.flac")
    page.get_by_role("button", name="Save example for later").click()
    page.get_by_role("button", name="Saved").click()
    page.get_by_role("list", name="Saved sounds").get_by_role("button", name="example", exact=True).click()
    page.get_by_text("Not this …").first.click()
    page.get_by_label("A similar sound that is not meant").fill("cricket")
    page.get_by_role("option", name="Cricket").first.click()
    expect(page.get_by_text("not Cricket")).to_be_visible()
    page.get_by_text("Options").click()
    page.get_by_label("Format").select_option("wav")
    separate(page)
    names = ["Sound", "Chirp, tweet", "an electric guitar", "example", "example 2", "residual"]
    assert page.locator(".stem strong").evaluate_all("(all) => all.map((one) => one.title)") == names
    drawn(page, ".stem")
    hear(page)
    expect(page.get_by_text("Taken to mean: Electric guitar")).to_be_visible()

    (job,) = httpx.get(f"{service}/v1/separations?limit=1", timeout=60).json()["data"]
    page.get_by_role("button", name="As a request").click()
    for file in ("mixture.flac", "example.flac"):
        shutil.copy(RECORDINGS / file, tmp_path)
    assert call(page, "curl", ["bash", "-e"], tmp_path) == ""
    (again,) = httpx.get(f"{service}/v1/separations?limit=1", timeout=60).json()["data"]
    assert again["id"] != job["id"]
    assert [stem["name"] for stem in again["stems"]] == names
    assert (tmp_path / "stems.zip").stat().st_size > sum(stem["bytes"] for stem in again["stems"])


def call(page: Page, language: str, command: list[str], folder: Path) -> str:
    """Run what the drawer shows, as it is; return what it prints."""
    page.get_by_role("tab", name=language).click()
    program = page.get_by_role("tabpanel").inner_text()
    assert "aud_" not in program  # it uploads the files itself
    done = subprocess.run(command, input=program, cwd=folder, check=True, capture_output=True, text=True, timeout=250)
    return done.stdout


def test_everything_that_is_heard_and_the_calls_for_it(page: Page, tmp_path: Path) -> None:
    choose(page, "target.flac")
    page.get_by_label("Everything that is heard").check()
    page.get_by_label("at most").fill("1")
    page.get_by_label("at most").press("Tab")
    separate(page)
    page.get_by_role("button", name="As a request").click()
    page.get_by_role("tab", name="Answer").click()
    stems = re.findall(r'"name": "([^"]+)",\s*"url"', page.get_by_role("tabpanel").inner_text())
    assert len(stems) == 2
    for language, command in (("Python", [sys.executable, "-"]), ("JavaScript", ["node", "--input-type=module"])):
        if not shutil.which(command[0]):
            continue
        folder = tmp_path / language
        folder.mkdir()
        shutil.copy(RECORDINGS / "target.flac", folder)
        assert call(page, language, command, folder) == ""
        assert {path.name for path in folder.iterdir()} == {"target.flac", *(f"{stem}.flac" for stem in stems)}
