"""A full Redis server: new records are refused before it is full, and what was accepted before goes on when it is."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError
from redis.lock import Lock

from app.budgets.redis_memory import RedisMemory
from app.errors import NotFound, Overloaded
from app.housekeeping.sweeps import Housekeeping, SweepLock
from app.jobs.lifecycle import JobError, Webhook
from app.jobs.webhook_outbox import WebhookOutbox
from app.keys.quotas import Allowance, Quotas
from app.records.audio import AudioRepository
from app.redis_client import connect_async
from app.settings import Settings
from app.settings.units import MIB
from tests.app.conftest import LIMITS, Service, empty, eventually, problem, serve, wav
from tests.app.records import new_audio, new_job
from tests.full_redis import FULL, memory_in_use

SOAK = bool(os.environ.get("EARMARK_SOAK"))
SHED = 0.9  # above the share at which the front end refuses new records


@pytest.fixture(scope="module")
def _service(valkey: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("full-service")
    limits = LIMITS | {"auth": "on", "body_bytes": 2 * MIB, "idempotency_bytes": 100_000, "kept_jobs": 3}
    settings = Settings(home=folder, redis_url=valkey.connection_url, kept_uploads=3, **limits)
    yield from serve(settings, folder)


@pytest.fixture
def mine(_service: Service, redis: Redis) -> Service:
    """A front end with small budgets, and a key; it knows that the server has room."""
    service = empty(_service).with_key()
    eventually(lambda: service.client.post("/v1/separations", json={}).status_code == 422)
    return service


def bytes_of_responses(redis: Redis) -> int:
    """Return the memory that stored responses take."""
    sizes: list[Any] = [redis.memory_usage(key) for key in redis.scan_iter("earmark:idempotency*")]
    return sum(sizes)


def post(service: Service, key: str, **request: Any) -> httpx.Response:
    return service.client.post("/v1/separations", headers={"Idempotency-Key": key}, **request)


def gauges(service: Service) -> dict[str, float]:
    """Return the samples of the front end's metrics, with their labels."""
    lines = service.deps.metrics.expose().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


# Stored responses


@pytest.mark.soak
def test_refusals_that_repeat_a_huge_field_take_little_memory(mine: Service, redis: Redis) -> None:
    """600 of these a minute once filled a gigabyte in 44 s."""
    body = {"x" * MIB: 1}
    for number in range(600 if SOAK else 20):
        answer = post(mine, f"huge-{number}", json=body)
        problem(answer, 422, "request_invalid")
        assert len(answer.content) < 2000
    assert bytes_of_responses(redis) < 100_000
    assert post(mine, "huge-0", json=body).headers["idempotent-replayed"] == "true"


def test_refusals_without_room_are_computed_again_and_acceptances_are_still_replayed(
    mine: Service, redis: Redis
) -> None:
    refused = {"targets": [{"label": "Dog", f"field {number}": "x"} for number in range(32)]}
    answers = [post(mine, f"r-{number}", json=refused) for number in range(30)]
    assert {answer.status_code for answer in answers} == {422}
    assert bytes_of_responses(redis) < 75_000, "half of the budget and some overhead"
    again = post(mine, "r-29", json=refused)
    assert again.status_code == 422 and "idempotent-replayed" not in again.headers
    request = {"mixture": {"audio_id": mine.recording()["id"]}, "targets": [{"label": "Dog"}]}
    first = post(mine, "job", json=request)
    assert first.status_code == 202
    assert post(mine, "job", json=request).content == first.content


