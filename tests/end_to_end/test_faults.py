"""What deaths and refusals cost: time, and nothing else. Under `make soak` with the settings' defaults, in full."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from rq.job import Job as QueuedJob

from app.lifecycle import Job
from app.separations.records import SeparationResult
from app.settings import Settings
from tests.end_to_end.deployment import Deployment, eventually
from tests.end_to_end.figures import SOAK, Figures
from worker.scratch import Scratch

pytestmark = pytest.mark.soak
Deploy = Callable[..., Deployment]
DOG = [{"name": "dog", "label": "Dog"}]
LONG = 150.0  # seconds of recording: several of work
PROMISE = 30.0  # seconds from a worker's death to its job's second start, with the settings' defaults
_PATIENCE = ("heartbeat_seconds", "heartbeat_timeout", "sweep_seconds", "lost_after")
DEFAULTS: dict[str, Any] = {name: Settings.model_fields[name].default for name in _PATIENCE}
PACE = DEFAULTS if SOAK else {}
STAGES = ("decoding", "detecting", "separating", "storing") if SOAK else ("decoding", "storing")


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


def works(process: psutil.Process) -> bool:
    """Whether it is more than an entry that nobody has asked about."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def reached(deployment: Deployment, job: Job, stage: str, workers: list[subprocess.Popen]) -> Iterator[None]:
    """The job is in the stage, and stays in it however slow the test is."""
    with contextlib.ExitStack() as held:
        if stage == "decoding":
            eventually(lambda: next(filter(None, map(deployment.decoder, workers)), None)).suspend()
        elif stage == "storing":
            deployment.wait_running(job)
            held.enter_context(deployment.absent_store())
        eventually(lambda: deployment.jobs.get(job.id).progress.stage == stage, 60)
        yield


def test_a_worker_killed_at_any_stage_costs_its_job_time(deploy: Deploy, figures: Figures):
    deployment = deploy(**PACE)
    deployment.start_housekeeping()
    workers = deployment.start_workers(2)
    for stage in STAGES:
        job = deployment.submit(deployment.upload(seconds=LONG if SOAK else 40.0), DOG)
        with reached(deployment, job, stage, workers):
            first = deployment.jobs.get(job.id).execution
            victim = owner(deployment, job, workers)
            children = psutil.Process(victim.pid).children(recursive=True)
            deployment.kill(victim)
            killed = time.monotonic()
        eventually(lambda job=job, first=first: deployment.jobs.get(job.id).execution not in (None, first), PROMISE)
        again = time.monotonic() - killed
        assert not any(map(works, children)), "a decoder goes with its worker"
        deployment.wait(job)
        assert assert_done_once(deployment, job).attempts == 2
        figures.add("faults", f"worker killed while {stage}", "its job starts again", f"{again:.1f} s later")
        workers.remove(victim)
        if stage != STAGES[-1]:
            workers += deployment.start_workers(1)


def test_a_killed_workers_job_starts_again_within_the_promise(deploy: Deploy):
    """With the settings' defaults, in the shorter run too."""
    deployment = deploy(**DEFAULTS)
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


def test_no_job_is_lost_when_the_queue_is_killed(deploy: Deploy, figures: Figures):
    deployment = deploy(**PACE)
    deployment.start_housekeeping()
    waiting = [deployment.submit(deployment.upload(), DOG) for _ in range(5)]
    deployment.kill_queue()
    worker = deployment.start_worker()
    for job in waiting:
        deployment.wait(job)
        assert_done_once(deployment, job)

    running = deployment.submit(deployment.upload(seconds=LONG), DOG)
    deployment.wait_running(running)
    deployment.kill_queue(away=2.0)
    back = time.monotonic()
    deployment.wait(running)
    attempts = assert_done_once(deployment, running).attempts
    assert worker.poll() is None, "a restart of the queue's server costs a worker nothing"
    figures.add(
        "faults",
        "Valkey killed under a running job and five waiting ones, back on its log after 2 s",
        f"no job; {attempts} execution(s) of the running one",
        f"done {time.monotonic() - back:.1f} s after it is back",
    )


def test_a_paused_queue_server_costs_time_and_nothing_else(deploy: Deploy, figures: Figures):
    """Nobody can beat meanwhile, so that its worker is taken for dead; the job is done once all the same."""
    deployment = deploy(**PACE)
    deployment.start_housekeeping()
    worker = deployment.start_worker()
    job = deployment.submit(deployment.upload(seconds=LONG), DOG)
    deployment.wait_running(job)
    pause = 30.0 if SOAK else 2.5 * deployment.settings.heartbeat_timeout
    with deployment.paused_queue():
        time.sleep(pause)
    back = time.monotonic()
    deployment.wait(job, 120)
    took = time.monotonic() - back
    eventually(lambda: deployment.temporary_files() == [])
    attempts = assert_done_once(deployment, job).attempts
    deployment.wait(deployment.submit(deployment.upload(), DOG))
    assert worker.poll() is None
    figures.add(
        "faults",
        f"Valkey paused {pause:g} s under a running job",
        f"{attempts} execution(s)",
        f"done {took:.1f} s after",
    )


