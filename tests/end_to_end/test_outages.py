"""What it costs that the queue's server, the store or a decoder fails: time. In full under `make soak`."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.jobs.lifecycle import Job
from app.jobs.repository import JobRepository
from tests.end_to_end.deployment import Deployment, eventually
from tests.end_to_end.faults import DEFAULTS, DOG, LONG, assert_done_once, decoding, works
from tests.end_to_end.figures import SOAK, Figures

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600 if SOAK else 300)]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Deployment]:
    """Housekeeping and one worker; with the settings' defaults under `make soak`."""
    folder = tmp_path_factory.mktemp("outages") / "deployment"
    deployment = Deployment(folder, small_model, DEFAULTS if SOAK else {})
    deployment.start_housekeeping()
    deployment.start_worker()
    yield deployment
    deployment.close()


@pytest.fixture
def deployment(deployed: Deployment) -> Iterator[Deployment]:
    """The same; whatever happens, its worker lives, works and leaves no files behind."""
    yield deployed
    deployed.wait(deployed.submit(deployed.upload(), DOG))
    eventually(lambda: deployed.temporary_files() == [])
    assert len(deployed.living()) == 1, deployed.logs()


def done_after(deployment: Deployment, job: Job) -> tuple[float, int]:
    """Seconds until the job is done, once, and how many executions it took."""
    back = time.monotonic()
    deployment.wait(job)
    took = time.monotonic() - back
    eventually(lambda: deployment.temporary_files() == [])
    return took, assert_done_once(deployment, job).attempts


def test_no_job_is_lost_when_the_queue_is_killed(deployment: Deployment, figures: Figures):
    running = deployment.submit(deployment.upload(seconds=LONG), DOG)
    waiting = [deployment.submit(deployment.upload(), DOG) for _ in range(5)]
    deployment.wait_running(running)
    deployment.kill_queue(away=2.0)
    took, attempts = done_after(deployment, running)
    for job in waiting:
        deployment.wait(job)
        assert_done_once(deployment, job)
    figures.add(
        "outages",
        "Valkey killed under a running job and five waiting ones, back on its log after 2 s",
        f"no job that the log has; {attempts} execution(s) of the running one",
        f"done {took:.1f} s after it is back",
    )


def test_a_paused_queue_server_costs_time_and_nothing_else(deployment: Deployment, figures: Figures):
    """Nobody can beat meanwhile, so that its worker is taken for dead; the job is done once all the same."""
    job = deployment.submit(deployment.upload(seconds=LONG), DOG)
    deployment.wait_running(job)
    pause = 30.0 if SOAK else 2.5 * deployment.settings.heartbeat_timeout
    with deployment.paused_queue():
        time.sleep(pause)
    took, attempts = done_after(deployment, job)
    figures.add(
        "outages",
        f"Valkey paused {pause:g} s under a running job",
        f"{attempts} execution(s)",
        f"done {took:.1f} s after",
    )


def test_a_store_that_refuses_costs_time_and_nothing_else(deployment: Deployment, figures: Figures):
    job = deployment.submit(deployment.upload(seconds=20.0), DOG)
    away = 30.0 if SOAK else 2.0
    with decoding(deployment), deployment.absent_store():
        time.sleep(0.1)
    with deployment.absent_store():
        time.sleep(away)
    took, attempts = done_after(deployment, job)
    figures.add("outages", f"the store refuses for {away:g} s", f"{attempts} execution(s)", f"done {took:.1f} s after")


def test_a_decoder_that_hangs_costs_its_job_and_no_more(
    deployment: Deployment, figures: Figures, monkeypatch: pytest.MonkeyPatch
):
    hasty = deployment.settings.model_copy(update={"job_timeout": 4.0})
    with monkeypatch.context() as patch:
        patch.setattr(deployment, "jobs", JobRepository(deployment.redis, hasty))  # the job carries its timeout
        job = deployment.submit(deployment.upload(seconds=20.0), DOG)
    with decoding(deployment) as decoder:
        hung = time.monotonic()
        done = deployment.wait(job)
        took = time.monotonic() - hung
        eventually(lambda: not works(decoder))
    assert done.error is not None
    assert (done.status, done.error.code, deployment.stored(job)) == ("failed", "timed_out", [])
    figures.add(
        "outages", "a decoder hangs (the job's timeout set to 4 s)", "the job fails, `timed_out`", f"after {took:.1f} s"
    )


def test_a_worker_announces_itself_again_to_a_server_that_lost_everything(deployment: Deployment):
    deployment.redis.flushall()
    eventually(lambda: deployment.registry.models() and deployment.registry.worker_count("base") == 1)
