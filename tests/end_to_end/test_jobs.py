"""Jobs through a real worker: what it makes, what it refuses, and that nothing but a stop ends it."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
from rq.command import send_stop_job_command

from app.jobs.lifecycle import Job
from app.jobs.repository import JobRepository
from app.jobs.rq_queues import RqQueues
from app.records.separations import SeparationResult
from app.settings import Settings
from tests.end_to_end.deployment import Deployment, eventually
from tests.end_to_end.recordings import RATE

LONG = 300.0  # seconds of recording: several of work, also on an idle machine


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("jobs") / "deployment", small_model, {})
    yield deployment
    deployment.close()


@pytest.fixture(scope="module")
def started_worker(deployment: Deployment) -> subprocess.Popen:
    return deployment.start_worker()


@pytest.fixture
def worker(deployment: Deployment, started_worker: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """The worker; whatever a test does to its job, it lives and leaves no files behind."""
    yield started_worker
    assert started_worker.poll() is None, deployment.logs()
    assert eventually(lambda: deployment.temporary_files() == [])


def test_stems_and_residual_are_stored_once_and_add_up(deployment: Deployment, worker: subprocess.Popen):
    samples = 0.1 * np.random.default_rng(1).standard_normal(3 * RATE)
    job = deployment.submit(
        deployment.upload(samples),
        [
            {"name": "dog", "label": "Dog"},
            {"name": "mine", "examples": [{"audio_id": deployment.upload(seconds=1.0)}]},
            {"name": "a part", "spans": [{"start": 0.5, "end": 1.5}]},
        ],
        format="wav",
    )
    done = deployment.wait(job)
    assert done.status == "succeeded", done.error
    assert done.progress.ratio == 1.0
    assert [(target.name, target.status) for target in done.targets] == [
        (name, "succeeded") for name in ("dog", "mine", "a part")
    ]
    result = SeparationResult.model_validate(done.result)
    assert [stem.name for stem in result.stems] == ["dog", "mine", "a part", "residual"]
    assert deployment.stored(job) == sorted(stem.key for stem in result.stems)
    total = np.zeros(len(samples))
    for stem in result.stems:
        path = deployment.folder / "stem.wav"
        assert deployment.storage.download(stem.key, path) == stem.bytes
        read, rate = soundfile.read(path)
        assert (rate, len(read)) == (RATE, len(samples))
        total += read
    assert np.abs(total - np.round(samples * 2**15) / 2**15).max() < 1e-5
    assert set(result.metrics) == {"decoding", "separating", "encoding", "real_time_factor"}
    assert all(figure > 0 for figure in result.metrics.values())


ASK: dict[str, Callable[[Deployment, str], Job]] = {
    "separation": lambda deployment, audio_id: deployment.submit(audio_id, [{"name": "dog", "label": "Dog"}]),
    "detection": lambda deployment, audio_id: deployment.detect(audio_id),
    "query": lambda deployment, audio_id: deployment.embed(audio_id),
}
each = pytest.mark.parametrize("ask", ASK.values(), ids=list(ASK))
# Saved queries hear no more than a minute, so nothing about them is long.
each_long = pytest.mark.parametrize("ask", [ASK["separation"], ASK["detection"]], ids=["separation", "detection"])


@each
def test_a_job_delivered_again_does_nothing(deployment: Deployment, worker: subprocess.Popen, ask: Callable):
    job = ask(deployment, deployment.upload())
    done = deployment.wait(job)
    stored = deployment.stored(job)
    with deployment.redis.pipeline() as pipe:
        RqQueues(deployment.redis, deployment.settings).put_first(pipe, done)
        pipe.execute()
    eventually(lambda: not deployment.redis.exists(f"rq:job:{job.id}"))
    assert deployment.jobs.get(job.id) == done
    assert deployment.stored(job) == stored


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ({"examples": ["not audio"]}, "audio_undecodable"),
        ({"examples": ["silence"]}, "audio_silent"),
        ({"examples": ["too long"]}, "audio_too_long"),
        ({"label": "Siren"}, "label_unknown"),
        ({"spans": [{"start": 1.0, "end": 100.0}]}, "span_outside"),
    ],
)
def test_a_target_that_fails_fails_alone(deployment: Deployment, worker: subprocess.Popen, target: dict, code: str):
    uploads: dict[str, Callable[[], str]] = {
        "not audio": lambda: deployment.upload(content=b"RIFF....WAVE" + bytes(100)),
        "silence": lambda: deployment.upload(np.zeros(RATE)),
        "too long": lambda: deployment.upload(np.tile([0.1, -0.1], 31 * RATE)),
    }
    bad = {"name": "bad", **target}
    if "examples" in target:
        bad["examples"] = [{"audio_id": uploads[kind]()} for kind in target["examples"]]
    good = {"name": "dog", "label": "Dog"}

    done = deployment.wait(deployment.submit(deployment.upload(), [bad, good]))
    assert done.status == "succeeded"
    assert done.targets[0].error is not None
    assert (done.targets[0].status, done.targets[0].error.code) == ("failed", code)
    assert done.targets[1].status == "succeeded"
    assert [stem.name for stem in SeparationResult.model_validate(done.result).stems] == ["dog", "residual"]

    alone = deployment.submit(deployment.upload(), [bad])
    done = deployment.wait(alone)
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == code
    assert deployment.stored(alone) == []


@each
def test_a_recording_that_is_no_audio_fails_the_job(deployment: Deployment, worker: subprocess.Popen, ask: Callable):
    job = ask(deployment, deployment.upload(content=os.urandom(5000)))
    done = deployment.wait(job)
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "audio_undecodable"
    assert str(deployment.folder) not in done.error.detail
    assert deployment.stored(job) == []


def test_a_store_that_is_away_for_a_moment_costs_the_job_a_moment(deployment: Deployment, worker: subprocess.Popen):
    mixture = deployment.upload()
    folder = Path(deployment.settings.store_location)
    folder.rename(folder.with_name("away"))
    folder.touch()  # and not a folder: the store does not answer
    try:
        job = deployment.submit(mixture, [{"name": "dog", "label": "Dog"}])
        eventually(lambda: deployment.jobs.get(job.id).status == "running")
        time.sleep(0.5)
    finally:
        folder.unlink()
        folder.with_name("away").rename(folder)
    done = deployment.wait(job)
    assert done.status == "succeeded"
    assert done.attempts == 1


@pytest.mark.parametrize(
    ("kind", "ask"), [("separation", "the record"), ("separation", "the queue"), ("detection", "the record")]
)
def test_a_running_job_stops_when_asked(deployment: Deployment, worker: subprocess.Popen, kind: str, ask: str):
    job = ASK[kind](deployment, deployment.upload(seconds=LONG))
    deployment.wait_running(job)
    asked = time.monotonic()
    if ask == "the record":
        deployment.jobs.cancel(job.id)
    else:
        send_stop_job_command(deployment.redis, job.id, serializer="json")
    done = deployment.wait(job)
    print(f"stopped by {ask} after {time.monotonic() - asked:.2f} s")
    assert done.status == "canceled"
    assert time.monotonic() - asked < 5
    assert deployment.stored(job) == []


@each_long
def test_a_deleted_jobs_work_stops_and_leaves_nothing(deployment: Deployment, worker: subprocess.Popen, ask: Callable):
    job = ask(deployment, deployment.upload(seconds=LONG))
    deployment.wait_running(job)
    deployment.jobs.delete(job.id)
    eventually(lambda: not deployment.redis.exists(f"rq:job:{job.id}"))
    assert deployment.stored(job) == []


@each_long
def test_a_job_past_its_timeout_ends_with_a_typed_error(
    deployment: Deployment, worker: subprocess.Popen, ask: Callable
):
    hurried = Settings(**{**deployment.settings.model_dump(), "job_timeout": 1})
    patient = deployment.jobs
    deployment.jobs = JobRepository(deployment.redis, hurried)
    try:
        job = ask(deployment, deployment.upload(seconds=LONG))
    finally:
        deployment.jobs = patient
    done = deployment.wait(job)
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "timed_out"
    assert done.attempts == 1
    assert deployment.stored(job) == []


@pytest.mark.parametrize("victim", ["mixture", "example"])
def test_a_killed_decoder_costs_the_job_or_the_target_and_no_more(
    deployment: Deployment, worker: subprocess.Popen, victim: str
):
    # FLAC of noise, long enough that its decoder can be caught at work.
    long = deployment.upload(seconds=LONG if victim == "mixture" else 55.0)
    short = deployment.upload(seconds=2.0)
    targets: list[dict[str, Any]] = [{"name": "dog", "label": "Dog"}]
    if victim == "example":
        targets.insert(0, {"name": "mine", "examples": [{"audio_id": long}]})
    job = deployment.submit(long if victim == "mixture" else short, targets)

    def decoder() -> psutil.Process | None:
        if victim == "example" and deployment.jobs.get(job.id).progress.stage != "detecting":
            return None
        return deployment.decoder(worker)

    eventually(decoder).kill()
    done = deployment.wait(job)
    if victim == "mixture":
        assert done.status == "failed"
        assert done.error is not None
        assert done.error.code == "audio_undecodable"
    else:
        assert done.status == "succeeded"
        assert done.targets[0].error is not None
        assert done.targets[0].error.code == "audio_undecodable"
