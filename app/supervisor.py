"""Programs that are kept running: started, started again when they die, stopped together, and never orphaned."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

logger = logging.getLogger("earmark.supervision")

FIRST_WAIT = 0.5  # s before a program that died is started again; doubled each time
LONGEST_WAIT = 30.0  # s
STEADY = 60.0  # s of running after which a death counts as the first again
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ProgramFailed(Exception):
    """A program keeps dying while the service starts."""


@dataclass
class Program:
    """One program and its process.

    ends_with: the signal the kernel sends it if this process is killed (Linux).
    patience: s it is given to end after SIGTERM.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    pass_fds: Sequence[int] = ()
    ends_with: signal.Signals = signal.SIGKILL
    patience: float = 10.0
    process: subprocess.Popen | None = None
    deaths: int = 0
    status: int | None = None  # that its last process ended with
    _started: float = 0.0
    _start_again: float = 0.0

    def start(self) -> None:
        """Starts the process in a session of its own: Ctrl-C is ours to pass on, in order."""
        self._started = time.monotonic()
        self.process = subprocess.Popen(  # noqa: S603 (our own programs)
            list(self.command),
            env={**os.environ, **self.environment},
            pass_fds=self.pass_fds,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_tie_to(os.getpid(), self.ends_with),
        )

    def restart_if_dead(self) -> None:
        """Looks after the process: notices a death, and starts it again after a wait that grows."""
        now = time.monotonic()
        if self.process is None:
            if now >= self._start_again:
                try:
                    self.start()
                except OSError as error:  # no memory or no process number left: that may pass
                    self._died(f"not started: {error.strerror}")
            return
        self.status = self.process.poll()
        if self.status is not None:
            self.process = None
            self._died(_describe(self.status))

    def _died(self, how: str) -> None:
        now = time.monotonic()
        self.deaths = self.deaths + 1 if now - self._started < STEADY else 1
        wait = min(FIRST_WAIT * 2 ** (self.deaths - 1), LONGEST_WAIT)
        self._start_again = now + wait
        logger.warning("%s ended (%s); starting it again in %.1f s", self.name, how, wait)

    def terminate(self) -> None:
        """SIGTERM; it may go on for a while."""
        if self.process is not None:
            self.process.terminate()

    def wait(self) -> None:
        """Until it has ended; SIGKILL once it was given `patience` seconds."""
        if self.process is None:
            return
        try:
            self.process.wait(self.patience)
        except subprocess.TimeoutExpired:
            logger.warning("%s does not end; killed", self.name)
            self.process.kill()
            self.process.wait()
        self.process = None


@dataclass
class Supervisor:
    """Programs in the order they are started; stopped in the opposite order."""

    programs: list[Program] = field(default_factory=list)

    def add(self, program: Program) -> None:
        """Starts a program and looks after it from now on."""
        program.start()
        self.programs.append(program)

    def restart_dead(self) -> None:
        """Looks after every program once; to be called a few times a second."""
        for program in self.programs:
            program.restart_if_dead()

    def wait_until(self, ready: Callable[[], bool], stopping: Callable[[], bool], deaths: int = 3) -> bool:
        """Looks after the programs until they are ready (True) or a stop is asked for (False).

        Raises ProgramFailed when one of them dies `deaths` times before.
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
        """SIGTERM for all programs at once."""
        for program in self.programs:
            program.terminate()

    def stop_together(self) -> None:
        """Stops all programs at once, which do not need each other."""
        self.terminate()
        while self.programs:
            self.programs[-1].wait()
            self.programs.pop()

    def stop(self) -> None:
        """Stops all programs, the last one first: what a program needs outlives it."""
        while self.programs:
            program = self.programs.pop()
            program.terminate()
            program.wait()


def _tie_to(parent: int, ends_with: signal.Signals) -> Callable[[], None]:
    """What a new child runs before its program: ask the kernel for a signal when the parent dies."""
    if not sys.platform.startswith("linux"):
        logger.warning("this system cannot end children with their parent: kill -9 of the service leaves them running")
        return lambda: None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(ends_with))
        if os.getppid() != parent:  # it died before we could ask
            os._exit(1)

    return tie


def _describe(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"
