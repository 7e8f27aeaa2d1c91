"""Recordings as phones and damage make them, through a worker: warnings in the job, the track that was chosen."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.jobs.kinds import KINDS
from app.jobs.lifecycle import Job, TargetState
from app.jobs.repository import JobRepository
from app.keys.quotas import Quotas
from app.records.audio import store_key
from app.records.ids import new_id
from app.settings import Settings
from app.storage import Storage
from models.engine import Engine
from tests.end_to_end.small_model import save_small_model
from tests.ffmpeg_files import Folder
from worker.context import WorkerContext
from worker.rq_worker import Signals
from worker.scratch import Scratch
from worker.tasks import TASKS


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