def test_a_key_that_has_used_up_its_bytes_gets_no_claim_and_another_key_does(mine: Service, redis: Redis) -> None:
    url = f"/v1/separations/{mine.separate()['id']}"
    redis.hset(f"earmark:idempotency-bytes:{mine.deps.caller.key_id}", str(int(time.time()) // 3600 - 2), 100_001)
    before = gauges(mine)['earmark_budget_refused_total{budget="idempotency",scope="key"}']
    answer = mine.client.post(f"{url}/cancel", headers={"Idempotency-Key": "c"})
    problem(answer, 429, "rate_limited")
    assert 22 * 3600 < int(answer.headers["retry-after"]) <= 24 * 3600, "when the bytes expire"
    assert gauges(mine)['earmark_budget_refused_total{budget="idempotency",scope="key"}'] == before + 1
    other = mine.with_key()
    problem(other.client.post(f"{url}/cancel", headers={"Idempotency-Key": "c"}), 404, "not_found")
    assert mine.client.post(f"{url}/cancel").status_code == 202
    redis.hset(f"earmark:idempotency-bytes:{mine.deps.caller.key_id}", mapping={"1": 100_001})
    redis.hdel(f"earmark:idempotency-bytes:{mine.deps.caller.key_id}", str(int(time.time()) // 3600 - 2))
    assert mine.client.post(f"{url}/cancel", headers={"Idempotency-Key": "c"}).status_code == 409, "expired long ago"


# Kept records


def left_of(service: Service, name: str) -> tuple[int, int]:
    """Return a limit, and what the key has left of it, as the front end tells them."""
    told = service.client.get("/v1/limits").json()
    return told["limits"][name], told["left"][name]


def test_a_key_keeps_so_many_jobs_and_no_more(mine: Service) -> None:
    jobs = [mine.separate() for _ in range(3)]
    request = {"mixture": {"audio_id": mine.recording()["id"]}, "targets": [{"label": "Dog"}]}
    answer = mine.client.post("/v1/separations", json=request)
    assert "delete some" in problem(answer, 429, "quota_exceeded")["detail"]
    assert left_of(mine, "kept_jobs") == (3, 0)
    mine.client.post(f"/v1/separations/{jobs[0]['id']}/cancel")
    problem(mine.client.post(f"/v1/separations/{jobs[0]['id']}/retry"), 429, "quota_exceeded")
    assert gauges(mine)['earmark_budget_refused_total{budget="kept_jobs",scope="key"}'] >= 1
    mine.with_key().separate()
    assert mine.client.delete(jobs[0]["url"].partition("?")[0]).status_code == 204
    assert left_of(mine, "kept_jobs") == (3, 1)
    assert mine.client.post("/v1/separations", json=request).status_code == 202


def test_a_key_keeps_so_many_uploads_and_no_more(mine: Service) -> None:
    uploads = [mine.recording() for _ in range(3)]
    answer = mine.client.post("/v1/audio", files={"file": ("a.wav", wav())})
    problem(answer, 429, "quota_exceeded")
    assert left_of(mine, "kept_uploads") == (3, 0)
    assert 0 < int(answer.headers["retry-after"]) <= 86400
    assert gauges(mine)['earmark_budget_refused_total{budget="kept_uploads",scope="key"}'] >= 1
    mine.with_key().upload()
    assert mine.client.delete(f"/v1/audio/{uploads[0]['id']}").status_code == 204
    assert left_of(mine, "kept_uploads") == (3, 1)
    assert mine.client.post("/v1/audio", files={"file": ("a.wav", wav())}).status_code == 201


# A server that is nearly full


def test_new_records_are_refused_before_the_server_is_full(mine: Service, redis: Redis) -> None:
    job, other, audio = mine.separate(), mine.separate(), mine.recording()["id"]
    mine.client.post(f"/v1/separations/{other['id']}/cancel")
    request = {"mixture": {"audio_id": audio}, "targets": [{"label": "Dog"}]}
    first = post(mine, "k", json=request)
    assert first.status_code == 202
    time.sleep(1.1)  # the reading of the memory is a second old
    with memory_in_use(redis, SHED):
        for answer in (
            mine.client.post("/v1/separations", json=request),
            mine.client.post("/v1/detections", json={"audio_id": audio}),
            mine.client.post("/v1/queries", json={"name": "mine", "examples": [{"audio_id": audio}]}),
            mine.client.post("/v1/audio", files={"file": ("a.wav", wav())}),
            mine.client.post("/v1/audio/presign", json={"filename": "a", "bytes": 9}),
            mine.client.post(f"/v1/separations/{other['id']}/retry"),
            post(mine, "new", json=request),
        ):
            problem(answer, 503, "overloaded")
        assert post(mine, "k", json=request).content == first.content, "takes no memory"
        assert mine.client.get(job["url"]).status_code == 200
        assert len(mine.client.get("/v1/separations").json()["data"]) == 3
        canceled = mine.client.post(f"/v1/separations/{job['id']}/cancel", headers={"Idempotency-Key": "c"})
        assert canceled.json()["status"] == "canceled"
        assert mine.client.delete(f"/v1/separations/{other['id']}").status_code == 204
        assert mine.client.get("/readyz").status_code == 200, "polls must get here"
        found = gauges(mine)
        assert found["earmark_queue_up"] == 1
        assert found["earmark_redis_memory_used_bytes"] > 0.8 * found["earmark_redis_memory_limit_bytes"] > 0
        assert found['earmark_budget_refused_total{budget="redis_memory",scope="all"}'] >= 7
    eventually(lambda: mine.client.post("/v1/separations", json=request).status_code == 202)


def test_metrics_are_true_however_long_ago_the_last_request_was(mine: Service, redis: Redis) -> None:
    with memory_in_use(redis, SHED):
        found = gauges(mine)
        assert found["earmark_redis_memory_used_bytes"] > 0.8 * found["earmark_redis_memory_limit_bytes"] > 0
        assert found["earmark_redis_evicts"] == 0
        redis.config_set("maxmemory-policy", "allkeys-lru")
        assert gauges(mine)["earmark_redis_evicts"] == 1, "jobs would be lost"
        redis.config_set("maxmemory-policy", "noeviction")
    assert gauges(mine)["earmark_redis_memory_limit_bytes"] == gauges(mine)["earmark_redis_evicts"] == 0
    assert 'earmark_budget_used{budget="redis_memory"}' not in gauges(mine), "one metric says it"


def test_a_process_that_starts_on_a_full_server_refuses_at_once(mine: Service, redis: Redis) -> None:
    async def start() -> None:
        async with connect_async(mine.deps.settings) as connection:
            with pytest.raises(Overloaded):
                await RedisMemory(connection, 0.8).require_room()

    with memory_in_use(redis, SHED):
        asyncio.run(start())


def test_clients_cannot_fill_the_server(mine: Service, redis: Redis) -> None:
    limit, metadata = 24 * MIB, {str(number): "é" * 512 for number in range(6)}  # more would be stored
    memory: Any = redis.info("memory")
    redis.setrange("filler", int(0.79 * limit) - memory["used_memory"], "x")  # no buffer of a client grows
    redis.config_set("maxmemory", limit)
    client, answer = mine, httpx.Response(0)
    try:
        for number in range(60):
            client = client if number % 3 else mine.with_key()
            body = {"mixture": {"audio_id": client.recording()["id"]}, "targets": [{"label": "Dog"}]}
            answer = client.client.post("/v1/separations", json=body | {"metadata": metadata})
            if answer.status_code != 202:
                break
            time.sleep(0.1)
        problem(answer, 503, "overloaded")
        memory = redis.info("memory")
        assert 0.8 * limit < memory["used_memory"] < 0.9 * limit, "room is left"
    finally:
        redis.config_set("maxmemory", 0)
        time.sleep(1.1)  # the reading of the memory is a second old


# A full server


def test_the_server_is_full(redis: Redis) -> None:
    """The tests below rely on it."""
    with memory_in_use(redis, FULL), pytest.raises(OutOfMemoryError):
        redis.set("a", "b")


def test_clients_poll_cancel_and_delete_when_the_server_is_full(mine: Service, redis: Redis) -> None:
    running, waiting, audio = mine.separate(), mine.separate(), mine.recording()["id"]
    assert mine.deps.jobs.claim(running["id"], "e") is not None
    with memory_in_use(redis, FULL):
        for job in (running, waiting):
            assert mine.client.get(job["url"]).status_code == 200
        assert mine.client.post(f"/v1/separations/{running['id']}/cancel").status_code == 202
        assert mine.client.post(f"/v1/separations/{waiting['id']}/cancel").json()["status"] == "canceled"
        for address in (f"/v1/separations/{running['id']}", f"/v1/audio/{audio}"):
            assert mine.client.delete(address).status_code == 204
            problem(mine.client.get(address), 404, "not_found")
        answer = mine.client.get("/readyz")
        problem(answer, 503, "queue_unavailable")
        assert gauges(mine)["earmark_queue_up"] == 0
        assert gauges(mine)["earmark_redis_memory_used_bytes"] > 0, "the other gauges are still there"
    assert mine.client.get("/readyz").status_code == 200


def test_quotas_are_charged_corrected_and_refunded_when_the_server_is_full(redis: Redis) -> None:
    quotas, allowance = Quotas(redis, Settings()), Allowance(0, -1, 0.0, 100, 0.0, 60)
    with memory_in_use(redis, FULL), pytest.raises(KeyError), quotas.charge("key", allowance, 60.0):
        quotas.adjust("key", 10.0, time.time())
        raise KeyError  # the job is not created
    assert allowance.used == 10.0


@pytest.fixture
def housekeeping(mine: Service) -> Housekeeping:
    settings = mine.deps.settings.model_copy(update={"lost_after": 0.0})
    return Housekeeping(mine.deps.redis, mine.deps.storage, settings)


def test_workers_finish_their_jobs_when_the_server_is_full(mine: Service, redis: Redis) -> None:
    jobs = mine.deps.jobs
    endings: list[Callable[[str], bool]] = [
        lambda job_id: jobs.publish(job_id, "e", [], {"stems": []}),
        lambda job_id: jobs.fail(job_id, "e", JobError(code="audio_silent", detail="Silence.")),
        lambda job_id: jobs.release(job_id, "e"),
    ]
    created = [jobs.create(new_job()).job for _ in endings]
    with memory_in_use(redis, FULL):
        for job, end in zip(created, endings, strict=True):
            assert jobs.claim(job.id, "e") is not None
            assert jobs.report_progress(job.id, "e", 0.5, "separating")
            assert end(job.id)
            mine.deps.model_registry.heartbeat("base@1", "worker-1")
        assert [jobs.get(job.id).status for job in created] == ["succeeded", "failed", "queued"]
        assert jobs.fair_queue.waiting_count("base") == 1
        assert mine.deps.model_registry.worker_count("base@1") == 1


def test_housekeeping_goes_on_when_the_server_is_full(
    mine: Service, redis: Redis, housekeeping: Housekeeping, tmp_path: Path
) -> None:
    jobs, audio = mine.deps.jobs, AudioRepository(redis, mine.deps.settings)
    expired, lost = (jobs.create(new_job()).job for _ in range(2))
    jobs.claim(expired.id, "e")
    (tmp_path / "stem").write_bytes(b"abc")
    mine.deps.storage.put_file(f"separations/{expired.id}/e/0.flac", tmp_path / "stem")
    assert jobs.publish(expired.id, "e", [], {"stems": []})
    redis.zadd("earmark:jobs:expiry", {expired.id: time.time() - 1})
    upload = new_audio(expires_at=time.time() - 1)
    audio.create(upload)
    jobs.claim(lost.id, "e")  # by a worker that has died
    redis.delete(jobs.rq_queues.queue("base").key)
    with memory_in_use(redis, FULL):
        lock = SweepLock(redis, "earmark:housekeeping", timeout=30, blocking=False)
        assert lock.acquire(token="t") and Lock(redis, "earmark:housekeeping").locked()
        housekeeping.sweep()
        assert jobs.get(expired.id).expired
        assert mine.deps.storage.keys(f"separations/{expired.id}") == []
        assert jobs.get(lost.id).status == "queued"
        assert jobs.rq_queues.queue("base").job_ids == [lost.id]
        with pytest.raises(NotFound):
            audio.get(upload.id)


def test_webhooks_are_delivered_when_the_server_is_full(mine: Service, redis: Redis) -> None:
    jobs, outbox = mine.deps.jobs, WebhookOutbox(redis)
    job = new_job().model_copy(update={"webhook": Webhook(url="https://example.org", events=["canceled"])})
    jobs.create(job)
    with memory_in_use(redis, FULL):
        jobs.cancel(job.id)
        soon = time.time() + 5.0  # the server's clock is estimated
        assert outbox.take(soon, 30.0, 9) == [job.id]
        assert outbox.count_failure(job.id) == 1
        outbox.postpone([job.id], time.time())
        assert outbox.take(soon, 30.0, 9) == [job.id]
        outbox.remove([job.id])
        assert outbox.pending_count() == 0
