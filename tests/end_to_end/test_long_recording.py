"""A recording of hours, from its upload to its stems, in bounded memory and scratch."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from app.records.separations import OutputRecord
from app.records.sizes import SeparationSize
from tests.end_to_end.conftest import is_ready
from tests.end_to_end.deployment import Deployment, eventually
from tests.end_to_end.figures import SOAK, Figures
from tests.end_to_end.recordings import RATE
from tests.live_folders import files_below
from tests.ports import free_ports

HOURS = float(os.environ.get("EARMARK_SOAK_HOURS", 1.0 if SOAK else 0.025))
SHORT = 30.0  # seconds, several windows of the model
# MiB that a process may need more than for a short recording: half of what the decoded one has.
GROWTH = max(64, int(HOURS * 3600) * RATE * 4 // 2 >> 20)
MOST_SECONDS = 6 * 3600.0  # of a job


@dataclass
class Peak:
    """The most bytes that the files in a folder had at once."""

    bytes: int = 0


def write_recording(path: Path, seconds: float) -> int:
    """Write noise with a beep every minute as FLAC; return the number of samples."""
    minute = 0.05 * np.random.default_rng(0).standard_normal(60 * RATE)
    minute[: RATE // 2] += 0.3 * np.sin(2 * np.pi * 1000 * np.arange(RATE // 2) / RATE)
    samples = round(seconds * RATE)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16", format="FLAC") as file:
        for start in range(0, samples, len(minute)):
            file.write(minute[: samples - start])
    return samples


@contextmanager
def watched(folder: Path) -> Iterator[Peak]:
    """Measure the files in a folder while the block runs."""
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            size = 0
            for path in files_below(folder):
                with suppress(FileNotFoundError):
                    size += path.stat().st_blocks * 512
            peak.bytes = max(peak.bytes, size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def peak_memory(process: int) -> int:
    """Return the most memory that a process has had, in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) >> 10


def separate(client: httpx.Client, recording: Path) -> dict[str, Any]:
    """Upload a recording, separate a class from it and return the job as it ends."""
    with recording.open("rb") as file:
        upload = client.post("/v1/audio", files={"file": ("recording.flac", file)})
    assert upload.status_code == 201, upload.text
    body = {"mixture": {"audio_id": upload.json()["id"]}, "targets": [{"name": "dog", "label": "Dog"}]}
    made = client.post("/v1/separations", json=body)
    assert made.status_code == 202, made.text

    def over() -> dict[str, Any] | None:
        job = client.get(made.headers["location"]).json()
        return job if job["status"] not in ("queued", "running") else None

    job = eventually(over, MOST_SECONDS)
    assert job["status"] == "succeeded", job["error"]
    return job


def download(client: httpx.Client, job: dict[str, Any], name: str, path: Path) -> None:
    url = next(stem["url"] for stem in job["stems"] if stem["name"] == name)
    with client.stream("GET", url) as response, path.open("wb") as file:
        assert response.status_code == 200
        for content in response.iter_bytes():
            file.write(content)


@pytest.mark.soak
@pytest.mark.timeout(8 * 3600 if SOAK else 300)
def test_a_recording_of_hours_is_separated_in_bounded_memory_and_scratch(
    deploy: Callable[..., Deployment], figures: Figures, tmp_path: Path
) -> None:
    """`make test` has a minute and a half of it and a small model."""
    (port,) = free_ports(1)
    deployment = deploy(auth="off")
    api = deployment.start("app", "--port", str(port))
    deployment.start_housekeeping()
    [worker] = deployment.start_workers(1, model=Path("base") if SOAK else None)
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: is_ready(url))
    paths = {seconds: tmp_path / f"{seconds:g}.flac" for seconds in (SHORT, HOURS * 3600)}
    samples = {seconds: write_recording(path, seconds) for seconds, path in paths.items()}
    with httpx.Client(base_url=url, timeout=120) as client:
        separate(client, paths[SHORT])
        before = peak_memory(worker.pid), peak_memory(api.pid)
        started = time.monotonic()
        with watched(deployment.folder / "scratch") as scratch:
            job = separate(client, paths[HOURS * 3600])
        seconds = time.monotonic() - started
        after = peak_memory(worker.pid), peak_memory(api.pid)
        for name in ("dog", "residual"):
            download(client, job, name, tmp_path / f"{name}.flac")
    more = np.subtract(after, before)
    assert max(more) < GROWTH, f"{before} MiB became {after} MiB"
    size = SeparationSize(RATE, 1, HOURS * 3600, 1, OutputRecord())
    assert scratch.bytes <= size.scratch_bytes + paths[HOURS * 3600].stat().st_size + (1 << 20)
    assert deployment.temporary_files() == []
    assert_adds_up(paths[HOURS * 3600], [tmp_path / "dog.flac", tmp_path / "residual.flac"], samples[HOURS * 3600])
    figures.add(
        "long",
        f"{HOURS:g} h, mono at {RATE // 1000} kHz, FLAC of {paths[HOURS * 3600].stat().st_size >> 20} MiB",
        f"{seconds:.0f} s from the upload on",
        f"{after[0]} MiB, {more[0]} more than for {SHORT:g} s; API {after[1]}, {more[1]} more",
        f"{scratch.bytes >> 20} MiB of the {size.scratch_bytes >> 20} estimated, nothing left",
        "stem and residual as long as the recording, and their sum is it to the bit",
    )


def assert_adds_up(mixture: Path, stems: list[Path], samples: int) -> None:
    """Assert that stems have the mixture's length, and in every minute add up to it."""
    with soundfile.SoundFile(mixture) as whole:
        files = [soundfile.SoundFile(path) for path in stems]
        assert [file.frames for file in (whole, *files)] == [samples] * 3
        while len(block := whole.read(60 * RATE, dtype="int32")):
            parts = [file.read(60 * RATE, dtype="int32").astype(np.int64) for file in files]
            np.testing.assert_array_equal(sum(parts), block)
        for file in files:
            file.close()
