"""What the person on call relies on: ids in logs, no secrets there, health of housekeeping, a lost Redis, `check`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from tests.app.receivers import receiver
from tests.conftest import REPOSITORY, S3Server
from tests.end_to_end.deployment import FAST, TIMEOUT, Deployment, eventually
from tests.end_to_end.log_secrets import require_no_secrets
from tests.end_to_end.recordings import noise
from tests.end_to_end.topology import Topology, topology
from tests.ports import free_ports

TERMINAL = ("succeeded", "failed", "canceled")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server, small_model: Path) -> Iterator[Topology]:
    """An API, housekeeping and a worker on S3, which may send webhooks to one port of this machine."""
    api, page, hook, worker = free_ports(4)
    outside = {"outside_networks": "127.0.0.0/8", "outside_ports": str(hook)}
    settings = {**FAST, **outside, "housekeeping_metrics_port": page}

    def store(prefix: str, **others: Any) -> Settings:
        """Sign for the store itself: there is no proxy."""
        return seaweed.settings(prefix, **{**others, "store_public_endpoint": None})

    with topology(tmp_path_factory.mktemp("operating"), store, **settings) as running:
        running.start_apis(api)
        running.python("housekeeping", "app", "housekeeping")
        running.start_workers(str(small_model), worker)
        yield running
        print(running.read_logs()[-30_000:])  # shown if a test fails


@pytest.fixture
def client(running: Topology) -> Iterator[httpx.Client]:
    (port,) = running.apis
    headers = {"Authorization": f"Bearer {running.key}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=headers) as client:
        yield client


def log_of(running: Topology, name: str) -> str:
    return "".join(log.read_text() for log in running.logs.values() if log.name.startswith(f"{name}-"))


def lines_with(running: Topology, name: str, word: str) -> list[dict[str, Any]]:
    """Return the lines of a kind of program that `grep WORD` finds."""
    return [json.loads(line) for line in log_of(running, name).splitlines() if word in line]


def run(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m app WORDS` with settings."""
    return subprocess.run(
        [sys.executable, "-m", "app", *words],
        cwd=REPOSITORY,
        env={**os.environ, **settings.as_environment(), "EARMARK_LOG_FORMAT": "text"},
        capture_output=True,
        text=True,
        timeout=150,
    )


