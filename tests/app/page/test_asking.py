"""The page from the start to the stems: recordings, targets, options, errors, and the keyboard."""

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from playwright.sync_api import Browser, Error, Page, Response, Route, expect

from app.jobs.lifecycle import JobError, TargetState
from app.keys.repository import KeyRepository
from app.records.separations import Format
from app.separations.validation import BIT_DEPTHS
from tests.app.conftest import MODEL, Service, eventually, wav
from tests.app.page.studio import SOUND, STEMS, ask, button, choose, complete, describe, hear, newest, violations, visit
from tests.browser import NARROW, WIDE, opened
from tests.ffmpeg_files import run


@pytest.mark.parametrize(("size", "dark"), [(WIDE, False), (NARROW, True)])
def test_page_is_accessible(browser: Browser, folder_service: Service, size: tuple[int, int], dark: bool) -> None:
    """axe finds nothing in any state, nothing is wider than the window, and the console stays empty."""

    def check(state: str) -> None:
        assert violations(page) == [], state
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0], state
        assert problems == [], state

    with opened(browser, size, dark) as page:
        problems = visit(page, folder_service)
        page.get_by_text("Drop a recording here").wait_for()
        check("start")
        choose(page)
        hear(folder_service, ("Dog", 0.1, 0.5), ("Siren", 0.2, 0.9))
        page.get_by_role("button", name="Siren").click()
        page.get_by_label("Describe a sound").fill("bark")
        page.get_by_role("option").first.wait_for()
        check("studio with suggestions")
        page.get_by_label("Describe a sound").fill("")
        page.get_by_text("Options").click()
        page.get_by_text("Not this …").click()
        check("studio with options")
        button(page, "Separate").click()
        page.get_by_text("Waiting for a worker").wait_for()
        check("running")
        folder_service.finish(newest(folder_service)["id"], STEMS, ["The recording has a gap at 0.2 s."])
        page.get_by_text("one alone").wait_for()
        page.get_by_text("The recording has a gap at 0.2 s.").wait_for()
        check("finished")
        for drawer in ("As a request", "History", "Keys") if size == WIDE else ():
            button(page, drawer).click()
            check(drawer)
            button(page, "Close").click()


def test_errors_are_shown_as_sentences_with_their_codes(page: Page, folder_service: Service) -> None:
    visit(page, folder_service)
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Choose a file").click()
    chooser.value.set_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no sound"})
    alert = page.get_by_role("alert")
    expect(alert.filter(has_text="This is not a media file")).to_contain_text("audio_undecodable")
    choose(page)
    expect(page.get_by_text("This is not a media file")).to_be_hidden()
    describe(page, "Unicorn")
    describe(page, "Dog")
    button(page, "Separate").click()
    chip = page.get_by_role("listitem").filter(has=page.get_by_role("button", name="Remove Unicorn"))
    expect(chip.get_by_role("alert")).to_contain_text("No sound that can be asked for by name is surely meant")
    expect(chip.get_by_role("alert")).to_contain_text("text_unknown")
    button(page, "Remove Unicorn").click()
    button(page, "Separate").click()
    page.get_by_text("Waiting for a worker").wait_for()


def test_warnings_of_a_detection_and_of_a_failed_target_are_shown(page: Page, folder_service: Service) -> None:
    problems = visit(page, folder_service)
    choose(page)
    hear(folder_service, ("Dog", 0.1, 0.5), warnings=["The recording ends after 0.6 s: 0.4 s are missing."])
    hint = page.get_by_text("Press a name to ask for that sound")
    expect(hint).to_contain_text("The recording ends after 0.6 s: 0.4 s are missing.")
    page.get_by_role("button", name="Dog").click()
    complete(page, "siren", "Siren")
    button(page, "Separate").click()
    page.get_by_text("Waiting for a worker").wait_for()
    job = newest(folder_service)
    names = [target["name"] for target in job["targets"]]
    assert len(names) == 2
    error = JobError(code="audio_silent", detail="The example is silent.")
    failed = TargetState(name=names[1], status="failed", error=error, warnings=["Its example has a gap at 0.2 s."])
    folder_service.finish(job["id"], {names[0]: wav(), "residual": wav()}, failed=[failed])
    advice = page.get_by_text(f"{names[1]}: The example is silent. Its example has a gap at 0.2 s.")
    expect(advice).to_contain_text("audio_silent")
    expect(page.get_by_text("one alone")).to_be_visible()
    assert problems == []


