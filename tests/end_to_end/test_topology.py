"""What docker-compose.yml describes, run as plain processes: all through the proxy, with an API killed meanwhile."""

import contextlib
import io
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from tests import programs
from tests.conftest import S3Server
from tests.end_to_end.deployment import QUICK, eventually
from tests.end_to_end.recordings import RATE
from tests.end_to_end.topology import Topology, free_ports, patiently, topology

SECONDS = 20.0  # of recording
REQUEST = "order-19"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server, small_model: Any) -> Iterator[Topology]:
    if programs.find("nginx") is None:
        pytest.skip("nginx is not installed, and `make tools` could not fetch it")
    with topology(tmp_path_factory.mktemp("topology"), seaweed.settings, **QUICK) as made:
        made.start_apis(*free_ports(2))
        made.python("housekeeping", "app", "housekeeping")
        made.start_workers(str(small_model), *free_ports(3))
        made.start_proxy()
        yield made
        print(made.told()[-30_000:])  # shown where a test has failed


@pytest.fixture
def client(deployed: Topology) -> Iterator[httpx.Client]:
    headers = {"X-Request-Id": REQUEST, "Authorization": f"Bearer {deployed.key}"}
    with httpx.Client(base_url=deployed.url, timeout=30, headers=headers) as client:
        yield client


def recording(seconds: float = SECONDS) -> tuple[np.ndarray, bytes]:
    samples = (0.1 * np.random.default_rng(3).standard_normal(round(seconds * RATE)) * 2**15).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="FLAC", subtype="PCM_16")
    return samples, file.getvalue()


def test_a_job_through_the_proxy_outlives_an_api(deployed: Topology, client: httpx.Client) -> None:
    samples, content = recording()
    audio = (
        patiently(lambda: client.post("/v1/audio", files={"file": ("street.flac", content)})).raise_for_status().json()
    )
    body = {
        "mixture": {"audio_id": audio["id"]},
        "targets": [{"name": "dog", "label": "Dog"}, {"name": "part", "spans": [{"start": 0.5, "end": 2.0}]}],
        "output": {"format": "wav"},
    }
    jobs = [patiently(lambda: client.post("/v1/separations", json=body)).raise_for_status().json() for _ in range(4)]

    victim = next(iter(deployed.apis.values()))
    victim.kill()
    victim.wait()
    killed = time.monotonic()
    assert patiently(lambda: client.get(jobs[0]["url"])).is_success
    print(f"answers again {time.monotonic() - killed:.2f} s after an API was killed")

    for job in jobs:
        done = job
        while done["status"] in ("queued", "running"):
            answer = patiently(lambda job=job: client.get(job["url"], headers={"Prefer": "wait=20"}))
            done = answer.raise_for_status().json()
        assert done["status"] == "succeeded", done
        total = np.zeros(len(samples))
        assert [stem["name"] for stem in done["stems"]] == ["dog", "part", "residual"]
        for stem in done["stems"]:
            sent_on = patiently(lambda stem=stem: client.get(stem["url"]))
            assert sent_on.status_code == 303
            # To the store, by a signed address of the proxy's own.
            assert sent_on.headers["location"].startswith(f"{deployed.url}/earmark/")
            stem_read, _ = soundfile.read(io.BytesIO(httpx.get(sent_on.headers["location"]).raise_for_status().content))
            total += stem_read
        assert np.abs(total - samples / 2**15).max() < 1e-5

    workers = [log.read_text() for program, log in deployed.logs.items() if program in deployed.workers]
    assert sum(f"{jobs[0]['id']}: begun" in log for log in workers) == 1
    lines = [json.loads(line) for log in workers for line in log.splitlines() if line.startswith("{")]
    about = [line for line in lines if line.get("job_id") == jobs[0]["id"]]
    assert about and any(line.get("request_id") == REQUEST for line in about), "one id from the header to the worker"


def test_the_store_gives_nothing_without_a_signature(deployed: Topology, client: httpx.Client) -> None:
    _, content = recording(1.0)
    audio = client.post("/v1/audio", files={"file": content}).raise_for_status().json()
    address = f"/earmark/{deployed.folder.name}/audio/{audio['id']}"
    for method in ("GET", "PUT", "DELETE"):
        assert httpx.request(method, f"{deployed.url}{address}", content=b"x").status_code == 403
    assert httpx.get(f"{deployed.url}/earmark/?list-type=2").status_code == 403


def test_metrics_are_not_for_clients(client: httpx.Client) -> None:
    assert client.get("/metrics").status_code == 404


def test_workers_tell_what_they_did(deployed: Topology, client: httpx.Client) -> None:
    _, content = recording(1.0)
    job = client.post("/v1/separations", files={"mixture": content}, data={"label": "Dog"}).raise_for_status().json()
    eventually(lambda: client.get(job["url"]).json()["status"] == "succeeded")
    ports = [deployed.metrics_ports[program] for program in deployed.workers]
    pages = [httpx.get(f"http://127.0.0.1:{port}/metrics").text for port in ports]

    def total(name: str) -> float:
        return sum(
            float(line.rsplit(" ", 1)[1]) for page in pages for line in page.splitlines() if line.startswith(name + "{")
        )

    assert total("earmark_jobs_finished_total") >= 1
    assert total("earmark_audio_seconds_total") >= 1.0
    assert total("earmark_job_stage_duration_seconds_count") >= 3
    assert total("earmark_store_call_duration_seconds_count") >= 3
    assert any("earmark_batch_size_count" in page for page in pages)
    assert not any("earmark_gpu" in page for page in pages), "there is no GPU here"


def test_events_stream_through_the_proxy(client: httpx.Client) -> None:
    _, content = recording(1.0)
    job = client.post("/v1/separations", files={"mixture": content}, data={"label": "Dog"}).raise_for_status().json()
    with client.stream("GET", f"/v1/separations/{job['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        states = [json.loads(line[6:])["status"] for line in answer.iter_lines() if line.startswith("data: {")]
    assert states[0] == "queued" and states[-1] == "succeeded"


def test_whoever_dribbles_is_cut_off(deployed: Topology) -> None:
    """nginx has 10 s for headers; the body's end is another 30 s, so that test is the app's own."""
    with socket.create_connection(("127.0.0.1", deployed.proxy_port)) as slow:
        slow.settimeout(20)
        begun = time.monotonic()
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        with contextlib.suppress(ConnectionError):
            assert b"200" not in slow.recv(1024)
        assert 5 < time.monotonic() - begun < 15


def test_a_body_over_the_limit_is_refused_at_the_door(deployed: Topology) -> None:
    with socket.create_connection(("127.0.0.1", deployed.proxy_port)) as sender:
        sender.settimeout(5)
        sender.sendall(f"POST /v1/audio HTTP/1.1\r\nHost: x\r\nContent-Length: {600 << 20}\r\n\r\n".encode())
        assert sender.recv(1024).startswith(b"HTTP/1.1 413 ")
