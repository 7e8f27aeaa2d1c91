"""The page in a real browser, on the whole service with the shipped model: from a dropped file to stems that sound."""

from playwright.sync_api import Page

from tests.browser import opened
from tests.end_to_end.deployment import ROOT

RECORDINGS = ROOT / "app" / "demo" / "recordings"
# Number of drawn pixels of a waveform, read from a copy of its canvas: Chromium warns of canvases that are read often.
DRAWN = """(id) => [...document.querySelectorAll(id)].map((box) => {
  const canvas = box.firstElementChild?.shadowRoot?.querySelector("canvas");
  if (!canvas) return 0;
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const rows = copy.getImageData(0, canvas.height / 4, canvas.width, canvas.height / 2).data;
  return rows.filter((value, at) => at % 4 === 3 && value > 0).length;
})"""


def separate(page: Page) -> None:
    page.get_by_role("button", name="Separate").click()
    page.get_by_text("At work").or_(page.get_by_text("Done.")).first.wait_for()
    page.get_by_role("link", name="Download all as a zip").wait_for()


def test_from_a_recording_to_stems(service: str) -> None:
    with opened() as page:
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(service)
        page.get_by_label("choose a file").set_input_files(RECORDINGS / "mixture.flac")
        page.get_by_text("mixture.flac: flac, 44100 Hz, 2 ch, 6.0 s").wait_for()

        page.get_by_label("Examples").set_input_files(RECORDINGS / "example.flac")
        separate(page)
        assert page.locator(".stem h3").all_inner_texts() == ["sound", "residual"]
        page.wait_for_function(f"() => ({DRAWN})('.wave').every((drawn) => drawn > 500)")
        played = page.evaluate(
            "async () => { const stem = document.querySelector('.stem audio'); stem.muted = true; await stem.play();"
            " await new Promise((done) => stem.addEventListener('timeupdate', done)); return stem.duration }"
        )
        assert 5.9 < played < 6.0

        page.get_by_role("button", name="What is in it?").click()
        page.get_by_role("button", name="Bird", exact=True).click()
        assert page.get_by_label("The sound's name").input_value() == "Bird"
        separate(page)

        page.get_by_label("sounds alone for a moment").check()
        wave = page.locator("#mixture-wave")
        wave.scroll_into_view_if_needed()
        box = wave.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20, steps=5)
        page.mouse.up()
        span = [float(page.get_by_label(name, exact=True).input_value()) for name in ("From", "to")]
        assert abs(span[0] - 1.5) < 0.2 and abs(span[1] - 3.0) < 0.2
        separate(page)
        assert wrong == []
