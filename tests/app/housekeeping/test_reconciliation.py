"""Reconciliation of the store with Redis: orphans are found and deleted, what is owned or being written never is."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis
from typer.testing import CliRunner

from app.__main__ import cli
from app.housekeeping.reconciliation import Reconciliation, claim_on, pages
from app.housekeeping.sweeps import Housekeeping
from app.jobs.repository import JobRepository
from app.records.audio import AudioRepository, store_key
from app.records.ids import new_id
from app.settings import Settings
from app.storage import Storage, StoredEntry
from tests.app.records import new_audio, new_job
from tests.conftest import S3Server


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest, redis: Redis, tmp_path: Path) -> Settings:
    """Settings with each kind of store, without anything in it."""
    port = redis.connection_pool.connection_kwargs["port"]
    url = f"redis://127.0.0.1:{port}/0"
    if request.param == "folder":
        return Settings(home=tmp_path, redis_url=url)
    server: S3Server = request.getfixturevalue("seaweed")
    return server.settings(new_id("run"), home=tmp_path, redis_url=url)


def stored_keys(storage: Storage) -> set[str]:
    return {entry.key for page in pages(storage) for entry in page}


def store_all_kinds(redis: Redis, storage: Storage, settings: Settings) -> tuple[set[str], set[str]]:
    """Store objects of each kind; return the keys of those that are owned or being written, and of the orphans."""
    jobs, uploads = JobRepository(redis, settings), AudioRepository(redis, settings)
    owned, orphans = set(), set()
    audio = new_audio()
    uploads.create(audio)
    owned |= {f"audio/{audio.id}", f"outlines/{audio.id}"}
    job = jobs.create(new_job(audio.id)).job
    assert jobs.claim(job.id, "e1")
    assert jobs.publish(job.id, "e1", [], {})
    owned |= {f"separations/{job.id}/e1/0.flac", f"records/{job.id}/e1.json"}
    running, writing = jobs.create(new_job()).job, new_id("aud")
    assert jobs.claim(running.id, "e1")
    uploads.register_write(writing)
    owned |= {f"separations/{running.id}/e1/0.flac", f"audio/{writing}"}
    owned |= {"audio/of-somebody-else", f"audio/{new_id('aud')}/below", f"separations/{new_id('det')}/e1/0.flac"}
    lost_audio, lost_job, lost_query = new_id("aud"), new_id("sep"), new_id("qry")
    orphans |= {f"audio/{lost_audio}", f"outlines/{lost_audio}", f"incoming/{lost_audio}/0-1234"}
    orphans |= {f"separations/{lost_job}/e1/{number}.flac" for number in range(3)}
    orphans |= {f"records/{lost_query}/request.json", f"records/{lost_query}/e1.json"}
    for key in owned | orphans:
        storage.put(key, b"abc")
    return owned, orphans


def test_objects_without_a_record_are_deleted_after_the_grace_time(redis: Redis, settings: Settings) -> None:
    storage = Storage.open(settings)
    owned, orphans = store_all_kinds(redis, storage, settings)
    assert {entry.bytes for page in storage.pages("audio") for entry in page} == {3}

    told = [orphan for page in pages(storage) for orphan in Reconciliation(redis, None).find(page)]
    assert sum(orphan.objects for orphan in told) == len(orphans) == sum(orphan.bytes for orphan in told) / 3
    housekeeping = Housekeeping(redis, storage, settings)
    housekeeping.remove_expired()
    assert stored_keys(storage) == owned | orphans, "telling changes nothing"

    for page in pages(storage):
        Reconciliation(redis, 3600.0).find(page)
    housekeeping.remove_expired()
    assert stored_keys(storage) == owned | orphans, "the grace time is not over"
    redis.zadd("earmark:leftovers", {orphan.prefix: 0.0 for orphan in told})
    housekeeping.remove_expired()
    assert stored_keys(storage) == owned


def test_housekeeping_walks_through_the_store_by_itself(redis: Redis, settings: Settings) -> None:
    storage = Storage.open(settings)
    housekeeping = Housekeeping(redis, storage, settings.model_copy(update={"orphan_retention": 0.0}))
    owned, _ = store_all_kinds(redis, storage, settings)
    for _ in range(20):  # a page of one folder at each sweep
        housekeeping.sweep()
    housekeeping.remove_expired()
    assert stored_keys(storage) == owned


def test_the_command_tells_and_then_enters_them_into_the_ledger(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.open(settings)
    owned, orphans = store_all_kinds(redis, storage, settings)
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    told = CliRunner().invoke(cli, ["housekeeping", "reconcile", "--dry-run"])
    assert told.exit_code == 0 and f"{len(orphans)} objects of {3 * len(orphans)} bytes" in told.output
    assert CliRunner().invoke(cli, ["housekeeping", "reconcile", "--grace", "0"]).exit_code == 0
    again = CliRunner().invoke(cli, ["housekeeping", "reconcile"])
    assert "0 objects" in again.output, "they are known by now"
    Housekeeping(redis, storage, settings).remove_expired()
    assert stored_keys(storage) == owned
    monkeypatch.setenv("EARMARK_REDIS_URL", "redis://127.0.0.1:9/0")
    assert CliRunner().invoke(cli, ["housekeeping", "reconcile"]).exit_code == 1


class Lives:
    """Uploads and jobs whose lives are steps, one call of Redis or of the store each."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.settings = Settings(home=folder)
        self.storage = Storage.open(self.settings)
        self.redis = redis
        self.uploads, self.jobs = AudioRepository(redis, self.settings), JobRepository(redis, self.settings)
        self.housekeeping = Housekeeping(redis, self.storage, self.settings)
        self.owned: set[str] = set()
        self.listed: list[list[StoredEntry]] = []

    def upload(self, is_deleted: bool) -> Iterator[None]:
        audio = new_audio(expires_at=2e9 + 3600)
        key = store_key(audio.id)
        self.uploads.register_write(audio.id)
        yield
        self.storage.put(key, b"abc")
        yield
        self.uploads.create(audio)
        self.owned.add(key)
        yield
        if is_deleted:
            self.owned.remove(key)
            self.uploads.delete(audio.id)
            yield
            self.storage.delete(key)
            yield
            self.uploads.unregister_write(audio.id)

    def job(self, is_deleted: bool) -> Iterator[None]:
        job = self.jobs.create(new_job()).job
        yield
        assert self.jobs.claim(job.id, "e1")
        yield
        keys = {f"separations/{job.id}/e1/{number}.flac" for number in range(2)}
        for key in keys:
            self.storage.put(key, b"abc")
            yield
        assert self.jobs.publish(job.id, "e1", [], {})
        self.owned |= keys
        yield
        if is_deleted:
            self.owned -= keys
            self.jobs.delete(job.id)
            yield
            self.storage.delete_prefix(f"separations/{job.id}")

    def list(self) -> None:
        self.listed += list(pages(self.storage))

    def reconcile(self) -> None:
        """Judge what was listed, perhaps long ago."""
        for page in self.listed:
            Reconciliation(self.redis, 0.0).find(page)
        self.listed.clear()

    def remove(self) -> None:
        self.housekeeping.remove_expired()


