"""Sandbox: a child process for untrusted input, with resource limits, a private folder and a minimal environment.

Children run modules of ours that have a function `main(arguments)`. They are forked by a zygote (`app.media.zygote`), a
process of its own: a fork of this one would hold its secrets, and is unsafe in a process with threads. Linux only.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from app.media.zygote import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

# The folder of our packages. A child does not import from its working folder, which may hold untrusted files.
_ROOT = Path(__file__).resolve().parents[2]
# The zygote writes no byte code and imports neither from its working folder nor from the user's site-packages.
_ZYGOTE = (sys.executable, "-P", "-s", "-B", "-m", "app.media.zygote")
# One thread: a process with several cannot fork safely, and numeric libraries reserve address space for each.
_ENVIRONMENT = {
    "PYTHONPATH": str(_ROOT),
    "LANG": "C.UTF-8",
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}
# Interval between checks of the clock and of the caller's `cancelled`.
_POLL_SECONDS = 0.05
# Reads after the child has ended: enough for a full pipe. A pipe that still fills belongs to a process that left the
# child's group.
_MAX_DRAIN_READS = 64
# More than budgets allow children at once.
_MAX_THREADS = 1024
# Children that are forked for one call while the zygote dies, which ends them: for lack of memory, or with a signal to
# all processes of a service. That it is dead may be found only when the next request is sent.
_TRIES = 3
# In which a zygote that runs ends a child, or itself, however busy the machine is.
_STUCK_SECONDS = 60.0

_Interruption = Literal["timed_out", "cancelled", "flooded"]


@dataclass(frozen=True)
class SandboxLimits:
    """Resource limits of a child.

    `seconds` of wall-clock time, `cpu_seconds`, `memory_bytes` of address space, `file_bytes` of any file that it
    writes, `output_bytes` on stdout and stderr together, and `open_files`. `niceness` is added to ours.
    """

    seconds: float
    cpu_seconds: int
    memory_bytes: int
    file_bytes: int
    output_bytes: int = 65536
    open_files: int = 64
    niceness: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a child ended, and its output.

    `status`: `exited` with `returncode`; `crashed` by `signal`; `timed_out` by the wall clock or the CPU limit;
    `cancelled` by the caller; `flooded`: it exceeded `output_bytes`. In all but the first two cases it was killed.
    """

    status: Literal["exited", "crashed", "timed_out", "cancelled", "flooded"]
    returncode: int | None
    signal: signal.Signals | None
    output: bytes
    errors: bytes
    seconds: float

    @property
    def is_success(self) -> bool:
        """Whether the child exited with status 0."""
        return self.status == "exited" and self.returncode == 0