def test_a_class_that_cannot_be_asked_for_says_why_and_offers_near_ones(page: Page, folder_service: Service) -> None:
    visit(page, folder_service)
    choose(page)
    page.get_by_label("Describe a sound").fill("bark")
    option = page.get_by_role("option", name="Bark")
    expect(option).to_contain_text("The model has no embedding of this class")
    expect(option).to_have_attribute("aria-disabled", "true")
    complete(page, "dog", "Dog")
    expect(page.get_by_text("the class Dog")).to_be_visible()


def test_a_job_is_followed_canceled_and_tried_again(page: Page, folder_service: Service) -> None:
    problems = visit(page, folder_service)
    ask(page)
    jobs = folder_service.deps.jobs
    job = newest(folder_service)
    jobs.claim(job["id"], "a")
    jobs.report_progress(job["id"], "a", 0.5, "separating")
    page.get_by_role("status").filter(has_text="Separating").wait_for()
    expect(page.get_by_label("Progress")).to_have_attribute("value", "0.5")
    button(page, "Cancel").click()
    page.get_by_text("Stopping").wait_for()
    jobs.confirm_cancel(job["id"], "a")
    page.get_by_text("Canceled.").wait_for()
    button(page, "Try again").click()
    page.get_by_text("Waiting for a worker").wait_for()
    again = newest(folder_service)
    assert again["id"] != job["id"]
    jobs.claim(again["id"], "b")
    jobs.fail(again["id"], "b", JobError(code="internal", detail="The worker failed."))
    expect(page.get_by_role("alert").filter(has_text="The worker failed.")).to_contain_text("internal")
    expect(button(page, "Try again")).to_be_enabled()
    assert problems == []


def test_an_address_outlasts_its_refusal(page: Page, folder_service: Service) -> None:
    visit(page, folder_service)
    button(page, "Paste an address").click()
    page.get_by_label("Address of a recording").fill("http://127.0.0.1:1/street.wav")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="no public address")).to_contain_text("url_refused")
    expect(page.get_by_label("Address of a recording")).to_have_value("http://127.0.0.1:1/street.wav")


def test_an_upload_that_fails_is_tried_again_with_one_press(page: Page, folder_service: Service) -> None:
    visit(page, folder_service)
    page.route("**/v1/audio", lambda route: route.abort(), times=1)
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Choose a file").click()
    chooser.value.set_files(SOUND)
    page.get_by_text("The service does not answer").wait_for()
    button(page, "Try again").click()
    page.get_by_label("Playback").wait_for()
    expect(page.get_by_text("The service does not answer")).to_be_hidden()


def test_the_last_chosen_recording_is_used(page: Page, folder_service: Service) -> None:
    """A slow earlier upload does not replace it."""
    held: list[Route] = []
    problems = visit(page, folder_service)
    page.route("**/v1/audio", lambda route: held.append(route), times=1)
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Choose a file").click()
    chooser.value.set_files({**SOUND, "name": "slow.wav"})
    page.get_by_text("slow.wav …").wait_for()
    button(page, "New recording").click()
    choose(page)
    with contextlib.suppress(Error):  # the page may have aborted it
        held[0].continue_()
    expect(page.get_by_role("heading", name="street.wav")).to_be_visible()
    assert problems == []


