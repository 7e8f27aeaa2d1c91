"""The death of a worker costs its job time, and nothing else. `make soak` tests every stage."""

import base64
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook as Signature

from app.jobs.lifecycle import Webhook
from tests.app.receivers import Receiver, receiver
from tests.end_to_end.deployment import TIMEOUT, Deployment, eventually
from tests.end_to_end.faults import (
    DEFAULTS,
    DOG,
    LONG,
    RECOVERY_LIMIT,
    assert_done_once,
    is_alive,
    stage_reached,
    suspended_decoder,
    wait_for_next_execution,
    worker_of,
)
from tests.end_to_end.figures import SOAK, Figures
from tests.end_to_end.test_jobs import SUBMIT
from worker.scratch import Scratch

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200 if SOAK else 300)]
STAGES = ("decoding", "detecting", "separating", "storing") if SOAK else ("storing",)
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture(scope="module")
def webhooks() -> Iterator[Receiver]:
    with receiver() as served:
        yield served


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory, small_model: Path, webhooks: Receiver) -> Iterator[Deployment]:
    """Housekeeping that detects deaths within seconds and delivers webhooks, without workers."""
    settings = {
        "outside_networks": "127.0.0.0/8",
        "outside_ports": webhooks.url.rpartition(":")[2],
        "webhook_secret": SecretStr(SECRET),
    }
    deployment = Deployment(tmp_path_factory.mktemp("faults") / "deployment", small_model, settings)
    deployment.webhook = Webhook(url=webhooks.url, events=["succeeded", "failed", "canceled"])
    deployment.start_housekeeping()
    yield deployment
    deployment.close()


@pytest.fixture
def pair(fast: Deployment) -> Deployment:
    """The same deployment with two idle workers."""
    fast.start_workers(2 - len(fast.living_workers()), "--hand-over-after", "0.5")
    return fast


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Deployment]:
    """Housekeeping with default settings, which take no worker for dead that only waits for a busy machine."""
    deployment = Deployment(tmp_path_factory.mktemp("faults") / "deployment", small_model, DEFAULTS)
    deployment.start_housekeeping()
    yield deployment
    deployment.close()


@pytest.fixture
def default_pair(default: Deployment) -> Deployment:
    """The same deployment with two idle workers."""
    default.start_workers(2 - len(default.living_workers()), "--hand-over-after", "0.5")
    return default


@pytest.mark.parametrize("stage", STAGES)
def test_the_job_of_a_killed_worker_restarts_within_the_limit(default_pair: Deployment, figures: Figures, stage: str):
    """With default settings, in the short run too."""
    deployment = default_pair
    seconds = {"separating": 4 * LONG, "storing": LONG}.get(stage, 20.0)  # the store is to fail before it is needed
    job = deployment.submit(deployment.upload(seconds=seconds), DOG)
    with stage_reached(deployment, job, stage) as first:
        victim = worker_of(deployment, job)
        children = psutil.Process(victim.pid).children(recursive=True)
        deployment.kill(victim)
        killed = time.monotonic()
    assert deployment.temporary_files(), "the killed worker had no time to remove its files"
    wait_for_next_execution(deployment, job, first.execution, RECOVERY_LIMIT)
    recovery = time.monotonic() - killed
    assert not any(map(is_alive, children)), "a decoder dies with its worker"
    deployment.wait(job)
    assert assert_done_once(deployment, job).attempts == 2
    Scratch(deployment.settings.home / "scratch").close()  # as the next worker does when it starts
    assert deployment.temporary_files() == [], "the next worker removes them"
    figures.add("faults", f"worker killed while {stage}", "its job starts again", f"{recovery:.1f} s later")


