"""What deaths of programs cost: time, and nothing else."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

from rq.job import Job as QueuedJob

from app.lifecycle import Job
from app.separations.records import SeparationResult
from app.settings import Settings
from tests.end_to_end.deployment import Deployment, eventually
from worker.scratch import Scratch

Deploy = Callable[..., Deployment]
DOG = [{"name": "dog", "label": "Dog"}]
LONG = 150.0  # seconds of recording: several of work
PROMISE = 30.0  # seconds from a worker's death to its job's second start, with the settings' defaults


def owner(deployment: Deployment, job: Job, workers: list[subprocess.Popen]) -> subprocess.Popen:
    """The worker that runs the job."""
    queued = QueuedJob.fetch(job.id, connection=deployment.redis, serializer="json")
    name = queued.worker_name or ""
    return next(worker for worker in workers if name.startswith(f"{socket.gethostname()}.{worker.pid}."))


def assert_done_once(deployment: Deployment, job: Job) -> Job:
    """One success in the record's events, and in the store what the record says and nothing else."""
    done = deployment.jobs.get(job.id)
    assert done.status == "succeeded", f"{done.error}\n{deployment.logs()}"
    events: Any = deployment.redis.xrange(f"earmark:job:{job.id}:events")
    assert sum(b'"status":"succeeded"' in event[b"job"] and event[b"type"] == b"state" for _, event in events) == 1
    stems = SeparationResult.model_validate(done.result).stems
    assert deployment.stored(job) == sorted(stem.key for stem in stems)
    assert {stem.key.split("/")[2] for stem in stems} == {done.execution}
    return done


def test_a_killed_workers_job_starts_again_within_the_promise(deploy: Deploy):
    defaults = {name: Settings.model_fields[name].default for name in ("heartbeat_seconds", "heartbeat_timeout")}
    defaults |= {name: Settings.model_fields[name].default for name in ("sweep_seconds", "lost_after")}
    deployment = deploy(**defaults)
    deployment.start_housekeeping()
    workers = deployment.start_workers(2)
    job = deployment.submit(deployment.upload(seconds=LONG), DOG)
    first = deployment.wait_running(job).execution
    victim = owner(deployment, job, workers)
    deployment.kill(victim)
    killed = time.monotonic()
    assert deployment.temporary_files(), "it had no time to tidy up"
    eventually(lambda: deployment.jobs.get(job.id).execution not in (None, first), PROMISE)
    print(f"started again {time.monotonic() - killed:.1f} s after kill -9")
    deployment.wait(job)
    done = assert_done_once(deployment, job)
    assert done.attempts == 2
    Scratch(deployment.settings.home / "scratch").close()  # as the next worker does when it starts
    assert deployment.temporary_files() == [], "it is tidied up after"


def test_no_job_is_lost_when_the_queue_restarts(deploy: Deploy):
    deployment = deploy()
    deployment.start_housekeeping()
    waiting = [deployment.submit(deployment.upload(), DOG) for _ in range(5)]
    deployment.restart_queue()
    worker = deployment.start_worker()
    for job in waiting:
        deployment.wait(job)
        assert_done_once(deployment, job)

    running = deployment.submit(deployment.upload(seconds=LONG), DOG)
    deployment.wait_running(running)
    deployment.restart_queue(away=2.0)
    deployment.wait(running)
    assert_done_once(deployment, running)
    assert worker.poll() is None, "a restart of the queue's server costs a worker nothing"


def test_a_paused_queue_server_costs_time_and_nothing_else(deploy: Deploy):
    """Nobody can beat meanwhile, so that its worker is taken for dead; the job is done once all the same."""
    deployment = deploy()
    deployment.start_housekeeping()
    worker = deployment.start_worker()
    job = deployment.submit(deployment.upload(seconds=LONG), DOG)
    deployment.wait_running(job)
    with deployment.paused_queue():
        time.sleep(2.5 * deployment.settings.heartbeat_timeout)
    deployment.wait(job)
    eventually(lambda: deployment.temporary_files() == [])
    assert_done_once(deployment, job)
    deployment.wait(deployment.submit(deployment.upload(), DOG))
    assert worker.poll() is None


def test_a_worker_announces_itself_again_to_a_server_that_lost_everything(deploy: Deploy):
    deployment = deploy()
    deployment.start_worker()
    deployment.redis.flushall()
    eventually(lambda: deployment.registry.models() and deployment.registry.workers("base") == 1, 10)
    deployment.wait(deployment.submit(deployment.upload(), DOG))


def test_of_two_workers_with_the_same_job_one_publishes(deploy: Deploy):
    """One is paused until it is taken for dead, and goes on when another has its job."""
    deployment = deploy()
    deployment.start_housekeeping()
    workers = deployment.start_workers(2)
    job = deployment.submit(deployment.upload(seconds=LONG), DOG)
    first = deployment.wait_running(job).execution
    paused = owner(deployment, job, workers)
    paused.send_signal(signal.SIGSTOP)
    eventually(lambda: deployment.jobs.get(job.id).execution not in (None, first))
    paused.send_signal(signal.SIGCONT)
    deployment.wait(job)
    eventually(lambda: deployment.temporary_files() == [])
    assert_done_once(deployment, job)
    deployment.wait(deployment.submit(deployment.upload(), DOG))
    assert all(worker.poll() is None for worker in workers)


def test_sigterm_hands_a_job_over_or_lets_it_finish(deploy: Deploy):
    deployment = deploy()
    hasty = deployment.start_worker("--hand-over-after", "0.5")
    job = deployment.submit(deployment.upload(seconds=LONG / 2), DOG)
    deployment.wait_running(job)
    hasty.terminate()
    asked = time.monotonic()
    assert hasty.wait(30) == 0
    print(f"handed over {time.monotonic() - asked:.1f} s after SIGTERM")
    assert deployment.jobs.get(job.id).status == "queued"
    assert deployment.stored(job) == []
    assert deployment.temporary_files() == []

    patient = deployment.start_worker("--hand-over-after", "60")
    deployment.wait_running(job)
    patient.terminate()
    assert patient.wait(60) == 0
    assert assert_done_once(deployment, job).attempts == 1, "a hand-over is no failed attempt"
    assert deployment.registry.workers("base") == 0
    assert deployment.temporary_files() == []


def test_a_worker_says_why_it_cannot_start(deploy: Deploy):
    deployment = deploy()
    program = deployment.start("worker", "--model", "no-such-model")
    assert program.wait(60) == 2
    said = (deployment.folder / "worker-0.log").read_text()
    assert said.splitlines()[-1].startswith("The worker cannot start: the model no-such-model does not load")
    assert "Traceback" not in said
    assert deployment.temporary_files() == []
