"""Jobs with the shipped model, run in this process: saved queries, negative queries, automatic targets, detections."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
from redis import Redis

from app.jobs.kinds import DETECTION, QUERY, SEPARATION, Kind
from app.jobs.large_fields import record_folder
from app.jobs.lifecycle import Job, TargetState
from app.jobs.listing import record_key
from app.jobs.repository import JobRepository
from app.keys.quotas import Quotas
from app.metrics import PROCESS
from app.records.audio import store_key
from app.records.detections import DetectionResult
from app.records.ids import new_id
from app.records.queries import QueryResult
from app.records.separations import SeparationResult
from app.records.shared import EmbeddingRecord, ModelRecord, pack_vector, unpack_vector
from app.settings import Settings
from app.storage import Storage
from models.audio import Waveform, mono
from models.engine import Engine
from models.queries.query import Query
from tests.app.large_jobs import large_metadata
from tests.conftest import REPOSITORY
from tests.worker.test_saved_queries import LEAST_COSINE
from worker.context import WorkerContext
from worker.rq_worker import Signals
from worker.saved_queries import read_excerpt
from worker.scratch import Scratch
from worker.tasks import TASKS

RECORDINGS = REPOSITORY / "app" / "demo" / "recordings"


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The shipped model."""
    return Engine.load("base", device="cpu")


def model_of(engine: Engine) -> dict[str, str]:
    """Return the model as in records."""
    name, _, version = engine.model_id.partition("@")
    return {"name": name, "version": version}


class JobRunner:
    """Makes uploads and jobs, and runs the jobs in a worker context."""

    def __init__(self, context: WorkerContext, redis: Redis, folder: Path) -> None:
        self.context = context
        self._redis = redis
        self._folder = folder

    def upload(self, recording: str | np.ndarray) -> str:
        """Upload one of the demonstration's recordings, or samples (n,) at 32 kHz; return its id."""
        audio_id, path = new_id("aud"), self._folder / "upload.flac"
        if isinstance(recording, str):
            path = RECORDINGS / f"{recording}.flac"
        else:
            soundfile.write(path, recording, 32000)
        self.context.storage.put_file(store_key(audio_id), path)
        self._redis.set(f"earmark:audio:{audio_id}", "{}")
        return audio_id

    def run(self, kind: Kind, request: dict[str, Any], **fields: Any) -> Job:
        """Create a job of this kind, run it, and return its complete record."""
        now, large_fields = time.time(), self.context.large_fields
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
            **fields,
        )
        self.context.jobs.create(large_fields.store_request(job))
        assert TASKS[kind.task](self.context, "e", job.id) is None
        return large_fields.load(self.context.jobs.get(job.id))

    def separate(self, mixture: str | np.ndarray, *targets: dict[str, Any], **fields: Any) -> Job:
        recording = {"audio_id": self.upload(mixture), "duration": None, "sample_rate": 1, "channels": 1}
        output = fields.pop("output", {})
        return self.run(SEPARATION, {"mixture": recording, "targets": list(targets), "output": output, **fields})

    def stem(self, job: Job, name: str) -> np.ndarray:
        """Return a stored stem's samples (n, channels)."""
        record = {stem.name: stem for stem in SeparationResult.model_validate(job.result).stems}[name]
        self.context.storage.download(record.key, self._folder / "stem.flac")
        return soundfile.read(self._folder / "stem.flac", always_2d=True)[0]


