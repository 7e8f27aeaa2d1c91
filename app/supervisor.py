"""Supervision of child processes: start, restart with backoff, stop in order, and no orphans."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

log = logging.getLogger("earmark.supervision")

FIRST_BACKOFF = 0.5  # s before a program that died is restarted; doubled after each death
LONGEST_BACKOFF = 30.0  # s
STABLE_AFTER = 60.0  # s of running after which a death counts as the first again
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ProgramFailed(Exception):
    """A program keeps dying while the service starts."""


def stop_on_signals(on_repeat: Callable[[], None] | None = None) -> threading.Event:
    """Return an event that SIGINT and SIGTERM set; every further signal calls `on_repeat`."""
    stopping = threading.Event()

    def stop(number: int, frame: object) -> None:
        if stopping.is_set() and on_repeat is not None:
            on_repeat()
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopping


@dataclass
class Program:
    """A program and its process.

    parent_death_signal: sent to it by the kernel when this process dies (Linux).
    stop_timeout: s between SIGTERM and SIGKILL.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    pass_fds: Sequence[int] = ()
    parent_death_signal: signal.Signals = signal.SIGKILL
    stop_timeout: float = 10.0
    process: subprocess.Popen | None = None
    deaths: int = 0
    status: int | None = None  # exit status of its last process
    _started: float = 0.0
    _restart_at: float = 0.0

    def start(self) -> None:
        """Start the process in its own session, so that Ctrl-C reaches only this process, which stops them in order."""
        self._started = time.monotonic()
        self.process = subprocess.Popen(  # noqa: S603 (our own programs)
            list(self.command),
            env={**os.environ, **self.environment},
            pass_fds=self.pass_fds,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_bind_to_parent(os.getpid(), self.parent_death_signal),
        )

    def restart_if_dead(self) -> None:
        """Restart the process if it has died, after a backoff that doubles with each death."""
        now = time.monotonic()
        if self.process is None:
            if now >= self._restart_at:
                try:
                    self.start()
                except OSError as error:  # out of memory or process numbers, which may be temporary
                    self._schedule_restart(f"not started: {error.strerror}")
            return
        self.status = self.process.poll()
        if self.status is not None:
            self.process = None
            self._schedule_restart(_describe(self.status))

    def _schedule_restart(self, reason: str) -> None:
        now = time.monotonic()
        self.deaths = self.deaths + 1 if now - self._started < STABLE_AFTER else 1
        backoff = min(FIRST_BACKOFF * 2 ** (self.deaths - 1), LONGEST_BACKOFF)
        self._restart_at = now + backoff
        log.warning("%s exited (%s); restarting it in %.1f s", self.name, reason, backoff)

    def terminate(self) -> None:
        """Send SIGTERM without waiting for the end."""
        if self.process is not None:
            self.process.terminate()

    def wait(self) -> None:
        """Wait until the process has exited; kill it after `stop_timeout` seconds."""
        if self.process is None:
            return
        try:
            self.process.wait(self.stop_timeout)
        except subprocess.TimeoutExpired:
            log.warning("%s did not exit in %g s; killing it", self.name, self.stop_timeout)
            self.process.kill()
            self.process.wait()
        self.process = None


@dataclass
class Supervisor:
    """Programs in the order of their start; they are stopped in reverse order."""

    programs: list[Program] = field(default_factory=list)

    def add(self, program: Program) -> None:
        """Start a program and supervise it."""
        program.start()
        self.programs.append(program)

    def restart_dead(self) -> None:
        """Restart the programs that have died; call this several times per second."""
        for program in self.programs:
            program.restart_if_dead()

    def wait_until(self, ready: Callable[[], bool], stopping: Callable[[], bool], deaths: int = 3) -> bool:
        """Supervise the programs until they are ready; return False if a stop is requested first.

        Raises ProgramFailed if one of them dies `deaths` times before.
        """
        while not stopping():
            if ready():
                return True
            self.restart_dead()
            for program in self.programs:
                if program.deaths >= deaths:
                    raise ProgramFailed(f"{program.name} died {deaths} times while starting; its messages are above")
            time.sleep(0.1)
        return False

    def terminate(self) -> None:
        """Send SIGTERM to all programs."""
        for program in self.programs:
            program.terminate()

    def stop_together(self) -> None:
        """Stop programs that do not depend on each other, all at once."""
        self.terminate()
        while self.programs:
            self.programs[-1].wait()
            self.programs.pop()

    def stop(self) -> None:
        """Stop the programs one by one, the last one first, so that each outlives those that depend on it."""
        while self.programs:
            program = self.programs.pop()
            program.terminate()
            program.wait()


def _bind_to_parent(parent: int, death_signal: signal.Signals) -> Callable[[], None]:
    """Return what a new child runs before its program: it asks the kernel for a signal when the parent dies."""
    if not sys.platform.startswith("linux"):
        log.warning("this system cannot stop children with their parent: they survive a kill -9 of the service")
        return lambda: None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return bind


def _describe(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"
