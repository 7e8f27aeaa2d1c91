"""Effect of one long job on the short jobs of another key, with and without a worker reserved for short jobs."""

import time
from collections.abc import Callable

import pytest

from app.jobs.lifecycle import Job
from tests.end_to_end.deployment import Deployment
from tests.end_to_end.faults import DOG
from tests.end_to_end.figures import SOAK, Figures

LONG = 1800.0 if SOAK else 240.0  # s, duration of the recording
SHORT = 10.0

Deploy = Callable[..., Deployment]


def submit(deployment: Deployment, owner: str, seconds: float, mixture: str) -> Job:
    """Enqueue a separation as the front end does, with its owner and duration."""
    return deployment.submit(mixture, DOG, owner=owner, audio_seconds=seconds)


@pytest.mark.soak
@pytest.mark.timeout(3600 if SOAK else 300)
@pytest.mark.parametrize("reserved", [True, False] if SOAK else [True])
def test_a_long_job_and_ten_short_ones(deploy: Deploy, figures: Figures, reserved: bool):
    deployment = deploy(job_timeout=7200.0)
    deployment.start_housekeeping()
    deployment.start_worker()
    if reserved:
        deployment.start_worker("--short")
    mixtures = {seconds: deployment.upload(seconds=seconds) for seconds in (LONG, SHORT)}
    long = submit(deployment, "key_a", LONG, mixtures[LONG])
    deployment.wait_running(long, ratio=0.1)
    submitted = time.time()
    short = [submit(deployment, "key_b", SHORT, mixtures[SHORT]) for _ in range(10)]
    done = [deployment.wait(job, 7200) for job in short]
    assert all(job.status == "succeeded" for job in done)
    ends = [(job.finished_at or 0) - submitted for job in done]
    finished = deployment.wait(long, 7200)
    assert finished.status == "succeeded"
    if reserved:
        assert min(ends) < (finished.finished_at or 0) - submitted, "short jobs do not wait for the long one"
    seconds = (finished.finished_at or 0) - (finished.started_at or 0)
    figures.add(
        "scheduling",
        "two, one of them `--short`" if reserved else "one",
        f"the first done after {min(ends):.1f} s, the last after {max(ends):.1f} s",
        f"{LONG:g} s of audio, done in {seconds:.0f} s",
    )
