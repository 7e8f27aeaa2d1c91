"""One damaged record, of any kind: everything that reads many records goes on, and its owner can delete it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.errors import NotFound, RecordTooNew, RecordUnreadable
from app.housekeeping.sweeps import Housekeeping
from app.jobs import lifecycle
from app.jobs.events import events_key
from app.jobs.job_records import audio_ids_key
from app.jobs.kinds import KINDS, Kind
from app.jobs.large_fields import record_folder
from app.jobs.listing import record_key
from app.jobs.repository import JobRepository
from app.jobs.webhook_outbox import WebhookOutbox
from app.keys.repository import KEYS_KEY, KeyRepository
from app.records.audio import AudioRepository, audio_key, pending_key, store_key, users_key
from app.settings import Settings
from tests.app.conftest import MODEL, Service, eventually, problem
from tests.app.housekeeping.test_webhooks import delivery
from tests.app.job_api.test_event_stream import do_work, read_events
from tests.app.job_api.test_kinds import create
from tests.app.large_jobs import large_metadata
from tests.app.records import new_job

DAMAGES = {
    "empty": b"",
    "cut": b'{"schema_version": 1, "id": "sep_',
    "another type": b"[]",
    "a number": b"7",
    "fields missing": b'{"schema_version": 1}',
    "no version": b"{}",
    "a version that never was": b'{"schema_version": -5}',
    "not UTF-8": b'{"schema_version": 1, "id": "\xff"}',
    "nested": b"[" * 100_000,
}
FEW = [DAMAGES[name] for name in ("empty", "no version", "nested")]
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
TOO_NEW = b'{"schema_version": 99, "shape": "unknown"}'


def damage_type(redis: Redis, key: str) -> None:
    """Make the value one of another type, which Redis refuses to GET."""
    redis.delete(key)
    redis.rpush(key, "x")


def unreadable(service: Service) -> float:
    """Return what the metric says."""
    lines = service.deps.metrics.expose().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("earmark_records_unreadable "))


def address(kind: Kind, job_id: str) -> str:
    return f"/v1/{kind.folder}/{job_id}"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_every_damage_is_told_apart_from_a_newer_release(damage: bytes) -> None:
    with pytest.raises(RecordUnreadable):
        lifecycle.parse(damage)
    with pytest.raises(RecordTooNew):
        lifecycle.parse(TOO_NEW)


# Jobs and saved queries


@each_kind
def test_a_damaged_job_is_left_out_of_lists_and_deleted_by_its_owner(
    keyed_service: Service, redis: Redis, kind: Kind
) -> None:
    mine, yours = keyed_service.with_key(), keyed_service.with_key()
    damaged, whole = (create(mine, kind).json()["id"] for _ in range(2))
    (audio_id,) = mine.deps.jobs.get(damaged).audio_ids
    redis.set(record_key(damaged), DAMAGES["cut"])
    assert [job["id"] for job in mine.client.get(f"/v1/{kind.folder}").json()["data"]] == [whole]
    problem(mine.client.get(address(kind, damaged)), 500, "internal")
    problem(mine.client.post(f"{address(kind, damaged)}/cancel"), 500, "internal")
    for method in ("GET", "DELETE"):
        problem(yours.client.request(method, address(kind, damaged)), 404, "not_found")
    assert unreadable(mine) == 1
    assert mine.client.delete(address(kind, damaged)).status_code == 204
    problem(mine.client.get(address(kind, damaged)), 404, "not_found")
    assert mine.client.delete(f"/v1/audio/{audio_id}").status_code == 204, "no job needs it any more"
    assert unreadable(mine) == 0
    assert list(redis.scan_iter(f"*{damaged}*")) == []
    assert mine.client.get(address(kind, whole)).json()["queue"]["position"] == 1


def create_large(service: Service) -> tuple[str, str]:
    """Create a detection whose metadata and ids of uploads are in the store; return its id and its upload's."""
    audio_id = service.recording()["id"]
    answer = service.client.post("/v1/detections", json={"audio_id": audio_id, "metadata": large_metadata(16, "m")})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"], audio_id


