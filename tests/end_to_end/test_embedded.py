"""The whole service from one command: a separation over HTTP, bad input, deaths of its parts, and its end."""

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

from tests.end_to_end.deployment import ONE_THREAD, PATIENCE, ROOT, eventually
from tests.end_to_end.recordings import RATE
from tests.media_files import noise, not_media, wav_bytes, write_flac_silence

CODES = {"audio_undecodable", "audio_too_long", "audio_too_wide"}


class Service:
    """`python -m app --embedded` on a folder of its own."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.model = model
        self.start()

    def start(self) -> None:
        began = time.monotonic()
        self.log = self.home.with_name(f"{self.home.name}.log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command(), cwd=ROOT, env=self.environment(), stdout=log, stderr=log)
        begun = self.log.stat().st_size
        ready = eventually(lambda: self._ready(begun))
        print(f"ready after {time.monotonic() - began:.1f} s")
        self.client = httpx.Client(base_url=ready, timeout=PATIENCE)

    def command(self) -> list[str]:
        words = [sys.executable, "-m", "app", "--embedded", "--port", "0", "--home", str(self.home)]
        return [*words, "--weights", str(self.model)]

    def environment(self) -> dict[str, str]:
        return {**os.environ, **ONE_THREAD}

    def _ready(self, begun: int) -> str | None:
        said = self.log.read_bytes()[begun:].decode()
        assert self.process.poll() is None, said
        for line in said.splitlines():
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
        status = self.process.wait(PATIENCE)
        self.client.close()
        return status

    # What a client does

    def upload(self, content: bytes, name: str = "sound.wav") -> httpx.Response:
        return self.client.post("/v1/audio", files={"file": (name, content)})

    def separate(self, seconds: float = 2.0, **options: Any) -> str:
        """One call for everything; returns the job's address."""
        files = [("mixture", ("mixture.wav", sound(seconds))), ("query", ("query.wav", sound(1.0)))]
        answer = self.client.post("/v1/separations", files=files, data={"options": json.dumps(options)})
        assert answer.status_code == 202, answer.text
        return answer.headers["Location"]

    def finished(self, address: str, seconds: float = PATIENCE) -> dict[str, Any]:
        def over() -> dict[str, Any] | None:
            job = self.client.get(address).raise_for_status().json()
            return job if job["finished_at"] else None

        return eventually(over, seconds)

    def files(self) -> list[Path]:
        """What lies in the store and in temporary folders."""
        places = (self.home / "store", self.home / "scratch")
        return [path for place in places for path in place.rglob("*") if path.is_file() and path.name != "lock"]


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


def test_a_saved_query_is_asked_with_and_a_detection_drawn(service: Service):
    files = [("examples", ("a.wav", sound(1.0)))]
    query = service.client.post("/v1/queries", files=files, data={"name": "mine"}).raise_for_status().json()
    done = service.finished(query["url"])
    assert (done["status"], done["examples"]) == ("succeeded", 1) and done["seconds_used"] > 0
    mixture = service.upload(sound(2.0)).raise_for_status().json()["id"]
    target = {"name": "mine", "query_id": query["id"], "not_label": "Dog"}
    asked = {"mixture": {"audio_id": mixture}, "targets": [target]}
    separation = service.client.post("/v1/separations", json=asked).raise_for_status().json()
    assert service.client.delete(query["url"]).status_code == 204  # the separation has what it needs
    told = service.finished(separation["url"])
    assert told["status"] == "succeeded" and [stem["name"] for stem in told["stems"]] == ["mine", "residual"]
    detection = service.client.post("/v1/detections", json={"audio_id": mixture, "top": 3}).raise_for_status().json()
    told = service.finished(detection["url"])
    assert told["status"] == "succeeded" and len(told["tags"]) == 3
    assert service.client.get(told["timeline_url"]).content.startswith(b"\x89PNG\r\n")
    with service.client.stream("GET", told["events_url"]) as events:
        assert "event: state" in events.read().decode()


def test_a_separation_in_one_call(service: Service):
    address = service.separate(output={"format": "wav"})
    done = service.finished(address)
    assert done["status"] == "succeeded", done["error"]
    stems = {stem["name"]: stem for stem in done["stems"]}
    assert set(stems) == {"target", "residual"}
    total = np.zeros(2 * RATE)
    for stem in stems.values():
        content = service.client.get(stem["url"]).content
        assert len(content) == stem["bytes"]
        total += soundfile.read(io.BytesIO(content))[0]
    assert np.abs(total - soundfile.read(io.BytesIO(sound(2.0)))[0]).max() < 1e-5
    assert service.client.delete(address).status_code == 204
    service.client.delete(f"/v1/audio/{done['mixture']['audio_id']}").raise_for_status()


def bad_uploads(folder: Path) -> dict[str, bytes]:
    write_flac_silence(folder / "bomb.flac", 7300, rate=8000)
    return not_media() | {
        "one-hertz.wav": wav_bytes(bytes(400), 1, 1, 16),
        "channels.wav": wav_bytes(bytes(2048 * 8), 1024, 44100, 16),
        "two hours of silence.flac": (folder / "bomb.flac").read_bytes(),
        "../../etc/passwd": b"root:x:0:0",
    }


def test_bad_uploads_are_refused_and_leave_nothing(service: Service, tmp_path: Path):
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
    """Its headers are well, so that the upload is accepted; the worker finds out."""
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
        done = service.finished(job.headers["Location"])
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
        ("POST", "/v1/audio", b"no form"),
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
def test_bad_requests_are_the_clients_fault(service: Service, method: str, path: str, content: bytes):
    answer = service.client.request(method, path, content=content, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"]


def test_a_second_service_on_the_same_folder_says_so(service: Service):
    second = subprocess.run(service.command(), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert second.returncode == 1
    assert "already uses" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_taken_port_says_so(service: Service, tmp_path: Path):
    port = str(service.client.base_url.port)
    words = [sys.executable, "-m", "app", "--embedded", "--port", port, "--home", str(tmp_path / "home")]
    second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert second.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in second.stderr


def test_a_killed_worker_is_replaced(service: Service):
    worker = service.worker()
    assert worker is not None
    worker.kill()
    done = service.finished(service.separate())
    assert done["status"] == "succeeded"
    assert service.worker() not in (None, worker)


def test_what_was_accepted_survives_the_service(service: Service):
    """Stopped with jobs that wait and one that runs, started again on the same folder: all are done."""
    addresses = [service.separate(60.0), service.separate(), service.separate()]
    programs = service.programs()
    assert service.client.get(addresses[-1]).json()["status"] == "queued"
    assert service.stop() == 0
    assert not [program for program in programs if program.is_running()]
    service.start()
    assert [service.finished(address)["status"] for address in addresses] == ["succeeded"] * 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_a_killed_service_leaves_no_program_behind(service: Service):
    programs = service.programs()
    assert len(programs) >= 4
    service.process.send_signal(signal.SIGKILL)
    service.process.wait()
    service.client.close()
    eventually(lambda: not [program for program in programs if alive(program)])


def alive(program: psutil.Process) -> bool:
    try:
        return program.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
