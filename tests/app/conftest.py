"""The front end on a real socket, with a real Valkey and each kind of store; tests act as workers."""

import hashlib
import io
import threading
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import numpy as np
import pytest
import uvicorn
from pydantic import BaseModel
from redis import Redis

from app.dependencies import Dependencies
from app.http.uvicorn_protocol import HttpProtocol
from app.jobs.kinds import KINDS
from app.jobs.lifecycle import Job, TargetState
from app.jobs.repository import JobRepository
from app.keys.callers import Caller
from app.keys.repository import KeyRepository
from app.main import create_app
from app.records.audio import store_key
from app.records.ids import new_id
from app.records.queries import ExcerptRecord, QueryResult
from app.records.separations import SeparationRequest, SeparationResult, StemRecord
from app.records.shared import ModelRecord, RecordingRecord, pack_vector
from app.settings import Settings
from tests.app.records import new_audio
from tests.conftest import S3Server

VECTOR = (0.5, -0.25, 0.0, 1.0, 2.0, 0.125, 0.1, -3.0)  # an embedding of MODEL
MODEL = {
    "name": "base",
    "version": "1",
    "embedding_size": 8,
    "labels": 4,
    "askable_labels": 3,
    "sample_rate": 32000,
    "classes": [
        {
            "label": "Dog",
            "mid": "/m/0bt9lr",
            "slug": "dog",
            "path": ["Animal", "Dog"],
            "askable": True,
            "source": "clips",
        },
        {
            "label": "Siren",
            "mid": "/m/03kmc9",
            "slug": "siren",
            "path": ["Alarm", "Siren"],
            "askable": True,
            "source": "predicted",
        },
        {
            "label": "Male speech, man speaking",
            "mid": "/m/05zppz",
            "slug": "male-speech-man-speaking",
            "path": ["Human voice", "Speech", "Male speech, man speaking"],
            "askable": True,
        },
        {"label": "Bark", "mid": "/m/05tny_", "slug": "bark", "path": ["Animal", "Dog", "Bark"], "askable": False},
    ],
}


PREFIXES = ("audio", "incoming", "outlines", "records", *(kind.folder for kind in KINDS.values()))  # of the store