def test_a_damaged_large_job_is_deleted_with_all_that_it_has_stored(folder_service: Service, redis: Redis) -> None:
    job_id, audio_id = create_large(folder_service)
    assert folder_service.deps.storage.keys(record_folder(job_id))
    redis.set(record_key(job_id), b"{")
    assert folder_service.client.delete(f"/v1/detections/{job_id}").status_code == 204
    assert list(redis.scan_iter(f"*{job_id}*")) == [] and not redis.exists(users_key(audio_id))
    assert folder_service.deps.storage.keys(record_folder(job_id)) == []
    assert folder_service.client.delete(f"/v1/audio/{audio_id}").status_code == 204


def test_a_job_that_is_set_aside_leaves_its_uploads_and_goes_with_all_that_it_has_stored(
    folder_service: Service, redis: Redis
) -> None:
    jobs = JobRepository(redis, folder_service.deps.settings.model_copy(update={"record_retention": 1.0}))
    job_id, audio_id = create_large(folder_service)
    redis.set(record_key(job_id), b"{")
    folder_service.deps.storage.put(f"detections/{job_id}/e/timeline.png", b"PNG")  # of an execution that died
    assert jobs.claim(job_id, "e") is None
    assert redis.exists(record_key(job_id), events_key(job_id)) == 2, "for the operator"
    assert not redis.exists(users_key(audio_id)) and not redis.exists(audio_ids_key(job_id))
    assert folder_service.client.delete(f"/v1/audio/{audio_id}").status_code == 204
    eventually(lambda: not redis.exists(record_key(job_id), events_key(job_id)))
    housekeeping = Housekeeping(redis, folder_service.deps.storage, folder_service.deps.settings)

    def is_clean() -> bool:
        housekeeping.remove_expired()
        return not folder_service.stored_keys()

    eventually(is_clean)
    assert folder_service.orphans() == [] and unreadable(folder_service) == 0


@pytest.mark.parametrize("field", ["request", "result"])
def test_a_job_whose_request_or_result_is_damaged_is_left_out_too(
    folder_service: Service, redis: Redis, field: str
) -> None:
    damaged, whole = (folder_service.separate()["id"] for _ in range(2))
    document = json.loads(redis.get(record_key(damaged)) or b"") | {field: {"mixture": 1}}
    redis.set(record_key(damaged), json.dumps(document))
    assert [job["id"] for job in folder_service.client.get("/v1/separations").json()["data"]] == [whole]
    problem(folder_service.client.get(f"/v1/separations/{damaged}"), 500, "internal")
    assert folder_service.client.delete(f"/v1/separations/{damaged}").status_code == 204
    folder_service.deps.jobs.quarantine.trim()
    assert unreadable(folder_service) == 0


def test_a_value_of_another_type_fails_its_own_poll_only(keyed_service: Service, redis: Redis) -> None:
    mine = keyed_service.with_key()
    damaged, whole = mine.separate(), mine.separate()
    damage_type(redis, record_key(damaged["id"]))
    assert mine.client.get(damaged["url"]).status_code in (500, 503)
    assert mine.client.get(whole["url"]).status_code == 200
    assert [job["id"] for job in mine.client.get("/v1/separations").json()["data"]] == [whole["id"]]
    assert mine.deps.jobs.find_lost() == [] and unreadable(mine) == 0  # it waits, and nobody has read it


@pytest.mark.parametrize("damage", FEW, ids=["empty", "no version", "nested"])
def test_a_damaged_job_keeps_no_other_from_being_requeued(folder_service: Service, redis: Redis, damage: bytes) -> None:
    jobs = JobRepository(redis, Settings(lost_after=0, ready_jobs=3))
    damaged, whole = (jobs.create(new_job()).job for _ in range(2))
    redis.delete(jobs.rq_queues.queue("base").key)
    redis.set(record_key(damaged.id), damage)
    assert [job.id for job in jobs.find_lost()] == [whole.id]
    assert jobs.unfinished_count() == unreadable(folder_service) == 1
    taken = jobs.create(new_job()).job
    redis.set(record_key(taken.id), damage)
    assert jobs.claim(taken.id, "e") is None, "a worker has nothing to do"
    assert jobs.unfinished_count() == jobs.fair_queue.waiting_count("base") == 1
    assert redis.get(record_key(damaged.id)) == damage, "for the operator"
    assert 0 < redis.ttl(record_key(damaged.id)) <= Settings().record_retention


