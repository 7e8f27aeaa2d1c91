"""The page in a real browser, on a real front end; what its heart does is in tests/end_to_end/test_page.py."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Error, FilePayload, Page, Route

from app.keys.repository import KeyRepository
from tests.app.conftest import Service, wav
from tests.browser import NARROW, WIDE, opened
from tests.conftest import REPOSITORY

FILES = REPOSITORY / "app" / "web" / "files"
SOUND: FilePayload = {"name": "street.wav", "mimeType": "audio/wav", "buffer": wav()}

# The name that people who do not see the page are told, of everything that they can use.
NAMELESS = """() => [...document.querySelectorAll("input, button, audio, progress, a, select")]
  .filter((found) => !(found.labels?.length || found.getAttribute("aria-label") || found.textContent.trim()))
  .map((found) => found.outerHTML)"""
# Contrast of texts to what is behind them, by WCAG 2.
CONTRASTS = """() => {
  const light = (colour) => {
    const [red, green, blue] = colour.match(/[\\d.]+/g).map(Number)
      .map((part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (found) => {
    const colour = getComputedStyle(found).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" ? behind(found.parentElement) : colour;
  };
  return [...document.querySelectorAll("h1, h2, p, label, legend, summary, button, a")].map((found) => {
    const pair = [light(getComputedStyle(found).color), light(behind(found))].sort();
    return (pair[1] + 0.05) / (pair[0] + 0.05);
  });
}"""


def visit(page: Page, service: Service) -> list[str]:
    """Open the page; returns what will have gone wrong in it: messages of the console, and requests to elsewhere."""
    wrong: list[str] = []
    home = str(service.client.base_url)
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith((home, "blob:")) else wrong.append(asked.url))
    page.goto(f"{home}/")
    return wrong


@pytest.mark.parametrize(("size", "dark"), [(WIDE, False), (NARROW, True)])
def test_everybody_can_use_it(folder_service: Service, size: tuple[int, int], dark: bool) -> None:
    with opened(size, dark) as page:
        wrong = visit(page, folder_service)
        assert page.evaluate(NAMELESS) == []
        assert min(page.evaluate(CONTRASTS)) >= 4.5
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert wrong == []


def test_what_goes_wrong_is_told_in_words(folder_service: Service) -> None:
    with opened() as page:
        visit(page, folder_service)
        told = page.get_by_role("alert")
        page.get_by_role("button", name="Separate").click()
        assert told.inner_text() == "Choose a recording first."
        recording = page.get_by_label("choose a file")
        recording.set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no sound"})
        page.get_by_text("The file is no media file").and_(told).wait_for()
        recording.set_input_files(SOUND)
        page.get_by_text("street.wav: pcm_s16le, 16000 Hz, 1 ch, 1.0 s").wait_for()
        assert told.is_hidden()
        page.get_by_label("One that has a name").check()
        name = page.get_by_label("The sound's name")
        name.press_sequentially("dog")
        page.get_by_text("For example: Dog").wait_for()
        name.fill("Unicorn")
        page.get_by_role("button", name="Separate").click()
        page.get_by_text("No class has this name").and_(told).wait_for()


def test_progress_is_shown_until_it_is_canceled(folder_service: Service) -> None:
    with opened() as page:
        wrong = visit(page, folder_service)
        page.get_by_label("choose a file").set_input_files(SOUND)
        page.get_by_label("One that has a name").check()
        page.get_by_label("The sound's name").fill("Dog")
        page.get_by_text("street.wav:").wait_for()
        page.get_by_role("button", name="Separate").click()
        page.get_by_text("Waiting for a worker.").wait_for()
        jobs = folder_service.deps.jobs
        job = folder_service.client.get("/v1/separations").json()["data"][0]
        jobs.claim(job["id"], "a")
        jobs.report_progress(job["id"], "a", 0.5, "separating")
        page.get_by_text("At work: separating.").wait_for()
        assert page.get_by_label("Progress").get_attribute("value") is not None
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Stopping").wait_for()
        jobs.confirm_cancel(job["id"], "a")
        page.get_by_text("Canceled.").wait_for()
        assert page.get_by_role("button", name="Cancel").is_hidden()
        assert wrong == []


def test_the_recording_that_was_chosen_last_counts(folder_service: Service) -> None:
    """However slow the upload of an earlier one; and whatever is chosen, one separation runs at a time."""
    held: list[Route] = []
    with opened() as page:
        wrong = visit(page, folder_service)
        recording, separate = page.get_by_label("choose a file"), page.get_by_role("button", name="Separate")
        page.route("**/v1/audio", lambda route: held.append(route), times=1)
        recording.set_input_files({**SOUND, "name": "slow.wav"})
        page.get_by_text("Uploading slow.wav").wait_for()
        recording.set_input_files(SOUND)
        page.get_by_text("street.wav: pcm_s16le").wait_for()
        with contextlib.suppress(Error):  # it may have been broken off
            held[0].continue_()
        page.get_by_label("One that has a name").check()
        page.get_by_label("The sound's name").fill("Dog")
        page.wait_for_function("!document.getElementById('separate').disabled")
        separate.click()
        page.get_by_text("Waiting for a worker.").wait_for()
        assert page.locator("#recording-state").inner_text().startswith("street.wav")
        recording.set_input_files({**SOUND, "name": "other.wav"})
        page.get_by_text("other.wav: pcm_s16le").wait_for()
        page.wait_for_timeout(200)
        assert separate.is_disabled()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Canceled.").wait_for()
        page.wait_for_function("!document.getElementById('separate').disabled")
        assert wrong == []


def test_a_key_opens_what_the_page_shows(keyed_service: Service) -> None:
    service = keyed_service
    _, key = KeyRepository(service.deps.redis).create("person", rate=0, audio_seconds=0, priority=1)
    with opened() as page:
        visit(page, service)
        page.get_by_label("choose a file").set_input_files(SOUND)
        page.get_by_text("asks for an API key").and_(page.get_by_role("alert")).wait_for()
        page.keyboard.type(key)  # the field is open, and has the focus
        page.get_by_label("choose a file").set_input_files([])
        page.get_by_label("choose a file").set_input_files(SOUND)
        page.get_by_text("street.wav: pcm_s16le").wait_for()
        page.get_by_label("One that has a name").check()
        page.get_by_label("The sound's name").fill("Dog")
        page.get_by_role("button", name="Separate").click()
        page.get_by_text("Waiting for a worker.").wait_for()
        made: Any = service.deps.redis.smembers("earmark:jobs:open")
        job_id = made.pop().decode()
        service.finish(job_id, {"dog": wav(), "residual": wav()})
        with page.expect_download() as download:  # by its signed address: links send no key
            page.get_by_role("link", name="Download residual").click()
        assert Path(download.value.path()).read_bytes() == wav()
        page.wait_for_function("[...document.querySelectorAll('audio')].every((found) => found.duration > 0.9)")


def test_the_policy_lets_nothing_in_from_elsewhere(folder_service: Service) -> None:
    answers = [folder_service.client.get("/") for _ in range(2)]
    policy = answers[0].headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert policy != answers[1].headers["content-security-policy"]  # a nonce is used once
    for path in sorted(FILES.rglob("*.*")):
        answer = folder_service.client.get(f"/page/{path.relative_to(FILES)}")
        assert (answer.status_code, answer.content) == (200, path.read_bytes())
    assert folder_service.client.get("/page/index.html").status_code == 404  # it would come without its policy
    assert folder_service.client.get("/page/../settings.py").status_code == 404
    assert folder_service.client.get("/page/%2e%2e/routes.py").status_code == 404