@dataclass
class Service:
    """A running front end, a client of it, and its dependencies, for tests that look behind its responses."""

    client: httpx.Client
    deps: Dependencies
    folder: Path
    clients: list[httpx.Client] = field(default_factory=list)  # of keys; closed with it

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for tests that open sockets themselves."""
        return self.client.base_url.host, self.client.base_url.port or 0

    def with_key(self, rate: int = 0, audio_seconds: int = 0, priority: int = 1) -> "Service":
        """Return the same front end with a client that uses a new key."""
        key, written = KeyRepository(self.deps.redis).create("test", rate, audio_seconds, priority)
        headers = {"Authorization": f"Bearer {written}"}
        client = httpx.Client(base_url=self.client.base_url, timeout=60, headers=headers)
        self.clients.append(client)
        deps = replace(self.deps, caller=Caller(key.id, priority))
        return replace(self, client=client, deps=deps)

    def upload(self, content: bytes | None = None, filename: str = "street.wav") -> dict[str, Any]:
        """Upload a recording, by default a second of mono sound; return the response."""
        response = self.client.post("/v1/audio", files={"file": (filename, content or wav())})
        assert response.status_code == 201, response.text
        return response.json()

    def recording(self) -> dict[str, Any]:
        """Store a second of mono sound and its record, quickly, without a request or a probe; return the record."""
        content = wav()
        owner = self.deps.caller.key_id
        audio = new_audio(
            owner=owner, filename="street.wav", bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
        )
        (self.folder / "recording").write_bytes(content)
        self.deps.storage.put_file(store_key(audio.id), self.folder / "recording")
        self.deps.audio.create(audio)
        return audio.model_dump()

    def separate(self, **fields: Any) -> dict[str, Any]:
        """Create a separation by one label, with other fields as given; return the response."""
        mixture = fields.pop("mixture", None) or {"audio_id": self.recording()["id"]}
        targets = fields.pop("targets", None) or [{"name": "dog", "label": "Dog"}]
        response = self.client.post("/v1/separations", json={"mixture": mixture, "targets": targets, **fields})
        assert response.status_code == 202, response.text
        return response.json()

    def finish(
        self,
        job_id: str,
        stems: dict[str, bytes] | None = None,
        warnings: Sequence[str] = (),
        failed: Sequence[TargetState] = (),
    ) -> Job:
        """Claim the job, store stems and publish them with targets that have failed, as a worker does."""
        jobs, execution = self.deps.jobs, new_id("exe").lower()
        job = jobs.claim(job_id, execution)
        assert job is not None
        request = SeparationRequest.model_validate(job.request)
        stored = []
        for number, (name, content) in enumerate((stems or {"dog": b"0123456789"}).items()):
            key = f"{jobs.output_prefix(job, execution)}/{number}.flac"
            (self.folder / "stem").write_bytes(content)
            found = self.deps.storage.put_file(key, self.folder / "stem")
            stored.append(
                StemRecord(
                    name=name,
                    key=key,
                    content_type="audio/flac",
                    bytes=found.bytes,
                    sha256=found.sha256,
                    peak=0.5,
                    loudness=-23.0,
                )
            )
        result = SeparationResult(
            mixture=RecordingRecord(audio_id=request.mixture.audio_id, duration=1.0, sample_rate=16000, channels=1),
            stems=stored,
            model=ModelRecord(name="base", version="1"),
            metrics={"separating": 0.1},
        )
        done = {state.name: state for state in failed}
        targets = [
            done.get(target.name, TargetState(name=target.name, status="succeeded", presence=0.9))
            for target in request.targets
        ]
        assert jobs.publish(job_id, execution, targets, result.model_dump(), list(warnings))
        return jobs.get(job_id)

    def publish(
        self,
        job_id: str,
        result: BaseModel,
        stored: dict[str, bytes] | None = None,
        excerpt_bytes: int = 0,
        warnings: Sequence[str] = (),
    ) -> Job:
        """Claim a job of any kind, store objects under its prefix as execution `e`, publish, as a worker does."""
        jobs, large_fields = self.deps.jobs, self.deps.large_fields
        job = jobs.claim(job_id, "e")
        assert job is not None
        for name, content in (stored or {}).items():
            (self.folder / "output").write_bytes(content)
            self.deps.storage.put_file(f"{jobs.output_prefix(job, 'e')}/{name}", self.folder / "output")
        outcome = [], result.model_dump(), list(warnings)  # targets, result, warnings
        in_store = large_fields.store_outcome(job, "e", *outcome)
        assert jobs.publish(job_id, "e", *outcome, stored=in_store, excerpt_bytes=excerpt_bytes)
        return jobs.get(job_id)

    def saved_query(self, vector: Sequence[float] = VECTOR, version: str = "1", excerpt_bytes: int = 0) -> str:
        """Create a saved query that has succeeded with this embedding, and with an excerpt if it has bytes; return its
        id."""
        examples = [{"audio_id": self.recording()["id"]}]
        response = self.client.post("/v1/queries", json={"name": "mine", "examples": examples})
        assert response.status_code == 202, response.text
        model = ModelRecord(name="base", version=version)
        query_id = response.json()["id"]
        record = QueryResult(vector=pack_vector(vector), model=model, coherence=0.8, seconds_used=1.0)
        if not excerpt_bytes:
            return self.publish(query_id, record).id
        key = f"queries/{query_id}/e/0.flac"
        record.excerpts = [ExcerptRecord(key=key, bytes=excerpt_bytes, seconds=1.0, gain=1.0)]
        return self.publish(query_id, record, {"0.flac": b"fLaC"}, excerpt_bytes).id

    def stored_keys(self) -> list[str]:
        """Return all keys in the store."""
        return [key for prefix in PREFIXES for key in self.deps.storage.keys(prefix)]

    def orphans(self) -> list[bytes]:
        """Return what the ledger of orphaned objects holds."""
        members: Any = self.deps.redis.zrange("earmark:leftovers", 0, -1)
        return members


def eventually(condition: Callable[[], object], seconds: float = 200.0) -> None:
    """Wait until the condition holds; fail after so many seconds.

    A front end needs a second of processor time to start, for which a busy machine took more than 60 s. It is asked
    less and less often: questions every 10 ms took half as much processor time as the start.
    """
    end, pause = time.monotonic() + seconds, 0.01
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(pause)
        pause = min(1.1 * pause, 0.2)


def wav(seconds: float = 1.0, rate: int = 16000, channels: int = 1) -> bytes:
    """Return noise as a 16-bit WAV file."""
    samples = np.random.default_rng(0).integers(-9000, 9000, (round(seconds * rate), channels), dtype=np.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


class _Server(uvicorn.Server):
    """uvicorn in a thread; it leaves signals to pytest."""

    def start(self) -> tuple[threading.Thread, int]:
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        end = time.monotonic() + 60
        while not self.started:
            assert thread.is_alive() and time.monotonic() < end, "the front end did not start"
            time.sleep(0.01)
        return thread, self.servers[0].sockets[0].getsockname()[1]


def serve(settings: Settings, folder: Path, protocol: type[HttpProtocol] = HttpProtocol) -> Iterator[Service]:
    """A front end with these settings."""
    app = create_app(settings)
    http = protocol.for_server(app.state.deps.budgets.connections)
    server = _Server(
        uvicorn.Config(
            app, port=0, http=http, ws="none", log_level="warning", lifespan="on", timeout_graceful_shutdown=2
        )
    )
    thread, port = server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        service = Service(client, app.state.deps, folder)
        yield service
        for other in service.clients:
            other.close()
    server.should_exit = True
    thread.join()


LIMITS: dict[str, Any] = {
    "upload_bytes": 2 * 1024 * 1024,
    "body_bytes": 16 * 1024,
    "upload_idle": 60.0,
    "store_timeout": 60.0,
    "targets": 3,
    "examples": 2,
    "example_seconds": 2.0,
    "recording_seconds": 30.0,
    "queue_jobs": 20,
    "auth": "off",
}


@pytest.fixture(scope="session")
def _folder_service(valkey: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("folder-service")
    yield from serve(Settings(home=folder, redis_url=valkey.connection_url, **LIMITS), folder)


@pytest.fixture(scope="session")
def _s3_service(valkey: Any, seaweed: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("s3-service")
    yield from serve(seaweed.settings("service", home=folder, redis_url=valkey.connection_url, **LIMITS), folder)


@pytest.fixture(params=["folder", "s3"])
def service(request: pytest.FixtureRequest, redis: Redis) -> Service:
    """The front end on each kind of store, which is empty, with the model `base` announced."""
    found: Service = request.getfixturevalue(f"_{request.param}_service")
    return empty(found)


@pytest.fixture
def s3_service(_s3_service: Service, redis: Redis) -> Service:
    """The front end on S3, for features of S3 alone."""
    return empty(_s3_service)


@pytest.fixture
def folder_service(_folder_service: Service, redis: Redis) -> Service:
    """The front end on a folder, for tests that do not depend on the store."""
    return empty(_folder_service)


@pytest.fixture(scope="session")
def _keyed_service(valkey: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("keyed-service")
    settings = Settings(home=folder, redis_url=valkey.connection_url, **{**LIMITS, "auth": "on"})
    yield from serve(settings, folder)


@pytest.fixture
def keyed_service(_keyed_service: Service, redis: Redis) -> Service:
    """The front end on a folder with authentication on; its `client` has no key."""
    return empty(_keyed_service)


def empty(service: Service) -> Service:
    """Empty the store of a front end and announce the model `base`; return it."""
    for prefix in PREFIXES:
        service.deps.storage.delete_prefix(prefix)
    service.deps.model_registry.announce(MODEL, "worker-1")
    return service


@pytest.fixture
def jobs(redis: Redis) -> JobRepository:
    """Jobs on a real Valkey."""
    return JobRepository(redis, Settings(lost_after=0.0, job_attempts=3, queue_jobs=5))


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Return the problem in a response, after checks of what every problem has and of what none may have."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status and document["code"] == code
    assert document["type"] == f"urn:earmark:problem:{code}"
    assert document["title"] and document["detail"]
    assert unquote(document["instance"]) == answer.request.url.path
    assert document["request_id"] == answer.headers["x-request-id"]
    for secret in ("Traceback", "/work", "/tmp", "site-packages", "kept-by-nobody", "earmark-tests"):
        assert secret not in answer.text
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    return document
