"""Lost jobs on a real Valkey: in no queue, of workers that keep dying, or delivered too often."""

import threading
import time

from redis import Redis

from app.jobs.lifecycle import Job
from app.jobs.repository import JobRepository
from app.jobs.rq_queues import queue_name
from app.records.audio import AudioRepository
from app.settings import Settings
from tests.app.jobs.steps import DONE, read_events, ready_ids


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
