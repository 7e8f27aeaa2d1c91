"""Versions of a model: which are available, which one does a request's job, and what becomes of the jobs of one that is
gone. Tests act as workers."""

import json
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.errors import ModelUnavailable
from app.housekeeping.sweeps import Housekeeping
from app.jobs.repository import JobRepository
from app.model_registry.registry import ModelRegistry, workers_key
from app.records.shared import ModelRecord
from app.settings import Settings
from app.storage import Storage
from tests.app.conftest import MODEL, Service, problem
from tests.app.records import new_job
from tests.conftest import REPOSITORY

NEXT = {**MODEL, "version": "next"}
SEEN = "earmark:models:seen"
SHIPPED = json.loads((REPOSITORY / "app" / "model_registry" / "base.json").read_text())["version"]


@pytest.fixture
def settings(redis: Redis, tmp_path: Path) -> Settings:
    """A deployment that is configured for `mine@2`."""
    (tmp_path / "descriptions").mkdir()
    (tmp_path / "descriptions" / "mine.json").write_text(json.dumps({**MODEL, "name": "mine", "version": "2"}))
    port = redis.connection_pool.connection_kwargs["port"]
    return Settings(
        home=tmp_path,
        redis_url=f"redis://127.0.0.1:{port}/0",
        model="mine",
        model_descriptions=tmp_path / "descriptions",
        lost_after=0.0,
    )


@pytest.fixture
def registry(redis: Redis, settings: Settings) -> ModelRegistry:
    return ModelRegistry(redis, settings)


@pytest.fixture
def jobs(redis: Redis, settings: Settings) -> JobRepository:
    return JobRepository(redis, settings)


@pytest.fixture
def housekeeping(redis: Redis, settings: Settings) -> Housekeeping:
    return Housekeeping(redis, Storage.open(settings), settings)


def announce(registry: ModelRegistry, version: str, *workers: str) -> None:
    for worker in workers:
        registry.announce({**MODEL, "name": "mine", "version": version}, worker)


def silence(redis: Redis, model: str, seconds: float) -> None:
    """Let the last heartbeats of a model's workers be some seconds older."""
    members: Any = redis.zrange(workers_key(model), 0, -1)
    for key, member in [(workers_key(model), member) for member in members] + [(SEEN, model)]:
        redis.zincrby(key, -seconds, member)


def test_requests_without_a_version_get_one_that_lives(registry: ModelRegistry) -> None:
    assert registry.resolve(None).id == "mine@2", "configured"
    announce(registry, "1", "a", "b")
    assert registry.resolve(None).id == "mine@1", "a living version before the configured one"
    announce(registry, "3", "c")
    assert registry.resolve("mine").id == "mine@1", "the version of most workers"
    announce(registry, "10", "d", "e")
    assert registry.resolve(None).id == "mine@10", "of two the greatest"
    announce(registry, "2", "f")
    assert registry.resolve(None).id == "mine@2", "the configured one as soon as it lives"
    for version in ("1", "2", "3", "10"):
        assert registry.resolve(f"mine@{version}").version == version
    assert [model.id for model in registry.available()] == ["mine@1", "mine@2", "mine@3", "mine@10"]
    assert registry.workers_by_name() == {"mine": 6}


def test_a_version_that_only_a_dead_worker_had_is_gone(redis: Redis, settings: Settings) -> None:
    registry = ModelRegistry(redis, settings)
    announce(registry, "1", "stable")
    announce(registry, "3", "canary", "canary's twin")
    silence(redis, "mine@3", settings.heartbeat_timeout + 1)
    assert [(model.id, model.workers) for model in registry.available()] == [("mine@1", 1), ("mine@2", 0)]
    assert registry.resolve(None).id == "mine@1"
    with pytest.raises(ModelUnavailable, match="mine@3; available: mine@1, mine@2"):
        registry.resolve("mine@3")
    assert registry.resolve("mine@2").id == "mine@2", "configured: its jobs wait for a worker"


def test_a_lost_or_damaged_announcement_is_told(redis: Redis, registry: ModelRegistry) -> None:
    """Then a worker's heartbeat announces the model again, also one that is configured."""
    announce(registry, "2", "a")
    assert registry.is_announced("mine@2")
    redis.hset("earmark:models", "mine@2", '{"name": "mine"}')
    assert not registry.is_announced("mine@2")
    redis.flushall()
    assert not registry.is_announced("mine@2") and registry.model("mine@2").version == "2"


def test_the_last_version_of_a_name_outlives_its_workers_for_a_while(redis: Redis, settings: Settings) -> None:
    registry = ModelRegistry(redis, settings)
    registry.announce({**MODEL, "name": "other"}, "worker")
    registry.leave("other@1", "worker")
    assert registry.resolve("other").id == registry.resolve("other@1").id == "other@1"
    silence(redis, "other@1", settings.model_seconds + 1)
    registry.available()
    with pytest.raises(ModelUnavailable):
        registry.resolve("other")
    registry.delete_dead()
    assert not registry.is_announced("other@1")


