"""The page in a real browser with a real front end; tests/end_to_end/test_page.py adds workers and the model."""

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

# Controls without an accessible name.
UNNAMED_CONTROLS = """() => [...document.querySelectorAll("input, button, audio, progress, a, select")]
  .filter((control) => !(control.labels?.length || control.getAttribute("aria-label") || control.textContent.trim()))
  .map((control) => control.outerHTML)"""
# Contrast ratios of texts and their backgrounds (WCAG 2).
CONTRASTS = """() => {
  const luminance = (colour) => {
    const [red, green, blue] = colour.match(/[\\d.]+/g).map(Number)
      .map((part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const background = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" ? background(element.parentElement) : colour;
  };
  return [...document.querySelectorAll("h1, h2, p, label, legend, summary, button, a")].map((element) => {
    const pair = [luminance(getComputedStyle(element).color), luminance(background(element))].sort();
    return (pair[1] + 0.05) / (pair[0] + 0.05);
  });
}"""


def visit(page: Page, service: Service) -> list[str]:
    """Open the page; return the list that collects its console errors and its requests to other origins."""
    problems: list[str] = []
    home = str(service.client.base_url)
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith((home, "blob:")) else problems.append(sent.url))
    page.goto(f"{home}/")
    return problems


@pytest.mark.parametrize(("size", "dark"), [(WIDE, False), (NARROW, True)])
def test_page_is_accessible(folder_service: Service, size: tuple[int, int], dark: bool) -> None:
    with opened(size, dark) as page:
        problems = visit(page, folder_service)
        assert page.evaluate(UNNAMED_CONTROLS) == []
        assert min(page.evaluate(CONTRASTS)) >= 4.5
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert problems == []


def test_errors_are_shown_as_sentences(folder_service: Service) -> None:
    with opened() as page:
        visit(page, folder_service)
        alert = page.get_by_role("alert")
        page.get_by_role("button", name="Separate").click()
        assert alert.inner_text() == "Choose a recording first."
        recording = page.get_by_label("choose a file")
        recording.set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no sound"})
        page.get_by_text("This is not a media file").and_(alert).wait_for()
        recording.set_input_files(SOUND)
        page.get_by_text("street.wav: pcm_s16le, 16000 Hz, 1 ch, 1.0 s").wait_for()
        assert alert.is_hidden()
        page.get_by_label("One that has a name").check()
        name = page.get_by_label("The sound's name")
        name.press_sequentially("dog")
        page.get_by_text("For example: Dog").wait_for()
        name.fill("Unicorn")
        page.get_by_role("button", name="Separate").click()
        page.get_by_text("No sound that can be asked for by name is surely meant").and_(alert).wait_for()


def test_progress_is_shown_until_the_job_is_canceled(folder_service: Service) -> None:
    with opened() as page:
        problems = visit(page, folder_service)
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
        assert problems == []


def test_the_last_chosen_recording_is_used(folder_service: Service) -> None:
    """A slow earlier upload does not replace it, and choosing another does not allow a second separation at once."""
    held: list[Route] = []
    with opened() as page:
        problems = visit(page, folder_service)
        recording, separate = page.get_by_label("choose a file"), page.get_by_role("button", name="Separate")
        page.route("**/v1/audio", lambda route: held.append(route), times=1)
        recording.set_input_files({**SOUND, "name": "slow.wav"})
        page.get_by_text("Uploading slow.wav").wait_for()
        recording.set_input_files(SOUND)
        page.get_by_text("street.wav: pcm_s16le").wait_for()
        with contextlib.suppress(Error):  # the page may have aborted it
            held[0].continue_()
        page.get_by_label("One that has a name").check()
        page.get_by_label("The sound's name").fill("Dog")
        page.wait_for_function("() => !document.getElementById('separate').disabled")
        separate.click()
        page.get_by_text("Waiting for a worker.").wait_for()
        assert page.locator("#recording-state").inner_text().startswith("street.wav")
        recording.set_input_files({**SOUND, "name": "other.wav"})
        page.get_by_text("other.wav: pcm_s16le").wait_for()
        page.wait_for_timeout(200)
        assert separate.is_disabled()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Canceled.").wait_for()
        page.wait_for_function("() => !document.getElementById('separate').disabled")
        assert problems == []


