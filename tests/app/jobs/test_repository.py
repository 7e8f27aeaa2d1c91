"""Job records on a real Valkey: a job is done once, though processes repeat calls, die, or come too late."""

import json
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from rq.job import Job as Entry
from rq.serializers import JSONSerializer

from app.errors import AudioInUse, NotFound, QueueFull, RecordTooNew
from app.jobs.events import events_key
from app.jobs.job_records import EXPIRY_KEY
from app.jobs.kinds import KINDS, QUERY, SEPARATION, TASK_NAMES, Kind, output_folder
from app.jobs.lifecycle import Job, JobError
from app.jobs.listing import record_key
from app.jobs.repository import JobRepository, QueuedJob
from app.records.audio import AudioRepository
from app.records.ids import first_id
from app.settings import Settings
from app.settings.units import HOUR
from tests.app.jobs.steps import DONE, read_events, ready_ids
from tests.app.records import new_job


def test_a_job_waits_runs_and_is_published(redis: Redis, jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    assert ready_ids(redis) == [job.id.encode()]
    assert jobs.fair_queue.position(jobs.get(job.id)) == 1
    claimed = jobs.claim(job.id, "a")
    assert claimed is not None and claimed.status == "running" and jobs.fair_queue.position(claimed) == 0
    assert jobs.report_progress(job.id, "a", 0.5, "separating")
    assert jobs.update_target(job.id, "a", DONE[0])
    assert not jobs.should_stop(job.id, "a")
    assert jobs.publish(job.id, "a", DONE, {"gain": 1.0}, ["careful"])
    done = jobs.get(job.id)
    assert (done.status, done.result, done.warnings) == ("succeeded", {"gain": 1.0}, ["careful"])
    kept = None if KINDS[job.kind].kept else pytest.approx(time.time() + 72 * 3600, abs=5)
    assert done.expires_at == kept
    assert jobs.should_stop(job.id, "a")
    entries = read_events(redis, job)
    assert [name for name, _, _ in entries] == [f"{number}-0".encode() for number in range(1, 6)]
    assert [kind for _, kind, _ in entries] == ["state", "state", "progress", "target", "state"]
    assert [fields.get("status") for _, _, fields in entries] == ["queued", "running", None, None, "succeeded"]
    assert [target["name"] for target in entries[3][2]["targets"]] == [DONE[0].name]
    assert all("request" not in fields for _, _, fields in entries)


def test_records_expire_in_redis_after_their_retention_time(redis: Redis, jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    assert redis.ttl(record_key(job.id)) == -1
    jobs.claim(job.id, "a")
    jobs.publish(job.id, "a", DONE, {})
    for key in (record_key(job.id), events_key(job.id)):
        assert redis.ttl(key) == (-1 if KINDS[job.kind].kept else pytest.approx(33 * 86400, abs=10))


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_failed_jobs_of_every_kind_expire(redis: Redis, jobs: JobRepository, upload: str, kind: Kind) -> None:
    job = jobs.create(new_job(upload, kind=kind)).job
    jobs.claim(job.id, "a")
    jobs.fail(job.id, "a", JobError(code="audio_silent", detail="Silent."))
    assert jobs.get(job.id).expires_at == pytest.approx(time.time() + 72 * 3600, abs=5)
    assert redis.ttl(record_key(job.id)) == pytest.approx(33 * 86400, abs=10)


def test_old_saved_queries_stay_in_their_list_until_they_are_deleted(
    redis: Redis, jobs: JobRepository, upload: str
) -> None:
    job = new_job(upload, kind=QUERY).model_copy(update={"id": first_id(QUERY.prefix, time.time() - 400 * 86400)})
    jobs.create(job)
    jobs.claim(job.id, "a")
    jobs.publish(job.id, "a", [], {})
    assert jobs.trim() == 0
    assert [found.id for found in jobs.listing.page("", "query", 10, None, None)[0]] == [job.id]
    redis.delete(record_key(job.id))
    assert jobs.trim() == 1 and jobs.trim() == 0


def test_an_old_job_that_still_waits_stays_in_its_list(jobs: JobRepository) -> None:
    """Its model has had no workers for long, or `record_retention` was longer when it was created."""
    old = new_job().model_copy(update={"id": first_id(SEPARATION.prefix, time.time() - 400 * 86400)})
    jobs.create(old)
    assert jobs.trim() == 0
    assert [found.id for found in jobs.listing.page("", "separation", 10, None, None)[0]] == [old.id]


def test_dropped_records_leave_their_list_after_their_retention_time(redis: Redis) -> None:
    jobs = JobRepository(redis, Settings(stem_retention=HOUR, record_retention=HOUR))
    ids = [first_id(SEPARATION.prefix, time.time() - hours * HOUR - 60) for hours in (1, 2, 3)]
    for old in ids:
        jobs.create(new_job().model_copy(update={"id": old}))
        redis.delete(record_key(old))
    assert jobs.trim() == 2
    assert redis.zrange(jobs.listing.key("", "separation"), 0, -1) == [ids[0].encode()]


def test_the_later_of_two_executions_owns_the_job(jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    assert jobs.claim(job.id, "a") and jobs.claim(job.id, "b")
    assert jobs.should_stop(job.id, "a") and not jobs.should_stop(job.id, "b")
    assert not jobs.report_progress(job.id, "a", 0.9, "separating")
    assert not jobs.fail(job.id, "a", JobError(code="internal", detail="."))
    assert not jobs.release(job.id, "a")
    assert not jobs.publish(job.id, "a", DONE, {"by": "a"})
    assert jobs.publish(job.id, "b", DONE, {"by": "b"})
    assert jobs.publish(job.id, "b", DONE, {"by": "b, whose first reply was lost"})
    assert jobs.get(job.id).result == {"by": "b"}


def test_one_of_many_concurrent_executions_publishes(redis: Redis, jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    outcomes: dict[str, bool] = {}
    barrier = threading.Barrier(8)

    def work(execution: str) -> None:
        barrier.wait()
        claimed = JobRepository(redis, Settings(job_attempts=100)).claim(job.id, execution)
        outcomes[execution] = claimed is not None and jobs.publish(job.id, execution, DONE, {"by": execution})

    threads = [threading.Thread(target=work, args=(f"e{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(outcomes.values()) == 1
    winner = next(execution for execution, won in outcomes.items() if won)
    assert jobs.get(job.id).result == {"by": winner}
    numbers = [int(name.split(b"-")[0]) for name, _, _ in read_events(redis, job)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_steps_whose_replies_were_lost_may_be_repeated(redis: Redis, jobs: JobRepository, upload: str) -> None:
    ends: list[tuple[str, Callable[[str], bool]]] = [
        ("succeeded", lambda job_id: jobs.publish(job_id, "a", DONE, {})),
        ("failed", lambda job_id: jobs.fail(job_id, "a", JobError(code="internal", detail="."))),
        ("canceled", lambda job_id: jobs.cancel(job_id) is not None and jobs.confirm_cancel(job_id, "a")),
    ]
    for status, end in ends:
        job = jobs.create(new_job(upload)).job
        assert jobs.create(job) == QueuedJob(job, 1)
        assert jobs.claim(job.id, "a") and jobs.claim(job.id, "a")
        assert end(job.id)
        count = len(read_events(redis, job))
        if status == "canceled":
            assert jobs.confirm_cancel(job.id, "a")
        else:
            assert end(job.id)
        assert (jobs.get(job.id).status, len(read_events(redis, job))) == (status, count)


def test_output_that_is_never_published_is_in_the_orphan_ledger(redis: Redis, jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    jobs.claim(job.id, "a")
    jobs.claim(job.id, "b")
    jobs.publish(job.id, "b", DONE, {})
    assert redis.zrange("earmark:leftovers", 0, -1) == [f"{output_folder(job.kind, job.id)}/a".encode()]


def test_a_full_queue_refuses_new_jobs(redis: Redis, jobs: JobRepository, upload: str) -> None:
    for _ in range(5):
        jobs.create(new_job(upload))
    with pytest.raises(QueueFull):
        jobs.create(new_job(upload))
    assert jobs.fair_queue.waiting_count("base") == jobs.unfinished_count() == 5
    jobs.claim(ready_ids(redis)[0].decode(), "a")
    jobs.create(new_job(upload))


def test_positions_in_the_fair_queue(jobs: JobRepository, upload: str) -> None:
    queued_jobs = [jobs.create(new_job(upload)) for _ in range(3)]
    created = [queued.job for queued in queued_jobs]
    assert (
        [queued.position for queued in queued_jobs] == [jobs.fair_queue.position(job) for job in created] == [1, 2, 3]
    )
    jobs.claim(created[0].id, "a")
    assert [jobs.fair_queue.position(job) for job in created] == [0, 1, 2]
    assert [jobs.create(job).position for job in created] == [0, 1, 2], "a repeated call returns the current position"
    assert jobs.fair_queue.position(jobs.cancel(created[1].id)) == 0


def test_creating_a_job_takes_one_round_trip(
    redis: Redis, jobs: JobRepository, upload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.create(new_job(upload))  # loads the script
    sent: list[Any] = []
    execute = redis.execute_command
    monkeypatch.setattr(
        redis, "execute_command", lambda *words, **options: sent.append(words[0]) or execute(*words, **options)
    )
    assert jobs.create(new_job(upload)).position == 2
    assert sent == ["EVALSHA"]


def test_audio_in_use_cannot_be_deleted(redis: Redis, jobs: JobRepository, job: Job, audio: AudioRepository) -> None:
    jobs.create(job)
    with pytest.raises(AudioInUse):
        audio.delete(job.audio_ids[0])
    jobs.claim(job.id, "a")
    with pytest.raises(AudioInUse):
        audio.delete(job.audio_ids[0])
    jobs.fail(job.id, "a", JobError(code="audio_undecodable", detail="No."))
    audio.delete(job.audio_ids[0])
    with pytest.raises(NotFound):
        jobs.create(new_job(job.audio_ids[0]))


def test_audio_deleted_while_a_job_is_created_makes_one_of_them_fail(
    jobs: JobRepository, audio: AudioRepository, upload: str
) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(2)

    def attempt(act: Any, *arguments: Any) -> None:
        barrier.wait()
        try:
            act(*arguments)
            outcomes.append("done")
        except (NotFound, AudioInUse) as error:
            outcomes.append(error.code)

    threads = [
        threading.Thread(target=attempt, args=(jobs.create, new_job(upload))),
        threading.Thread(target=attempt, args=(audio.delete, upload)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) in (["audio_in_use", "done"], ["done", "not_found"])


def test_stems_expire_and_the_status_stays(redis: Redis, upload: str) -> None:
    jobs = JobRepository(redis, Settings(stem_retention=600))
    job = jobs.create(new_job(upload)).job
    jobs.claim(job.id, "a")
    jobs.publish(job.id, "a", DONE, {"stems": []})
    done = jobs.get(job.id)
    assert done.finished_at is not None and done.expires_at is not None
    assert redis.zscore(EXPIRY_KEY, job.id) == done.expires_at >= done.finished_at + 600
    assert jobs.expired_ids(9) == []
    redis.zadd(EXPIRY_KEY, {job.id: done.finished_at - 60})
    assert jobs.expired_ids(9) == [job.id]
    jobs.expire(job.id)
    assert jobs.expired_ids(9) == []
    expired = jobs.get(job.id)
    assert expired.expired and expired.status == "succeeded"


def test_a_record_of_a_newer_release_is_not_changed(redis: Redis, jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    newer = json.loads(redis.get(record_key(job.id)) or b"") | {"schema_version": 99}
    redis.set(record_key(job.id), json.dumps(newer))
    for act in (lambda: jobs.get(job.id), lambda: jobs.claim(job.id, "a"), lambda: jobs.delete(job.id)):
        with pytest.raises(RecordTooNew):
            act()
    assert json.loads(redis.get(record_key(job.id)) or b"") == newer


def test_the_rq_entry_names_the_task_and_is_json(redis: Redis, jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    entry: Any = redis.hgetall(f"rq:job:{job.id}")
    assert json.loads(zlib.decompress(entry[b"data"])) == [TASK_NAMES[job.kind], None, [job.id], {}]


@pytest.mark.parametrize(
    ("audio_seconds", "timeout"), [(0.0, 100), (60.0, 220), (21600.0, 43300), (1e9, 43300), (None, 43300)]
)
def test_the_timeout_of_an_execution_grows_with_its_recording(
    redis: Redis, upload: str, audio_seconds: float | None, timeout: int
) -> None:
    """A header may be wrong, and may not tell: no recording is longer than is allowed."""
    settings = Settings(job_timeout=100.0, job_timeout_factor=2.0)
    created = new_job(upload).model_copy(update={"audio_seconds": audio_seconds})
    JobRepository(redis, settings).create(created)
    assert Entry.fetch(created.id, connection=redis, serializer=JSONSerializer).timeout == timeout
    assert settings.execution_seconds > timeout
