"""The topology of docker-compose.yml as plain processes: requests through the proxy, and the death of an API."""

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from tusclient.client import TusClient

from tests import programs
from tests.conftest import S3Server
from tests.end_to_end.deployment import FAST, eventually
from tests.end_to_end.recordings import RATE
from tests.end_to_end.topology import Topology, retry, topology
from tests.ports import free_ports

SECONDS = 20.0  # duration of the recording
REQUEST = "order-19"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server, small_model: Any) -> Iterator[Topology]:
    if programs.find("nginx") is None:
        pytest.skip("nginx is not installed, and `make tools` could not fetch it")
    with topology(tmp_path_factory.mktemp("topology"), seaweed.settings, **FAST) as running:
        running.start_apis(*free_ports(2))
        running.python("housekeeping", "app", "housekeeping")
        running.start_workers(str(small_model), *free_ports(3))
        running.start_proxy()
        yield running
        print(running.read_logs()[-30_000:])  # shown if a test fails


@pytest.fixture
def client(deployment: Topology) -> Iterator[httpx.Client]:
    headers = {"X-Request-Id": REQUEST, "Authorization": f"Bearer {deployment.key}"}
    with httpx.Client(base_url=deployment.url, timeout=30, headers=headers) as client:
        yield client


def recording(seconds: float = SECONDS) -> tuple[np.ndarray, bytes]:
    samples = (0.1 * np.random.default_rng(3).standard_normal(round(seconds * RATE)) * 2**15).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="FLAC", subtype="PCM_16")
    return samples, file.getvalue()


def test_jobs_through_the_proxy_survive_the_death_of_an_api(deployment: Topology, client: httpx.Client) -> None:
    samples, content = recording()
    audio = retry(lambda: client.post("/v1/audio", files={"file": ("street.flac", content)})).raise_for_status().json()
    body = {
        "mixture": {"audio_id": audio["id"]},
        "targets": [{"name": "dog", "label": "Dog"}, {"name": "part", "spans": [{"start": 0.5, "end": 2.0}]}],
        "output": {"format": "wav"},
    }
    jobs = [retry(lambda: client.post("/v1/separations", json=body)).raise_for_status().json() for _ in range(4)]

    victim = next(iter(deployment.apis.values()))
    victim.kill()
    victim.wait()
    killed = time.monotonic()
    assert retry(lambda: client.get(jobs[0]["url"])).is_success
    print(f"responds again {time.monotonic() - killed:.2f} s after an API was killed")

    for job in jobs:
        done = job
        while done["status"] in ("queued", "running"):
            answer = retry(lambda job=job: client.get(job["url"], headers={"Prefer": "wait=20"}))
            done = answer.raise_for_status().json()
        assert done["status"] == "succeeded", done
        total = np.zeros(len(samples))
        assert [stem["name"] for stem in done["stems"]] == ["dog", "part", "residual"]
        for stem in done["stems"]:
            redirect = retry(lambda stem=stem: client.get(stem["url"]))
            assert redirect.status_code == 303
            # To the store, through a presigned URL of the proxy.
            assert redirect.headers["location"].startswith(f"{deployment.url}/earmark/")
            stem_read, _ = soundfile.read(
                io.BytesIO(httpx.get(redirect.headers["location"], timeout=60).raise_for_status().content)
            )
            total += stem_read
        assert np.abs(total - samples / 2**15).max() < 1e-5

    workers = [log.read_text() for program, log in deployment.logs.items() if program in deployment.workers]
    assert sum(f"{jobs[0]['id']}: begun" in log for log in workers) == 1
    lines = [json.loads(line) for log in workers for line in log.splitlines() if line.startswith("{")]
    job_lines = [line for line in lines if line.get("job_id") == jobs[0]["id"]]
    assert job_lines and any(line.get("request_id") == REQUEST for line in job_lines), (
        "the request id of the header reaches the worker"
    )


def test_a_resumable_upload_through_the_proxy(deployment: Topology, client: httpx.Client) -> None:
    samples, content = recording()
    upload = TusClient(f"{deployment.url}/v1/audio", {"Authorization": f"Bearer {deployment.key}"}).uploader(
        file_stream=io.BytesIO(content), chunk_size=len(content) // 3, retries=30, retry_delay=1
    )
    upload.upload()
    assert upload.url is not None and upload.url.startswith(deployment.url)
    audio = client.get(upload.url).raise_for_status().json()
    assert (audio["bytes"], audio["duration"]) == (len(content), len(samples) / RATE)
    assert client.delete(upload.url).status_code == 204


def test_workers_export_metrics_of_their_jobs(deployment: Topology, client: httpx.Client) -> None:
    _, content = recording(1.0)
    job = client.post("/v1/separations", files={"mixture": content}, data={"label": "Dog"}).raise_for_status().json()
    eventually(lambda: client.get(job["url"]).json()["status"] == "succeeded")
    ports = [deployment.metrics_ports[program] for program in deployment.workers]
    pages = [httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text for port in ports]

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
