"""The run of a job: errors of the model or the machine end in its record or in a retry; the quota's correction."""

import errno
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError
from rq import Retry

from app.errors import StoreRefused, StoreUnavailable
from app.jobs import kinds
from app.jobs.kinds import DETECTION, KINDS, SEPARATION, Kind
from app.jobs.lifecycle import Job, TargetState
from app.jobs.repository import JobRepository
from app.keys.quotas import Quotas, quota_key
from app.records.audio import store_key
from app.records.ids import new_id
from app.records.shared import RecordingRecord
from app.settings import Settings
from app.storage import Storage
from models.engine import Engine
from models.media import MediaInfo
from tests.app.large_jobs import detection_result
from tests.app.records import new_job
from tests.conftest import S3Server
from tests.end_to_end.small_model import save_small_model
from tests.media_files import noise
from worker import job_run
from worker.context import WorkerContext
from worker.execution import JobExecution, Outcome, Recording
from worker.job_run import RETRY
from worker.rq_worker import Signals
from worker.scratch import Scratch
from worker.tasks import TASKS


class FailingEngine(Engine):
    """An engine that raises `error` when it separates, detects or embeds."""

    error: BaseException

    def separate_file(self, *_arguments, **_options):
        raise self.error

    detect_file = embed = separate_file


class LossyJobRepository(JobRepository):
    """A repository whose `publish` raises `error`, after the change if `is_applied`."""

    error: RedisError
    is_applied: bool

    def publish(self, *arguments: Any, **options: Any) -> bool:
        if self.is_applied:
            super().publish(*arguments, **options)
        raise self.error


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder)
    return FailingEngine.load(folder, device="cpu")


@pytest.fixture
def context(engine: Engine, redis: Redis, tmp_path: Path) -> Iterator[WorkerContext]:
    settings = Settings(home=tmp_path, job_attempts=2)
    storage = Storage.open(settings)
    scratch = Scratch(tmp_path / "scratch")
    yield WorkerContext(
        engine, JobRepository(redis, settings), Quotas(redis, settings), storage, scratch, Signals(), settings
    )
    assert [path for path in scratch.folder.rglob("*") if path.name != "lock"] == []
    folders = ["records", *(kind.folder for kind in KINDS.values())]
    assert [key for folder in folders for key in storage.keys(folder)] == []
    scratch.close()


def request_of(kind: Kind, audio_id: str) -> dict[str, Any]:
    """Return a request for a job of this kind."""
    recording = {"audio_id": audio_id, "duration": None, "sample_rate": 16000, "channels": 1}
    requests: dict[str, dict[str, Any]] = {
        "separation": {"mixture": recording, "targets": [{"name": "dog", "label": "Dog"}], "output": {}},
        "detection": {"audio": recording, "threshold": 0.2, "top": 10},
        "query": {"name": "mine", "examples": [{"audio_id": audio_id}]},
    }
    return requests[kind.name] | {"model": {"name": "base", "version": "small"}}


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def job(request: pytest.FixtureRequest, context: WorkerContext, redis: Redis, tmp_path: Path) -> Job:
    """A queued job of each kind."""
    audio_id, now = new_id("aud"), time.time()
    soundfile.write(tmp_path / "recording.wav", noise(16000, 1).T, 16000)
    context.storage.put_file(store_key(audio_id), tmp_path / "recording.wav")
    redis.set(f"earmark:audio:{audio_id}", "{}")
    kind: Kind = request.param
    return context.jobs.create(
        Job(
            id=new_id(kind.prefix),
            kind=kind.name,
            model="base",
            request=request_of(kind, audio_id),
            audio_ids=[audio_id],
            targets=[TargetState(name="dog")] if kind is SEPARATION else [],
            created_at=now,
            changed_at=now,
            expires_at=now + 3600,
        )
    ).job


def run(context: WorkerContext, execution: str, job: Job) -> Retry | None:
    return TASKS[KINDS[job.kind].task](context, execution, job.id)


def fail_with(context: WorkerContext, error: BaseException) -> None:
    context.engine.error = error  # pyright: ignore[reportAttributeAccessIssue]