def test_a_job_that_is_damaged_while_it_runs_is_stopped(jobs: JobRepository, redis: Redis) -> None:
    job = jobs.create(new_job()).job
    assert jobs.claim(job.id, "e")
    redis.set(record_key(job.id), b"{")
    assert jobs.should_stop(job.id, "e")
    assert not jobs.report_progress(job.id, "e", 0.5, "separating")
    assert not jobs.publish(job.id, "e", [], {})


def test_a_record_of_a_newer_release_is_left_alone(folder_service: Service, redis: Redis, tmp_path: Path) -> None:
    jobs = folder_service.deps.jobs
    newer = folder_service.separate()["id"]
    redis.set(record_key(newer), TOO_NEW)
    redis.delete(jobs.rq_queues.queue("base").key)
    redis.zadd("earmark:jobs:expiry", {newer: time.time() - 1})
    audio = folder_service.recording()["id"]
    redis.set(audio_key(audio), TOO_NEW)
    sweep(folder_service)
    assert folder_service.client.get("/v1/separations").json()["data"] == []
    for address in (f"/v1/separations/{newer}", f"/v1/audio/{audio}"):
        problem(folder_service.client.get(address), 500, "internal")
        problem(folder_service.client.delete(address), 500, "internal")
    assert unreadable(folder_service) == 0
    assert redis.get(record_key(newer)) == redis.get(audio_key(audio)) == TOO_NEW
    assert redis.sismember("earmark:jobs:open", newer) and redis.ttl(record_key(newer)) == -1


def test_a_damaged_event_is_left_out_of_the_stream(folder_service: Service, redis: Redis) -> None:
    job = folder_service.separate()
    do_work(folder_service, job["id"])
    folder_service.deps.jobs.publish(job["id"], "a", [], folder_service.deps.jobs.get(job["id"]).request | RESULT)
    entries: Any = redis.xrange(events_key(job["id"]))
    redis.delete(events_key(job["id"]))
    for index, (number, fields) in enumerate(entries):
        redis.xadd(events_key(job["id"]), {"type": "target", "job": "{"} if index == 2 else fields, id=number)
    events = read_events(folder_service, job)
    assert [event.id for event in events] == list(range(1, len(entries) + 1))
    assert events[-1].job["status"] == "succeeded"


RESULT = {
    "mixture": {"audio_id": "aud_1", "duration": 1.0, "sample_rate": 16000, "channels": 1},
    "stems": [],
    "model": {"name": "base", "version": "1"},
}


# Uploads


@pytest.mark.parametrize("damage", FEW, ids=["empty", "no version", "nested"])
def test_a_damaged_upload_is_deleted_by_its_owner(keyed_service: Service, redis: Redis, damage: bytes) -> None:
    mine, yours = keyed_service.with_key(), keyed_service.with_key()
    audio = mine.recording()["id"]
    redis.set(audio_key(audio), damage)
    problem(mine.client.get(f"/v1/audio/{audio}"), 500, "internal")
    request = {"mixture": {"audio_id": audio}, "targets": [{"label": "Dog"}]}
    problem(mine.client.post("/v1/separations", json=request), 500, "internal")
    for method in ("GET", "DELETE"):
        problem(yours.client.request(method, f"/v1/audio/{audio}"), 404, "not_found")
    assert unreadable(mine) == 1
    assert mine.client.delete(f"/v1/audio/{audio}").status_code == 204
    assert unreadable(mine) == 0 and mine.stored_keys() == []


def test_a_damaged_pending_upload_is_told(folder_service: Service, redis: Redis) -> None:
    audio_id = folder_service.recording()["id"]
    redis.rename(audio_key(audio_id), pending_key(audio_id))
    redis.set(pending_key(audio_id), b"{")
    problem(folder_service.client.post(f"/v1/audio/{audio_id}/complete"), 500, "internal")


# Sweeps


def sweep(service: Service) -> None:
    settings = service.deps.settings.model_copy(update={"lost_after": 0.0})
    Housekeeping(service.deps.redis, service.deps.storage, settings).sweep()


