"""What is asked of a worker's model, done in this process: saved queries, detections, negatives, what is heard."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
from redis import Redis

from app.jobs.kinds import DETECTION, QUERY, SEPARATION, Kind
from app.jobs.lifecycle import Job, TargetState
from app.jobs.repository import JobRepository
from app.keys.quotas import Quotas
from app.records.audio import store_key
from app.records.detections import DetectionResult
from app.records.ids import new_id
from app.records.separations import SeparationResult
from app.records.shared import EmbeddingRecord, ModelRecord, pack_vector, unpack_vector
from app.settings import Settings
from app.storage import Storage
from models.audio import Waveform, mono
from models.engine import Engine
from tests.conftest import REPOSITORY
from worker.context import WorkerContext
from worker.rq_worker import Signals
from worker.scratch import Scratch
from worker.tasks import TASKS

RECORDINGS = REPOSITORY / "app" / "demo" / "recordings"


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The shipped model."""
    return Engine.load("base", device="cpu")


def model_of(engine: Engine) -> dict[str, str]:
    """The model as records name it."""
    name, _, version = engine.model_id.partition("@")
    return {"name": name, "version": version}


class Desk:
    """A workbench, and jobs brought to it."""

    def __init__(self, context: WorkerContext, redis: Redis, folder: Path) -> None:
        self.context = context
        self._redis = redis
        self._folder = folder

    def upload(self, recording: str | np.ndarray) -> str:
        """One of the demonstration's recordings, or samples (n,) at 32 kHz, as an upload."""
        audio_id, path = new_id("aud"), self._folder / "upload.flac"
        if isinstance(recording, str):
            path = RECORDINGS / f"{recording}.flac"
        else:
            soundfile.write(path, recording, 32000)
        self.context.storage.put_file(store_key(audio_id), path)
        self._redis.set(f"earmark:audio:{audio_id}", "{}")
        return audio_id

    def do(self, kind: Kind, request: dict[str, Any]) -> Job:
        """The record of a job of this kind, once it was worked on."""
        now = time.time()
        job = Job(
            id=new_id(kind.prefix),
            kind=kind.name,
            model="base",
            request=request | {"model": model_of(self.context.engine)},
            audio_ids=[],
            targets=[TargetState(name=target["name"]) for target in request.get("targets", [])],
            created_at=now,
            changed_at=now,
            expires_at=now + 3600,
        )
        self.context.jobs.create(job)
        assert TASKS[kind.task](self.context, "e", job.id) is None
        return self.context.jobs.get(job.id)

    def separate(self, mixture: str | np.ndarray, *targets: dict[str, Any], **fields: Any) -> Job:
        recording = {"audio_id": self.upload(mixture), "duration": None, "sample_rate": 1, "channels": 1}
        output = fields.pop("output", {})
        return self.do(SEPARATION, {"mixture": recording, "targets": list(targets), "output": output, **fields})

    def stem(self, job: Job, name: str) -> np.ndarray:
        """A stored stem's samples (n, channels)."""
        found = {stem.name: stem for stem in SeparationResult.model_validate(job.result).stems}[name]
        self.context.storage.download(found.key, self._folder / "stem.flac")
        return soundfile.read(self._folder / "stem.flac", always_2d=True)[0]


@pytest.fixture
def desk(engine: Engine, redis: Redis, tmp_path: Path) -> Iterator[Desk]:
    settings = Settings(home=tmp_path, detection_events=5)
    scratch = Scratch(tmp_path / "scratch")
    yield Desk(
        WorkerContext(
            engine, JobRepository(redis, settings), Quotas(redis), Storage.open(settings), scratch, Signals(), settings
        ),
        redis,
        tmp_path,
    )
    assert [path for path in scratch.folder.rglob("*") if path.name != "lock"] == []
    scratch.close()


def waveform(name: str) -> Waveform:
    samples, rate = soundfile.read(RECORDINGS / f"{name}.flac", dtype="float32", always_2d=True)
    return Waveform(mono(torch.from_numpy(samples.T))[None].contiguous(), rate)


def test_a_saved_query_is_the_engines_own(desk: Desk, engine: Engine) -> None:
    done = desk.do(QUERY, {"name": "bird", "examples": [{"audio_id": desk.upload("example")}]})
    assert done.status == "succeeded", done.error
    found, wanted = EmbeddingRecord.model_validate(done.result), engine.embed([waveform("example")])
    assert np.allclose(unpack_vector(found.vector), wanted.vector.numpy(), atol=1e-5)
    assert found.coherence == pytest.approx(wanted.coherence, abs=1e-3) and found.model == ModelRecord(
        **model_of(engine)
    )
    assert found.seconds_used == pytest.approx(wanted.seconds_used, abs=1e-2) and done.expires_at is None
    assert desk.context.storage.keys(QUERY.folder) == []


def test_a_silent_example_makes_no_query(desk: Desk) -> None:
    examples = [{"audio_id": desk.upload(np.zeros(32000))}]
    done = desk.do(QUERY, {"name": "nothing", "examples": examples})
    assert done.status == "failed" and done.error is not None and done.error.code == "audio_silent"


