"""Failures of Valkey, the store or a decoder only delay jobs. `make soak` runs at full length."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.jobs.lifecycle import Job
from tests.end_to_end.deployment import Deployment, eventually
from tests.end_to_end.faults import DEFAULTS, DOG, LONG, assert_done_once, is_alive, suspended_decoder
from tests.end_to_end.figures import SOAK, Figures
from tests.full_redis import FULL, memory_in_use

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600 if SOAK else 300)]


@pytest.fixture(scope="module")
def shared_deployment(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Deployment]:
    """Housekeeping and one worker, with default settings under `make soak`."""
    folder = tmp_path_factory.mktemp("outages") / "deployment"
    deployment = Deployment(folder, small_model, DEFAULTS if SOAK else {})
    deployment.start_housekeeping()
    deployment.start_worker()
    yield deployment
    deployment.close()


@pytest.fixture
def deployment(shared_deployment: Deployment) -> Iterator[Deployment]:
    """The same; after each test its worker is alive, runs a job and leaves no files."""
    yield shared_deployment
    shared_deployment.wait(shared_deployment.submit(shared_deployment.upload(), DOG))
    eventually(lambda: shared_deployment.temporary_files() == [])
    assert len(shared_deployment.living_workers()) == 1, shared_deployment.logs()


def wait_until_done(deployment: Deployment, job: Job) -> tuple[float, int]:
    """Wait until the job is done, once; return the seconds and the number of executions."""
    started = time.monotonic()
    deployment.wait(job)
    seconds = time.monotonic() - started
    eventually(lambda: deployment.temporary_files() == [])
    return seconds, assert_done_once(deployment, job).attempts


def test_no_job_is_lost_when_the_queue_is_killed(deployment: Deployment, figures: Figures):
    running = deployment.submit(deployment.upload(seconds=LONG), DOG)
    waiting = [deployment.submit(deployment.upload(), DOG) for _ in range(5)]
    deployment.wait_running(running)
    deployment.kill_queue(downtime=2.0)
    seconds, attempts = wait_until_done(deployment, running)
    for job in waiting:
        deployment.wait(job)
        assert_done_once(deployment, job)
    figures.add(
        "outages",
        "Valkey killed under a running job and five waiting ones, back on its log after 2 s",
        f"no job that the log has; {attempts} execution(s) of the running one",
        f"done {seconds:.1f} s after it is back",
    )


def test_a_pause_of_valkey_only_delays_a_job(deployment: Deployment, figures: Figures):
    """Without heartbeats the worker is taken for dead; the job is still done once."""
    job = deployment.submit(deployment.upload(seconds=LONG), DOG)
    deployment.wait_running(job)
    pause = 30.0 if SOAK else 2.5 * deployment.settings.heartbeat_timeout
    with deployment.paused_queue():
        time.sleep(pause)
    seconds, attempts = wait_until_done(deployment, job)
    figures.add(
        "outages",
        f"Valkey paused {pause:g} s under a running job",
        f"{attempts} execution(s)",
        f"done {seconds:.1f} s after",
    )


def test_a_full_valkey_only_delays_jobs(deployment: Deployment, figures: Figures):
    """It refuses every command that might take memory: the running job is published, the others wait for room."""
    running = deployment.submit(deployment.upload(seconds=LONG if SOAK else 10.0), DOG)
    waiting = [deployment.submit(deployment.upload(), DOG) for _ in range(2)]
    deployment.wait_running(running, ratio=0.0)
    started = time.monotonic()
    with memory_in_use(deployment.redis, FULL):
        deployment.wait(running)
        assert assert_done_once(deployment, running).attempts == 1
        time.sleep(max(0.0, (60.0 if SOAK else 1.0) - (time.monotonic() - started)))
        assert [deployment.jobs.get(job.id).status for job in waiting] == ["queued"] * 2
        full = time.monotonic() - started
    started = time.monotonic()
    for job in waiting:
        deployment.wait(job)
        assert_done_once(deployment, job)
    figures.add(
        "outages",
        f"Valkey is full and refuses writes for {full:.0f} s, under a running job and two waiting ones",
        "1 execution of each",
        f"the running one done meanwhile, the others {time.monotonic() - started:.1f} s after",
    )


def test_an_outage_of_the_store_only_delays_a_job(deployment: Deployment, figures: Figures):
    job = deployment.submit(deployment.upload(seconds=20.0), DOG)
    outage = 30.0 if SOAK else 2.0
    with suspended_decoder(deployment), deployment.unavailable_store():
        time.sleep(0.1)
    with deployment.unavailable_store():
        time.sleep(outage)
    seconds, attempts = wait_until_done(deployment, job)
    figures.add(
        "outages", f"the store refuses for {outage:g} s", f"{attempts} execution(s)", f"done {seconds:.1f} s after"
    )


def test_a_decoder_that_hangs_fails_only_its_job(deployment: Deployment, figures: Figures):
    with deployment.job_timeout(4.0):
        job = deployment.submit(deployment.upload(seconds=20.0), DOG)
    with suspended_decoder(deployment) as decoder:
        suspended = time.monotonic()
        done = deployment.wait(job)
        seconds = time.monotonic() - suspended
        eventually(lambda: not is_alive(decoder))
    assert done.error is not None
    assert (done.status, done.error.code, deployment.output_keys(job)) == ("failed", "timed_out", [])
    figures.add(
        "outages",
        "a decoder hangs (the job's timeout set to 4 s)",
        "the job fails, `timed_out`",
        f"after {seconds:.1f} s",
    )


def test_a_worker_registers_again_after_a_loss_of_all_data(deployment: Deployment):
    deployment.redis.flushall()
    eventually(lambda: deployment.registry.models() and deployment.registry.workers_by_name().get("base", 0) == 1)