def test_waiting_jobs_move_to_the_version_that_lives(
    redis: Redis, settings: Settings, registry: ModelRegistry, jobs: JobRepository, housekeeping: Housekeeping
) -> None:
    announce(registry, "1", "a")
    created = [jobs.create(new_job().model_copy(update={"model": "mine@1"})).job for _ in range(3)]
    previous = jobs.create(new_job().model_copy(update={"model": "mine"})).job
    pinned = jobs.create(new_job().model_copy(update={"model": "mine@1", "version_named": True})).job
    registry.leave("mine@1", "a")
    housekeeping.sweep()
    assert jobs.get(created[0].id).model == "mine@1", "no version lives"
    announce(registry, "3", "b")
    housekeeping.sweep()
    moved = [jobs.get(job.id) for job in created]
    assert {(job.model, job.status) for job in moved} == {("mine@3", "queued")}
    positions = [jobs.fair_queue.position(job) for job in moved]
    assert positions == sorted(positions) and positions[0] > 0, "in their order"
    assert jobs.get(previous.id).model == "mine@3", "queued by the previous release, whose workers are gone"
    assert jobs.get(pinned.id).model == "mine@1" and jobs.fair_queue.waiting_ids("mine@1") == [pinned.id]
    assert jobs.fair_queue.waiting_count("mine") == 0 and jobs.find_lost() == []
    assert jobs.claim(created[0].id, "late", "mine@1") is None, "an old worker has the entry still"
    claimed = jobs.claim(created[0].id, "execution", "mine@3")
    assert claimed is not None and claimed.status == "running"


def test_a_job_between_two_queues_is_found(
    registry: ModelRegistry, jobs: JobRepository, housekeeping: Housekeeping, redis: Redis
) -> None:
    """Housekeeping dies after it has taken the job out of one queue."""
    announce(registry, "3", "b")
    job = jobs.create(new_job().model_copy(update={"model": "mine@1"})).job
    assert jobs.move(job.id, "mine@3") is not None
    redis.delete(jobs.rq_queues.queue("mine@3").key, f"rq:job:{job.id}", *redis.keys("earmark:line:mine@3*"))
    housekeeping.sweep()
    assert jobs.rq_queues.queue("mine@3").job_ids == [job.id]


def test_jobs_that_name_a_version_fail_once_it_is_gone(
    redis: Redis, settings: Settings, registry: ModelRegistry, jobs: JobRepository, housekeeping: Housekeeping
) -> None:
    named = {"version_named": True}
    announce(registry, "1", "a")
    old = new_job().model_copy(update={**named, "model": "mine@1"})
    old.created_at -= settings.model_seconds + 1
    old, young, configured = (
        jobs.create(job).job
        for job in (
            old,
            new_job().model_copy(update={**named, "model": "mine@1"}),
            old.model_copy(update={"id": new_job().id, "model": "mine@2"}),
        )
    )
    registry.leave("mine@1", "a")
    housekeeping.sweep()
    assert jobs.get(old.id).status == "queued", "a rollout may bring it back"
    silence(redis, "mine@1", settings.model_seconds + 1)
    housekeeping.sweep()
    failed = jobs.get(old.id)
    assert failed.error is not None and (failed.status, failed.error.code) == ("failed", "model_unavailable")
    assert [jobs.get(job.id).status for job in (young, configured)] == ["queued", "queued"]


def test_a_job_is_for_the_version_that_its_request_means(folder_service: Service) -> None:
    """Labels are those of that version; its answer and its record tell which one it is, from its acceptance on."""
    registry, jobs = folder_service.deps.model_registry, folder_service.deps.jobs
    renamed = [{**each, "label": each["label"].upper(), "slug": f"{each['slug']}-2"} for each in NEXT["classes"]]
    registry.announce({**NEXT, "classes": renamed}, "worker-2")
    ids: dict[str, str] = {}
    for model, label in (("base@1", "Dog"), ("base@next", "DOG")):
        job = folder_service.separate(model=model, targets=[{"label": "Dog"}])
        assert job["targets"][0]["label"] == label
        assert "@".join(job["model"].values()) == model
        assert jobs.get(job["id"]).model == model and jobs.fair_queue.waiting_ids(model) == [job["id"]]
        ids[model] = job["id"]
    registry.leave("base@1", "worker-1")
    unnamed = folder_service.separate()
    assert unnamed["model"] == {"name": "base", "version": "next"}
    body = {"audio_id": folder_service.recording()["id"], "model": "base@1"}
    refusal = problem(folder_service.client.post("/v1/detections", json=body), 503, "model_unavailable")
    assert f"base@{SHIPPED}, base@next" in refusal["detail"]
    registry.announce(MODEL, "worker-1")
    registry.leave("base@next", "worker-2")
    assert jobs.move(unnamed["id"], "base@1") is not None and jobs.move(ids["base@next"], "base@1") is None
    polled = folder_service.client.get(unnamed["url"]).json()
    assert polled["model"] == ModelRecord(name="base", version="1").model_dump()