class Sandbox:
    """Children of one zygote, which starts when it is needed, and again after its death. May be shared by threads.

    modules: what the zygote imports, so that no child needs to. stuck_seconds: after which a zygote that does not end a
    child, such as a suspended one, is killed.
    """

    def __init__(self, *modules: str, stuck_seconds: float = _STUCK_SECONDS) -> None:
        self._modules = modules
        self._stuck_seconds = stuck_seconds
        self._lock = threading.Lock()
        self._zygote: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        limits: SandboxLimits,
        *,
        folder: Path | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Outcome:
        """Run `main(arguments)` of `module` under `limits`, wait for its end and kill its process group.

        Blocks. The child's exit status is what `main` returns. It gets none of our environment variables and none of
        our open files, and works in `folder`, by default an empty one that is deleted afterwards. `cancelled` is called
        20 times a second; when it returns true, the child is killed. A child whose zygote has died is run again. Raises
        OSError only if no process can be started, or the zygote dies again and again.
        """
        if folder is None:
            with tempfile.TemporaryDirectory(prefix="earmark-child-") as private:
                return self.run(module, arguments, limits, folder=Path(private), cancelled=cancelled)
        start = time.monotonic()
        request = json.dumps(
            {
                **{"module": module, "arguments": list(arguments), "folder": str(folder.absolute())},
                **{"limits": _resources(limits), "niceness": limits.niceness},
            }
        ).encode()
        for _ in range(_TRIES):
            with _Child(limits.output_bytes, self._stuck_seconds) as child:
                self._fork(request, child)
                interruption = child.wait(start + limits.seconds, cancelled)
            if child.returncode is not None or interruption is not None:
                return child.outcome(interruption, time.monotonic() - start)
        # As where the system has no memory for a fork, which may be why: callers try again later.
        raise OSError(errno.EAGAIN, "the sandbox's zygote dies before its child has ended")

    async def run_async(
        self, module: str, arguments: Sequence[str], limits: SandboxLimits, *, folder: Path | None = None
    ) -> Outcome:
        """Call `run` in a thread. Cancelling the task kills the child and waits for its end."""
        import asyncio  # not at the top: zygotes import this module too

        stop = threading.Event()
        call = partial(self.run, module, arguments, limits, folder=folder, cancelled=stop.is_set)
        running = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([running])
            raise

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """Threads that wait for children, as many as there have been children at once.

        Threads of their own: those that callers share are as few as the processors, and may all wait for long children.
        They stay: an event loop that starts a thread stands still until the system runs it, 12 ms on a busy machine.
        """
        from concurrent.futures import ThreadPoolExecutor  # not at the top: zygotes import this module too

        return ThreadPoolExecutor(_MAX_THREADS, "earmark-child")

    def start(self) -> None:
        """Start the zygote ahead of the first child, which else waits for its imports."""
        with self._lock:
            self._start_zygote()

    def close(self) -> None:
        """End the zygote, which kills its children."""
        with self._lock:
            self._end_zygote()

    def _fork(self, request: bytes, child: _Child) -> None:
        """Let the zygote fork a child, which `child` notices if it dies before. Raises OSError."""
        with self._lock:
            try:
                control = self._start_zygote()
                child.zygote = self._zygote
                socket.send_fds(control, [request], child.their_descriptors())
            except (BrokenPipeError, ConnectionResetError):
                self._end_zygote()

    def _start_zygote(self) -> socket.socket:
        """Return the control socket of the zygote, which is started if it does not run."""
        if self._zygote is not None and self._zygote.poll() is not None:
            self._end_zygote()
        if self._control is None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._zygote = subprocess.Popen(  # noqa: S603 - a list of words, no shell
                    [*_ZYGOTE, str(theirs.fileno()), *self._modules],
                    cwd="/",
                    env=_ENVIRONMENT,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=[theirs.fileno()],
                )
            atexit.register(self.close)
        return self._control

    def _end_zygote(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._zygote is not None:
            try:
                self._zygote.wait(self._stuck_seconds)
            except subprocess.TimeoutExpired:
                self._zygote.kill()
                self._zygote.wait()
        self._control = self._zygote = None
        atexit.unregister(self.close)


class _Child:
    """A child from its caller's side: the link to its zygote, and its output, of which only the first `max_bytes` are
    kept. A context manager that kills the child and waits for its end, at most `stuck_seconds` for its zygote.

    returncode: as in `subprocess`; None until it has ended, and if its zygote has died.
    """

    def __init__(self, max_bytes: int, stuck_seconds: float) -> None:
        self.returncode: int | None = None
        self.zygote: subprocess.Popen[bytes] | None = None
        self._output, self._errors = bytearray(), bytearray()
        self._max_bytes = max_bytes
        self._stuck_seconds = stuck_seconds
        self._flooded = self._has_ended = False
        with ExitStack() as opened:
            self._selector = opened.enter_context(selectors.DefaultSelector())
            self._link, link = map(opened.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            self._selector.register(self._link, selectors.EVENT_READ)
            self._theirs: list[Any] = [link]
            for buffer in (self._output, self._errors):
                reading, writing = (os.fdopen(end, mode, 0) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
                opened.callback(reading.close)
                opened.callback(writing.close)
                os.set_blocking(reading.fileno(), False)
                self._selector.register(reading, selectors.EVENT_READ, buffer)
                self._theirs.append(writing)
            self._opened = opened.pop_all()

    def their_descriptors(self) -> list[int]:
        """Return the descriptors that the zygote needs: its end of the link, stdout and stderr."""
        return [end.fileno() for end in self._theirs]

    def wait(self, deadline: float, cancelled: Callable[[], bool] | None) -> _Interruption | None:
        """Read the output until the child has ended; return why it must end before, if so."""
        self._close_theirs()
        while not self._has_ended:
            if self._flooded:
                return "flooded"
            if cancelled is not None and cancelled():
                return "cancelled"
            if time.monotonic() > deadline:
                return "timed_out"
            self._read(_POLL_SECONDS)
        return None

    def outcome(self, interruption: _Interruption | None, seconds: float) -> Outcome:
        """Return the outcome of a child that has ended."""
        killed = signal.Signals(-self.returncode) if self.returncode is not None and self.returncode < 0 else None
        status = "exited" if killed is None else "timed_out" if killed == signal.SIGXCPU else "crashed"
        return Outcome(
            status=interruption or ("flooded" if self._flooded else status),
            returncode=self.returncode if killed is None else None,
            signal=killed,
            output=bytes(self._output),
            errors=bytes(self._errors),
            seconds=seconds,
        )

    def _close_theirs(self) -> None:
        for end in self._theirs:
            end.close()

    def _read(self, seconds: float) -> bool:
        """Read what there is, waiting up to `seconds` for it. Return False if there was no output."""
        has_read = False
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._receive()
                continue
            chunk = os.read(key.fd, 65536)
            if not chunk:
                self._selector.unregister(key.fileobj)
                continue
            has_read = True
            room = self._max_bytes - len(self._output) - len(self._errors)
            self._flooded = self._flooded or len(chunk) > room
            key.data.extend(chunk[:room])
        return has_read

    def _receive(self) -> None:
        """Receive how the child has ended, or nothing: its zygote has died, and it with it. Raises OSError if the
        zygote could not fork, and TimeoutError."""
        message: dict[str, int] = json.loads(self._link.recv(MAX_MESSAGE_BYTES) or "{}")
        self._has_ended = True
        self._selector.unregister(self._link)
        if "errno" in message:
            raise OSError(message["errno"], f"the sandbox cannot fork: {os.strerror(message['errno'])}")
        self.returncode = message.get("returncode")

    def __enter__(self) -> _Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened:
            self._close_theirs()
            with suppress(OSError):  # the zygote has closed its end
                self._link.shutdown(socket.SHUT_WR)
            self._link.settimeout(self._stuck_seconds)
            while not self._has_ended:
                try:
                    self._receive()
                except TimeoutError:
                    if self.zygote is not None:
                        self.zygote.kill()
            for _ in range(_MAX_DRAIN_READS):
                if not self._read(0):
                    break


def _resources(limits: SandboxLimits) -> dict[str, tuple[int, int]]:
    return {
        "RLIMIT_AS": (limits.memory_bytes, limits.memory_bytes),
        # SIGKILL follows SIGXCPU after a second.
        "RLIMIT_CPU": (limits.cpu_seconds, limits.cpu_seconds + 1),
        "RLIMIT_FSIZE": (limits.file_bytes, limits.file_bytes),
        "RLIMIT_NOFILE": (limits.open_files, limits.open_files),
        "RLIMIT_CORE": (0, 0),
    }
