"""Canceled and deleted jobs on a real Valkey, and the record that a worker keeps meanwhile."""

from typing import Any

import pytest
from redis import Redis

from app.errors import AlreadyFinished, NotFound
from app.jobs.events import events_key
from app.jobs.kinds import output_folder
from app.jobs.lifecycle import Job
from app.jobs.repository import JobRepository
from app.records.audio import users_key
from app.settings import Settings
from tests.app.jobs.steps import DONE, ready_ids


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


def test_canceling_a_job_that_has_succeeded_says_so_and_what_to_do(jobs: JobRepository, job: Job) -> None:
    jobs.create(job)
    jobs.claim(job.id, "a")
    assert jobs.publish(job.id, "a", DONE, {})
    with pytest.raises(AlreadyFinished) as raised:
        jobs.cancel(job.id)
    assert raised.value.detail == (
        f"The {job.kind} is succeeded; only a queued or running one can be canceled: delete it to discard what it made."
    )


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