class StageNotes(JobRepository):
    """A repository that notes the stages which are reported."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        super().__init__(redis, settings)
        self.stages: list[str] = []

    def report_progress(self, job_id: str, execution: str, ratio: float, stage: str) -> bool:
        self.stages.append(stage)
        return super().report_progress(job_id, execution, ratio, stage)


@pytest.fixture
def runner(engine: Engine, redis: Redis, tmp_path: Path) -> Iterator[JobRunner]:
    settings = Settings(home=tmp_path, detection_events=5)
    scratch = Scratch(tmp_path / "scratch")
    yield JobRunner(
        WorkerContext(
            engine,
            JobRepository(redis, settings),
            Quotas(redis, settings),
            Storage.open(settings),
            scratch,
            Signals(),
            settings,
        ),
        redis,
        tmp_path,
    )
    assert [path for path in scratch.folder.rglob("*") if path.name != "lock"] == []
    scratch.close()


def waveform(name: str) -> Waveform:
    samples, rate = soundfile.read(RECORDINGS / f"{name}.flac", dtype="float32", always_2d=True)
    return Waveform(mono(torch.from_numpy(samples.T))[None].contiguous(), rate)


def test_a_saved_query_equals_the_engines_query(runner: JobRunner, engine: Engine, tmp_path: Path) -> None:
    """And so does the query of its excerpt."""
    job = runner.run(QUERY, {"name": "bird", "examples": [{"audio_id": runner.upload("example")}]})
    assert job.status == "succeeded", job.error
    saved, expected = EmbeddingRecord.model_validate(job.result), engine.embed([waveform("example")])
    assert np.allclose(unpack_vector(saved.vector), expected.vector.numpy(), atol=1e-5)
    assert saved.coherence == pytest.approx(expected.coherence, abs=1e-3) and saved.model == ModelRecord(
        **model_of(engine)
    )
    assert saved.seconds_used == pytest.approx(expected.seconds_used, abs=1e-2) and job.expires_at is None
    (excerpt,) = QueryResult.model_validate(job.result).excerpts
    assert runner.context.storage.keys(QUERY.folder) == [excerpt.key]
    runner.context.storage.download(excerpt.key, tmp_path / "excerpt.flac")
    again = engine.embed([read_excerpt(tmp_path / "excerpt.flac", excerpt.gain)])
    assert torch.cosine_similarity(again.vector, expected.vector, dim=0) > LEAST_COSINE


def test_a_silent_example_makes_no_query(runner: JobRunner) -> None:
    examples = [{"audio_id": runner.upload(np.zeros(32000))}]
    job = runner.run(QUERY, {"name": "nothing", "examples": examples})
    assert job.status == "failed" and job.error is not None and job.error.code == "audio_silent"


def test_what_is_too_short_is_not_called_silent(runner: JobRunner) -> None:
    crumb = [{"audio_id": runner.upload(0.5 * np.random.default_rng(0).standard_normal(320).clip(-1, 1))}]
    spans = [{"start": 1.0, "end": 1.01}]
    jobs = [
        (runner.run(QUERY, {"name": "crumb", "examples": crumb}), "example"),
        (runner.separate("mixture", {"name": "crumb", "examples": crumb}), "example"),
        (runner.separate("mixture", {"name": "crumb", "spans": spans}), "span"),
    ]
    for job, part in jobs:
        assert job.status == "failed" and job.error is not None and job.error.code == "request_invalid"
        assert f"{part} lasts 0.010 s, which is too short: at least 0.1 s" in job.error.detail


def test_a_saved_query_gives_the_stem_of_its_examples(runner: JobRunner) -> None:
    example = runner.upload("example")
    saved = runner.run(QUERY, {"name": "bird", "examples": [{"audio_id": example}]}).result
    by_example = runner.separate("mixture", {"name": "bird", "examples": [{"audio_id": example}]})
    by_query = runner.separate("mixture", {"name": "bird", "embedding": saved})
    assert by_query.status == "succeeded", by_query.error
    assert np.allclose(runner.stem(by_query, "bird"), runner.stem(by_example, "bird"), atol=1e-5)
    assert by_query.targets[0].coherence == pytest.approx(by_example.targets[0].coherence, abs=1e-3)


def test_a_text_gives_the_mean_of_its_classes_and_of_its_examples(runner: JobRunner, engine: Engine) -> None:
    example = [{"audio_id": runner.upload("example")}]
    matched = [{"label": "Bird", "weight": 0.75}, {"label": "Speech", "weight": 0.25}]
    heard, mean = engine.embed([waveform("example")]), engine.label_mean({"Bird": 0.75, "Speech": 0.25})
    targets: list[tuple[dict[str, Any], Query]] = [
        ({"label": "Bird", "matched": matched}, mean),
        ({"label": "Bird", "matched": matched, "examples": example}, heard.with_label(mean)),
        ({"label": "Bird", "examples": example}, heard.with_label(engine.label("Bird"))),
    ]
    requested = [{"name": f"asked {number}", **target} for number, (target, _) in enumerate(targets)]
    for number, (_, query) in enumerate(targets):
        embedding = {"vector": pack_vector(query.vector.tolist()), "model": model_of(engine)}
        requested.append({"name": f"expected {number}", "embedding": embedding})
    job = runner.separate("mixture", *requested)
    assert job.status == "succeeded", job.error
    stems = [[runner.stem(job, f"{kind} {number}") for kind in ("asked", "expected")] for number in range(3)]
    for asked, expected in stems:
        assert np.allclose(asked, expected, atol=1e-4)
    assert not np.allclose(stems[0][0], stems[2][0], atol=1e-3)
    assert job.targets[1].coherence == pytest.approx(heard.coherence, abs=1e-3)


def test_an_embedding_of_another_model_fails_its_target_alone(runner: JobRunner) -> None:
    old = {"vector": pack_vector([1.0] * 1024), "model": {"name": "base", "version": "0"}}
    job = runner.separate("mixture", {"name": "old", "embedding": old}, {"name": "bird", "label": "Bird"})
    assert job.status == "succeeded"
    assert [target.status for target in job.targets] == ["failed", "succeeded"]
    assert job.targets[0].error is not None and job.targets[0].error.code == "query_model_mismatch"


def test_a_negative_query_changes_the_stem(runner: JobRunner) -> None:
    bird = {"name": "bird", "label": "Bird"}
    negatives: list[dict[str, Any]] = [
        {"not_label": "Music"},
        {"not_examples": [{"audio_id": runner.upload("target")}]},
    ]
    plain = runner.stem(runner.separate("mixture", bird), "bird")
    for negative in negatives:
        job = runner.separate("mixture", bird | negative)
        assert job.status == "succeeded", job.error
        assert not np.allclose(runner.stem(job, "bird"), plain, atol=1e-4)


def test_a_negative_query_equal_to_the_query_fails(runner: JobRunner) -> None:
    example = [{"audio_id": runner.upload("example")}]
    job = runner.separate("mixture", {"name": "x", "examples": example, "not_examples": example})
    assert job.status == "failed" and job.error is not None and job.error.code == "request_invalid"


def test_automatic_targets_are_the_sounds_of_the_mixture(runner: JobRunner) -> None:
    job = runner.separate("mixture", auto={"max_targets": 2, "threshold": 0.3})
    assert job.status == "succeeded", job.error
    assert [target.name for target in job.targets][1:] == ["music"]
    first = job.targets[0]
    assert (first.label is not None and "bird" in first.label.lower() + first.name) or "chirp" in first.name
    assert all(target.status == "succeeded" and target.presence is not None for target in job.targets)
    result = SeparationResult.model_validate(job.result)
    assert [stem.name for stem in result.stems] == [*(target.name for target in job.targets), "residual"]
    mixture = soundfile.read(RECORDINGS / "mixture.flac", always_2d=True)[0]
    total = sum(runner.stem(job, stem.name) for stem in result.stems)
    assert np.abs(total - mixture).max() < 1e-6


def test_classes_that_are_one_sound_are_one_automatic_target(runner: JobRunner) -> None:
    """The bundled mixture's bird is also a cricket and environmental noise to the detector: three times the same stem,
    of which the residual misses two."""
    job = runner.separate("mixture", auto={"max_targets": 8, "threshold": 0.1})
    assert job.status == "succeeded", job.error
    assert job.warnings and all("same sound as" in warning for warning in job.warnings)
    bird = runner.separate("mixture", {"name": "bird", "label": "Bird"})
    levels = [np.sqrt(np.mean(runner.stem(each, "residual") ** 2)) for each in (job, bird)]
    assert levels[0] < 1.5 * levels[1]
    stems = [runner.stem(job, target.name)[:, 0] for target in job.targets]
    assert all(abs(np.corrcoef(one, other)[0, 1]) < 0.9 for one, other in combinations(stems, 2))


@pytest.mark.parametrize("residual", [True, False])
def test_without_automatic_targets_the_residual_is_the_mixture(runner: JobRunner, residual: bool) -> None:
    quiet = 1e-4 * np.random.default_rng(0).standard_normal(64000)
    job = runner.separate(quiet, auto={"max_targets": 8, "threshold": 1.0}, output={"residual": residual})
    assert (job.status, job.targets) == ("succeeded", []), job.error
    assert len(job.warnings) == 1 and "No sound is detected" in job.warnings[0]
    result = SeparationResult.model_validate(job.result)
    assert (result.mixture.duration, result.mixture.sample_rate) == (2.0, 32000)
    assert [stem.name for stem in result.stems] == ["residual"][: int(residual)]
    if residual:
        assert np.abs(runner.stem(job, "residual")[:, 0] - np.round(quiet * 2**15) / 2**15).max() < 1e-6


@pytest.mark.parametrize("auto", [True, False])
def test_a_silent_mixture_is_told_and_its_stems_are_silent(runner: JobRunner, auto: bool) -> None:
    """Digital silence succeeds, as any recording in which a target is not."""
    mixture, bird = np.zeros(48000), {"name": "bird", "label": "Bird"}
    requested: dict[str, Any] = {"auto": {"max_targets": 2, "threshold": 0.9}} if auto else {}
    job = runner.separate(mixture, *([] if auto else [bird]), **requested)
    assert job.status == "succeeded", job.error
    assert len(job.warnings) == 1 + auto and job.warnings[-1].startswith("The mixture is silent")
    for stem in SeparationResult.model_validate(job.result).stems:
        assert runner.stem(job, stem.name).shape == (48000, 1) and not runner.stem(job, stem.name).any()
    mixture[100] = 2 / 2**15  # the quietest sound is no silence
    assert not any("silent" in warning for warning in runner.separate(mixture, bird).warnings)


def test_large_requests_and_results_are_in_the_store(runner: JobRunner, redis: Redis) -> None:
    recording = {"audio_id": runner.upload("mixture"), "duration": None, "sample_rate": 1, "channels": 1}
    labels, metadata = {"kind": "detection", "model": "base"}, large_metadata(16)
    before = PROCESS.get_sample_value("earmark_audio_seconds_total", labels) or 0.0
    job = runner.run(DETECTION, {"audio": recording, "threshold": 0.2, "top": 527}, metadata=metadata)
    assert job.status == "succeeded" and job.metadata == metadata
    assert len(DetectionResult.model_validate(job.result).tags) == 527
    assert redis.strlen(record_key(job.id)) < 2000
    stored = [f"{record_folder(job.id)}/{name}.json" for name in ("e", "request")]
    assert sorted(runner.context.storage.keys("records")) == stored
    after = PROCESS.get_sample_value("earmark_audio_seconds_total", labels) or 0.0
    assert after - before == pytest.approx(5.97, abs=0.01)


def test_a_detection_has_tags_events_and_a_picture(runner: JobRunner, tmp_path: Path) -> None:
    recording = {"audio_id": runner.upload("mixture"), "duration": None, "sample_rate": 1, "channels": 1}
    job = runner.run(DETECTION, {"audio": recording, "threshold": 0.2, "top": 3})
    assert job.status == "succeeded", job.error
    result = DetectionResult.model_validate(job.result)
    assert len(result.tags) == 3 and result.tags[0].label in ("Animal", "Bird", "Wild animals")
    assert result.audio.duration == pytest.approx(5.97, abs=0.01) and result.audio.sample_rate > 1
    assert len(result.events) == 5 and "the 5 of highest confidence are listed" in job.warnings[0]
    assert all(0 <= event.start < event.end <= 5.98 and event.confidence >= 0.2 for event in result.events)
    assert [event.start for event in result.events] == sorted(event.start for event in result.events)
    assert set(result.metrics) == {"decoding", "detecting", "encoding", "real_time_factor"}
    runner.context.storage.download(result.picture.key, tmp_path / "timeline.png")
    content = (tmp_path / "timeline.png").read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (result.picture.bytes, result.picture.sha256)
    picture = matplotlib.image.imread(tmp_path / "timeline.png")
    assert picture.shape[1] == 1200 and picture.std() > 0.05


def test_a_separation_passes_each_stage_once(runner: JobRunner, redis: Redis, tmp_path: Path) -> None:
    jobs = StageNotes(redis, runner.context.settings)
    context = replace(runner.context, jobs=jobs, progress_seconds=0.0)
    JobRunner(context, redis, tmp_path).separate("mixture", {"name": "a", "label": "Dog"})
    stages = [stage for stage, _ in groupby(jobs.stages)]
    assert stages == ["decoding", "detecting", "separating", "encoding", "storing"]


def test_a_job_that_takes_less_than_the_time_between_two_reports_has_none(
    runner: JobRunner, redis: Redis, tmp_path: Path
) -> None:
    """Each change is an event, and costs a short job as much as a second of sound."""
    jobs = StageNotes(redis, runner.context.settings)
    context = replace(runner.context, jobs=jobs, progress_seconds=600.0)
    job = JobRunner(context, redis, tmp_path).separate("mixture", {"name": "a", "label": "Dog"})
    assert job.status == "succeeded" and job.progress.ratio == 1
    assert jobs.stages == []
