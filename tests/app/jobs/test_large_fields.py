"""Large fields of records: nothing in Redis is large, nothing is lost, and nothing is left in the store."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from app.errors import NotFound, RecordUnreadable, StoreUnavailable
from app.housekeeping.sweeps import Housekeeping
from app.jobs.events import RecordReplay, events_key, read_all
from app.jobs.large_fields import LargeFields, record_folder
from app.jobs.large_fields_cache import LargeFieldsCache
from app.jobs.lifecycle import Job, TargetState
from app.jobs.listing import record_key
from app.jobs.repository import JobRepository
from app.records.audio import AudioRepository, users_key
from app.settings import Settings
from app.storage import Storage
from tests.app.large_jobs import (
    detection_result,
    failed_target,
    large_detection,
    large_metadata,
    large_outcome,
    large_separation,
)
from tests.app.records import new_audio, new_job

LIMIT = 20_000  # bytes of a record, and of each of its events
EXECUTION = "e" * 32


class Deployment:
    """Records and store without HTTP; the methods act as a front end and a worker."""

    def __init__(self, redis: Redis, folder: Path, **chosen: Any) -> None:
        self.redis = redis
        self.settings = Settings(home=folder, **chosen)
        self.storage = Storage.open(self.settings)
        self.jobs = JobRepository(redis, self.settings)
        self.large_fields = LargeFields(redis, self.storage, self.settings)
        self.housekeeping = Housekeeping(redis, self.storage, self.settings)

    def create(self, job: Job) -> Job:
        return self.jobs.create(self.large_fields.store_request(job)).job

    def load(self, job_id: str) -> Job:
        return self.large_fields.load(self.jobs.get(job_id))

    def publish(self, job_id: str, targets: list[TargetState], result: dict[str, Any], warnings: list[str]) -> None:
        job = self.load(job_id)
        stored = self.large_fields.store_outcome(job, EXECUTION, targets, result, warnings)
        assert self.jobs.publish(job_id, EXECUTION, targets, result, warnings, stored)

    def stored(self) -> list[str]:
        return self.storage.keys("records")

    def orphans(self) -> dict[str, float]:
        members: Any = self.redis.zrange("earmark:leftovers", 0, -1, withscores=True)
        return {member.decode(): due for member, due in members}

    def remove_what_is_due(self, prefix: str) -> None:
        self.redis.zadd("earmark:leftovers", {prefix: time.time() - 1}, xx=True)
        self.housekeeping.remove_expired()


@pytest.fixture
def deployment(redis: Redis, tmp_path: Path) -> Deployment:
    return Deployment(redis, tmp_path)


def sizes(redis: Redis, job_id: str) -> list[int]:
    """Return the bytes of a record and of each of its events."""
    entries: Any = redis.xrange(events_key(job_id))
    return [redis.strlen(record_key(job_id)), *(sum(map(len, fields.values())) for _, fields in entries)]


JOBS: st.SearchStrategy[Callable[[Redis], Job]] = st.one_of(
    st.builds(
        lambda targets, examples, size, metadata: (
            lambda redis: large_separation(redis, targets, examples, size, metadata)
        ),
        st.integers(1, 16),
        st.sampled_from([0, 2, 40]),
        st.sampled_from([192, 2048]),
        st.sampled_from([0, 3, 16]),
    ),
    st.builds(lambda metadata: lambda _: large_detection(metadata), st.integers(0, 16)),
)


@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(make=JOBS, events=st.sampled_from([0, 1, 60, 80, 100, 120, 200, 2000]), fails=st.booleans())
def test_records_and_events_are_small_and_complete(
    deployment: Deployment, make: Callable[[Redis], Job], events: int, fails: bool
) -> None:
    check(deployment, make(deployment.redis), events, fails)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("examples", [0, 40])
def test_the_largest_separations_are_small_in_redis(deployment: Deployment, examples: int, fails: bool) -> None:
    check(deployment, large_separation(deployment.redis, 16, examples, 2048, 16), 0, fails)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"targets": 7}', b"\xff", b"[" * 100_000])
def test_damaged_large_fields_are_told(deployment: Deployment, content: bytes) -> None:
    job = deployment.create(large_separation(deployment.redis, 16, 40, 2048, 16))
    deployment.storage.put(job.stored_fields[0].key, content)
    with pytest.raises(RecordUnreadable):
        deployment.load(job.id)


@pytest.mark.parametrize("seconds", [600.0, 7200.0])
def test_the_largest_detections_are_small_in_redis(deployment: Deployment, seconds: float) -> None:
    job = deployment.create(large_detection(0))
    deployment.jobs.claim(job.id, EXECUTION)
    result = detection_result("aud_x", events=2000, seconds=seconds).model_dump()
    deployment.publish(job.id, [], result, [])
    deployment.jobs.expire(job.id)
    assert max(sizes(deployment.redis, job.id)) < 3000
    assert deployment.load(job.id).result == result
    assert deployment.stored() == [f"{record_folder(job.id)}/{EXECUTION}.json"]


def check(deployment: Deployment, job: Job, events: int, fails: bool) -> None:
    """Run a job with a large request and outcome, and look at its record, its events and its parts at each step."""
    jobs, redis = deployment.jobs, deployment.redis
    assert deployment.create(job).request == job.request
    for step in ("queued", "running"):
        found = deployment.load(job.id)
        assert (found.status, found.is_partial) == (step, False)
        assert (found.request, found.metadata, found.targets) == (job.request, job.metadata, job.targets)
        assert found.audio_ids == job.audio_ids
        assert all(redis.sismember(users_key(audio_id), job.id) for audio_id in job.audio_ids)
        jobs.claim(job.id, EXECUTION)
        jobs.report_progress(job.id, EXECUTION, 0.5, "separating")
    if job.kind == "detection":
        outcome: Any = ([], detection_result("aud_x", events, tags=events).model_dump(), ["long " * 20])
    else:
        outcome = large_outcome(job)
    if fails:
        for target in job.targets:
            jobs.update_target(job.id, EXECUTION, failed_target(target))
    deployment.publish(job.id, *outcome)
    jobs.expire(job.id)
    assert max(sizes(redis, job.id)) <= LIMIT, (job.kind, sizes(redis, job.id))
    found = deployment.load(job.id)
    assert (found.targets, found.result, found.warnings) == outcome
    assert (found.request, found.metadata, found.webhook) == (job.request, job.metadata, job.webhook)
    replay = RecordReplay(found)
    states = [replay.apply(entry) for entry in read_all(redis, job.id)]
    assert [state.revision for state in states] == list(range(1, found.revision + 1))
    failed = [sum(target.error is not None for target in state.targets) for state in states]
    assert max(failed) == (len(job.targets) if fails else 0) and (not fails or failed[3:-2] == sorted(failed[3:-2]))
    assert sum(sizes(redis, job.id)) <= 3 * LIMIT
    assert not any(redis.exists(users_key(audio_id)) for audio_id in job.audio_ids)
    jobs.delete(job.id)
    for key in deployment.orphans():
        deployment.remove_what_is_due(key)
    assert deployment.stored() == [] and deployment.orphans() == {}
    assert redis.keys(f"{record_key(job.id)}*") == [events_key(job.id).encode()]  # tells of the deletion


def test_small_jobs_are_in_redis_alone_as_earlier_releases_read_them(deployment: Deployment) -> None:
    job = deployment.create(new_job())
    deployment.jobs.claim(job.id, EXECUTION)
    deployment.publish(job.id, job.targets, detection_result("aud_x", events=20, tags=10).model_dump(), [])
    record = json.loads(deployment.redis.get(record_key(job.id)) or b"")
    assert record["schema_version"] == 1 and len(record["result"]["events"]) == 20 and "stored_fields" not in record
    assert deployment.stored() == [] and deployment.orphans() == {}
    deployment.jobs.expire(job.id)
    expired, entries = deployment.jobs.get(job.id), read_all(deployment.redis, job.id)
    replay = RecordReplay(expired)
    assert [replay.apply(entry) for entry in entries][-1] == expired.model_copy(update={"webhook": None})
    assert [entry.job.count(b"/m/0bt9lr") for entry in entries] == [0, 0, 30, 0], "the result is there once"


def test_earlier_releases_refuse_a_record_whose_fields_are_stored(deployment: Deployment) -> None:
    job = deployment.create(large_detection(16))
    record = json.loads(deployment.redis.get(record_key(job.id)) or b"")
    assert record["schema_version"] == 2 and not {"request", "metadata", "audio_ids", "is_partial"} & set(record)


@pytest.mark.parametrize("death", ["before the record", "before the publication"])
def test_a_crash_between_store_and_record_leaves_nothing(deployment: Deployment, death: str) -> None:
    job, kept = large_detection(16), []
    if death == "before the record":
        deployment.large_fields.store_request(job)
    else:
        kept = deployment.create(job).stored_fields
        claimed = deployment.jobs.claim(job.id, EXECUTION)
        assert claimed is not None
        result = detection_result("aud_x", events=2000).model_dump()
        assert deployment.large_fields.store_outcome(claimed, EXECUTION, [], result, []) is not None
    left = (set(deployment.stored()) - {stored.key for stored in kept}).pop()
    assert deployment.orphans()[left] > time.time() + 100
    deployment.housekeeping.remove_expired()
    assert left in deployment.stored(), "a write may still be going on"
    deployment.remove_what_is_due(left)
    assert deployment.stored() == [stored.key for stored in kept]


def test_a_job_that_is_not_created_leaves_nothing(deployment: Deployment) -> None:
    job = large_detection(16).model_copy(update={"audio_ids": ["aud_none"]})
    large = deployment.large_fields.store_request(job)
    with pytest.raises(NotFound):
        deployment.jobs.create(large)
    deployment.large_fields.discard_request(large)
    assert deployment.stored() == [] and deployment.orphans() == {}


def test_stored_fields_stay_as_long_as_the_record(redis: Redis, tmp_path: Path) -> None:
    deployment = Deployment(redis, tmp_path, stem_retention=100.0, record_retention=1000.0)
    job = deployment.create(large_detection(16))
    assert deployment.orphans() == {}, "the record owns them, for as long as the job waits"
    deployment.jobs.claim(job.id, EXECUTION)
    deployment.publish(job.id, [], detection_result("aud_x", events=2000).model_dump(), [])
    redis.zadd("earmark:jobs:expiry", {job.id: time.time() - 1})
    deployment.housekeeping.remove_expired()
    assert deployment.jobs.get(job.id).expired and len(deployment.stored()) == 2
    assert len((deployment.load(job.id).result or {})["events"]) == 2000
    folder = record_folder(job.id)
    assert list(deployment.orphans()) == [folder]
    assert deployment.orphans()[folder] > time.time() + redis.ttl(record_key(job.id)) > time.time() + 1000
    redis.delete(record_key(job.id))  # as Redis drops it
    deployment.remove_what_is_due(folder)
    assert deployment.stored() == [] and deployment.orphans() == {}


def test_a_canceled_jobs_stored_fields_go_with_its_record(deployment: Deployment) -> None:
    job = deployment.create(large_detection(16))
    assert deployment.jobs.cancel(job.id).is_finished
    assert list(deployment.orphans()) == [record_folder(job.id)]


def test_missing_stored_fields_are_an_error_and_not_empty(deployment: Deployment) -> None:
    job = deployment.create(large_detection(16))
    partial = deployment.jobs.get(job.id)
    deployment.storage.delete_prefix("records")
    with pytest.raises(StoreUnavailable):
        deployment.large_fields.load(partial)
    deployment.jobs.delete(job.id)
    with pytest.raises(NotFound):
        deployment.large_fields.load(partial)


def test_uploads_of_a_large_job_cannot_be_deleted_until_it_has_finished(deployment: Deployment, redis: Redis) -> None:
    uploads, audio = [new_audio() for _ in range(3)], AudioRepository(redis, deployment.settings)
    for upload in uploads:
        audio.create(upload)
    job = new_job(*(upload.id for upload in uploads)).model_copy(update={"metadata": large_metadata(16)})
    job = deployment.create(job)
    assert deployment.jobs.get(job.id).audio_ids == []
    for upload in uploads:
        with pytest.raises(Exception, match="uses this audio"):
            audio.delete(upload.id)
    deployment.jobs.cancel(job.id)
    for upload in uploads:
        audio.delete(upload.id)


class CountingStore(Storage):
    """A store that counts reads, all and concurrent ones, and whose reads take some seconds."""

    reads = concurrent = most_concurrent = 0
    seconds = 0.05

    async def read(self, key: str) -> bytes:
        self.reads += 1
        self.concurrent += 1
        self.most_concurrent = max(self.most_concurrent, self.concurrent)
        try:
            await asyncio.sleep(self.seconds)
            return await super().read(key)
        finally:
            self.concurrent -= 1


@pytest.fixture
def counting_store(deployment: Deployment) -> CountingStore:
    found = CountingStore.open(deployment.settings)
    assert isinstance(found, CountingStore)
    return found


def test_concurrent_loads_are_one_read_and_the_cache_is_bounded(
    deployment: Deployment, counting_store: CountingStore
) -> None:
    partial = []
    for events in (100, 150, 2000):
        job = deployment.create(large_detection(0))
        deployment.jobs.claim(job.id, EXECUTION)
        deployment.publish(job.id, [], detection_result("aud_x", events).model_dump(), [])
        partial.append(deployment.jobs.get(job.id))

    async def load() -> list[int]:
        settings = deployment.settings
        cache = LargeFieldsCache(deployment.large_fields, counting_store, settings, max_bytes=400_000)
        reads = []
        for batch in ([partial[0]] * 50, partial[1:2], partial[:2], partial[2:], partial[1:2], partial[:1]):
            for job in await asyncio.gather(*map(cache.load, batch)):
                assert len((job.result or {})["events"]) in (100, 150, 2000) and not job.is_partial
            reads.append(counting_store.reads)
        return reads

    assert asyncio.run(load()) == [1, 2, 2, 3, 4, 5], "the least recently used are read again"


def test_a_store_that_hangs_is_unavailable_after_its_timeout(
    redis: Redis, tmp_path: Path, counting_store: CountingStore
) -> None:
    deployment = Deployment(redis, tmp_path, store_timeout=0.2)
    counting_store.seconds = 60.0
    jobs = [deployment.jobs.get(deployment.create(large_detection(16)).id) for _ in range(40)]

    async def load() -> list[Any]:
        cache = LargeFieldsCache(deployment.large_fields, counting_store, deployment.settings)
        loads = asyncio.gather(*(cache.load(job) for job in (*jobs, *jobs)), return_exceptions=True)
        return await asyncio.wait_for(loads, 30)

    assert {type(outcome) for outcome in asyncio.run(load())} == {StoreUnavailable}
    assert counting_store.most_concurrent == 16, "the others waited for a slot"