def test_there_is_a_task_for_each_kind_by_the_names_in_queue_entries():
    """Entries of earlier releases hold these names."""
    assert set(TASKS) == {"worker.tasks.separate", "worker.tasks.detect", "worker.tasks.embed"}
    assert set(TASKS) == set(kinds.TASK_NAMES.values())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (RuntimeError("secret details"), "internal"),
    ],
)
def test_an_internal_error_fails_the_job_without_its_details(
    context: WorkerContext, job: Job, error: Exception, code: str
):
    fail_with(context, error)
    assert run(context, "e1", job) is None
    ended = context.jobs.get(job.id)
    assert ended.status == "failed"
    assert ended.error is not None
    assert ended.error.code == code
    assert "secret" not in ended.error.detail


def test_a_large_outcome_that_cannot_be_published_is_removed(context: WorkerContext, job: Job):
    def work(execution: JobExecution) -> Outcome:
        context.jobs.delete(execution.job.id)
        return Outcome(detection_result("aud_x", events=2000))

    assert job_run.run(work, context, "e1", job.id) is None  # and the fixture finds nothing in the store


def test_a_temporary_error_is_retried_until_the_last_attempt(context: WorkerContext, job: Job):
    fail_with(context, StoreUnavailable())
    assert run(context, "e1", job) is RETRY
    assert context.jobs.get(job.id).status == "running"
    assert run(context, "e2", job) is None
    ended = context.jobs.get(job.id)
    assert ended.error is not None
    assert ended.error.code == "store_unavailable"


def refuse(_: JobExecution) -> Outcome:
    raise StoreRefused("It refuses.", "Look at its keys.")


@pytest.mark.parametrize("wrong", [{"secret_key": "another"}, {"access_key": "another"}])
def test_a_store_that_refuses_the_worker_costs_a_job_no_attempt(
    context: WorkerContext, job: Job, seaweed: S3Server, wrong: dict[str, str]
):
    refused = replace(context, storage=Storage.open(replace(seaweed, **wrong).settings("p")))
    for number in range(context.settings.job_attempts + 1):
        assert job_run.run(refuse, refused, f"e{number}", job.id) is RETRY
        left = context.jobs.get(job.id)
        assert (left.status, left.attempts, left.error) == ("queued", 0, None)
        assert isinstance(refused.signals.refusal, StoreRefused), "the worker ends"


def test_a_store_that_refuses_one_object_costs_a_job_its_attempts(context: WorkerContext, job: Job):
    """No worker could do the job, and the others are not concerned."""
    assert job_run.run(refuse, context, "e1", job.id) is RETRY
    assert job_run.run(refuse, context, "e2", job.id) is None
    ended = context.jobs.get(job.id)
    assert ended.error is not None and ended.error.code == "store_unavailable"
    assert context.signals.refusal is None


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EIO, "internal")]
)
def test_a_full_disk_is_the_error_of_the_last_attempt(context: WorkerContext, job: Job, number: int, code: str):
    fail_with(context, OSError(number, "secret/path"))
    assert context.jobs.claim(job.id, "e1") is not None
    assert run(context, "e2", job) is None
    ended = context.jobs.get(job.id)
    assert ended.error is not None
    assert (ended.error.code, "secret" in ended.error.detail) == (code, False)


@pytest.mark.parametrize("job", [SEPARATION], indirect=True, ids=["separation"])
def test_a_recording_that_turns_out_too_large_fails_the_job(context: WorkerContext, redis: Redis, job: Job):
    """The header has no duration; a second of 16 kHz and one target take 192 kB with the stem."""
    settings = context.settings.model_copy(update={"scratch_bytes": 150_000})
    fail_with(context, RuntimeError("not reached"))
    run(replace(context, settings=settings), "e1", job)
    ended = context.jobs.get(job.id)
    assert ended.error is not None and ended.error.code == "request_too_large"
    assert ended.audio_seconds == 1.0


