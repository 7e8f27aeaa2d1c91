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

from app.errors import AlreadyFinished, AudioInUse, NotFound, QueueFull, RecordTooNew
from app.jobs.events import events_key
from app.jobs.kinds import KINDS, QUERY, SEPARATION, TASK_NAMES, Kind, output_folder
from app.jobs.lifecycle import Job, JobError, TargetState
from app.jobs.listing import record_key
from app.jobs.repository import JobRepository, QueuedJob
from app.jobs.rq_queues import queue_name
from app.records.audio import AudioRepository, users_key
from app.records.ids import first_id
from app.settings import Settings
from app.settings.units import HOUR
from tests.app.records import new_audio, new_job


@pytest.fixture
def audio(redis: Redis) -> AudioRepository:
    return AudioRepository(redis, Settings())


@pytest.fixture
def upload(audio: AudioRepository) -> str:
    record = new_audio()
    audio.create(record)
    return record.id


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def job(request: pytest.FixtureRequest, upload: str) -> Job:
    """A job of each kind: they share one life cycle."""
    return new_job(upload, kind=request.param)


DONE = [TargetState(name="dog", status="succeeded")]


def ready_ids(redis: Redis) -> list[bytes]:
    found: Any = redis.lrange(f"rq:queue:{queue_name('base')}", 0, -1)
    return found


def read_events(redis: Redis, job: Job) -> list[tuple[bytes, str, dict]]:
    found: Any = redis.xrange(events_key(job.id))
    return [(name, fields[b"type"].decode(), json.loads(fields[b"job"])) for name, fields in found]


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