def test_the_detection_of_a_replaced_recording_is_canceled(page: Page, folder_service: Service) -> None:
    """Whether it waits, runs, or is only being created."""
    service = folder_service
    problems = visit(page, service)

    def detections(count: int) -> list[dict[str, Any]]:
        def listed() -> list[dict[str, Any]]:
            return service.client.get("/v1/detections").json()["data"]

        eventually(lambda: len(listed()) == count)
        return listed()

    def status(job: dict[str, Any]) -> str:
        return service.deps.jobs.get(job["id"]).status

    choose(page)
    [waiting] = detections(1)
    page.get_by_text("waiting, place").wait_for()
    button(page, "New recording").click()
    choose(page)
    [running, _] = detections(2)
    eventually(lambda: status(waiting) == "canceled")
    service.deps.jobs.claim(running["id"], "a")
    service.deps.jobs.report_progress(running["id"], "a", 0.5, "detecting")
    page.get_by_text("listening, 50 %").wait_for()
    held: list[Route] = []
    page.route("**/v1/detections", lambda route: held.append(route), times=1)
    button(page, "New recording").click()
    eventually(lambda: service.deps.jobs.get(running["id"]).cancel_requested_at)
    choose(page)
    eventually(lambda: page.evaluate("0") == 0 and held)  # evaluating lets the route be handled
    button(page, "New recording").click()
    held[0].continue_()
    with page.expect_response("**/cancel"):
        choose(page)
    last, *earlier = detections(4)
    assert [job["status"] for job in earlier] == ["canceled", "running", "canceled"]
    hear(service, ("Dog", 0.0, 0.5))
    expect(page.locator(".heard")).to_have_count(1)
    assert status(last) == "succeeded"
    assert problems == []


def test_files_are_dropped_as_recording_and_as_example(page: Page, folder_service: Service) -> None:
    problems = visit(page, folder_service)
    page.evaluate(
        """(bytes) => { window.drop = (selector, name) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], name));
          const options = { bubbles: true, cancelable: true, dataTransfer: transfer };
          for (const type of ["dragover", "drop"]) {
            document.querySelector(selector).dispatchEvent(new DragEvent(type, options));
          } } }""",
        list(wav()),
    )
    page.evaluate("drop('main', 'street.wav')")
    page.get_by_label("Playback").wait_for()
    page.evaluate("drop('.targets', 'my dog.wav')")
    page.get_by_text("like my dog.wav").wait_for()
    button(page, "Separate").click()
    page.get_by_text("Waiting for a worker").wait_for()
    assert [target["name"] for target in newest(folder_service)["targets"]] == ["my dog"]
    page.evaluate("drop('.stage', 'other.wav')")
    expect(page.get_by_role("heading", name="other.wav")).to_be_visible()
    assert problems == []


def test_the_microphone_records_a_recording_and_an_example(page: Page, folder_service: Service) -> None:
    problems = visit(page, folder_service)
    for place in ("Record", "Record"):
        button(page, place).click()
        stop = page.get_by_role("button", name=re.compile(r"^Stop, 0:00\.[5-9]|^Stop, 0:0[1-9]"))  # seconds of sound
        stop.click()
        page.get_by_label("Playback").wait_for()
    page.get_by_text("like my example.wav").wait_for()
    assert problems == []


def test_detected_sounds_are_asked_for_by_press_and_by_drag(page: Page, folder_service: Service) -> None:
    problems = visit(page, folder_service)
    choose(page)
    hear(folder_service, ("Dog", 0.0, 0.5), ("Bark", 0.0, 0.45), ("Siren", 0.5, 0.9))
    lanes = page.locator(".heard")
    expect(lanes).to_have_count(2)  # Bark says all that Dog would say
    siren = lanes.filter(has_text="Siren").get_by_role("button")
    asked = page.get_by_text("the class Siren")
    siren.click()
    expect(asked).to_be_visible()
    siren.click()
    expect(asked).to_be_hidden()
    siren.click()
    expect(asked).to_be_visible()
    box = lanes.filter(has_text="Bark").locator("[data-lane]").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 10, steps=4)
    page.mouse.up()
    button(page, "This sound here").click()
    expect(page.get_by_text("heard at 0:00.1–0:00.4")).to_be_visible()
    assert page.get_by_label("Name of the stem").nth(1).input_value() == "Bark"
    assert problems == []


