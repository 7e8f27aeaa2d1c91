"""Sweeps of housekeeping: recovery of jobs of dead workers, and expiry; with a real queue and a local store."""

import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job as QueuedJob
from rq.serializers import JSONSerializer

from app.errors import NotFound, StoreUnavailable
from app.housekeeping.sweeps import BATCH_SIZE, Housekeeping
from app.jobs.lifecycle import Job
from app.jobs.repository import JobRepository
from app.model_registry.registry import workers_key
from app.records.audio import AudioRepository, audio_key, store_key
from app.records.ids import new_id
from app.records.orphans import OrphanLedger
from app.settings import Settings
from app.storage import Storage
from tests.app.records import new_audio, new_job


@pytest.fixture
def settings(redis: Redis, tmp_path: Path) -> Settings:
    port = redis.connection_pool.connection_kwargs["port"]
    return Settings(home=tmp_path, redis_url=f"redis://127.0.0.1:{port}/0", lost_after=0.0, job_attempts=2)


@pytest.fixture
def jobs(redis: Redis, settings: Settings) -> JobRepository:
    return JobRepository(redis, settings)


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage.open(settings)


@pytest.fixture
def housekeeping(redis: Redis, storage: Storage, settings: Settings) -> Housekeeping:
    return Housekeeping(redis, storage, settings)


def store(storage: Storage, key: str, folder: Path) -> None:
    path = folder / "bytes"
    path.write_bytes(b"abc")
    storage.put_file(key, path)


def start_execution(queue: Queue, job: Job, heartbeat_ttl: float) -> None:
    """Change RQ's keys as a worker does when it starts a job; its heartbeat expires after `heartbeat_ttl` seconds."""
    queue.remove(job.id)
    queued = QueuedJob.fetch(job.id, connection=queue.connection, serializer=JSONSerializer)
    with queue.connection.pipeline() as pipe:
        queued.prepare_for_execution("dead", pipeline=pipe)
        Execution.create(queued, 60, pipeline=pipe, worker_name="dead")
        pipe.execute()
    registry = queue.started_job_registry
    members: Any = queue.connection.zrange(registry.key, 0, -1)
    for member in members:
        queue.connection.zadd(registry.key, {member: time.time() + heartbeat_ttl})
        if heartbeat_ttl < 0:
            queue.connection.delete(f"rq:execution:{member.decode()}")  # Redis expires it with the heartbeat


def test_the_job_of_a_dead_worker_is_requeued_and_its_output_removed(
    jobs: JobRepository, storage: Storage, housekeeping: Housekeeping, tmp_path: Path
):
    job = jobs.create(new_job()).job
    queue = jobs.rq_queues.queue("base")
    start_execution(queue, job, heartbeat_ttl=-0.1)
    assert jobs.claim(job.id, "e1") is not None
    store(storage, f"separations/{job.id}/e1/0.flac", tmp_path)

    housekeeping.sweep()

    requeued = jobs.get(job.id)
    assert (requeued.status, requeued.execution, requeued.attempts) == ("queued", None, 1)
    assert queue.get_job_ids() == [job.id]
    assert storage.keys(f"separations/{job.id}") == []
    assert not jobs.publish(job.id, "e1", [], {}), "an execution that was taken for dead cannot publish"


def test_the_job_of_a_living_worker_is_left_alone(jobs: JobRepository, housekeeping: Housekeeping):
    job = jobs.create(new_job()).job
    start_execution(jobs.rq_queues.queue("base"), job, heartbeat_ttl=10)
    jobs.claim(job.id, "e1")
    housekeeping.sweep()
    assert jobs.get(job.id).execution == "e1"


