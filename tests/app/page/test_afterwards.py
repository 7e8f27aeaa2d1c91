"""The page after a separation: reload, history, downloads, keys, and late responses."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from app.keys.repository import KeyRepository
from tests.app.conftest import Service, wav
from tests.app.page.studio import SOUND, STEMS, ask, button, choose, describe, newest, visit
from tests.browser import NARROW, WIDE, opened


def test_a_reload_finds_the_job_again(page: Page, folder_service: Service) -> None:
    problems = visit(page, folder_service)
    ask(page)
    page.reload()
    page.get_by_text("Waiting for a worker").wait_for()
    expect(page.get_by_text("the class Dog")).to_be_visible()
    expect(page.get_by_role("heading", name="street.wav")).to_be_visible()
    folder_service.finish(newest(folder_service)["id"], STEMS)
    page.get_by_text("one alone").wait_for()
    page.reload()
    page.get_by_text("one alone").wait_for()
    assert problems == []


def test_history_opens_and_deletes_separations(page: Page, folder_service: Service) -> None:
    problems = visit(page, folder_service)
    ask(page)
    job = newest(folder_service)
    folder_service.finish(job["id"], STEMS)
    page.get_by_text("one alone").wait_for()
    button(page, "New recording").click()
    button(page, "History").click()
    entry = page.get_by_role("link", name="street.wav")
    expect(entry).to_contain_text("succeeded")
    expect(entry).to_contain_text("kept for")
    entry.click()
    page.get_by_text("one alone").wait_for()
    button(page, "History").click()
    page.get_by_role("button", name="Delete street.wav").click()
    page.get_by_text("None yet.").wait_for()
    assert folder_service.client.get(f"/v1/separations/{job['id']}").status_code == 404
    assert problems == []


def test_stems_are_downloaded_under_the_names_of_recording_and_stem(page: Page, folder_service: Service) -> None:
    problems = visit(page, folder_service)
    ask(page)
    folder_service.finish(newest(folder_service)["id"], STEMS)
    names = []
    for link in ("Download Dog", "Download residual", "All as a zip"):
        with page.expect_download() as download:
            page.get_by_role("link", name=link).click()
        names.append(download.value.suggested_filename)
    assert names == ["street-Dog.flac", "street-residual.flac", "street.zip"]
    assert problems == []


def test_an_api_key_is_asked_for_once(page: Page, keyed_service: Service) -> None:
    service = keyed_service
    _, key = KeyRepository(service.deps.redis).create("person", rate=0, audio_seconds=0, priority=1)
    visit(page, service)
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Choose a file").click()
    chooser.value.set_files(SOUND)
    page.get_by_text("This service needs an API key.").wait_for()
    page.keyboard.type("wrong")  # the field is visible and has the focus
    page.keyboard.press("Enter")
    page.get_by_text("This key is not accepted.").wait_for()
    page.keyboard.press("Control+a")
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    page.get_by_label("Playback").wait_for()  # the upload was tried again
    page.get_by_text("Options").click()
    page.get_by_label("Listen by itself after an upload (counts for the quota)").uncheck()
    describe(page, "Dog")
    button(page, "Separate").click()
    page.get_by_text("Waiting for a worker").wait_for()
    page.reload()
    page.get_by_text("Waiting for a worker").wait_for()  # the key is kept
    open_jobs: Any = service.deps.redis.smembers("earmark:jobs:open")
    job_id = next(job.decode() for job in open_jobs if job.startswith(b"sep_"))
    service.finish(job_id, STEMS)
    page.get_by_text("one alone").wait_for()
    with page.expect_download() as download:  # by its signed URL: links send no key
        page.get_by_role("link", name="Download residual").click()
    assert Path(download.value.path()).read_bytes() == wav()
    _, other = KeyRepository(service.deps.redis).create("other", rate=0, audio_seconds=0, priority=1)
    page.evaluate("(key) => sessionStorage.setItem('earmark-key', key)", other)
    page.reload()
    page.get_by_text("This separation is gone, or belongs to another key.").wait_for()


def test_a_spent_quota_is_explained(page: Page, keyed_service: Service) -> None:
    _, key = KeyRepository(keyed_service.deps.redis).create("person", rate=0, audio_seconds=1, priority=1)
    visit(page, keyed_service)
    page.evaluate("(key) => sessionStorage.setItem('earmark-key', key)", key)
    page.reload()
    choose(page)  # the detection spends the second
    describe(page, "Dog")
    page.get_by_text("place 1").or_(page.get_by_text("listening")).first.wait_for()
    button(page, "Separate").click()
    expect(page.get_by_role("alert").filter(has_text="seconds of audio")).to_contain_text("quota_exceeded")


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_late_responses_do_not_move_controls(browser: Browser, folder_service: Service, size: tuple[int, int]) -> None:
    """A response that arrives while the user is about to press a control does not make the press miss it."""
    held: dict[str, Route] = {}

    def position(control: Locator) -> float:
        return control.evaluate("(element) => element.getBoundingClientRect().top + scrollY")

    with opened(browser, size) as page:
        visit(page, folder_service)
        for path in ("audio/*/peaks*", "labels*"):
            page.route(f"**/v1/{path}", lambda route, _, path=path: held.setdefault(path, route))
        choose(page)
        with page.expect_request("**/v1/labels*"):
            page.get_by_label("Describe a sound").fill("dog")
        page.keyboard.press("Enter")
        before = position(button(page, "Separate"))
        held["audio/*/peaks*"].continue_()
        held["labels*"].continue_()
        page.wait_for_function("() => document.querySelector('.waveform canvas').width > 300")
        assert position(button(page, "Separate")) == before
