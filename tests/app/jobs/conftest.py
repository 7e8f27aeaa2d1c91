"""A job of each kind with its upload, on a real Valkey."""

import pytest
from redis import Redis

from app.jobs.kinds import KINDS
from app.jobs.lifecycle import Job
from app.records.audio import AudioRepository
from app.settings import Settings
from tests.app.records import new_audio, new_job


@pytest.fixture
def audio(redis: Redis) -> AudioRepository:
    return AudioRepository(redis, Settings())


@pytest.fixture
def upload(audio: AudioRepository) -> str:
    record = new_audio()
    audio.create(record)
    return record.id


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def job(request: pytest.FixtureRequest, upload: str) -> Job:
    """A job of each kind: they share one life cycle."""
    return new_job(upload, kind=request.param)
