"""Saved queries over models whose query encoders differ: workers of two versions on one queue and one store."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from app.jobs.kinds import KINDS, QUERY, SEPARATION, Kind
from app.jobs.large_fields import record_folder
from app.jobs.lifecycle import Job, TargetState
from app.jobs.repository import JobRepository
from app.keys.quotas import Quotas
from app.records.audio import store_key
from app.records.ids import new_id
from app.records.queries import EXCERPT_SECONDS, QueryResult
from app.records.shared import EmbeddingRecord, unpack_vector
from app.settings import Settings
from app.storage import Storage
from models.audio import Waveform
from models.engine import Engine
from tests.app.records import new_job
from tests.conftest import S3Server
from tests.end_to_end.small_model import save_small_model
from worker.context import WorkerContext
from worker.rq_worker import Signals
from worker.saved_queries import read_excerpt, write_excerpt
from worker.scratch import Scratch
from worker.tasks import TASKS

RATE = 32000
LEAST_COSINE = 0.999999  # of the embedding of examples, and of that of their excerpts, which differ by 24 bits alone


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    """Versions of one model: three different query encoders."""
    found = {}
    for seed, version in enumerate(("old", "new", "third")):
        folder = tmp_path_factory.mktemp(version)
        save_small_model(folder, version, seed)
        found[version] = Engine.load(folder, device="cpu", precision="exact")
    return found


def sound(seconds: float, seed: int = 0, silence: float = 0.0) -> np.ndarray:
    """Return noise, with silence before and after it."""
    noise = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))
    quiet = np.zeros(int(silence * RATE))
    return np.concatenate([quiet, noise, quiet])


class Deployment:
    """Workers of each version, run in this process."""

    def __init__(self, engines: dict[str, Engine], redis: Redis, chosen: Settings) -> None:
        self.redis = redis
        self.settings = chosen
        self.storage = Storage.open(chosen)
        self.jobs = JobRepository(redis, chosen)
        self.workers = {version: self.worker(engine) for version, engine in engines.items()}

    def worker(self, engine: Engine) -> WorkerContext:
        scratch = Scratch(self.settings.home / "scratch")
        return WorkerContext(
            engine, self.jobs, Quotas(self.redis, self.settings), self.storage, scratch, Signals(), self.settings
        )

    def upload(self, samples: np.ndarray) -> str:
        audio_id, path = new_id("aud"), self.settings.home / "upload.flac"
        soundfile.write(path, samples, RATE, "PCM_24")
        self.storage.put_file(store_key(audio_id), path)
        return audio_id

    def run(self, version: str, kind: Kind, request: dict[str, Any], owner: str = "") -> Job:
        """Create a job of this version, and let its worker do it; return the complete record."""
        return self.work(version, self.create(version, request, kind, owner))

    def create(self, version: str, request: dict[str, Any], kind: Kind = SEPARATION, owner: str = "") -> Job:
        job = new_job(kind=kind).model_copy(
            update={
                "model": f"base@{version}",
                "owner": owner,
                "request": request | {"model": {"name": "base", "version": version}},
                "targets": [TargetState(name=target["name"]) for target in request.get("targets", [])],
            }
        )
        return self.jobs.create(self.workers["old"].large_fields.store_request(job)).job

    def work(self, worker: str, job: Job) -> Job:
        """Let a worker do a job; return the complete record."""
        context = self.workers[worker]
        assert TASKS[KINDS[job.kind].task](context, new_id("exe").lower(), job.id) is None
        return context.large_fields.load(self.jobs.get(job.id))

    def save(self, *examples: np.ndarray, version: str = "old", owner: str = "") -> Job:
        """Save a query."""
        uploads = [{"audio_id": self.upload(samples)} for samples in examples]
        return self.run(version, QUERY, {"name": "mine", "examples": uploads}, owner)

    def target(self, query: Job) -> dict[str, Any]:
        """Return a target as the front end writes it: with the first embedding of the query."""
        return {"name": "mine", "query_id": query.id, "embedding": query.result}

    def separation(self, *targets: dict[str, Any]) -> dict[str, Any]:
        """Return the request of a separation."""
        mixture = {"audio_id": self.upload(sound(0.5, 9)), "duration": None, "sample_rate": RATE, "channels": 1}
        return {"mixture": mixture, "targets": list(targets), "output": {}}

    def separate(self, version: str, *targets: dict[str, Any]) -> Job:
        return self.run(version, SEPARATION, self.separation(*targets))

    def result(self, query: Job) -> QueryResult:
        """Return the result of a query as it is now."""
        job = self.workers["old"].large_fields.load(self.jobs.get(query.id))
        return QueryResult.model_validate(job.result)

    def delete(self, job: Job) -> None:
        """Delete a job as the front end does, but for the objects, which housekeeping is left to delete."""
        self.jobs.delete(job.id)
        for prefix in (f"{QUERY.folder}/{job.id}", record_folder(job.id)):
            self.storage.delete_prefix(prefix)


CHOSEN: dict[str, Any] = {"excerpt_bytes": 500_000, "example_seconds": 120.0}


@pytest.fixture
def remote(engines: dict[str, Engine], redis: Redis, seaweed: S3Server, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment on S3."""
    yield from deployed(engines, redis, seaweed.settings(f"saved-queries-{new_id('x')}", home=tmp_path, **CHOSEN))