@pytest.mark.parametrize("kind", SUBMIT)
def test_a_job_of_any_kind_survives_its_worker_and_sends_one_webhook(pair: Deployment, webhooks: Receiver, kind: str):
    job = SUBMIT[kind](pair, pair.upload(seconds=55.0))
    with suspended_decoder(pair) as decoder:
        pair.kill(worker_of(pair, job))
    assert pair.wait(job).attempts == 2
    assert_done_once(pair, job)
    eventually(lambda: not is_alive(decoder))

    def messages() -> list[Any]:
        return [request for request in webhooks.requests if request.headers["webhook-id"] == f"msg_{job.id}"]

    eventually(messages)
    eventually(lambda: not pair.redis.zcard("earmark:webhooks:due"))
    (message,) = messages()
    assert Signature(SECRET).verify(message.body, message.headers)["type"] == f"{kind}.succeeded"


def test_only_one_of_two_workers_with_the_same_job_publishes(pair: Deployment, figures: Figures):
    """The first is suspended until it is taken for dead, and resumed when the other runs its job."""
    job = pair.submit(pair.upload(seconds=LONG), DOG)
    first = pair.wait_running(job).execution
    suspended = worker_of(pair, job)
    suspended.send_signal(signal.SIGSTOP)
    suspended_at = time.monotonic()
    wait_for_next_execution(pair, job, first, RECOVERY_LIMIT)
    recovery = time.monotonic() - suspended_at
    suspended.send_signal(signal.SIGCONT)
    pair.wait(job)
    eventually(lambda: pair.temporary_files() == [])
    assert_done_once(pair, job)
    pair.wait(pair.submit(pair.upload(), DOG))
    assert len(pair.living_workers()) == 2
    figures.add(
        "faults",
        "a worker hangs, and goes on when another has its job (silence 2 s)",
        "one of them publishes",
        f"the other starts {recovery:.1f} s after the first hangs",
    )


def test_a_full_disk_only_delays_a_job(pair: Deployment, figures: Figures):
    """For a while neither may write files beyond 64 KiB, so that writes fail as on a shared full disk."""
    processes = [psutil.Process(worker.pid) for worker in pair.living_workers()]
    soft, hard = processes[0].rlimit(psutil.RLIMIT_FSIZE)
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (64 * 1024, hard))
    job = pair.submit(pair.upload(seconds=20.0), DOG)
    duration = 10.0 if SOAK else 3.0
    eventually(lambda: pair.jobs.get(job.id).attempts > 0)
    time.sleep(duration)
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))
    freed = time.monotonic()
    pair.wait(job)
    delay = time.monotonic() - freed
    attempts = assert_done_once(pair, job).attempts
    assert attempts > 1, pair.logs()
    assert len(pair.living_workers()) == 2
    assert pair.temporary_files() == []
    figures.add(
        "faults",
        f"the disk of two workers is full for {duration:g} s",
        f"{attempts} executions",
        f"done {delay:.1f} s after",
    )


def test_sigterm_hands_a_job_over_or_lets_it_finish(default_pair: Deployment, figures: Figures):
    pair = default_pair
    job = pair.submit(pair.upload(seconds=4 * LONG if SOAK else 20.0), DOG)
    with stage_reached(pair, job, "separating" if SOAK else "decoding") as first:
        hasty = worker_of(pair, job)
        signaled = time.monotonic()
        pair.stop(hasty)
        delay = time.monotonic() - signaled
    figures.add(
        "faults",
        "SIGTERM during a job, `--hand-over-after 0.5`",
        "handed over, no attempt counted",
        f"ends after {delay:.1f} s",
    )
    pair.wait(job)
    done = assert_done_once(pair, job)
    assert done.attempts == 1 and done.execution != first.execution, "a hand-over is not a failed attempt"

    for worker in pair.living_workers():
        pair.stop(worker)
    patient = pair.start_worker("--hand-over-after", "600")
    job = pair.submit(pair.upload(seconds=20.0), DOG)
    with stage_reached(pair, job, "decoding") as first:
        patient.terminate()
        time.sleep(1.0)
        assert patient.poll() is None
    assert patient.wait(TIMEOUT) == 0
    done = assert_done_once(pair, job)
    assert (done.attempts, done.execution) == (1, first.execution)
    assert pair.registry.workers_by_name().get("base", 0) == 0
    assert pair.temporary_files() == []