def test_asking_with_a_saved_query_is_asking_with_its_examples(desk: Desk) -> None:
    example = desk.upload("example")
    saved = desk.do(QUERY, {"name": "bird", "examples": [{"audio_id": example}]}).result
    by_example = desk.separate("mixture", {"name": "bird", "examples": [{"audio_id": example}]})
    by_query = desk.separate("mixture", {"name": "bird", "embedding": saved})
    assert by_query.status == "succeeded", by_query.error
    assert np.allclose(desk.stem(by_query, "bird"), desk.stem(by_example, "bird"), atol=1e-5)
    assert by_query.targets[0].coherence == pytest.approx(by_example.targets[0].coherence, abs=1e-3)


def test_an_embedding_of_a_model_that_has_gone_fails_its_target_alone(desk: Desk) -> None:
    old = {"vector": pack_vector([1.0] * 1024), "model": {"name": "base", "version": "0"}}
    done = desk.separate("mixture", {"name": "old", "embedding": old}, {"name": "bird", "label": "Bird"})
    assert done.status == "succeeded"
    assert [target.status for target in done.targets] == ["failed", "succeeded"]
    assert done.targets[0].error is not None and done.targets[0].error.code == "query_model_mismatch"


def test_what_a_target_is_not_changes_what_is_asked_for(desk: Desk) -> None:
    bird = {"name": "bird", "label": "Bird"}
    negatives: list[dict[str, Any]] = [{"not_label": "Music"}, {"not_examples": [{"audio_id": desk.upload("target")}]}]
    plain = desk.stem(desk.separate("mixture", bird), "bird")
    for negative in negatives:
        done = desk.separate("mixture", bird | negative)
        assert done.status == "succeeded", done.error
        assert not np.allclose(desk.stem(done, "bird"), plain, atol=1e-4)


def test_a_target_that_is_what_it_is_not_fails(desk: Desk) -> None:
    example = [{"audio_id": desk.upload("example")}]
    done = desk.separate("mixture", {"name": "x", "examples": example, "not_examples": example})
    assert done.status == "failed" and done.error is not None and done.error.code == "request_invalid"


def test_what_is_heard_becomes_targets(desk: Desk) -> None:
    done = desk.separate("mixture", auto={"max_targets": 2, "threshold": 0.3})
    assert done.status == "succeeded", done.error
    assert 1 <= len(done.targets) <= 2 and done.warnings == []
    first = done.targets[0]
    assert (first.label is not None and "bird" in first.label.lower() + first.name) or "chirp" in first.name
    assert all(target.status == "succeeded" and target.presence is not None for target in done.targets)
    result = SeparationResult.model_validate(done.result)
    assert [stem.name for stem in result.stems] == [*(target.name for target in done.targets), "residual"]
    mixture = soundfile.read(RECORDINGS / "mixture.flac", always_2d=True)[0]
    total = sum(desk.stem(done, stem.name) for stem in result.stems)
    assert np.abs(total - mixture).max() < 1e-6


@pytest.mark.parametrize("residual", [True, False])
def test_nothing_heard_leaves_the_mixture(desk: Desk, residual: bool) -> None:
    quiet = 1e-4 * np.random.default_rng(0).standard_normal(64000)
    done = desk.separate(quiet, auto={"max_targets": 8, "threshold": 1.0}, output={"residual": residual})
    assert (done.status, done.targets) == ("succeeded", []), done.error
    assert len(done.warnings) == 1 and "Nothing is heard" in done.warnings[0]
    result = SeparationResult.model_validate(done.result)
    assert (result.mixture.duration, result.mixture.sample_rate) == (2.0, 32000)
    assert [stem.name for stem in result.stems] == ["residual"][: int(residual)]
    if residual:
        assert np.abs(desk.stem(done, "residual")[:, 0] - np.round(quiet * 2**15) / 2**15).max() < 1e-6


def test_a_detection_tells_tags_events_and_draws_them(desk: Desk, tmp_path: Path) -> None:
    recording = {"audio_id": desk.upload("mixture"), "duration": None, "sample_rate": 1, "channels": 1}
    done = desk.do(DETECTION, {"audio": recording, "threshold": 0.2, "top": 3})
    assert done.status == "succeeded", done.error
    result = DetectionResult.model_validate(done.result)
    assert len(result.tags) == 3 and result.tags[0].label in ("Animal", "Bird", "Wild animals")
    assert result.audio.duration == pytest.approx(5.97, abs=0.01) and result.audio.sample_rate > 1
    assert len(result.events) == 5 and "the surest 5 are told" in done.warnings[0]
    assert all(0 <= event.start < event.end <= 5.98 and event.confidence >= 0.2 for event in result.events)
    assert [event.start for event in result.events] == sorted(event.start for event in result.events)
    assert set(result.metrics) == {"decoding", "detecting", "encoding", "real_time_factor"}
    desk.context.storage.download(result.picture.key, tmp_path / "timeline.png")
    content = (tmp_path / "timeline.png").read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (result.picture.bytes, result.picture.sha256)
    picture = matplotlib.image.imread(tmp_path / "timeline.png")
    assert picture.shape[1] == 1200 and picture.std() > 0.05
