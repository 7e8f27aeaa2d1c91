"""The embedded service: a separation over HTTP, bad input, deaths of its programs, and shutdown."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import soundfile

from app.settings import Settings
from tests.end_to_end.deployment import ONE_THREAD, ROOT, TIMEOUT, eventually
from tests.end_to_end.log_secrets import require_no_secrets, secrets_of
from tests.end_to_end.recordings import RATE
from tests.live_folders import files_below
from tests.media_files import noise, not_media, wav_bytes, write_flac_silence

CODES = {"audio_undecodable", "audio_too_long", "audio_too_wide"}


class Service:
    """`python -m app --embedded` on its own folder."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.model = model
        self.start()

    def start(self) -> None:
        started = time.monotonic()
        self.log = self.home.with_name(f"{self.home.name}.log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command(), cwd=ROOT, env=self.environment(), stdout=log, stderr=log)
        log_start = self.log.stat().st_size
        url = eventually(lambda: self._ready_url(log_start))
        print(f"ready after {time.monotonic() - started:.1f} s")
        self.client = httpx.Client(base_url=url, timeout=TIMEOUT)

    def command(self) -> list[str]:
        words = [sys.executable, "-m", "app", "--embedded", "--port", "0", "--home", str(self.home)]
        return [*words, "--weights", str(self.model)]

    def environment(self) -> dict[str, str]:
        return {**os.environ, **ONE_THREAD}

    def _ready_url(self, log_start: int) -> str | None:
        log = self.log.read_bytes()[log_start:].decode()
        assert self.process.poll() is None, log
        for line in log.splitlines():
            if line.startswith("Earmark is ready: "):
                return line.split()[3]
        return None

    def programs(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def worker(self) -> psutil.Process | None:
        for program in self.programs():
            try:
                if "worker" in program.cmdline():
                    return program
            except psutil.NoSuchProcess:
                continue
        return None

    def stop(self) -> int:
        self.process.terminate()
        status = self.process.wait(TIMEOUT)
        self.client.close()
        return status

    # Client

    def upload(self, content: bytes, name: str = "sound.wav") -> httpx.Response:
        return self.client.post("/v1/audio", files={"file": (name, content)})

    def separate(self, seconds: float = 2.0, **options: Any) -> str:
        """Upload and create a separation in one request; return the URL of the job."""
        files = [("mixture", ("mixture.wav", sound(seconds))), ("query", ("query.wav", sound(1.0)))]
        answer = self.client.post("/v1/separations", files=files, data={"options": json.dumps(options)})
        assert answer.status_code == 202, answer.text
        return answer.headers["Location"]

    def wait(self, url: str, seconds: float = TIMEOUT) -> dict[str, Any]:
        """Wait until a job is finished; return it."""

        def finish() -> dict[str, Any] | None:
            job = self.client.get(url).raise_for_status().json()
            return job if job["finished_at"] else None

        return eventually(finish, seconds)

    def files(self) -> list[Path]:
        """Return the files in the store and in temporary folders."""
        folders = (self.home / "store", self.home / "scratch")
        return [path for folder in folders for path in files_below(folder) if path.name != "lock"]


def sound(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(round(seconds * RATE), 1).T, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("embedded") / "home", small_model)
    yield service
    if service.process.poll() is None:
        service.stop()
    print(service.log.read_text())
    require_no_secrets({"service": service.log.read_text()}, secrets_of(Settings()))


def test_words_and_an_example_separate(service: Service):
    mixture, example = (service.upload(sound(seconds)).json()["id"] for seconds in (2.0, 1.0))
    targets = [{"text": "My dog!"}, {"name": "pup", "text": "a puppy", "examples": [{"audio_id": example}]}]
    answer = service.client.post("/v1/separations", json={"mixture": {"audio_id": mixture}, "targets": targets})
    assert answer.status_code == 202, answer.text
    job = service.wait(answer.headers["Location"])
    assert job["status"] == "succeeded", job
    assert [(target["name"], target["status"], target["matched"]) for target in job["targets"]] == [
        (name, "succeeded", [{"label": "Dog", "weight": 1.0}]) for name in ("my-dog", "pup")
    ]
    assert [stem["name"] for stem in job["stems"]] == ["my-dog", "pup", "residual"]


def test_a_saved_query_separates_and_a_detection_has_a_timeline(service: Service):
    files = [("examples", ("a.wav", sound(1.0)))]
    query = service.client.post("/v1/queries", files=files, data={"name": "mine"}).raise_for_status().json()
    done = service.wait(query["url"])
    assert (done["status"], done["examples"]) == ("succeeded", 1) and done["seconds_used"] > 0
    mixture = service.upload(sound(2.0)).raise_for_status().json()["id"]
    target = {"name": "mine", "query_id": query["id"], "not_label": "Dog"}
    request = {"mixture": {"audio_id": mixture}, "targets": [target]}
    separation = service.client.post("/v1/separations", json=request).raise_for_status().json()
    assert service.client.delete(query["url"]).status_code == 204  # the separation has its own copy
    job = service.wait(separation["url"])
    assert job["status"] == "succeeded" and [stem["name"] for stem in job["stems"]] == ["mine", "residual"]
    detection = service.client.post("/v1/detections", json={"audio_id": mixture, "top": 3}).raise_for_status().json()
    job = service.wait(detection["url"])
    assert job["status"] == "succeeded" and len(job["tags"]) == 3
    assert service.client.get(job["timeline_url"]).content.startswith(b"\x89PNG\r\n")
    with service.client.stream("GET", job["events_url"]) as events:
        assert "event: state" in events.read().decode()


def test_a_separation_in_one_request(service: Service):
    url = service.separate(output={"format": "wav"})
    done = service.wait(url)
    assert done["status"] == "succeeded", done["error"]
    stems = {stem["name"]: stem for stem in done["stems"]}
    assert set(stems) == {"target", "residual"}
    total = np.zeros(2 * RATE)
    for stem in stems.values():
        content = service.client.get(stem["url"]).content
        assert len(content) == stem["bytes"]
        total += soundfile.read(io.BytesIO(content))[0]
    assert np.abs(total - soundfile.read(io.BytesIO(sound(2.0)))[0]).max() < 1e-5
    assert service.client.delete(url).status_code == 204
    service.client.delete(f"/v1/audio/{done['mixture']['audio_id']}").raise_for_status()


def bad_uploads(folder: Path) -> dict[str, bytes]:
    write_flac_silence(folder / "bomb.flac", 21700, rate=8000, channels=1)
    return not_media() | {
        "one-hertz.wav": wav_bytes(bytes(400), 1, 1, 16),
        "channels.wav": wav_bytes(bytes(2048 * 8), 1024, 44100, 16),
        "six hours of silence.flac": (folder / "bomb.flac").read_bytes(),
        "../../etc/passwd": b"root:x:0:0",
    }


def test_bad_uploads_are_rejected_and_leave_no_files(service: Service, tmp_path: Path):
    before, worker = service.files(), service.worker()
    for name, content in bad_uploads(tmp_path).items():
        answer = service.upload(content, name)
        assert answer.status_code == 422, f"{name}: {answer.status_code} {answer.text}"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] in CODES, f"{name}: {answer.text}"
    for name, part in (("playlist.mp3", "mixture"), ("random.mp3", "query")):
        files = {"mixture": ("a.wav", sound(0.5)), "query": ("b.wav", sound(0.5)), part: (name, not_media()[name])}
        assert service.client.post("/v1/separations", files=files).status_code == 422, name
    assert eventually(lambda: sorted(service.files()) == sorted(before))
    assert service.worker() == worker


def test_audio_that_fails_only_when_decoded_fails_its_job(service: Service):
    """The headers are valid, so the upload is accepted, and the worker fails to decode it."""
    worker = service.worker()
    answers = {
        "cut.flac": service.upload(flac_cut_short(), "cut.flac"),
        "silence.wav": service.upload(wav_bytes(bytes(2 * RATE), 1, RATE, 16), "silence.wav"),
    }
    mixture = service.upload(sound(1.0)).json()["id"]
    for name, answer in answers.items():
        assert answer.status_code < 500
        if answer.status_code != 201:
            continue
        example = answer.json()["id"]
        targets = [{"name": "it", "examples": [{"audio_id": example}]}]
        job = service.client.post("/v1/separations", json={"mixture": {"audio_id": mixture}, "targets": targets})
        assert job.status_code == 202, job.text
        done = service.wait(job.headers["Location"])
        assert done["status"] in ("failed", "succeeded")
        if done["error"]:
            assert done["error"]["code"] in {*CODES, "audio_silent"}, name
        service.client.delete(job.headers["Location"]).raise_for_status()
        service.client.delete(f"/v1/audio/{example}").raise_for_status()
    service.client.delete(f"/v1/audio/{mixture}").raise_for_status()
    assert service.worker() == worker


def flac_cut_short() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(4 * RATE, 1).T, RATE, format="FLAC")
    return file.getvalue()[: len(file.getvalue()) // 3]


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/v1/audio", b"not a form"),
        ("POST", "/v1/separations", b"{"),
        ("POST", "/v1/separations", b"[]"),
        ("POST", "/v1/separations", b'{"mixture": {"audio_id": "../../x"}, "targets": []}'),
        ("POST", "/v1/separations", b'{"mixture": {"audio_id": "aud_00000000000000000000000000"}, "targets": [{}]}'),
        ("POST", "/v1/separations", b"\xff\xfe" * 100),
        ("GET", "/v1/separations/nothing", b""),
        ("GET", "/v1/audio/..%2f..%2fetc", b""),
        ("PATCH", "/v1/audio", b""),
    ],
)
def test_bad_requests_are_client_errors(service: Service, method: str, path: str, content: bytes):
    answer = service.client.request(method, path, content=content, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"]


def test_a_second_service_on_the_same_folder_is_an_error(service: Service):
    second = subprocess.run(service.command(), cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert second.returncode == 1
    assert "already uses" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_port_in_use_is_an_error(service: Service, tmp_path: Path):
    port = str(service.client.base_url.port)
    words = [sys.executable, "-m", "app", "--embedded", "--port", port, "--home", str(tmp_path / "home")]
    second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert second.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in second.stderr


def test_a_killed_worker_is_replaced(service: Service):
    worker = service.worker()
    assert worker is not None
    worker.kill()
    done = service.wait(service.separate())
    assert done["status"] == "succeeded"
    assert service.worker() not in (None, worker)


def test_jobs_survive_a_restart_of_the_service(service: Service):
    """The service is stopped with a running job and waiting ones, and restarted on the same folder."""
    urls = [service.separate(60.0), service.separate(), service.separate()]
    programs = service.programs()
    assert service.client.get(urls[-1]).json()["status"] == "queued"
    assert service.stop() == 0
    eventually(lambda: not [program for program in programs if is_alive(program)])
    service.start()
    assert [service.wait(url)["status"] for url in urls] == ["succeeded"] * 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_a_killed_service_leaves_no_program_behind(service: Service):
    programs = service.programs()
    assert len(programs) >= 4
    service.process.send_signal(signal.SIGKILL)
    service.process.wait()
    service.client.close()
    eventually(lambda: not [program for program in programs if is_alive(program)])


def is_alive(program: psutil.Process) -> bool:
    try:
        return program.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