def test_a_job_whose_workers_keep_dying_fails(redis: Redis, jobs: JobRepository, housekeeping: Housekeeping):
    job = jobs.create(new_job()).job
    for execution in ("e1", "e2"):
        start_execution(jobs.rq_queues.queue("base"), job, heartbeat_ttl=-0.1)
        assert jobs.claim(job.id, execution) is not None
        housekeeping.sweep()
    failed = jobs.get(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == "worker_lost"
    assert jobs.rq_queues.queue("base").get_job_ids() == []
    assert redis.keys("rq:job:*") == [], "nothing else removes RQ's entry of it"


@pytest.mark.parametrize("method", ["cancel", "delete"])
def test_nothing_remains_of_a_job_that_ends_after_its_worker(
    redis: Redis, jobs: JobRepository, housekeeping: Housekeeping, method: str
):
    job = jobs.create(new_job()).job
    start_execution(jobs.rq_queues.queue("base"), job, heartbeat_ttl=-0.1)
    jobs.claim(job.id, "e1")
    getattr(jobs, method)(job.id)
    housekeeping.sweep()
    if method == "cancel":
        assert jobs.get(job.id).status == "canceled"
    assert redis.keys("rq:job:*") == redis.keys("rq:wip:*") == []


def test_nothing_remains_of_a_job_that_is_deleted_while_a_worker_taken_for_dead_runs_it(
    redis: Redis, jobs: JobRepository, housekeeping: Housekeeping
):
    job = jobs.create(new_job()).job
    queue = jobs.rq_queues.queue("base")
    start_execution(queue, job, heartbeat_ttl=-0.1)
    housekeeping.sweep()  # the worker is taken for dead, and the job requeued
    assert queue.job_ids == [job.id]
    assert jobs.claim(job.id, "execution-1"), "the worker is alive and continues"
    jobs.delete(job.id)
    assert redis.keys("rq:job:*") == []


def test_the_entry_of_a_job_that_a_worker_runs_is_kept(redis: Redis, jobs: JobRepository):
    job = jobs.create(new_job()).job
    queue = jobs.rq_queues.queue("base")
    start_execution(queue, job, heartbeat_ttl=60.0)
    redis.lpush(queue.key, job.id)  # also requeued: the worker was suspended, and taken for dead
    jobs.delete(job.id)
    assert queue.job_ids == []
    assert redis.keys("rq:job:*") == [f"rq:job:{job.id}".encode()]


def test_a_worker_with_a_wrong_clock_keeps_its_job(redis: Redis, jobs: JobRepository, housekeeping: Housekeeping):
    job = jobs.create(new_job()).job
    queue = jobs.rq_queues.queue("base")
    start_execution(queue, job, heartbeat_ttl=10)
    jobs.claim(job.id, "e1")
    members: Any = redis.zrange(queue.started_job_registry.key, 0, -1)
    for member in members:
        redis.zadd(queue.started_job_registry.key, {member: time.time() - 3600})  # according to the worker's clock
    housekeeping.sweep()
    assert jobs.get(job.id).execution == "e1"


def test_a_job_missing_from_the_queue_is_requeued(redis: Redis, jobs: JobRepository, housekeeping: Housekeeping):
    job = jobs.create(new_job()).job
    redis.delete(jobs.rq_queues.queue("base").key, f"rq:job:{job.id}")
    housekeeping.sweep()
    assert jobs.rq_queues.queue("base").get_job_ids() == [job.id]


def test_a_job_whose_worker_died_before_starting_it_is_requeued(
    redis: Redis, jobs: JobRepository, housekeeping: Housekeeping
):
    job = jobs.create(new_job()).job
    queue = jobs.rq_queues.queue("base")
    redis.lmove(queue.key, queue.intermediate_queue_key)
    housekeeping.sweep()
    assert queue.get_job_ids() == [], "a worker may be about to start it"
    housekeeping.sweep()
    assert queue.get_job_ids() == [job.id]
    assert queue.intermediate_queue.get_job_ids() == []


def test_a_job_whose_short_worker_left_and_whose_next_worker_died_is_requeued(
    redis: Redis, jobs: JobRepository, housekeeping: Housekeeping
):
    now, short_workers = time.time(), workers_key("base", short=True)
    redis.zadd(workers_key("base"), {"any": now, "short": now})
    redis.zadd(short_workers, {"short": now})
    audio = new_audio()
    AudioRepository(redis, Settings()).create(audio)
    job = jobs.create(new_job(audio.id).model_copy(update={"audio_seconds": 1.0})).job
    assert jobs.rq_queues.queue("base", short=True).job_ids == [job.id]
    redis.delete(short_workers)
    housekeeping.sweep()
    queue = jobs.rq_queues.queue("base")
    assert queue.job_ids == [job.id]
    redis.lmove(queue.key, queue.intermediate_queue_key)
    for _ in range(3):
        housekeeping.sweep()
    assert queue.job_ids == [job.id]


def test_expired_stems_are_deleted_and_the_record_is_kept(
    redis: Redis,
    jobs: JobRepository,
    storage: Storage,
    housekeeping: Housekeeping,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    job = jobs.create(new_job()).job
    jobs.claim(job.id, "e1")
    store(storage, f"separations/{job.id}/e1/0.flac", tmp_path)
    assert jobs.publish(job.id, "e1", [], {"stems": []})
    housekeeping.remove_expired()
    assert len(storage.keys(f"separations/{job.id}")) == 1
    redis.zadd("earmark:jobs:expiry", {job.id: time.time() - 1})
    with caplog.at_level("INFO"):
        housekeeping.remove_expired()
    assert job.id in caplog.text, "its end is in the log of housekeeping"
    assert storage.keys(f"separations/{job.id}") == []
    assert jobs.get(job.id).expired
    assert jobs.get(job.id).status == "succeeded"


def test_an_expired_upload_is_deleted_unless_a_job_needs_it(
    redis: Redis, settings: Settings, jobs: JobRepository, storage: Storage, housekeeping: Housekeeping, tmp_path: Path
):
    records = AudioRepository(redis, settings)
    audio = new_audio(expires_at=time.time() - 1)
    store(storage, store_key(audio.id), tmp_path)
    records.create(audio)
    job = jobs.create(new_job(audio.id)).job
    housekeeping.remove_expired()
    assert storage.size(store_key(audio.id)) == 3
    jobs.cancel(job.id)
    redis.zadd("earmark:audio:expiry", {audio.id: time.time() - 1})
    housekeeping.remove_expired()
    with pytest.raises(NotFound):
        storage.size(store_key(audio.id))
    with pytest.raises(NotFound):
        records.get(audio.id)


def test_the_bytes_of_an_expired_upload_go_though_its_record_is_lost_unless_a_job_needs_them(
    redis: Redis, settings: Settings, jobs: JobRepository, storage: Storage, housekeeping: Housekeeping, tmp_path: Path
):
    audio = new_audio(expires_at=time.time() - 1)
    store(storage, store_key(audio.id), tmp_path)
    AudioRepository(redis, settings).create(audio)
    job = jobs.create(new_job(audio.id)).job
    redis.delete(audio_key(audio.id))
    housekeeping.remove_expired()
    assert storage.size(store_key(audio.id)) == 3
    jobs.cancel(job.id)
    redis.zadd("earmark:audio:expiry", {audio.id: time.time() - 1})
    housekeeping.remove_expired()
    assert storage.keys("audio") == [] and OrphanLedger(redis).due(9) == []
    assert not redis.exists("earmark:audio:expiry", "earmark:audio:of:"), "it is not tried for ever"


def test_items_that_cannot_be_removed_do_not_block_others(
    redis: Redis, storage: Storage, housekeeping: Housekeeping, tmp_path: Path
):
    """There is more than one batch, and its oldest items are records of a newer release."""
    past = time.time() - 100
    newer = [new_id("sep") for _ in range(BATCH_SIZE)]
    for number, job_id in enumerate(newer):
        redis.set(f"earmark:job:{job_id}", b'{"schema_version": 1000}')
        redis.zadd("earmark:jobs:expiry", {job_id: past + number / 1000})
    store(storage, "jobs/orphan/1", tmp_path)
    orphans = {f"missing/{number}": past for number in range(BATCH_SIZE)} | {"jobs/orphan": past + 50}
    redis.zadd("earmark:leftovers", orphans)
    assert housekeeping.remove_expired(), "there is more"
    housekeeping.sweep()
    assert list(storage.keys("jobs/orphan")) == []
    assert redis.zcount("earmark:jobs:expiry", "-inf", time.time()) == 0
    assert redis.zcard("earmark:jobs:expiry") == BATCH_SIZE, "they are tried again later"
    assert not housekeeping.remove_expired()


def test_orphaned_objects_are_removed_when_they_are_due(
    redis: Redis, storage: Storage, housekeeping: Housekeeping, tmp_path: Path
):
    store(storage, "separations/sep_x/e1/0.flac", tmp_path)
    OrphanLedger(redis).add(None, "separations/sep_x/e1", time.time() + 100)
    housekeeping.remove_expired()
    assert len(storage.keys("separations/sep_x")) == 1
    redis.zadd("earmark:leftovers", {"separations/sep_x/e1": time.time() - 1})
    housekeeping.remove_expired()
    assert storage.keys("separations/sep_x") == []
    assert OrphanLedger(redis).due(9) == []


class UnavailableStore(Storage):
    """A store that fails every deletion and counts them."""

    deletions = 0

    def delete_prefix(self, prefix: str) -> int:
        self.deletions += 1
        raise StoreUnavailable()


def test_an_unavailable_store_does_not_delay_the_recovery_of_jobs(
    redis: Redis, jobs: JobRepository, settings: Settings
):
    """A call may last until its timeout, so there is one per sweep, after the steps that need no store."""
    unavailable = UnavailableStore.open(settings)
    assert isinstance(unavailable, UnavailableStore)
    housekeeping = Housekeeping(redis, unavailable, settings)
    lost = [jobs.create(new_job()).job for _ in range(3)]
    for job in lost:
        start_execution(jobs.rq_queues.queue("base"), job, heartbeat_ttl=-0.1)
        jobs.claim(job.id, f"e-{job.id}")
        OrphanLedger(redis).add(None, f"separations/{job.id}", 0.0)
    with pytest.raises(StoreUnavailable):
        housekeeping.sweep()
    assert unavailable.deletions == 1
    assert sorted(jobs.rq_queues.queue("base").get_job_ids()) == sorted(job.id for job in lost)