@pytest.fixture
def local(engines: dict[str, Engine], redis: Redis, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment on a folder, for what does not depend on the store."""
    yield from deployed(engines, redis, Settings(home=tmp_path, **CHOSEN))


def deployed(engines: dict[str, Engine], redis: Redis, chosen: Settings) -> Iterator[Deployment]:
    found = Deployment(engines, redis, chosen)
    yield found
    for worker in found.workers.values():
        assert [path for path in worker.scratch.folder.rglob("*") if path.name != "lock"] == []
        worker.scratch.close()


def cosine(one: list[float], other: list[float]) -> float:
    return float(torch.nn.functional.cosine_similarity(torch.tensor(one), torch.tensor(other), dim=0))


def models_of(result: QueryResult) -> list[str]:
    return [embedding.model.id for embedding in result.embeddings]


def test_a_query_is_embedded_anew_when_another_model_is_first_asked(
    remote: Deployment, engines: dict[str, Engine]
) -> None:
    """Both embeddings are kept, the second is that of its examples, and each version uses its own from then on."""
    examples = [sound(1.5, 1, silence=2.0), sound(0.5, 2)]
    query = remote.save(*examples)
    saved = QueryResult.model_validate(query.result)
    assert [round(excerpt.seconds, 1) <= 3.4 for excerpt in saved.excerpts] == [True, True]
    assert query.excerpt_bytes == sum(remote.storage.size(excerpt.key) for excerpt in saved.excerpts)
    for _ in range(2):
        done = remote.separate("new", remote.target(query))
        assert done.status == "succeeded", done.error
        assert models_of(remote.result(query)) == ["base@old", "base@new"]
    result = remote.result(query)
    assert result.embeddings[0] == saved.embeddings[0] and result.excerpts == saved.excerpts
    expected = engines["new"].embed([Waveform(torch.from_numpy(one).float()[None], RATE) for one in examples])
    made = unpack_vector(result.others[0].vector)
    assert cosine(made, expected.vector.tolist()) > LEAST_COSINE
    assert cosine(made, unpack_vector(saved.vector)) < 0.9, "the encoders differ"
    assert done.targets[0].coherence == pytest.approx(expected.coherence, abs=1e-3)
    back = remote.separate("old", remote.target(query))
    assert back.status == "succeeded" and models_of(remote.result(query)) == ["base@old", "base@new"]
    remote.delete(query)
    assert remote.storage.keys("queries") == [] and remote.jobs.excerpt_bytes.total("") == 0


def test_several_embeddings_are_kept_in_the_store(local: Deployment, redis: Redis) -> None:
    """Redis holds little more for them; the object of a result that was replaced is an orphan."""
    query = local.save(sound(1.0))
    stored: list[str] = []
    for version in ("new", "third"):
        assert local.separate(version, local.target(query)).status == "succeeded"
        stored += [fields.key for fields in local.jobs.get(query.id).stored_fields]
    first, second = stored
    assert models_of(local.result(query)) == ["base@old", "base@new", "base@third"]
    ledger: Any = redis.zrange("earmark:leftovers", 0, -1)
    assert first.encode() in ledger and second.encode() not in ledger
    keys: Any = redis.keys(f"earmark:job:{query.id}*")
    assert sum(redis.memory_usage(key) or 0 for key in keys) < 20_000  # docker/capacity.md, Redis memory
    local.delete(query)
    assert local.storage.keys("records") == local.storage.keys("queries") == []


class InterruptedRepository(JobRepository):
    """A repository that lets something else happen between a worker's embedding of a query and its change of the
    record."""

    meanwhile: Callable[[], object] | None = None

    def amend(self, *arguments: Any, **options: Any) -> bool:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().amend(*arguments, **options)


@pytest.fixture
def interrupted(local: Deployment) -> InterruptedRepository:
    """The repository of another worker of the new version, `interrupted`."""
    found = InterruptedRepository(local.redis, local.settings)
    local.workers["interrupted"] = replace(local.worker(local.workers["new"].engine), jobs=found)
    return found


@pytest.mark.parametrize("other", ["new", "third"])
def test_workers_that_embed_a_query_at_once_keep_one_embedding_each(
    local: Deployment, interrupted: InterruptedRepository, other: str
) -> None:
    query = local.save(sound(1.0))
    first: list[Job] = []
    interrupted.meanwhile = lambda: first.append(local.separate(other, local.target(query)))
    job = local.create("new", local.separation(local.target(query)))
    second = local.work("interrupted", job)
    assert [job.status for job in (*first, second)] == ["succeeded"] * 2
    assert models_of(local.result(query)) == list(dict.fromkeys(["base@old", f"base@{other}", "base@new"]))


def test_a_query_that_is_deleted_while_it_is_embedded_leaves_nothing(
    local: Deployment, interrupted: InterruptedRepository
) -> None:
    query = local.save(sound(1.0), owner="key_1")
    interrupted.meanwhile = lambda: local.delete(query)
    job = local.work("interrupted", local.create("new", local.separation(local.target(query))))
    assert job.error is not None and job.error.code == "not_found" and "deleted" in job.error.detail
    assert local.storage.keys("queries") == local.storage.keys("records") == []
    assert local.jobs.excerpt_bytes.total("key_1") == 0


def test_a_worker_that_dies_while_it_embeds_a_query_loses_nothing(
    local: Deployment, interrupted: InterruptedRepository
) -> None:
    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    query = local.save(sound(1.0))
    job = local.create("new", local.separation(local.target(query)))
    interrupted.meanwhile = die
    with pytest.raises(Killed):
        local.work("interrupted", job)
    assert models_of(local.result(query)) == ["base@old"]
    assert local.work("new", job).status == "succeeded"
    assert models_of(local.result(query)) == ["base@old", "base@new"]


def test_excerpts_last_a_minute_together_at_most(local: Deployment) -> None:
    query = local.save(sound(30.0, 1, silence=3.0), sound(34.0, 2), sound(1.0, 3))
    seconds = [excerpt.seconds for excerpt in QueryResult.model_validate(query.result).excerpts]
    assert 55.0 < sum(seconds) <= EXCERPT_SECONDS and seconds[0] == pytest.approx(seconds[1], abs=0.5)
    assert query.excerpt_bytes < EXCERPT_SECONDS * RATE * 3.1


def test_an_api_key_may_keep_so_many_bytes(local: Deployment) -> None:
    """A query that would keep more fails and leaves nothing; one that is deleted makes room."""
    first, second = (local.save(sound(3.0, seed), owner="key_1") for seed in (1, 2))
    assert first.status == "succeeded" and local.jobs.excerpt_bytes.total("key_1") == first.excerpt_bytes
    assert second.status == "failed" and second.error is not None and second.error.code == "quota_exceeded"
    assert {key.split("/")[1] for key in local.storage.keys("queries")} == {first.id}
    assert local.save(sound(3.0, 3), owner="key_2").status == "succeeded", "another key's"
    local.delete(first)
    assert local.save(sound(3.0, 4), owner="key_1").status == "succeeded"


def test_bytes_of_unreadable_records_are_counted_until_these_are_deleted(local: Deployment, redis: Redis) -> None:
    query, other = (local.save(sound(1.0, seed), owner="key_1") for seed in (1, 2))
    redis.set(f"earmark:job:{query.id}", "{")
    for _ in range(2):
        local.jobs.unreadable.delete(QUERY, query.id, "key_1")
        assert local.jobs.excerpt_bytes.total("key_1") == other.excerpt_bytes


def test_a_query_without_excerpts_says_what_to_do(local: Deployment) -> None:
    """An earlier release has saved it; and one whose excerpts the store has lost."""
    query = local.save(sound(1.0))
    complete = QueryResult.model_validate(query.result)
    assert local.jobs.amend(query, complete.model_copy(update={"excerpts": []}).model_dump())
    lost = local.save(sound(1.0))
    local.storage.delete_prefix(f"queries/{lost.id}")
    plain = {"name": "given", "embedding": query.result}
    job = local.separate("new", local.target(query), local.target(lost) | {"name": "lost"}, plain)
    errors = [target.error for target in job.targets if target.error is not None]
    assert [error.code for error in errors] == ["query_model_mismatch"] * 3
    assert all("save" in error.detail for error in errors)
    assert "base@old" in errors[0].detail and "base@new" in errors[0].detail
    assert "make it again" in errors[2].detail and "POST /v1/queries" in errors[2].detail
    assert local.separate("old", local.target(query), plain).status == "succeeded"


@settings(max_examples=60, deadline=None)
@given(st.floats(-40, 6), st.integers(1, 4000), st.integers(0, 9))
def test_an_excerpt_in_flac_differs_by_the_rounding_to_24_bits(tmp_path_factory, level: float, length: int, seed: int):
    """At any level, also above the full scale of FLAC."""
    samples = torch.randn(1, length, generator=torch.Generator().manual_seed(seed)) * 10**level
    if not samples.any():
        return
    path = tmp_path_factory.getbasetemp() / "excerpt.flac"
    read = read_excerpt(path, write_excerpt(path, Waveform(samples, RATE)))
    assert read.rate == RATE and read.samples.shape == samples.shape
    assert (read.samples - samples).abs().max() <= samples.abs().max() * 2.0**-22


def test_a_record_of_the_release_before_reads_as_one_without_excerpts() -> None:
    fields = {"vector": "AAAAAA==", "model": {"name": "base", "version": "3"}, "coherence": 0.5, "seconds_used": 1.0}
    result = QueryResult.model_validate(json.loads(json.dumps(fields)))
    assert (result.excerpts, result.others) == ([], []) and models_of(result) == ["base@3"]
    assert EmbeddingRecord.model_validate(result.model_dump()).model_dump() == fields
