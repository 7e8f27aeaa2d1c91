"""Steps of a visitor on the page, and of a worker meanwhile."""

from collections.abc import Sequence
from typing import Any

from playwright.sync_api import FilePayload, Locator, Page

from app.records.detections import DetectionResult, EventRecord, PictureRecord
from app.records.shared import ModelRecord, RecordingRecord
from tests.app.conftest import Service, eventually, wav
from tests.browser import watch
from tests.conftest import REPOSITORY

WEB = REPOSITORY / "app" / "web"
FILES, SOURCE = WEB / "files", WEB / "source"
AXE = SOURCE / "node_modules" / "axe-core" / "axe.min.js"
SOUND: FilePayload = {"name": "street.wav", "mimeType": "audio/wav", "buffer": wav()}
STEMS = {"Dog": wav(), "residual": wav()}


def visit(page: Page, service: Service) -> list[str]:
    """Open the page; return the list that collects what it should not do."""
    home = str(service.client.base_url)
    problems = watch(page, home)
    page.goto(f"{home}/")
    return problems


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def choose(page: Page, file: FilePayload | None = None) -> None:
    """Choose a recording and wait until it is open."""
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Choose a file").click()
    chooser.value.set_files(file or SOUND)
    page.get_by_label("Playback").wait_for()


def describe(page: Page, words: str) -> None:
    """Add a target in words, as soon as they are typed."""
    page.get_by_label("Describe a sound").fill(words)
    page.keyboard.press("Enter")


def complete(page: Page, words: str, label: str) -> None:
    """Add a target by the class that is offered for some words."""
    page.get_by_label("Describe a sound").fill(words)
    page.get_by_role("option").filter(has=page.get_by_text(label, exact=True)).first.click()


def ask(page: Page) -> None:
    """Open a recording and ask for a dog in it."""
    choose(page)
    complete(page, "dog", "Dog")
    button(page, "Separate").click()
    page.get_by_text("Waiting for a worker").wait_for()


def newest(service: Service, kind: str = "separations") -> dict[str, Any]:
    """Return the job that the page created last, once it has."""

    def jobs() -> list[dict[str, Any]]:
        return service.client.get(f"/v1/{kind}").json()["data"]

    eventually(jobs)
    return jobs()[0]


def hear(service: Service, *events: tuple[str, float, float], warnings: Sequence[str] = ()) -> None:
    """Finish the newest detection, as a worker does."""
    job = newest(service, "detections")
    found = [EventRecord(label=label, mid="/m/0", start=start, end=end, confidence=0.8) for label, start, end in events]
    recording = RecordingRecord(audio_id=job["audio"]["audio_id"], duration=1.0, sample_rate=16000, channels=1)
    model, picture = ModelRecord(name="base", version="1"), PictureRecord(key="none", bytes=0, sha256="0")
    result = DetectionResult(audio=recording, tags=[], events=found, model=model, picture=picture)
    service.publish(job["id"], result, warnings=warnings)


def violations(page: Page) -> list[str]:
    """Return what axe finds on the page as it is."""
    if not AXE.exists():
        return []
    page.evaluate(AXE.read_text())
    found = page.evaluate("async () => (await axe.run()).violations")
    return [f"{rule['id']}: {node['html']}: {node['failureSummary']}" for rule in found for node in rule["nodes"]]