def test_a_removal_is_taken_back(page: Page, folder_service: Service) -> None:
    problems = visit(page, folder_service)
    ask(page)
    folder_service.finish(newest(folder_service)["id"], STEMS)
    page.get_by_text("one alone").wait_for()
    for take_back in (lambda: button(page, "Undo").click(), lambda: page.keyboard.press("Control+z")):
        button(page, "Remove Dog").click()
        expect(page.get_by_text("the class Dog")).to_be_hidden()
        expect(page.get_by_text("Say what you want:")).to_be_visible()  # beside the button that is disabled
        take_back()
        expect(page.get_by_text("the class Dog")).to_be_visible()
        expect(page.get_by_text("Removed Dog.")).to_be_hidden()
        expect(button(page, "Separate")).to_be_enabled()
    assert problems == []


def test_formats_and_bit_depths_are_those_of_the_service(page: Page, folder_service: Service) -> None:
    problems = visit(page, folder_service)
    choose(page)
    page.get_by_text("Options").click()
    values = "options => options.map((option) => option.value)"
    formats = page.get_by_label("Format")
    assert set(formats.locator("option").evaluate_all(values)) == set(get_args(Format))
    for format in get_args(Format):
        formats.select_option(format)
        depths = page.get_by_label("Bits per sample").locator("option")
        expect(depths).to_have_count(len(BIT_DEPTHS.get(format, ())))
        assert {int(depth) for depth in depths.evaluate_all(values)} == set(BIT_DEPTHS.get(format, ()))
    assert problems == []


def test_high_quality_is_asked_for_and_kept(page: Page, folder_service: Service) -> None:
    problems = visit(page, folder_service)
    # What a page that knew fewer options has left in the browser.
    page.evaluate("""localStorage.setItem("earmark-options", '{"output": {"format": "wav"}}')""")
    page.reload()
    choose(page)
    describe(page, "Dog")
    page.get_by_text("Options").click()
    page.get_by_label("High quality: slower, and counts for more").check()
    button(page, "As a request").click()
    for language in ("curl", "Python", "JavaScript"):
        page.get_by_role("tab", name=language).click()
        expect(page.get_by_role("tabpanel")).to_contain_text('"quality": "high"')
    button(page, "Close").click()
    with page.expect_request("**/v1/separations") as sent:
        button(page, "Separate").click()
    assert json.loads(sent.value.post_data or "")["output"] == {
        "format": "wav",
        "quality": "high",
    }  # what is not default
    page.get_by_text("Waiting for a worker").wait_for()  # it is accepted
    page.reload()
    page.get_by_text("Options").click()
    expect(page.get_by_label("High quality: slower, and counts for more")).to_be_checked()
    assert problems == []