def test_a_job_in_no_queue_is_found_and_requeued(redis: Redis, jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    redis.delete(f"rq:queue:{queue_name('base')}", f"rq:job:{job.id}")
    assert JobRepository(redis, Settings(lost_after=60)).find_lost() == []
    lost = jobs.find_lost()
    assert [each.id for each in lost] == [job.id]
    assert jobs.requeue(lost[0]) is not None
    assert ready_ids(redis) == [job.id.encode()]
    assert jobs.find_lost() == []


def test_a_lost_job_that_changed_meanwhile_is_not_requeued(redis: Redis, jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    redis.delete(f"rq:queue:{queue_name('base')}")
    (lost,) = jobs.find_lost()
    assert jobs.requeue(lost) is not None  # one housekeeping process
    assert jobs.claim(job.id, "a") is not None
    assert jobs.requeue(lost) is None  # another, which read the same state
    assert jobs.get(job.id).execution == "a"


def test_a_job_that_moves_back_meanwhile_is_not_lost(redis: Redis, jobs: JobRepository, job: Job) -> None:
    """RQ retries it: it moves from the started registry back to the queue, which is read before the registry."""
    jobs.create(job)
    queue = f"rq:queue:{queue_name('base')}"
    stop = threading.Event()

    def move_back_and_forth() -> None:
        while not stop.is_set():
            for command in (("LREM", queue, 0, job.id), ("RPUSH", queue, job.id)):
                with redis.pipeline() as pipe:
                    pipe.execute_command(*command)
                    pipe.execute_command(
                        *("ZADD", f"rq:wip:{queue_name('base')}", time.time() + 60, f"{job.id}:e")
                        if command[0] == "LREM"
                        else ("ZREM", f"rq:wip:{queue_name('base')}", f"{job.id}:e")
                    )
                    pipe.execute()

    thread = threading.Thread(target=move_back_and_forth)
    thread.start()
    try:
        assert [jobs.find_lost() for _ in range(200)] == [[]] * 200
    finally:
        stop.set()
        thread.join()


def test_a_server_that_has_dropped_its_scripts_loses_nothing(redis: Redis, jobs: JobRepository, job: Job) -> None:
    redis.script_flush()
    jobs.create(job)
    redis.script_flush()
    assert jobs.claim(job.id, "a") is not None
    redis.script_flush()
    assert jobs.publish(job.id, "a", DONE, {})
    assert len(read_events(redis, job)) == 3 and jobs.fair_queue.waiting_count("base") == 0


def test_a_job_whose_workers_keep_dying_is_given_up(
    redis: Redis, jobs: JobRepository, job: Job, audio: AudioRepository
) -> None:
    jobs.create(job)
    for execution in ("a", "b", "c"):
        assert jobs.claim(job.id, execution)
        redis.delete(f"rq:queue:{queue_name('base')}", f"rq:job:{job.id}")
        for lost in jobs.find_lost():
            jobs.requeue(lost)
    finished = jobs.get(job.id)
    assert finished.status == "failed" and finished.error is not None and finished.error.code == "worker_lost"
    assert jobs.claim(job.id, "d") is None
    assert ready_ids(redis) == [] and jobs.find_lost() == []
    audio.delete(job.audio_ids[0])


def test_a_job_delivered_too_often_is_given_up_by_its_claim(jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    assert [jobs.claim(job.id, execution) is not None for execution in "abcd"] == [True, True, True, False]
    assert jobs.get(job.id).status == "failed"


def test_released_attempts_do_not_count(jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    for number in range(9):
        assert jobs.claim(job.id, f"e{number}")
        assert jobs.release(job.id, f"e{number}")
    waiting = jobs.get(job.id)
    assert (waiting.status, waiting.attempts, jobs.fair_queue.position(waiting)) == ("queued", 0, 1)


def test_a_waiting_job_is_canceled_at_once(redis: Redis, jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    assert jobs.cancel(job.id).status == "canceled"
    assert ready_ids(redis) == [] and redis.keys(f"rq:job:{job.id}") == []
    assert jobs.claim(job.id, "a") is None
    assert [target.status for target in jobs.get(job.id).targets] == ["canceled"]
    with pytest.raises(AlreadyFinished):
        jobs.cancel(job.id)


def test_canceling_a_running_job_asks_its_worker_to_stop(jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    jobs.claim(job.id, "a")
    assert not jobs.confirm_cancel(job.id, "a")
    canceling = jobs.cancel(job.id)
    assert canceling.status == "running" and canceling.cancel_requested_at is not None
    assert jobs.cancel(job.id).cancel_requested_at == canceling.cancel_requested_at
    assert jobs.should_stop(job.id, "a")
    assert jobs.confirm_cancel(job.id, "a")
    assert jobs.get(job.id).status == "canceled"


def test_a_worker_that_reports_reads_its_record_again_only_where_another_process_has_changed_it(
    redis: Redis, jobs: JobRepository, job: Job
) -> None:
    def reads() -> int:
        calls: Any = redis.info("commandstats")
        return calls.get("cmdstat_get", {"calls": 0})["calls"]

    others = JobRepository(redis, Settings())
    others.create(job)
    jobs.claim(job.id, "a")
    redis.config_resetstat()
    assert jobs.report_progress(job.id, "a", 0.25, "separating")
    assert reads() == 1  # by the compare-and-set itself
    others.cancel(job.id)
    assert jobs.report_progress(job.id, "a", 0.5, "separating")
    assert jobs.get(job.id).cancel_requested_at is not None
    assert jobs.get(job.id).progress.ratio == 0.5 and jobs.get(job.id).revision == 5
    others.delete(job.id)
    assert not jobs.report_progress(job.id, "a", 0.75, "separating")


def test_a_job_whose_worker_died_after_a_request_to_cancel_is_canceled(jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    jobs.claim(job.id, "a")
    jobs.cancel(job.id)
    assert jobs.claim(job.id, "b") is None
    assert jobs.get(job.id).status == "canceled"


def test_a_deleted_job_cannot_be_published_and_leaves_no_index(redis: Redis, jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    jobs.claim(job.id, "a")
    jobs.delete(job.id)
    assert jobs.should_stop(job.id, "a")
    assert not jobs.publish(job.id, "a", DONE, {})
    with pytest.raises(NotFound):
        jobs.get(job.id)
    assert redis.exists(users_key(job.audio_ids[0])) == 0
    keys: Any = redis.keys("earmark:job*")
    assert keys == [events_key(job.id).encode()]  # tells subscribers that the job was deleted
    assert 0 < redis.ttl(keys[0]) <= 60
    last: Any = redis.xrange(keys[0])
    assert [fields for _, fields in last] == [{b"type": b"deleted"}]
    # The worker may write after the deletion: the prefix stays in the ledger.
    assert output_folder(job.kind, job.id).encode() in redis.zrange("earmark:leftovers", 0, -1)


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
    jobs = JobRepository(redis, Settings(stem_retention=0.05))
    job = jobs.create(new_job(upload)).job
    jobs.claim(job.id, "a")
    jobs.publish(job.id, "a", DONE, {"stems": []})
    assert jobs.expired_ids(9) == []
    time.sleep(0.1)
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