STEPS = st.lists(st.integers(0, 6), min_size=10, max_size=60)


@given(deletions=st.lists(st.booleans(), min_size=4, max_size=4), steps=STEPS)
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_interleaving_deletes_what_is_owned_or_being_written(
    redis: Redis, tmp_path_factory: pytest.TempPathFactory, deletions: list[bool], steps: list[int]
) -> None:
    redis.flushall()
    lives = Lives(redis, tmp_path_factory.mktemp("lives"))
    kinds: tuple[Callable[[bool], Iterator[None]], ...] = (lives.upload, lives.job) * 2
    begun: list[Any] = [kind(is_deleted) for kind, is_deleted in zip(kinds, deletions, strict=True)]
    for step in (*steps, *(0, 1, 2, 3) * 7):
        if step < len(begun):
            next(begun[step], None)
        else:
            (lives.list, lives.reconcile, lives.remove)[step - len(begun)]()
        assert lives.owned <= stored_keys(lives.storage)
    lives.list()
    lives.reconcile()
    lives.remove()
    assert lives.owned <= stored_keys(lives.storage)


@pytest.mark.parametrize("key", ["audio", "audio/", "x/y", "separations/sep_1/e/0", "records/aud_1", "a//b"])
def test_what_is_not_ours_is_left_alone(key: str) -> None:
    assert claim_on(key) is None
