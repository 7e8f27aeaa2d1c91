"""Jobs whose large fields are in the store: clients see what they saw when all was in Redis, or a clear error."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from app.jobs.events import events_key
from app.jobs.large_fields import record_folder
from app.jobs.lifecycle import Job, StoredFields
from app.jobs.listing import record_key
from app.metrics import PROCESS
from app.records.separations import SeparationRequest, SeparationResult, StemRecord
from app.records.shared import ModelRecord, unpack_vector
from tests.app.conftest import LIMITS, Service, empty, eventually, problem, serve
from tests.app.large_jobs import detection_result, large_metadata
from tests.app.relay import Relay, relay
from tests.conftest import S3Server

EVENTS = 2000


@pytest.fixture(scope="module")
def _relayed_service(
    valkey: Any, seaweed: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Relay]]:
    folder = tmp_path_factory.mktemp("relayed-service")
    with relay(seaweed.endpoint) as opened:
        server = replace(seaweed, endpoint=opened.url)
        limits = {**LIMITS, "body_bytes": 1 << 20}
        settings = server.settings("relayed", home=folder, redis_url=valkey.connection_url, **limits)
        for service in serve(settings, folder):
            yield service, opened


@pytest.fixture
def relayed(_relayed_service: tuple[Service, Relay], redis: Redis) -> Iterator[tuple[Service, Relay]]:
    """A front end on an S3 store, and the relay to the store, which a test may close."""
    service, opened = _relayed_service
    yield empty(service), opened
    opened.close()
    opened.open()


def create_detection(service: Service, **fields: Any) -> dict[str, Any]:
    answer = service.client.post("/v1/detections", json={"audio_id": service.recording()["id"], **fields})
    assert answer.status_code == 202, answer.text
    return answer.json()


def finish_detection(service: Service, job_id: str, events: int = EVENTS, tags: int = 527) -> Job:
    return service.publish(job_id, detection_result("aud_x", events, tags), {"timeline.png": b"PNG"})


def large_detection(service: Service) -> dict[str, Any]:
    """Return a detection that has succeeded with many events, as it was when it was created."""
    job = create_detection(service)
    assert finish_detection(service, job["id"]).is_partial
    return job


def last_event(service: Service, job: dict[str, Any]) -> str:
    """Return the data of the last event of a job that has finished."""
    lines = service.client.get(job["events_url"]).text.splitlines()
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")][-1]


def write_as_previous_release(service: Service, job_id: str) -> None:
    """Replace the record and its last event by what the previous release wrote: everything in Redis."""
    redis, stored = service.deps.redis, service.deps.jobs.get(job_id)
    complete = service.deps.large_fields.load(stored)
    complete = complete.model_copy(update={"stored_fields": [], "schema_version": 1})
    redis.set(record_key(job_id), complete.model_dump_json(), keepttl=True)
    entries: Any = redis.xrange(events_key(job_id))
    redis.delete(events_key(job_id))
    for number, fields in entries[:-1]:
        redis.xadd(events_key(job_id), fields, id=number)
    number, fields = entries[-1]
    document = complete.model_dump_json(exclude={"request", "webhook"})
    redis.xadd(events_key(job_id), {**fields, b"job": document}, id=number)
    service.deps.storage.delete_prefix("records")


def store_calls(operation: str) -> float:
    labels = {"operation": operation, "outcome": "ok"}
    return PROCESS.get_sample_value("earmark_store_call_duration_seconds_count", labels) or 0.0


def test_clients_get_the_same_bytes_wherever_the_result_is(service: Service) -> None:
    job = large_detection(service)

    def look() -> list[Any]:
        answers = [
            service.client.get(job["url"]),
            service.client.get(job["url"], headers={"Prefer": "wait=5"}),
            service.client.get("/v1/detections"),
        ]
        assert all(answer.status_code == 200 for answer in answers)
        etag = answers[0].headers["etag"]
        assert service.client.get(job["url"], headers={"If-None-Match": etag}).status_code == 304
        return [etag, last_event(service, job), *(answer.content for answer in answers)]

    stored = look()
    assert len(json.loads(stored[2])["events"]) == EVENTS and len(json.loads(stored[2])["tags"]) == 527
    assert stored[1].encode() == stored[2] == stored[3]
    assert json.loads(stored[4]) == {"data": [json.loads(stored[2])], "next_cursor": None, "has_more": False}
    assert stored[2] in stored[4]
    write_as_previous_release(service, job["id"])
    assert look() == stored


def test_polls_read_the_store_once_for_a_large_result_and_never_for_a_small_one(folder_service: Service) -> None:
    small, large = create_detection(folder_service), large_detection(folder_service)
    finish_detection(folder_service, small["id"], events=3, tags=10)
    before = store_calls("read")
    for _ in range(5):
        assert folder_service.client.get(small["url"]).status_code == 200
        last_event(folder_service, small)
    reads = []
    for _ in range(5):
        assert len(folder_service.client.get(large["url"]).json()["events"]) == EVENTS
        last_event(folder_service, large)
        folder_service.client.get("/v1/detections")
        reads.append(store_calls("read") - before)
    assert reads == [1] * 5


def test_the_output_of_a_large_job_is_found(folder_service: Service) -> None:
    detection = create_detection(folder_service)
    result = detection_result("aud_x", EVENTS)
    result.picture.key = f"detections/{detection['id']}/e/timeline.png"
    result.picture.bytes = 3
    assert folder_service.publish(detection["id"], result, {"timeline.png": b"PNG"}).is_partial
    assert folder_service.client.get(detection["timeline_url"]).content == b"PNG"
    names = [f"{number:02}" + "n" * 60 for number in range(3)]
    separation = folder_service.separate(targets=[{"name": name, "label": "Dog"} for name in names])
    record = folder_service.deps.jobs.get(separation["id"])
    mixture = SeparationRequest.model_validate(record.request).mixture
    stems = [
        StemRecord(
            name=name,
            key=f"separations/{record.id}/e/{index}.flac",
            content_type="audio/flac",
            bytes=3,
            sha256="f" * 64,
            peak=0.5,
            loudness=None,
        )
        for index, name in enumerate(names)
    ]
    metrics = {"padding" + "x" * 20000: 1.0}
    result = SeparationResult(
        mixture=mixture, stems=stems, model=ModelRecord(name="base", version="1"), metrics=metrics
    )
    assert folder_service.publish(record.id, result, {f"{n}.flac": b"abc" for n in range(3)}).is_partial
    polled = folder_service.client.get(separation["url"]).json()
    assert [folder_service.client.get(stem["url"]).content for stem in polled["stems"]] == [b"abc"] * 3
    assert folder_service.client.get(separation["archive_url"]).content[:2] == b"PK"


def test_a_store_that_is_down_is_an_error_until_it_is_back(relayed: tuple[Service, Relay]) -> None:
    service, store = relayed
    small, large = create_detection(service), large_detection(service)
    waiting = create_detection(service, metadata=large_metadata(16))
    finish_detection(service, small["id"], events=3, tags=10)
    store.close()
    for path in (large["url"], large["events_url"], "/v1/detections", waiting["url"], large["timeline_url"]):
        problem(service.client.get(path), 503, "store_unavailable")
    problem(service.client.post(f"{waiting['url']}/cancel"), 503, "store_unavailable")
    body = {"audio_id": large["audio"]["audio_id"], "metadata": large_metadata(16)}
    problem(service.client.post("/v1/detections", json=body), 503, "store_unavailable")
    assert service.client.get(small["url"]).status_code == 200
    store.open()
    assert len(service.client.get(large["url"]).json()["events"]) == EVENTS
    assert [len(job["events"]) for job in service.client.get("/v1/detections").json()["data"]] == [0, EVENTS, 3]
    assert service.client.post(f"{waiting['url']}/cancel").json()["metadata"] == large_metadata(16)


@contextmanager
def followed_detection(
    service: Service,
) -> Iterator[tuple[dict[str, Any], Iterator[str], dict[str, Any], StoredFields]]:
    """A detection that runs, the lines of its open stream of events, and its large result, which is stored but not
    published."""
    job = create_detection(service)
    with service.client.stream("GET", job["events_url"]) as answer:
        lines = answer.iter_lines()
        assert '"queued"' in next(line for line in lines if line.startswith("data:"))
        claimed = service.deps.jobs.claim(job["id"], "e")
        assert claimed is not None and '"running"' in next(line for line in lines if line.startswith("data:"))
        result = detection_result("aud_x", EVENTS).model_dump()
        stored = service.deps.large_fields.store_outcome(claimed, "e", [], result, [])
        assert stored is not None
        yield job, lines, result, stored


def test_an_open_stream_waits_for_the_store(relayed: tuple[Service, Relay]) -> None:
    service, store = relayed
    with followed_detection(service) as (job, lines, result, stored):
        store.close()
        assert service.deps.jobs.publish(job["id"], "e", [], result, stored=stored)
        waiting = next(line for line in lines if line and not line.startswith("id:"))
        assert waiting.startswith(":"), "a comment, which keeps the connection alive"
        store.open()
        last = next(line for line in lines if line.startswith("data:"))
        assert last.removeprefix("data: ") == service.client.get(job["url"]).text
        assert [line for line in lines if line.startswith("data:")] == []


def test_a_stream_ends_where_large_fields_are_damaged(service: Service) -> None:
    with followed_detection(service) as (job, lines, result, stored):
        service.deps.storage.put(stored.key, b"[damaged")
        assert service.deps.jobs.publish(job["id"], "e", [], result, stored=stored)
        assert [line for line in lines if line.startswith("data:")] == []
    assert "DELETE works on it" in problem(service.client.get(job["url"]), 500, "internal")["detail"]


def test_deletion_leaves_nothing(service: Service) -> None:
    job = create_detection(service, metadata={"a": "\u0001" * 500, "b": "\u0001" * 500, "c": "\u0001" * 500})
    assert finish_detection(service, job["id"]).is_partial
    assert len(service.client.get(job["url"]).json()["events"]) == EVENTS
    assert service.deps.storage.keys(record_folder(job["id"]))
    assert service.client.delete(job["url"]).status_code == 204
    assert service.stored_keys() == [f"audio/{job['audio']['audio_id']}"]
    assert service.client.get(job["url"]).status_code == 404
    due: Any = service.deps.redis.zrange("earmark:leftovers", 0, -1, withscores=True)
    latest = service.deps.clock.now() + service.deps.settings.execution_seconds
    assert {name.decode() for name, _ in due} == {f"detections/{job['id']}", record_folder(job["id"])}
    assert all(score <= latest for _, score in due), "not when the record would have been dropped"


def test_a_large_request_is_complete_for_clients(relayed: tuple[Service, Relay]) -> None:
    service, _ = relayed
    metadata = large_metadata(16)
    job = create_detection(service, metadata=metadata)
    assert job["metadata"] == metadata
    assert service.deps.jobs.get(job["id"]).metadata == {}
    polled = service.client.get(job["url"]).json()
    assert polled == job and json.loads(last_event(service, finished(service, job)))["metadata"] == metadata


def finished(service: Service, job: dict[str, Any]) -> dict[str, Any]:
    finish_detection(service, job["id"])
    return job


def test_a_large_saved_query_is_used(relayed: tuple[Service, Relay]) -> None:
    service, _ = relayed
    vector = [number / 7 for number in range(5000)]
    query_id = service.saved_query(vector)
    assert service.deps.jobs.get(query_id).is_partial
    job = service.separate(targets=[{"name": "dog", "query_id": query_id}])
    record = service.deps.jobs.get(job["id"])
    assert record.is_partial and service.deps.redis.strlen(record_key(record.id)) < 2000
    (target,) = SeparationRequest.model_validate(service.deps.large_fields.load(record).request).targets
    assert target.embedding is not None
    assert unpack_vector(target.embedding.vector) == pytest.approx(vector)
    assert service.client.delete(f"/v1/queries/{query_id}").status_code == 204
    assert service.deps.storage.keys(record_folder(query_id)) == []


def test_a_deleted_job_is_left_out_of_a_list_that_is_being_read(folder_service: Service) -> None:
    kept, gone = large_detection(folder_service), large_detection(folder_service)
    folder_service.deps.storage.delete_prefix(record_folder(gone["id"]))
    problem(folder_service.client.get("/v1/detections"), 503, "store_unavailable")
    folder_service.deps.jobs.delete(gone["id"])
    eventually(lambda: folder_service.client.get("/v1/detections").status_code == 200)
    assert [job["id"] for job in folder_service.client.get("/v1/detections").json()["data"]] == [kept["id"]]


def test_large_records_of_another_key_are_not_found_even_without_the_store(keyed_service: Service) -> None:
    one, other = keyed_service.with_key(), keyed_service.with_key()
    job = large_detection(one)
    one.deps.storage.delete_prefix("records")
    path = f"/v1/detections/{job['id']}"
    for suffix in ("", "/events", "/timeline.png"):
        problem(other.client.get(path + suffix), 404, "not_found")
        problem(one.client.get(path + suffix), 503, "store_unavailable")
    assert one.client.delete(path).status_code == 204