def test_a_store_that_refuses_costs_time_and_nothing_else(deploy: Deploy, figures: Figures):
    deployment = deploy(**PACE)
    deployment.start_housekeeping()
    worker = deployment.start_worker()
    job = deployment.submit(deployment.upload(seconds=20.0), DOG)
    deployment.wait_running(job)
    away = 30.0 if SOAK else 2.0
    with deployment.absent_store():
        time.sleep(away)
    back = time.monotonic()
    deployment.wait(job, 120)
    took = time.monotonic() - back
    attempts = assert_done_once(deployment, job).attempts
    assert worker.poll() is None
    figures.add("faults", f"the store refuses for {away:g} s", f"{attempts} execution(s)", f"done {took:.1f} s after")


def test_a_full_disk_costs_time_and_nothing_else(deploy: Deploy, figures: Figures):
    """No file of the worker's may grow beyond 64 KiB for a while, so that its writes fail as on a full disk."""
    deployment = deploy(**PACE)
    deployment.start_housekeeping()
    worker = deployment.start_worker()
    process = psutil.Process(worker.pid)
    soft, hard = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (64 * 1024, hard))
    job = deployment.submit(deployment.upload(seconds=20.0), DOG)
    full = 10.0 if SOAK else 3.0
    eventually(lambda: deployment.jobs.get(job.id).attempts > 0)
    time.sleep(full)
    process.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))
    back = time.monotonic()
    deployment.wait(job)
    took = time.monotonic() - back
    attempts = assert_done_once(deployment, job).attempts
    assert attempts > 1, deployment.logs()
    assert worker.poll() is None
    assert deployment.temporary_files() == []
    figures.add(
        "faults", f"the worker's disk is full for {full:g} s", f"{attempts} executions", f"done {took:.1f} s after"
    )


def test_a_decoder_that_hangs_costs_its_job_and_no_more(deploy: Deploy, figures: Figures):
    deployment = deploy(job_timeout=8.0)
    worker = deployment.start_worker()
    job = deployment.submit(deployment.upload(seconds=LONG), DOG)
    decoder = eventually(lambda: deployment.decoder(worker))
    decoder.suspend()
    hung = time.monotonic()
    done = deployment.wait(job)
    took = time.monotonic() - hung
    assert done.error is not None
    assert (done.status, done.error.code, deployment.stored(job)) == ("failed", "timed_out", [])
    eventually(lambda: not works(decoder))
    deployment.wait(deployment.submit(deployment.upload(), DOG))
    assert worker.poll() is None
    assert deployment.temporary_files() == []
    figures.add(
        "faults", "a decoder hangs (the job's timeout set to 8 s)", "the job fails, `timed_out`", f"after {took:.1f} s"
    )


def test_a_worker_announces_itself_again_to_a_server_that_lost_everything(deploy: Deploy):
    deployment = deploy()
    deployment.start_worker()
    deployment.redis.flushall()
    eventually(lambda: deployment.registry.models() and deployment.registry.workers("base") == 1, 10)
    deployment.wait(deployment.submit(deployment.upload(), DOG))


def test_of_two_workers_with_the_same_job_one_publishes(deploy: Deploy, figures: Figures):
    """One is paused until it is taken for dead, and goes on when another has its job."""
    deployment = deploy(**PACE)
    deployment.start_housekeeping()
    workers = deployment.start_workers(2)
    job = deployment.submit(deployment.upload(seconds=LONG), DOG)
    first = deployment.wait_running(job).execution
    paused = owner(deployment, job, workers)
    paused.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    eventually(lambda: deployment.jobs.get(job.id).execution not in (None, first))
    again = time.monotonic() - stopped
    paused.send_signal(signal.SIGCONT)
    deployment.wait(job)
    figures.add(
        "faults",
        "a worker hangs, and goes on when another has its job",
        "one of them publishes",
        f"the other starts {again:.1f} s after the first hangs",
    )
    eventually(lambda: deployment.temporary_files() == [])
    assert_done_once(deployment, job)
    deployment.wait(deployment.submit(deployment.upload(), DOG))
    assert all(worker.poll() is None for worker in workers)


def test_sigterm_hands_a_job_over_or_lets_it_finish(deploy: Deploy, figures: Figures):
    deployment = deploy()
    hasty = deployment.start_worker("--hand-over-after", "0.5")
    job = deployment.submit(deployment.upload(seconds=LONG / 2), DOG)
    deployment.wait_running(job)
    hasty.terminate()
    asked = time.monotonic()
    assert hasty.wait(30) == 0
    took = time.monotonic() - asked
    figures.add(
        "faults",
        "SIGTERM during a job, `--hand-over-after 0.5`",
        "handed over, no attempt counted",
        f"ends after {took:.1f} s",
    )
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
