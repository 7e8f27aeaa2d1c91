"""Work that a dead worker held waits again, and what has expired leaves the store; with a real queue and a folder."""

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
from app.housekeeping.sweeps import AT_ONCE, Housekeeping
from app.jobs.lifecycle import Job
from app.jobs.repository import JobRepository
from app.model_registry import workers_key
from app.records.audio import AudioRepository, store_key
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


def take(queue: Queue, job: Job, execution: str, beat_seconds: float) -> None:
    """What a worker does to RQ's keys when it begins: its last heartbeat is good for `beat_seconds`."""
    queue.remove(job.id)
    queued = QueuedJob.fetch(job.id, connection=queue.connection, serializer=JSONSerializer)
    with queue.connection.pipeline() as pipe:
        queued.prepare_for_execution("dead", pipeline=pipe)
        Execution.create(queued, 60, pipeline=pipe, worker_name="dead")
        pipe.execute()
    registry = queue.started_job_registry
    members: Any = queue.connection.zrange(registry.key, 0, -1)
    for member in members:
        queue.connection.zadd(registry.key, {member: time.time() + beat_seconds})
        if beat_seconds < 0:
            queue.connection.delete(f"rq:execution:{member.decode()}")  # it expires with the heartbeat


def test_a_dead_workers_job_waits_again_and_its_files_are_removed(
    jobs: JobRepository, storage: Storage, housekeeping: Housekeeping, tmp_path: Path
):
    job = jobs.create(new_job()).job
    queue = jobs.rq_queues.queue("base")
    take(queue, job, "e1", beat_seconds=-0.1)
    assert jobs.claim(job.id, "e1") is not None
    store(storage, f"separations/{job.id}/e1/0.flac", tmp_path)

    housekeeping.round()

    after = jobs.get(job.id)
    assert (after.status, after.execution, after.attempts) == ("queued", None, 1)
    assert queue.get_job_ids() == [job.id]
    assert storage.keys(f"separations/{job.id}") == []
    assert not jobs.publish(job.id, "e1", [], {}), "should the dead one live after all, it publishes nothing"


def test_a_living_workers_job_is_left_alone(jobs: JobRepository, housekeeping: Housekeeping):
    job = jobs.create(new_job()).job
    take(jobs.rq_queues.queue("base"), job, "e1", beat_seconds=10)
    jobs.claim(job.id, "e1")
    housekeeping.round()
    assert jobs.get(job.id).execution == "e1"


def test_a_job_whose_workers_keep_dying_is_given_up(redis: Redis, jobs: JobRepository, housekeeping: Housekeeping):
    job = jobs.create(new_job()).job
    for execution in ("e1", "e2"):
        take(jobs.rq_queues.queue("base"), job, execution, beat_seconds=-0.1)
        assert jobs.claim(job.id, execution) is not None
        housekeeping.round()
    over = jobs.get(job.id)
    assert over.status == "failed"
    assert over.error is not None
    assert over.error.code == "worker_lost"
    assert jobs.rq_queues.queue("base").get_job_ids() == []
    assert redis.keys("rq:job:*") == [], "nobody else would remove what RQ keeps of it"


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_nothing_is_left_of_a_job_that_ended_after_its_worker(
    redis: Redis, jobs: JobRepository, housekeeping: Housekeeping, end: str
):
    job = jobs.create(new_job()).job
    take(jobs.rq_queues.queue("base"), job, "e1", beat_seconds=-0.1)
    jobs.claim(job.id, "e1")
    getattr(jobs, end)(job.id)
    housekeeping.round()
    if end == "cancel":
        assert jobs.get(job.id).status == "canceled"
    assert redis.keys("rq:job:*") == redis.keys("rq:wip:*") == []


def test_nothing_is_left_of_a_job_that_is_deleted_in_the_hands_of_a_worker_taken_for_dead(
    redis: Redis, jobs: JobRepository, housekeeping: Housekeeping
):
    job = jobs.create(new_job()).job
    queue = jobs.rq_queues.queue("base")
    take(queue, job, "execution-1", beat_seconds=-0.1)
    housekeeping.round()  # taken for dead; the job waits again
    assert queue.job_ids == [job.id]
    assert jobs.claim(job.id, "execution-1"), "it lives, and goes on"
    jobs.delete(job.id)
    assert redis.keys("rq:job:*") == []


def test_what_a_worker_holds_keeps_its_entry(redis: Redis, jobs: JobRepository):
    job = jobs.create(new_job()).job
    queue = jobs.rq_queues.queue("base")
    take(queue, job, "execution-1", beat_seconds=60.0)
    redis.lpush(queue.key, job.id)  # and on a ready list: between taking and beginning it slept, and was taken for dead
    jobs.delete(job.id)
    assert queue.job_ids == []
    assert redis.keys("rq:job:*") == [f"rq:job:{job.id}".encode()]


