"""What the model or the machine does wrong ends in the record, or in another attempt."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from redis import Redis

from app.audio.records import store_key
from app.errors import StoreUnavailable
from app.ids import new_id
from app.jobs import Jobs
from app.lifecycle import Job, TargetState
from app.settings import Settings
from app.storage import Storage
from models.engine import Engine
from tests.end_to_end.small_model import save_small_model
from tests.media_files import noise
from worker.gpu_worker import Signals
from worker.scratch import Scratch
from worker.tasks import AGAIN, separate
from worker.workbench import Workbench


class FailingEngine(Engine):
    """A real engine up to the moment when it separates."""

    error: BaseException

    def separate_file(self, *_arguments, **_options):
        raise self.error


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder)
    return FailingEngine.load(folder, device="cpu")


@pytest.fixture
def bench(engine: Engine, redis: Redis, tmp_path: Path) -> Iterator[Workbench]:
    settings = Settings(home=tmp_path, job_attempts=2)
    storage = Storage.open(settings)
    scratch = Scratch(tmp_path / "scratch")
    yield Workbench(engine, Jobs(redis, settings), storage, scratch, Signals(), settings)
    assert [path for path in scratch.folder.rglob("*") if path.name != "lock"] == []
    assert storage.keys("separations") == []
    scratch.close()


@pytest.fixture
def job(bench: Workbench, redis: Redis, tmp_path: Path) -> Job:
    mixture, now = new_id("aud"), time.time()
    soundfile.write(tmp_path / "mixture.wav", noise(16000, 1).T, 16000)
    bench.storage.put_file(store_key(mixture), tmp_path / "mixture.wav")
    redis.set(f"earmark:audio:{mixture}", "{}")
    request = {
        "mixture": {"audio_id": mixture, "duration": None, "sample_rate": 16000, "channels": 1},
        "model": {"name": "base", "version": "small"},
        "targets": [{"name": "dog", "label": "Dog"}],
        "output": {},
    }
    return bench.jobs.create(
        Job(
            id=new_id("sep"),
            kind="separation",
            model="base",
            request=request,
            audio_ids=[mixture],
            targets=[TargetState(name="dog")],
            created_at=now,
            changed_at=now,
            expires_at=now + 3600,
        )
    )


def fail_with(bench: Workbench, error: BaseException) -> None:
    bench.engine.error = error  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (RuntimeError("secret details"), "internal"),
    ],
)
def test_an_error_of_ours_ends_the_job_without_its_details(bench: Workbench, job: Job, error: Exception, code: str):
    fail_with(bench, error)
    assert separate(bench, "e1", job.id) is None
    over = bench.jobs.get(job.id)
    assert over.status == "failed"
    assert over.error is not None
    assert over.error.code == code
    assert "secret" not in over.error.detail


def test_what_may_pass_is_tried_again_until_the_last_attempt(bench: Workbench, job: Job):
    fail_with(bench, StoreUnavailable())
    assert separate(bench, "e1", job.id) is AGAIN
    assert bench.jobs.get(job.id).status == "running"
    assert separate(bench, "e2", job.id) is None
    over = bench.jobs.get(job.id)
    assert over.error is not None
    assert over.error.code == "store_unavailable"


def test_a_broken_device_ends_the_worker_and_not_the_job(bench: Workbench, job: Job):
    fail_with(bench, torch.AcceleratorError("CUDA error: device-side assert triggered"))
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        assert separate(bench, "e1", job.id) is AGAIN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert not bench.jobs.get(job.id).over