def finish(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    return eventually(lambda: (now := client.get(job["url"]).json())["status"] in TERMINAL and now)


def test_grep_finds_a_job_in_all_logs_and_no_secret_in_any(running: Topology, client: httpx.Client) -> None:
    content = noise(1.0)
    presigned = client.post("/v1/audio/presign", json={"bytes": len(content), "filename": "a.flac"}).json()
    direct = presigned["upload"]["url"]
    assert httpx.put(direct, content=content, headers=presigned["upload"]["headers"]).is_success
    audio = client.post(f"/v1/audio/{presigned['audio']['id']}/complete").raise_for_status().json()
    with receiver(address="127.0.0.2", port=int(running.settings.outside_ports)) as served:
        webhook = {"url": f"{served.url}?token=of-the-receiver", "events": ["succeeded", "failed"]}
        body = {
            "mixture": {"audio_id": audio["id"]},
            "targets": [{"name": "part", "spans": [{"start": 0.1, "end": 0.9}]}],
            "webhook": webhook,
        }
        job = client.post("/v1/separations", json=body).raise_for_status().json()
        done = finish(client, job)
        assert done["status"] == "succeeded", done
        eventually(lambda: served.requests)
        signature = served.requests[0].headers["webhook-signature"]
    with httpx.Client(base_url=client.base_url) as anybody:
        assert anybody.get(f"{done['stems'][0]['url']}&redirect=0").is_success
        assert anybody.get(f"{done['stems'][0]['url']}x").status_code in (401, 404)
        assert anybody.get(done["archive_url"], headers={"Authorization": "Bearer not-this-one"}).status_code == 401
        stem = anybody.get(done["stems"][0]["url"])
    assert stem.status_code == 303
    eventually(lambda: lines_with(running, "housekeeping", job["id"]))

    [made] = [line for line in lines_with(running, "api", job["id"]) if job["id"] in line.get("made", [])]
    assert made["message"] == "POST /v1/separations 202" and made["key"].startswith("key_") and made["client"]
    messages = [line["message"] for line in lines_with(running, "worker", job["id"])]
    assert any("done" in message for message in messages)
    assert all(line["job_id"] == job["id"] for line in lines_with(running, "worker", job["id"]))

    tokens = [done[name].partition("token=")[2] for name in ("url", "events_url", "archive_url")]
    used = {running.key, signature, "of-the-receiver", "not-this-one", *tokens}
    used |= {part for url in (direct, stem.headers["location"]) for part in url.split("&") if "Signature=" in part}
    assert len(used) >= 8 and all(used)
    require_no_secrets({name: log_of(running, name) for name in ("api", "worker", "housekeeping")}, used)


def test_a_secret_in_a_log_is_found() -> None:
    for secret in (
        "GET /x?token=abcdef",
        "X-Amz-Signature=0123456789abcdef",
        f"emk_01ARZ3NDEKTSV4RRFFQ69G5FAV_{'x' * 43}",
        "hush",
    ):
        with pytest.raises(AssertionError) as caught:
            require_no_secrets({"api": f"a line\n{secret}\n"}, {"hush"})
        assert "api: " in str(caught.value)
    require_no_secrets({"api": "GET /x?token=..."}, {"hush"})


def test_the_keys_of_a_lost_redis_come_back_and_what_is_orphaned_goes(running: Topology, client: httpx.Client) -> None:
    exported = run(running.settings, "keys", "export", "--webhook-secrets")
    assert exported.returncode == 0 and running.key not in exported.stdout
    audio = client.post("/v1/audio", files={"file": ("a.flac", noise(0.5))}).raise_for_status().json()
    usage = client.get("/v1/usage").raise_for_status().json()
    assert usage["total"]["requests"] > 0 and usage["total"]["stored_bytes"] >= audio["bytes"]
    file = running.folder / "keys.jsonl"
    file.write_text(exported.stdout)

    running.redis.flushall()
    assert client.get("/v1/limits").status_code == 401
    assert run(running.settings, "keys", "import", str(file)).returncode == 0
    assert client.get("/v1/limits").status_code == 200
    kept = client.post("/v1/audio", files={"file": ("b.flac", noise(0.5))}).raise_for_status().json()
    told = run(running.settings, "housekeeping", "reconcile", "--dry-run")
    assert f"audio/{audio['id']}  1 objects" in told.stdout and kept["id"] not in told.stdout
    assert run(running.settings, "housekeeping", "reconcile", "--grace", "0").returncode == 0
    [housekeeping] = [program for program, log in running.logs.items() if log.name.startswith("housekeeping-")]
    housekeeping.terminate()
    housekeeping.wait(60)
    running.python("housekeeping", "app", "housekeeping")  # removes at once what is due, and not within a minute
    storage = running.open_storage()
    eventually(lambda: storage.keys("audio") == [f"audio/{kept['id']}"] and storage.keys("separations") == [])
    assert client.get(f"/v1/audio/{kept['id']}/content").is_success


def test_check_tells_what_is_wrong(running: Topology) -> None:
    eventually(lambda: running.registry.workers_by_name().get("base"))  # announced again, if Redis was emptied
    done = run(running.settings, "check")
    assert done.returncode == 0, done.stdout
    states = {line[:15].strip(): line[17:].split()[0] for line in done.stdout.splitlines() if line[:1].strip()}
    assert {"queue", "store", "keys", "clock", "memory policy", "persistence"} <= states.keys()
    assert {name: state for name, state in states.items() if state != "ok"}.keys() <= {"memory", "housekeeping"}

    running.redis.config_set("maxmemory", "1gb")
    running.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        missing = running.settings.model_copy(update={"store": "s3://no-such-bucket/x"})
        done = run(missing, "check")
    finally:
        running.redis.config_set("maxmemory-policy", "noeviction")
        running.redis.config_set("maxmemory", 0)
    assert done.returncode == 1
    faults = [line for line in done.stdout.splitlines() if " fault " in line]
    assert len(faults) == 2 and "bucket of the object store does not exist" in faults[0] and "allkeys-lru" in faults[1]
    assert "-> set maxmemory-policy noeviction" in done.stdout

    wrong = running.settings.model_copy(update={"redis_url": "redis://:wrong-password@127.0.0.1:9/0", "auth": "off"})
    done = run(wrong, "check")
    assert done.returncode == 1 and "queue            fault" in done.stdout
    assert "wrong-password" not in done.stdout + done.stderr


def test_a_missing_bucket_is_told_and_takes_no_uploads(running: Topology) -> None:
    (port,) = free_ports(1)
    api = running.python("api-without-bucket", "app", port=port, store="s3://no-such-bucket/x")
    url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {running.key}"}
    eventually(lambda: running.responds(api, f"{url}/livez"))
    ready = httpx.get(f"{url}/readyz", timeout=60)
    uploaded = httpx.post(f"{url}/v1/audio", files={"file": ("a.flac", noise(0.5))}, headers=headers, timeout=60)
    presigned = httpx.post(f"{url}/v1/audio/presign", json={"bytes": 9}, headers=headers, timeout=60)
    for response in (ready, uploaded, presigned, httpx.get(f"{url}/readyz", timeout=60)):
        assert response.status_code == 503 and response.json()["detail"].startswith("The bucket"), response.text
    api.terminate()
    api.wait(TIMEOUT)


def test_the_page_of_housekeeping_tells_why_its_rounds_fail(deploy: Callable[..., Deployment]) -> None:
    (port,) = free_ports(1)
    deployment = deploy(housekeeping_metrics_port=port, redis_timeout=1.0)

    def page(path: str) -> httpx.Response | None:
        try:
            return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10)
        except httpx.TransportError:
            return None

    def has_status(status: int) -> httpx.Response | None:
        response = page("/livez")
        return response if response is not None and response.status_code == status else None

    with deployment.unavailable_store():
        deployment.start_housekeeping()
        failing = eventually(lambda: has_status(503)).json()
        assert failing == {"status": "failing", "failures": {"round": "The store's folder cannot be opened."}}
        assert b"\nearmark_housekeeping_last_round_timestamp_seconds " not in deployment_metrics(page)
    assert eventually(lambda: has_status(200)).json() == {"status": "alive"}
    eventually(lambda: b"\nearmark_housekeeping_last_round_timestamp_seconds " in deployment_metrics(page))
    with deployment.paused_queue():
        failures = eventually(lambda: has_status(503)).json()["failures"]
        assert failures["round"].startswith("Redis: ")
    eventually(lambda: has_status(200))


def deployment_metrics(page: Callable[[str], httpx.Response | None]) -> bytes:
    response = page("/metrics")
    assert response is not None and response.is_success
    return response.content