@pytest.mark.parametrize("spoil", [damage_type, lambda redis, key: redis.set(key, b"{")], ids=["type", "text"])
def test_sweeps_go_on_and_remove_the_output_of_damaged_records(
    folder_service: Service, redis: Redis, tmp_path: Path, spoil: Callable[[Redis, str], None]
) -> None:
    jobs, audio = folder_service.deps.jobs, AudioRepository(redis, folder_service.deps.settings)
    done = folder_service.finish(folder_service.separate()["id"])
    lost, whole = (jobs.create(new_job()).job for _ in range(2))
    expired = folder_service.recording()["id"]
    spoil(redis, record_key(done.id))
    spoil(redis, record_key(lost.id))
    spoil(redis, audio_key(expired))
    redis.hset("earmark:models", "broken", "{")
    redis.zadd("earmark:jobs:expiry", {done.id: time.time() - 1})
    redis.zadd("earmark:audio:expiry", {expired: time.time() - 1})
    queue = jobs.rq_queues.queue("base")
    redis.delete(queue.key)
    redis.zadd(queue.started_job_registry.key, {"garbage": time.time(), "a:b:c": time.time()})
    sweep(folder_service)
    assert jobs.rq_queues.queue("base@1").job_ids == [whole.id], "from a queue of the previous release to its workers"
    assert folder_service.deps.storage.keys(f"separations/{done.id}") == []
    assert folder_service.deps.storage.keys(store_key(expired)) == []
    with pytest.raises(NotFound):
        audio.get(expired)
    assert redis.zcard("earmark:jobs:expiry") == redis.zcard(queue.started_job_registry.key) == 0
    assert set(jobs.quarantine.names()) == {record_key(done.id), record_key(lost.id)}
    redis.delete(record_key(done.id))
    jobs.quarantine.trim()
    assert unreadable(folder_service) == 1


def test_a_webhook_of_a_damaged_record_is_dropped_and_others_are_tried(folder_service: Service, redis: Redis) -> None:
    damaged = [new_job().id for _ in range(2)]
    redis.set(record_key(damaged[0]), b"{}")
    damage_type(redis, record_key(damaged[1]))
    redis.zadd("earmark:webhooks:due", dict.fromkeys([*damaged, new_job().id], time.time()))
    with delivery(folder_service):
        eventually(lambda: not WebhookOutbox(redis).pending_count())


# Keys, models, stored responses


def test_damaged_keys_are_left_out_counted_and_revoked(keyed_service: Service, redis: Redis) -> None:
    keys = KeyRepository(redis)
    damaged, whole = (keys.create(name, 0, 0, 1)[0] for name in ("a", "b"))
    redis.hset(KEYS_KEY, damaged.id, "{")
    assert [key.id for key in keys.list()] == [whole.id]
    assert keys.unreadable_ids() == [damaged.id] and unreadable(keyed_service) == 1
    keys.revoke(damaged.id)
    assert unreadable(keyed_service) == 0
    redis.hset(KEYS_KEY, damaged.id, TOO_NEW)
    assert [key.id for key in keys.list()] == [whole.id] and unreadable(keyed_service) == 0


def test_a_damaged_model_is_left_out_until_a_worker_announces_it_again(folder_service: Service, redis: Redis) -> None:
    registry = folder_service.deps.model_registry
    registry.announce(MODEL | {"name": "other"}, "worker-2")
    redis.hset("earmark:models", "base@1", '{"name": "base"}')
    eventually(lambda: folder_service.client.get("/v1/labels").status_code == 503)  # a description is cached
    models = folder_service.client.get("/v1/models").json()["data"]
    assert [model["name"] for model in models] == ["base", "other"]
    assert models[0]["version"] != "1", "the configured one, not the damaged one"
    registry.announce(MODEL, "worker-1")
    assert len(folder_service.client.get("/v1/models").json()["data"]) == 3


def test_a_damaged_response_is_told_and_nothing_is_created_twice(folder_service: Service, redis: Redis) -> None:
    request = {"mixture": {"audio_id": folder_service.recording()["id"]}, "targets": [{"label": "Dog"}]}
    headers = {"Idempotency-Key": "k"}
    assert folder_service.client.post("/v1/separations", json=request, headers=headers).status_code == 202
    (key,) = redis.scan_iter("earmark:idempotency:*")
    redis.set(key, b"{", keepttl=True)
    problem(folder_service.client.post("/v1/separations", json=request, headers=headers), 500, "internal")
    assert folder_service.deps.jobs.unfinished_count() == 1 and unreadable(folder_service) == 1
