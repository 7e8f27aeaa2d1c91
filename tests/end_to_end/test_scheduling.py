"""What one long job does to another key's short ones, with and without a worker kept for short ones."""

import time
from collections.abc import Callable

import pytest

from app.jobs.lifecycle import Job
from tests.end_to_end.deployment import Deployment
from tests.end_to_end.faults import DOG
from tests.end_to_end.figures import SOAK, Figures

LONG = 1800.0 if SOAK else 240.0  # s of recording
SHORT = 10.0

Deploy = Callable[..., Deployment]


def submit(deployment: Deployment, owner: str, seconds: float, mixture: str) -> Job:
    """A separation as the front end would put it on the line: with its owner and its length."""
    return deployment.submit(mixture, DOG, owner=owner, audio_seconds=seconds)


@pytest.mark.soak
@pytest.mark.timeout(3600 if SOAK else 300)
@pytest.mark.parametrize("kept", [True, False] if SOAK else [True])
def test_a_long_job_and_ten_short_ones(deploy: Deploy, figures: Figures, kept: bool):
    deployment = deploy(job_timeout=7200.0)
    deployment.start_housekeeping()
    deployment.start_worker()
    if kept:
        deployment.start_worker("--short")
    mixtures = {seconds: deployment.upload(seconds=seconds) for seconds in (LONG, SHORT)}
    long = submit(deployment, "key_a", LONG, mixtures[LONG])
    deployment.wait_running(long, ratio=0.1)
    begun = time.time()
    short = [submit(deployment, "key_b", SHORT, mixtures[SHORT]) for _ in range(10)]
    done = [deployment.wait(job, 7200) for job in short]
    assert all(job.status == "succeeded" for job in done)
    ends = [(job.finished_at or 0) - begun for job in done]
    over = deployment.wait(long, 7200)
    assert over.status == "succeeded"
    if kept:
        assert min(ends) < (over.finished_at or 0) - begun, "they did not wait for it"
    took = (over.finished_at or 0) - (over.started_at or 0)
    figures.add(
        "scheduling",
        "two, one of them `--short`" if kept else "one",
        f"the first done after {min(ends):.1f} s, the last after {max(ends):.1f} s",
        f"{LONG:g} s of audio, done in {took:.0f} s",
    )
