"""Short jobs beside another job in one worker process: what happens to one does not happen to the other, and what
happens to the process costs both an execution at most."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.jobs.lifecycle import Job
from tests.end_to_end.deployment import Deployment, eventually
from tests.end_to_end.faults import DOG, assert_done_once, suspended_decoder

TWO_THREADS = ("--threads", "2", "--hand-over-after", "0.5")
LONG = 450.0  # s of audio, for which a worker takes five seconds on a quiet machine
CLOCK_ERROR = 0.1  # s; a process measures its distance to Redis's clock again and again


@pytest.fixture(scope="module")
def shared_deployment(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Deployment]:
    """Housekeeping, without workers."""
    deployment = Deployment(tmp_path_factory.mktemp("short-jobs") / "deployment", small_model, {})
    deployment.start_housekeeping()
    yield deployment
    deployment.close()


@pytest.fixture
def deployment(shared_deployment: Deployment) -> Deployment:
    """The same with one worker process that runs short jobs beside others; one that a test has ended is replaced."""
    if not shared_deployment.living_workers():
        shared_deployment.start_worker(*TWO_THREADS)
    eventually(lambda: shared_deployment.registry.workers_by_name() == {"base": 2})  # a killed one is known for a while
    return shared_deployment


def worker_of(deployment: Deployment) -> subprocess.Popen:
    [worker] = deployment.living_workers()
    return worker


def submit(deployment: Deployment, seconds: float) -> Job:
    """Enqueue a job for a recording of a known duration."""
    return deployment.submit(deployment.upload(seconds=seconds), DOG, audio_seconds=seconds)


def run_side_by_side(deployment: Deployment) -> tuple[Job, Job]:
    """Return a long job and a short one that run now."""
    long = submit(deployment, LONG)
    deployment.wait_running(long, ratio=0.1)
    short = submit(deployment, 50.0)
    return long, deployment.wait_running(short, ratio=0.0)


def test_a_short_job_does_not_wait_for_a_long_one_and_both_have_the_stems_of_a_job_alone(deployment: Deployment):
    mixture = deployment.upload(seconds=10.0)
    alone = deployment.wait(deployment.submit(mixture, DOG, audio_seconds=10.0))
    long = submit(deployment, LONG)
    deployment.wait_running(long, ratio=0.1)
    beside = [deployment.wait(deployment.submit(mixture, DOG, audio_seconds=10.0)) for _ in range(2)]
    assert not deployment.jobs.get(long.id).is_finished
    assert deployment.registry.workers_by_name() == {"base": 2}
    for job in beside:
        assert assert_done_once(deployment, job).attempts == 1
        assert digests(job) == digests(alone)
    finish_by_cancellation(deployment, long)
    assert deployment.temporary_files() == []


def finish_by_cancellation(deployment: Deployment, job: Job) -> None:
    """Require that a job goes on, in its first execution; then end it, since the rest of it takes time."""
    progress = deployment.jobs.get(job.id).progress.ratio
    record = deployment.wait_running(job, ratio=progress + 0.01)
    assert (record.attempts, record.cancel_requested_at) == (1, None)
    deployment.jobs.cancel(job.id)
    assert deployment.wait(job).status == "canceled"


def digests(job: Job) -> list[str]:
    assert job.result is not None
    return [stem["sha256"] for stem in job.result["stems"]]


def test_the_long_job_is_canceled_and_the_short_one_goes_on(deployment: Deployment):
    long, short = run_side_by_side(deployment)
    deployment.jobs.cancel(long.id)
    assert deployment.wait(long).status == "canceled"
    deployment.wait(short)
    assert assert_done_once(deployment, short).attempts == 1
    assert deployment.output_keys(long) == []


def test_the_short_job_is_canceled_and_the_long_one_goes_on(deployment: Deployment):
    long, short = run_side_by_side(deployment)
    deployment.jobs.cancel(short.id)
    assert deployment.wait(short).status == "canceled"
    finish_by_cancellation(deployment, long)
    assert deployment.output_keys(short) == []


def test_the_short_job_is_past_its_timeout_and_the_long_one_goes_on(deployment: Deployment):
    long = submit(deployment, LONG)
    deployment.wait_running(long, ratio=0.1)
    with deployment.job_timeout(1.0):
        short = submit(deployment, 50.0)
    with suspended_decoder(deployment):
        done = deployment.wait(short)
    assert done.error is not None and done.error.code == "timed_out"
    finish_by_cancellation(deployment, long)


def test_the_jobs_of_a_killed_process_run_once_more_and_one_after_the_other(deployment: Deployment):
    """So a job that crashes its process again and again does not end the same other job with each execution."""
    jobs = run_side_by_side(deployment)
    deployment.kill(worker_of(deployment))
    deployment.start_worker(*TWO_THREADS)
    for job in jobs:
        deployment.wait(job)
    first, second = sorted((assert_done_once(deployment, job) for job in jobs), key=lambda job: job.finished_at or 0.0)
    assert first.attempts == second.attempts == 2
    assert first.finished_at is not None and second.started_at is not None
    assert second.started_at > first.finished_at - CLOCK_ERROR
    assert deployment.temporary_files() == []


def test_the_jobs_of_a_stopped_process_are_handed_over(deployment: Deployment):
    jobs = run_side_by_side(deployment)
    deployment.stop(worker_of(deployment))
    assert_handed_over(deployment, *jobs)
    deployment.start_worker(*TWO_THREADS)
    for job in jobs:
        deployment.wait(job)
        assert assert_done_once(deployment, job).attempts == 1, "a hand-over is not a failed attempt"


def test_a_second_signal_hands_the_jobs_over_now(deploy: Callable[..., Deployment]):
    deployment = deploy()
    worker = deployment.start_worker("--threads", "2", "--hand-over-after", "600")
    jobs = run_side_by_side(deployment)
    worker.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert worker.poll() is None
    deployment.stop(worker)
    assert_handed_over(deployment, *jobs)


def assert_handed_over(deployment: Deployment, *jobs: Job) -> None:
    assert [deployment.jobs.get(job.id).status for job in jobs] == ["queued"] * len(jobs)
    assert deployment.registry.workers_by_name().get("base", 0) == 0
    assert list((deployment.settings.home / "scratch").glob("worker-*")) == []


def test_an_idle_process_stops_soon(deployment: Deployment):
    deployment.stop(worker_of(deployment))
    assert deployment.registry.workers_by_name().get("base", 0) == 0


@pytest.mark.parametrize("options", [("--one-job", "--threads", "2"), ("--threads", "1")], ids=["asked", "one thread"])
def test_a_process_may_run_one_job_at_a_time(deploy: Callable[..., Deployment], options: tuple[str, ...]):
    deployment = deploy()
    deployment.start_worker(*options)
    deployment.wait(submit(deployment, 2.0))
    assert deployment.registry.workers_by_name() == {"base": 1}
    assert len(list((Path(deployment.settings.home) / "scratch").glob("worker-*"))) == 1
