"""Fixtures with real programs (Valkey, housekeeping, workers, API) and a small real model."""

import base64
import contextlib
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

from tests.end_to_end.deployment import ROOT, TIMEOUT, Deployment
from tests.end_to_end.figures import SOAK, Figures
from tests.end_to_end.log_secrets import require_no_secrets
from tests.end_to_end.small_model import save_small_model
from tests.ports import free_ports


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small, untrained bundle of the default preset's networks, which is fast to run."""
    folder = tmp_path_factory.mktemp("small-model")
    save_small_model(folder)
    return folder


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """Collect the measurements of tests; `make soak` writes them into the manual in docker/."""
    figures = Figures()
    yield figures
    if SOAK:
        figures.write()


@pytest.fixture
def deploy(tmp_path: Path, small_model: Path) -> Iterator[Callable[..., Deployment]]:
    """Return a function that creates deployments from settings, each in its own folder; stop them afterwards."""
    deployments: list[Deployment] = []
    with contextlib.ExitStack() as stack:

        def make(**settings: object) -> Deployment:
            deployment = Deployment(tmp_path / f"deployment-{len(deployments)}", small_model, settings)
            deployments.append(deployment)
            stack.callback(deployment.close)
            return deployment

        yield make
    for deployment in deployments:
        print(deployment.logs())  # shown if the test fails


@dataclass(frozen=True)
class Receiver:
    """Port on this machine that the service may send webhooks to, and their signing secret."""

    port: int
    secret: str


@pytest.fixture(scope="package")
def receiver() -> Receiver:
    """Return a free port and a secret; tests start the receiver."""
    return Receiver(free_ports(1)[0], "whsec_" + base64.b64encode(bytes(range(32))).decode())


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[str]:
    """Run `python -m app --embedded` with the shipped model, like `make serve`; webhooks may go to `receiver`."""
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
        deadline = time.monotonic() + TIMEOUT
        while not is_ready(url):
            assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 0
        require_no_secrets({"service": (home / "log").read_text()}, {receiver.secret})


def is_ready(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/v1/models").json()["data"])
    except httpx.TransportError:
        return False
