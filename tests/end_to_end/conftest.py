"""Real servers and real programs: Valkey with its log, housekeeping, workers, the API; and a small real model."""

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.deployment import PATIENCE, ROOT, Deployment
from tests.end_to_end.figures import SOAK, Figures
from tests.end_to_end.small_model import save_small_model
from tests.end_to_end.topology import free_ports


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of the default preset's networks, small and untrained: quick, on the real path."""
    folder = tmp_path_factory.mktemp("small-model")
    save_small_model(folder)
    return folder


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """Takes what tests measure; `make soak` puts it into docker/README.md."""
    figures = Figures()
    yield figures
    if SOAK:
        figures.write()


@pytest.fixture
def deploy(tmp_path: Path, small_model: Path) -> Iterator[Callable[..., Deployment]]:
    """Makes deployments in folders of their own, from settings; stops everything afterwards."""
    made: list[Deployment] = []

    def make(**settings: object) -> Deployment:
        deployment = Deployment(tmp_path / f"deployment-{len(made)}", small_model, settings)
        made.append(deployment)
        return deployment

    yield make
    for deployment in made:
        deployment.close()
        print(deployment.logs())  # shown where the test has failed


@dataclass(frozen=True)
class Receiver:
    """Where the service may post webhooks to on this machine, and what it signs them with."""

    port: int
    secret: str


@pytest.fixture(scope="package")
def receiver() -> Receiver:
    """One of this machine, where nobody listens yet."""
    return Receiver(free_ports(1)[0], "whsec_" + base64.b64encode(bytes(range(32))).decode())


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[str]:
    """`python -m app --embedded` with the shipped model, as `make serve` runs it; webhooks may go to `receiver`."""
    (port,) = free_ports(1)
    home = tmp_path_factory.mktemp("service")
    command = [sys.executable, "-m", "app", "--embedded", "--port", str(port), "--home", str(home)]
    environment = {
        "EARMARK_OUTSIDE_NETWORKS": "127.0.0.0/8",
        "EARMARK_OUTSIDE_PORTS": str(receiver.port),
        "EARMARK_WEBHOOK_SECRET": receiver.secret,
    }
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + PATIENCE
        while not ready(url):
            assert process.poll() is None and time.monotonic() < end, (home / "log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def ready(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/v1/models").json()["data"])
    except httpx.TransportError:
        return False
