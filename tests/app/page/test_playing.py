"""The page plays stems together."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from app.settings import Settings
from tests.app.conftest import LIMITS, Service, empty, eventually, serve, wav
from tests.app.page.studio import SOUND, STEMS, ask, button, choose, describe, newest, visit

# Positions of all media elements, read at once, every 100 ms for a while; Playwright cannot read them at once.
SPREADS = """async () => {
  const players = [...document.querySelectorAll("audio")];
  const spreads = [];
  for (let turn = 0; turn < 15; turn++) {
    await new Promise((done) => setTimeout(done, 100));
    const times = players.map((player) => player.currentTime);
    spreads.push(Math.max(...times) - Math.min(...times));
  }
  return { spreads, players: players.length, playing: players.filter((player) => !player.paused).length };
}"""
# Keeps what each start of a decoded track was told.
KEEP_STARTS = """window.starts = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when, offset) {
  window.starts.push([when, offset]);
  return start.call(this, when, offset);
};"""


def test_short_stems_start_at_the_same_sample(page: Page, folder_service: Service) -> None:
    page.add_init_script(KEEP_STARTS)
    visit(page, folder_service)
    ask(page)
    folder_service.finish(newest(folder_service)["id"], STEMS)
    button(page, "Hear it").click()
    page.wait_for_function("() => parseFloat(document.querySelector('[role=slider]').ariaValueNow) > 0.2")
    starts = page.evaluate("window.starts")
    assert len(starts) == 3 and all(start == starts[0] for start in starts)  # mixture, stem, residual


@pytest.fixture
def roomy_service(valkey: Any, redis: Any, tmp_path: Path) -> Iterator[Service]:
    """The front end for recordings of hours."""
    limits = {**LIMITS, "upload_bytes": 64 * 1024 * 1024, "recording_seconds": 7200.0}
    for service in serve(Settings(home=tmp_path, redis_url=valkey.connection_url, **limits), tmp_path):
        yield empty(service)


def test_long_stems_are_streamed_and_kept_together(page: Page, roomy_service: Service) -> None:
    long = wav(seconds=310, rate=8000)
    problems = visit(page, roomy_service)
    choose(page, {**SOUND, "buffer": long})
    describe(page, "Dog")
    button(page, "Separate").click()
    page.get_by_text("Waiting for a worker").wait_for()
    roomy_service.finish(newest(roomy_service)["id"], {"Dog": long, "residual": long})
    button(page, "Hear it").click()
    page.wait_for_function("() => parseFloat(document.querySelector('[role=slider]').ariaValueNow) > 1")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("() => parseFloat(document.querySelector('[role=slider]').ariaValueNow) > 5")
    measured = page.evaluate(SPREADS)
    assert (measured["players"], measured["playing"]) == (3, 3)
    # Tracks that start apart, as those of a busy machine do, come together and stay so.
    eventually(lambda: statistics.median(page.evaluate(SPREADS)["spreads"]) < 0.03)  # seconds
    assert problems == []
