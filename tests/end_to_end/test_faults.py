"""What a worker's death costs its job: time, and nothing else. Under `make soak` at every stage."""

import base64
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook as Signature

from app.jobs.lifecycle import Webhook
from tests.app.receivers import Receiver, receiver
from tests.end_to_end.deployment import PATIENCE, Deployment, eventually
from tests.end_to_end.faults import (
    DEFAULTS,
    DOG,
    LONG,
    PROMISE,
    assert_done_once,
    begun_anew,
    decoding,
    held,
    owner,
    works,
)
from tests.end_to_end.figures import SOAK, Figures
from tests.end_to_end.test_jobs import ASK
from worker.scratch import Scratch

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200 if SOAK else 300)]
Deploy = Callable[..., Deployment]
STAGES = ("decoding", "detecting", "separating", "storing") if SOAK else ("storing",)
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture(scope="module")
def told() -> Iterator[Receiver]:
    with receiver() as served:
        yield served


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, small_model: Path, told: Receiver) -> Iterator[Deployment]:
    """Housekeeping that notices deaths within seconds, and delivers webhooks; no worker yet."""
    settings = {
        "outside_networks": "127.0.0.0/8",
        "outside_ports": told.url.rpartition(":")[2],
        "webhook_secret": SecretStr(SECRET),
    }
    deployment = Deployment(tmp_path_factory.mktemp("faults") / "deployment", small_model, settings)
    deployment.webhook = Webhook(url=told.url, events=["succeeded", "failed", "canceled"])
    deployment.start_housekeeping()
    yield deployment
    deployment.close()


@pytest.fixture
def pair(quick: Deployment) -> Deployment:
    """The same with two workers that wait, whatever the test before did to its own."""
    quick.start_workers(2 - len(quick.living()), "--hand-over-after", "0.5")
    return quick


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_workers_job_starts_again_within_the_promise(deploy: Deploy, figures: Figures, stage: str):
    """With the settings' defaults, in the short run too."""
    deployment = deploy(**DEFAULTS)
    deployment.start_housekeeping()
    deployment.start_workers(2)
    job = deployment.submit(deployment.upload(seconds=4 * LONG if stage == "separating" else 20.0), DOG)
    with held(deployment, job, stage) as first:
        victim = owner(deployment, job)
        children = psutil.Process(victim.pid).children(recursive=True)
        deployment.kill(victim)
        killed = time.monotonic()
    assert deployment.temporary_files(), "it had no time to tidy up"
    begun_anew(deployment, job, first.execution, PROMISE)
    again = time.monotonic() - killed
    assert not any(map(works, children)), "a decoder goes with its worker"
    deployment.wait(job)
    assert assert_done_once(deployment, job).attempts == 2
    Scratch(deployment.settings.home / "scratch").close()  # as the next worker does when it starts
    assert deployment.temporary_files() == [], "it is tidied up after"
    figures.add("faults", f"worker killed while {stage}", "its job starts again", f"{again:.1f} s later")


@pytest.mark.parametrize("kind", ASK)
def test_a_job_of_any_kind_outlives_its_worker_and_is_told_of_once(pair: Deployment, told: Receiver, kind: str):
    job = ASK[kind](pair, pair.upload(seconds=20.0))
    with decoding(pair) as decoder:
        pair.kill(owner(pair, job))
    assert pair.wait(job).attempts == 2
    assert_done_once(pair, job)
    eventually(lambda: not works(decoder))

    def messages() -> list[Any]:
        return [got for got in told.got if got.headers["webhook-id"] == f"msg_{job.id}"]

    eventually(messages)
    eventually(lambda: not pair.redis.zcard("earmark:webhooks:due"))
    (message,) = messages()
    assert Signature(SECRET).verify(message.body, message.headers)["type"] == f"{kind}.succeeded"


def test_of_two_workers_with_the_same_job_one_publishes(pair: Deployment, figures: Figures):
    """One is stopped until it is taken for dead, and goes on when another has its job."""
    job = pair.submit(pair.upload(seconds=LONG), DOG)
    first = pair.wait_running(job).execution
    stopped = owner(pair, job)
    stopped.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    begun_anew(pair, job, first, PROMISE)
    again = time.monotonic() - begun
    stopped.send_signal(signal.SIGCONT)
    pair.wait(job)
    eventually(lambda: pair.temporary_files() == [])
    assert_done_once(pair, job)
    pair.wait(pair.submit(pair.upload(), DOG))
    assert len(pair.living()) == 2
    figures.add(
        "faults",
        "a worker hangs, and goes on when another has its job (silence 2 s)",
        "one of them publishes",
        f"the other starts {again:.1f} s after the first hangs",
    )


def test_a_full_disk_costs_time_and_nothing_else(pair: Deployment, figures: Figures):
    """For a while no file of either may grow beyond 64 KiB, so that writes fail as on a full disk that they share."""
    processes = [psutil.Process(worker.pid) for worker in pair.living()]
    soft, hard = processes[0].rlimit(psutil.RLIMIT_FSIZE)
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (64 * 1024, hard))
    job = pair.submit(pair.upload(seconds=20.0), DOG)
    full = 10.0 if SOAK else 3.0
    eventually(lambda: pair.jobs.get(job.id).attempts > 0)
    time.sleep(full)
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))
    back = time.monotonic()
    pair.wait(job)
    took = time.monotonic() - back
    attempts = assert_done_once(pair, job).attempts
    assert attempts > 1, pair.logs()
    assert len(pair.living()) == 2
    assert pair.temporary_files() == []
    figures.add(
        "faults",
        f"the disk of two workers is full for {full:g} s",
        f"{attempts} executions",
        f"done {took:.1f} s after",
    )


def test_sigterm_hands_a_job_over_or_lets_it_finish(pair: Deployment, figures: Figures):
    job = pair.submit(pair.upload(seconds=4 * LONG if SOAK else 20.0), DOG)
    with held(pair, job, "separating" if SOAK else "decoding") as first:
        hasty = owner(pair, job)
        asked = time.monotonic()
        pair.end(hasty)
        took = time.monotonic() - asked
    figures.add(
        "faults",
        "SIGTERM during a job, `--hand-over-after 0.5`",
        "handed over, no attempt counted",
        f"ends after {took:.1f} s",
    )
    pair.wait(job)
    done = assert_done_once(pair, job)
    assert done.attempts == 1 and done.execution != first.execution, "a hand-over is no failed attempt"

    for worker in pair.living():
        pair.end(worker)
    patient = pair.start_worker("--hand-over-after", "600")
    job = pair.submit(pair.upload(seconds=20.0), DOG)
    with held(pair, job, "decoding") as first:
        patient.terminate()
        time.sleep(1.0)
        assert patient.poll() is None
    assert patient.wait(PATIENCE) == 0
    done = assert_done_once(pair, job)
    assert (done.attempts, done.execution) == (1, first.execution)
    assert pair.registry.worker_count("base") == 0
    assert pair.temporary_files() == []


def test_a_worker_says_why_it_cannot_start(deploy: Deploy):
    deployment = deploy()
    program = deployment.start("worker", "--model", "no-such-model")
    assert program.wait(PATIENCE) == 2
    said = (deployment.folder / "worker-0.log").read_text()
    assert said.splitlines()[-1].startswith("The worker cannot start: the model no-such-model does not load")
    assert "Traceback" not in said
    assert deployment.temporary_files() == []