def test_track_model_and_webhook_are_asked_for_and_kept(page: Page, keyed_service: Service, tmp_path: Path) -> None:
    keyed_service.deps.model_registry.announce(MODEL | {"name": "paper", "version": "3"}, "worker-2")
    (tmp_path / "street.wav").write_bytes(wav())
    run("-i street.wav -i street.wav -map 0 -map 1 -c:a libopus -metadata:s:a:1 title=Microphone two.webm", tmp_path)

    def detects(word: str) -> Callable[[Response], bool]:
        return lambda answer: answer.url.endswith("/v1/detections") and word in (answer.request.post_data or "")

    problems = visit(page, keyed_service)
    _, key = KeyRepository(keyed_service.deps.redis).create("person", rate=0, audio_seconds=0, priority=1)
    page.evaluate("(key) => sessionStorage.setItem('earmark-key', key)", key)
    page.reload()
    choose(page, {"name": "two.webm", "mimeType": "audio/webm", "buffer": (tmp_path / "two.webm").read_bytes()})
    with (
        page.expect_response(detects("track")) as heard,
        page.expect_response("**/peaks?*track=2*") as waveform,
        page.expect_response("**/spectrogram?*track=2*") as spectrogram,
    ):
        page.get_by_label("Audio track").select_option("2, Microphone, opus, mono")
    assert json.loads(heard.value.request.post_data or "")["track"] == 2
    assert [answer.value.status for answer in (heard, waveform, spectrogram)] == [202, 200, 200]
    describe(page, "Dog")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("group", name="Or give an example of it").get_by_text("File", exact=True).click()
    chooser.value.set_files(tmp_path / "two.webm")
    page.get_by_label("Track of two.webm").select_option("2, Microphone, opus, mono")
    page.get_by_text("Options").click()
    with page.expect_response(detects("paper@3")) as heard:
        page.get_by_label("Model").select_option("paper@3")
    assert heard.value.status == 202
    page.get_by_label("Webhook").fill("https://example.org/hook")
    button(page, "As a request").click()
    for language in ("curl", "Python", "JavaScript"):
        page.get_by_role("tab", name=language).click()
        for part in ('"track": 2', '"model": "paper@3"', '"webhook": {"url": "https://example.org/hook"}'):
            expect(page.get_by_role("tabpanel")).to_contain_text(part)
    button(page, "Close").click()
    with page.expect_response("**/v1/separations") as answered:
        button(page, "Separate").click()
    sent = json.loads(answered.value.request.post_data or "")
    assert (sent["mixture"]["track"], sent["model"]) == (2, "paper@3")
    assert sent["targets"][1]["examples"][0]["track"] == 2
    assert sent["webhook"] == {"url": "https://example.org/hook"}
    assert answered.value.status == 202
    page.get_by_text("Waiting for a worker").wait_for()
    page.reload()
    expect(page.get_by_label("Audio track")).to_have_value("2")
    page.get_by_text("Options").click()
    expect(page.get_by_label("Model")).to_have_value("paper@3")
    expect(page.get_by_label("Webhook")).to_have_value("https://example.org/hook")
    assert problems == []


def test_studio_works_from_the_keyboard(page: Page, folder_service: Service) -> None:
    problems = visit(page, folder_service)
    choose(page)
    page.get_by_label("Position").focus()
    for key in ("[", "End", "]", "Enter"):
        page.keyboard.press(key)
    expect(page.get_by_text("heard at 0:00.0–0:01.0")).to_be_visible()
    page.get_by_label("Describe a sound").focus()
    page.keyboard.type("sire")
    page.get_by_role("option", name="Siren").wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    for _ in range(30):  # to the button, past every target
        page.keyboard.press("Tab")
        if button(page, "Separate").evaluate("(button) => button === document.activeElement"):
            break
    page.keyboard.press("Enter")
    page.get_by_text("Waiting for a worker").wait_for()
    folder_service.finish(newest(folder_service)["id"], {"Sound": wav(), "Siren": wav(), "residual": wav()})
    page.get_by_text("one alone").wait_for()
    page.get_by_label("Position").focus()
    solo = {name: button(page, f"Solo {name}") for name in ("Sound", "Siren", "residual")}
    expect(solo["Sound"]).to_have_attribute("aria-pressed", "true")  # what was asked for is heard first
    page.keyboard.press("2")
    expect(solo["Siren"]).to_have_attribute("aria-pressed", "true")
    expect(solo["Sound"]).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("m")
    expect(button(page, "Mute Siren")).to_have_attribute("aria-pressed", "true")
    page.keyboard.down("b")
    expect(page.get_by_role("button", name="Hold to compare")).to_have_attribute("aria-pressed", "true")
    page.keyboard.up("b")
    expect(page.get_by_role("button", name="Hold to compare")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Home")
    page.keyboard.press(" ")
    button(page, "Pause").wait_for()
    page.wait_for_function("() => parseFloat(document.querySelector('[role=slider]').ariaValueNow) > 0.1")
    page.keyboard.press(" ")
    button(page, "Play").wait_for()
    assert problems == []