@pytest.mark.parametrize("job", [SEPARATION], indirect=True, ids=["separation"])
def test_the_quota_is_corrected_by_the_formula_that_charged_it(context: WorkerContext, redis: Redis, job: Job):
    """Charged as 75 s of high quality for 8 targets; it lasts a second."""
    targets = [{"name": f"t{number}", "label": "Dog"} for number in range(8)]
    charged = job.model_copy(
        update={
            "id": new_id("sep"),
            "charged_seconds": 600.0,
            "effort": 4.0,
            "request": job.request | {"targets": targets},
            "targets": [TargetState(name=target["name"]) for target in targets],
        }
    )
    charged = context.jobs.create(charged).job
    day = int(redis.time()[0] // 86400)  # pyright: ignore[reportIndexIssue]
    redis.hset(quota_key(job.owner), mapping={"day": day, "used": "1000.000"})
    fail_with(context, StoreUnavailable("away"))
    for execution in ("e1", "e2"):
        run(context, execution, charged)
    assert redis.hget(quota_key(job.owner), "used") == b"408.000"
    assert context.jobs.get(charged.id).charged_seconds == 8.0


@pytest.mark.parametrize("job", [SEPARATION], indirect=True, ids=["separation"])
def test_targets_that_are_not_found_are_charged_back(context: WorkerContext, redis: Redis, job: Job):
    """Decoded, a minute of 4 channels for up to 8 targets is charged 240 s; with the 2 that are found it is 120."""
    day = int(redis.time()[0] // 86400)  # pyright: ignore[reportIndexIssue]
    redis.hset(quota_key(job.owner), mapping={"day": day, "used": "300.000"})
    claimed = context.jobs.claim(job.id, "e1")
    assert claimed is not None
    execution = JobExecution(context, claimed, "e1")
    info = MediaInfo("wav", "pcm_f32le", 48000, 4, 60 * 48000, 60.0)
    recording = Recording(RecordingRecord.model_validate(job.request["mixture"]), Path("unused.wav"), info)
    for targets, used in ((8, b"240.000"), (8, b"240.000"), (2, b"120.000"), (0, b"120.000")):
        execution.correct_charge(recording, targets)
        assert redis.hget(quota_key(job.owner), "used") == used
    assert context.jobs.get(job.id).charged_seconds == 120.0


def test_a_broken_device_ends_the_worker_and_not_the_job(context: WorkerContext, job: Job):
    fail_with(context, torch.AcceleratorError("CUDA error: device-side assert triggered"))
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    try:
        assert run(context, "e1", job) is RETRY
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals == [signal.SIGTERM]
    assert not context.jobs.get(job.id).is_finished


@pytest.mark.parametrize("job", [SEPARATION, DETECTION], indirect=True, ids=["separation", "detection"])
@pytest.mark.parametrize(
    ("used", "days_ago", "left"),
    [
        ("500.000", 0, "201.000"),  # 300 s were charged for a header without a duration, and it lasts 1 s
        ("500.000", 1, "500.000"),  # charged on another day
        (None, 0, None),  # an owner without a quota
    ],
)
def test_the_quota_is_charged_once_for_the_decoded_duration(
    context: WorkerContext, redis: Redis, job: Job, used: str | None, days_ago: int, left: str | None
):
    day = int(redis.time()[0] // 86400) - days_ago  # pyright: ignore[reportIndexIssue]
    if used is not None:
        redis.hset(quota_key(job.owner), mapping={"day": day, "used": used})
    fail_with(context, StoreUnavailable("away"))
    assert run(context, "execution-1", job) is RETRY
    run(context, "execution-2", job)
    assert context.jobs.get(job.id).audio_seconds == 1.0
    charged = redis.hget(quota_key(job.owner), "used")
    assert (charged.decode() if isinstance(charged, bytes) else charged) == left


@pytest.mark.parametrize(
    ("error", "is_applied"),
    [(RedisConnectionError(), True), (RedisConnectionError(), False), (OutOfMemoryError(), False)],
)
def test_outputs_stay_where_the_reply_to_their_publication_is_lost(
    context: WorkerContext, redis: Redis, tmp_path: Path, error: RedisError, is_applied: bool
) -> None:
    lossy = LossyJobRepository(redis, context.settings)
    lossy.error, lossy.is_applied = error, is_applied
    job = lossy.create(new_job()).job
    (tmp_path / "stem").write_bytes(b"abc")
    prefix = lossy.output_prefix(job, "e")

    def work(execution: JobExecution) -> Outcome:
        key, _ = execution.store(tmp_path / "stem", "0.flac")
        assert key.startswith(prefix)
        return Outcome(RecordingRecord(audio_id="aud_1", duration=1.0, sample_rate=16000, channels=1), [], [])

    with pytest.raises(RedisError):
        job_run.run(work, replace(context, jobs=lossy), "e", job.id)
    is_known = isinstance(error, OutOfMemoryError)
    assert bool(context.storage.keys(prefix)) is not is_known
    assert lossy.get(job.id).is_finished is is_applied
    assert (redis.zscore("earmark:leftovers", prefix) is None) is is_applied, (
        "housekeeping removes what is not published"
    )
    context.storage.delete_prefix(prefix)
