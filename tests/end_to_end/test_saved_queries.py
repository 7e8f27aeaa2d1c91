"""A saved query over an upgrade of the model to another query encoder, and back: real workers of two versions."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.jobs.large_fields import LargeFields
from app.records.queries import QueryResult
from app.records.separations import SeparationRequest
from models.engine import Engine
from tests.app.conftest import wav
from tests.end_to_end.deployment import Deployment, eventually
from tests.end_to_end.small_model import save_small_model
from tests.ports import free_ports

OLD, NEW = "base@small", "base@next"


class Client:
    """Saves queries and separates with them over HTTP."""

    def __init__(self, deployment: Deployment, http: httpx.Client) -> None:
        self._deployment = deployment
        self._http = http

    def get(self, url: str) -> dict[str, Any]:
        return self._http.get(url).raise_for_status().json()

    def wait(self, job: httpx.Response) -> dict[str, Any]:
        """Wait until an accepted job has succeeded; return it."""
        assert job.status_code == 202, job.text
        url = job.json()["url"]
        finished = eventually(lambda: (polled := self.get(url))["finished_at"] and polled)
        assert finished["status"] == "succeeded", finished
        return finished

    def save(self, model: str) -> dict[str, Any]:
        """Save a query, whose upload is deleted then."""
        audio = self._http.post("/v1/audio", files={"file": ("dog.wav", wav())}).raise_for_status().json()
        body = {"name": "dog", "examples": [{"audio_id": audio["id"]}], "model": model}
        query = self.wait(self._http.post("/v1/queries", json=body))
        self._http.delete(f"/v1/audio/{audio['id']}").raise_for_status()
        return query

    def separate(self, query: dict[str, Any], model: str) -> httpx.Response:
        audio = self._http.post("/v1/audio", files={"file": ("street.wav", wav())}).raise_for_status().json()
        body = {"mixture": {"audio_id": audio["id"]}, "targets": [{"name": "dog", "query_id": query["id"]}]}
        return self._http.post("/v1/separations", json=body | {"model": model})

    def versions(self, query: dict[str, Any]) -> list[str]:
        return self.get(query["url"])["versions"]["ready"]

    def result(self, query: dict[str, Any]) -> QueryResult:
        deployment = self._deployment
        large_fields = LargeFields(deployment.redis, deployment.storage, deployment.settings)
        return QueryResult.model_validate(large_fields.load(deployment.jobs.get(query["id"])).result)

    def excerpt(self, query: dict[str, Any]) -> Path:
        """Return the file of the excerpt of a query's one example."""
        (excerpt,) = self.result(query).excerpts
        return Path(self._deployment.settings.store_location) / excerpt.key

    def delete(self, query: dict[str, Any]) -> None:
        assert self._http.delete(query["url"]).status_code == 204


def is_ready(http: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return http.get("/readyz").is_success
    return False


def kill_while_reading(deployment: Deployment, worker: subprocess.Popen, file: Path) -> None:
    """Kill a worker while it opens a pipe that was put in the place of a file; restore the file."""

    def is_opening() -> bool:
        """Whether the worker, which is stopped meanwhile, has the pipe open: without a reader there is an error."""
        worker.send_signal(signal.SIGSTOP)
        with suppress(OSError):
            os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
            return True
        worker.send_signal(signal.SIGCONT)
        return False

    eventually(is_opening)
    deployment.kill(worker)
    file.unlink()


@pytest.fixture
def next_model(tmp_path: Path) -> Path:
    """Return the folder of a version with another query encoder."""
    folder = tmp_path / "next"
    folder.mkdir()
    save_small_model(folder, "next", seed=1)
    return folder


@pytest.fixture
def descriptions(tmp_path: Path, small_model: Path, next_model: Path) -> Path:
    """Return a folder that configures both versions: their jobs wait for a worker, however late its heartbeats are."""
    folder = tmp_path / "descriptions"
    folder.mkdir()
    for model in (small_model, next_model):
        description = Engine.load(model, device="cpu").describe()
        (folder / f"base@{description['version']}.json").write_text(json.dumps(description))
    return folder


def test_a_saved_query_survives_another_query_encoder(
    deploy: Callable[..., Deployment], next_model: Path, descriptions: Path
) -> None:
    deployment = deploy(auth="off", model_descriptions=descriptions)
    (port,) = free_ports(1)
    deployment.start("app", EARMARK_PORT=str(port))
    deployment.start_housekeeping()
    deployment.start_workers(1)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        eventually(lambda: is_ready(http))
        client = Client(deployment, http)
        query, other = client.save(OLD), client.save(OLD)
        (worker,) = deployment.start_workers(1, model=next_model)

        # A worker dies while it reads what it embeds a query from: another one does.
        file = client.excerpt(query)
        content = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        accepted = client.separate(query, NEW)
        kill_while_reading(deployment, worker, file)
        file.write_bytes(content)
        assert client.versions(query) == [OLD]
        (worker,) = deployment.start_workers(1, model=next_model)
        assert client.wait(accepted)["model"]["version"] == "next"
        assert client.versions(query) == [OLD, NEW] and client.versions(other) == [OLD]

        # Each version uses its own embedding, also after a rollback.
        client.wait(client.separate(query, NEW))
        deployment.stop(worker)
        back = client.wait(client.separate(query, OLD))
        assert back["model"]["version"] == "small"
        (target,) = SeparationRequest.model_validate(deployment.jobs.get(back["id"]).request).targets
        saved = client.result(query)
        assert target.embedding == saved.embeddings[0] and saved.others[0].vector != saved.vector

        for one in (query, other):
            client.delete(one)
    assert [key for prefix in ("queries", "records") for key in deployment.storage.keys(prefix)] == []
    assert deployment.jobs.excerpt_bytes.total("") == 0
