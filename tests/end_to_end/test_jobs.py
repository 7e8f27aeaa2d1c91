"""Jobs in a real worker: results, failures, cancellation, and that no job ends the worker."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rq.command import send_stop_job_command

from app.jobs.lifecycle import Job
from app.jobs.rq_queues import RqQueues
from app.records.separations import COMPUTATION, SeparationResult
from tests.end_to_end.deployment import Deployment, eventually
from tests.end_to_end.recordings import RATE

LONG = 300.0  # duration of a recording in seconds, which takes several seconds to separate on an idle machine


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
    """The worker; after each test it is alive and has left no files."""
    yield started_worker
    assert started_worker.poll() is None, deployment.logs()
    assert eventually(lambda: deployment.temporary_files() == [])


@pytest.mark.parametrize(("quality", "speeds"), [("standard", 1), ("high", 3)])
def test_stems_and_residual_are_stored_once_and_add_up(
    deployment: Deployment, worker: subprocess.Popen, quality: str, speeds: int
):
    samples = 0.1 * np.random.default_rng(1).standard_normal(3 * RATE)
    job = deployment.submit(
        deployment.upload(samples),
        [
            {"name": "dog", "label": "Dog"},
            {"name": "mine", "examples": [{"audio_id": deployment.upload(seconds=1.0)}]},
            {"name": "a part", "spans": [{"start": 0.5, "end": 1.5}]},
        ],
        format="wav",
        quality=quality,
    )
    done = deployment.wait(job)
    assert done.status == "succeeded", done.error
    assert done.progress.ratio == 1.0
    assert [(target.name, target.status) for target in done.targets] == [
        (name, "succeeded") for name in ("dog", "mine", "a part")
    ]
    result = SeparationResult.model_validate(done.result)
    assert [stem.name for stem in result.stems] == ["dog", "mine", "a part", "residual"]
    assert deployment.output_keys(job) == sorted(stem.key for stem in result.stems)
    total = np.zeros(len(samples))
    for stem in result.stems:
        path = deployment.folder / "stem.wav"
        assert deployment.storage.download(stem.key, path) == stem.bytes
        read, rate = soundfile.read(path)
        assert (rate, len(read)) == (RATE, len(samples))
        total += read
    assert np.abs(total - np.round(samples * 2**15) / 2**15).max() < 1e-5
    assert set(result.metrics) == {"decoding", "separating", "encoding", "real_time_factor", *COMPUTATION}
    assert all(figure > 0 for figure in result.metrics.values())
    assert (result.metrics["speeds"], result.quality) == (speeds, quality)


SUBMIT: dict[str, Callable[[Deployment, str], Job]] = {
    "separation": lambda deployment, audio_id: deployment.submit(audio_id, [{"name": "dog", "label": "Dog"}]),
    "detection": lambda deployment, audio_id: deployment.detect(audio_id),
    "query": lambda deployment, audio_id: deployment.embed(audio_id),
}
each_kind = pytest.mark.parametrize("submit", SUBMIT.values(), ids=list(SUBMIT))
# Saved queries use at most a minute of audio, so they are never long.
each_long_kind = pytest.mark.parametrize(
    "submit", [SUBMIT["separation"], SUBMIT["detection"]], ids=["separation", "detection"]
)


@each_kind
def test_a_job_delivered_twice_runs_once(deployment: Deployment, worker: subprocess.Popen, submit: Callable):
    job = submit(deployment, deployment.upload())
    done = deployment.wait(job)
    keys = deployment.output_keys(job)
    with deployment.redis.pipeline() as pipe:
        RqQueues(deployment.redis, deployment.settings).put_first(pipe, done)
        pipe.execute()
    eventually(lambda: not deployment.redis.exists(f"rq:job:{job.id}"))
    assert deployment.jobs.get(job.id) == done
    assert deployment.output_keys(job) == keys


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
def test_a_failed_target_does_not_fail_the_others(
    deployment: Deployment, worker: subprocess.Popen, target: dict, code: str
):
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
    assert done.targets[0].error.detail.startswith("Example 1: ") == (code in ("audio_undecodable", "audio_too_long"))
    assert done.targets[1].status == "succeeded"
    assert [stem.name for stem in SeparationResult.model_validate(done.result).stems] == ["dog", "residual"]

    alone = deployment.submit(deployment.upload(), [bad])
    done = deployment.wait(alone)
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == code
    assert deployment.output_keys(alone) == []


@each_kind
def test_a_recording_that_is_not_audio_fails_the_job(
    deployment: Deployment, worker: subprocess.Popen, submit: Callable
):
    job = submit(deployment, deployment.upload(content=os.urandom(5000)))
    done = deployment.wait(job)
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "audio_undecodable"
    assert str(deployment.folder) not in done.error.detail
    assert deployment.output_keys(job) == []


def test_a_short_outage_of_the_store_delays_the_job(deployment: Deployment, worker: subprocess.Popen):
    mixture = deployment.upload()
    with deployment.unavailable_store():
        job = deployment.submit(mixture, [{"name": "dog", "label": "Dog"}])
        eventually(lambda: deployment.jobs.get(job.id).status == "running")
        time.sleep(0.5)
    done = deployment.wait(job)
    assert done.status == "succeeded"
    assert done.attempts == 1


@pytest.mark.parametrize(
    ("kind", "channel"), [("separation", "the record"), ("separation", "the queue"), ("detection", "the record")]
)
def test_a_running_job_can_be_canceled(deployment: Deployment, worker: subprocess.Popen, kind: str, channel: str):
    job = SUBMIT[kind](deployment, deployment.upload(seconds=LONG))
    deployment.wait_running(job)
    if channel == "the record":
        deployment.jobs.cancel(job.id)
    else:
        send_stop_job_command(deployment.redis, job.id, serializer="json")
    requested, done = deployment.jobs.get(job.id), deployment.wait(job)
    assert done.status == "canceled"
    assert done.progress.ratio < requested.progress.ratio + 0.3, "it stops soon, measured by its work"
    assert deployment.output_keys(job) == []


@each_long_kind
def test_a_deleted_job_stops_and_leaves_no_objects(deployment: Deployment, worker: subprocess.Popen, submit: Callable):
    job = submit(deployment, deployment.upload(seconds=LONG))
    deployment.wait_running(job)
    deployment.jobs.delete(job.id)
    eventually(lambda: not deployment.redis.exists(f"rq:job:{job.id}"))
    assert deployment.output_keys(job) == []


@each_long_kind
def test_a_job_that_exceeds_its_timeout_fails_as_timed_out(
    deployment: Deployment, worker: subprocess.Popen, submit: Callable
):
    with deployment.job_timeout(1.0):
        job = submit(deployment, deployment.upload(seconds=LONG))
    done = deployment.wait(job)
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "timed_out"
    assert done.attempts == 1
    assert deployment.output_keys(job) == []


@pytest.mark.parametrize("victim", ["mixture", "example"])
def test_a_killed_decoder_fails_only_its_job_or_target(deployment: Deployment, worker: subprocess.Popen, victim: str):
    # Noise as FLAC takes long enough to decode that the decoder can be killed.
    long = deployment.upload(seconds=LONG if victim == "mixture" else 55.0)
    short = deployment.upload(seconds=2.0)
    targets: list[dict[str, Any]] = [{"name": "dog", "label": "Dog"}]
    if victim == "example":
        targets.insert(0, {"name": "mine", "examples": [{"audio_id": long}]})
    job = deployment.submit(long if victim == "mixture" else short, targets)

    def is_meant() -> bool:
        return victim == "mixture" or any(path.name == "example.upload" for path in deployment.temporary_files())

    deployment.suspend_decoder([worker], is_meant).kill()
    done = deployment.wait(job)
    if victim == "mixture":
        assert done.status == "failed"
        assert done.error is not None
        assert done.error.code == "audio_undecodable"
    else:
        assert done.status == "succeeded"
        assert done.targets[0].error is not None
        assert done.targets[0].error.code == "audio_undecodable"