def test_workers_whose_clocks_are_wrong_keep_their_jobs(redis: Redis, jobs: JobRepository, housekeeping: Housekeeping):
    job = jobs.create(new_job()).job
    queue = jobs.rq_queues.queue("base")
    take(queue, job, "e1", beat_seconds=10)
    jobs.claim(job.id, "e1")
    members: Any = redis.zrange(queue.started_job_registry.key, 0, -1)
    for member in members:
        redis.zadd(queue.started_job_registry.key, {member: time.time() - 3600})  # by the worker's clock
    housekeeping.round()
    assert jobs.get(job.id).execution == "e1"


def test_a_job_that_the_queue_lost_waits_again(redis: Redis, jobs: JobRepository, housekeeping: Housekeeping):
    job = jobs.create(new_job()).job
    redis.delete(jobs.rq_queues.queue("base").key, f"rq:job:{job.id}")
    housekeeping.round()
    assert jobs.rq_queues.queue("base").get_job_ids() == [job.id]


def test_a_job_taken_by_a_worker_that_died_before_it_began_waits_again(
    redis: Redis, jobs: JobRepository, housekeeping: Housekeeping
):
    job = jobs.create(new_job()).job
    queue = jobs.rq_queues.queue("base")
    redis.lmove(queue.key, queue.intermediate_queue_key)
    housekeeping.round()
    assert queue.get_job_ids() == [], "it may be beginning just now"
    housekeeping.round()
    assert queue.get_job_ids() == [job.id]
    assert queue.intermediate_queue.get_job_ids() == []


def test_a_job_whose_short_worker_went_and_whose_next_one_died_waits_again(
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
    housekeeping.round()
    queue = jobs.rq_queues.queue("base")
    assert queue.job_ids == [job.id]
    redis.lmove(queue.key, queue.intermediate_queue_key)
    for _ in range(3):
        housekeeping.round()
    assert queue.job_ids == [job.id]


def test_expired_stems_leave_the_store_and_the_record_stays(
    redis: Redis, jobs: JobRepository, storage: Storage, housekeeping: Housekeeping, tmp_path: Path
):
    job = jobs.create(new_job()).job
    jobs.claim(job.id, "e1")
    store(storage, f"separations/{job.id}/e1/0.flac", tmp_path)
    assert jobs.publish(job.id, "e1", [], {"stems": []})
    housekeeping.remove_expired()
    assert len(storage.keys(f"separations/{job.id}")) == 1
    redis.zadd("earmark:jobs:expiry", {job.id: time.time() - 1})
    housekeeping.remove_expired()
    assert storage.keys(f"separations/{job.id}") == []
    assert jobs.get(job.id).expired
    assert jobs.get(job.id).status == "succeeded"


def test_an_expired_upload_goes_unless_a_job_needs_it(
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


def test_what_cannot_be_removed_keeps_nothing_else_from_its_turn(
    redis: Redis, storage: Storage, housekeeping: Housekeeping, tmp_path: Path
):
    """More than one look takes, and the oldest of them are records that nobody can read."""
    past = time.time() - 100
    bad = [f"sep_bad{number:03}" for number in range(AT_ONCE)]
    for number, job_id in enumerate(bad):
        redis.set(f"earmark:job:{job_id}", b'{"schema": "of the day after tomorrow"}')
        redis.zadd("earmark:jobs:expiry", {job_id: past + number / 1000})
    store(storage, "jobs/nobody/1", tmp_path)
    redis.zadd("earmark:leftovers", {f"gone/{number}": past for number in range(AT_ONCE)} | {"jobs/nobody": past + 50})
    assert housekeeping.remove_expired(), "there is more"
    housekeeping.round()
    assert list(storage.keys("jobs/nobody")) == []
    assert redis.zcount("earmark:jobs:expiry", "-inf", time.time()) == 0
    assert redis.zcard("earmark:jobs:expiry") == AT_ONCE, "they are looked at again"
    assert not housekeeping.remove_expired()


def test_what_nobody_owns_is_removed_when_its_time_has_come(
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


class AwayStore(Storage):
    """A store that answers no request to delete, and counts them."""

    asked = 0

    def delete_prefix(self, prefix: str) -> int:
        self.asked += 1
        raise StoreUnavailable()


def test_lost_work_does_not_wait_for_a_store_that_is_away(redis: Redis, jobs: JobRepository, settings: Settings):
    """Each request may last as long as the store's patience: one a round, after everything that needs no store."""
    away = AwayStore.open(settings)
    assert isinstance(away, AwayStore)
    housekeeping = Housekeeping(redis, away, settings)
    lost = [jobs.create(new_job()).job for _ in range(3)]
    for job in lost:
        take(jobs.rq_queues.queue("base"), job, f"e-{job.id}", beat_seconds=-0.1)
        jobs.claim(job.id, f"e-{job.id}")
        OrphanLedger(redis).add(None, f"separations/{job.id}", 0.0)
    with pytest.raises(StoreUnavailable):
        housekeeping.round()
    assert away.asked == 1
    assert sorted(jobs.rq_queues.queue("base").get_job_ids()) == sorted(job.id for job in lost)