def test_an_api_key_gives_access(keyed_service: Service) -> None:
    service = keyed_service
    _, key = KeyRepository(service.deps.redis).create("person", rate=0, audio_seconds=0, priority=1)
    with opened() as page:
        visit(page, service)
        page.get_by_label("choose a file").set_input_files(SOUND)
        page.get_by_text("requires an API key").and_(page.get_by_role("alert")).wait_for()
        page.keyboard.type(key)  # the field is visible and has the focus
        page.get_by_label("choose a file").set_input_files([])
        page.get_by_label("choose a file").set_input_files(SOUND)
        page.get_by_text("street.wav: pcm_s16le").wait_for()
        page.get_by_label("One that has a name").check()
        page.get_by_label("The sound's name").fill("Dog")
        page.get_by_role("button", name="Separate").click()
        page.get_by_text("Waiting for a worker.").wait_for()
        open_jobs: Any = service.deps.redis.smembers("earmark:jobs:open")
        job_id = open_jobs.pop().decode()
        service.finish(job_id, {"dog": wav(), "residual": wav()})
        with page.expect_download() as download:  # by its signed URL: links send no key
            page.get_by_role("link", name="Download residual").click()
        assert Path(download.value.path()).read_bytes() == wav()
        page.wait_for_function("() => [...document.querySelectorAll('audio')].every((audio) => audio.duration > 0.9)")


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_late_responses_do_not_move_controls(folder_service: Service, size: tuple[int, int]) -> None:
    """A response that arrives while the user is about to press a control does not make the press miss it."""
    held: dict[str, Route] = {}

    def position(name: str) -> float:
        return page.get_by_text(name).evaluate("(element) => element.getBoundingClientRect().top + scrollY")

    with opened(size) as page:
        visit(page, folder_service)
        for path in ("audio", "audio/*/peaks*", "labels*"):
            page.route(f"**/v1/{path}", lambda route, _, path=path: held.setdefault(path, route))
        page.get_by_label("choose a file").set_input_files(SOUND)
        page.get_by_text("Uploading street.wav").wait_for()
        before = position("One that has a name")
        held["audio"].continue_()
        page.get_by_text("street.wav: pcm_s16le").wait_for()
        assert position("One that has a name") == before
        page.get_by_label("One that has a name").check()
        with page.expect_request("**/v1/labels*"):
            page.get_by_label("The sound's name").fill("Dog")
        page.get_by_role("button", name="Separate").click()
        page.get_by_text("Waiting for a worker.").wait_for()
        job = folder_service.client.get("/v1/separations").json()["data"][0]
        folder_service.finish(job["id"], {"dog": wav(), "residual": wav()})
        page.get_by_role("link", name="Download residual").wait_for()
        before = position("Download residual")
        held["labels*"].continue_()
        page.get_by_text("For example: Dog").wait_for()
        held["audio/*/peaks*"].continue_()
        page.locator("#mixture-wave > div").wait_for(state="attached")
        assert position("Download residual") == before


def test_content_security_policy_allows_only_this_origin(folder_service: Service) -> None:
    answers = [folder_service.client.get("/") for _ in range(2)]
    policy = answers[0].headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert policy != answers[1].headers["content-security-policy"]  # a fresh nonce for each response
    for path in sorted(FILES.rglob("*.*")):
        answer = folder_service.client.get(f"/page/{path.relative_to(FILES)}")
        assert (answer.status_code, answer.content) == (200, path.read_bytes())
    assert folder_service.client.get("/page/index.html").status_code == 404  # it would lack its policy
    assert folder_service.client.get("/page/../settings.py").status_code == 404
    assert folder_service.client.get("/page/%2e%2e/routes.py").status_code == 404
