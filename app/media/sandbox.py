"""Sandbox: a child process for untrusted input, with resource limits, a private folder and a minimal environment.

A small launcher sets the limits on itself and then executes the program (no `preexec_fn`, which is unsafe in a process
with threads). Linux only.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal, cast

# The folder of our packages. A child does not import from its working folder, which may hold untrusted files.
_ROOT = Path(__file__).resolve().parents[2]
# Interval between checks of the clock and of the caller's `cancelled`.
_POLL_SECONDS = 0.05
# Reads after the child has ended: enough for a full pipe. A pipe that still fills belongs to a process that left the
# child's session.
_MAX_DRAIN_READS = 64
# prctl(PR_SET_PDEATHSIG, SIGKILL) kills the child when its parent is killed.
_LAUNCHER = """
import ctypes, json, os, resource, signal, sys
parent, limits = int(sys.argv[1]), json.loads(sys.argv[2])
for name, (soft, hard) in limits.items():
    most = resource.getrlimit(getattr(resource, name))[1]
    most = hard if most == resource.RLIM_INFINITY else min(hard, most)
    resource.setrlimit(getattr(resource, name), (min(soft, most), most))
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != parent:
    sys.exit(1)
os.nice(int(sys.argv[3]))
os.execv(sys.argv[4], sys.argv[4:])
"""


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


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs one of our modules, `python -m MODULE ARGUMENTS`.

    It writes no byte code and imports neither from its working folder nor from the user's site-packages.
    """
    return [sys.executable, "-P", "-s", "-B", "-m", module, *arguments]


def run(
    command: Sequence[str],
    limits: SandboxLimits,
    *,
    folder: Path | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Outcome:
    """Run `command` (its first word is a path) under `limits`, wait for its end and kill its process group.

    Blocks; may be called from any thread. The child gets none of our environment variables. It works in `folder`, by
    default an empty one that is deleted afterwards. `cancelled` is called 20 times a second; when it returns true, the
    child is killed. Raises OSError only if no process can be started.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="earmark-child-") as private:
            return run(command, limits, folder=Path(private), cancelled=cancelled)
    start = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - a list of words, no shell
        [
            *(sys.executable, "-I", "-S", "-c", _LAUNCHER),
            *(str(os.getpid()), json.dumps(_resources(limits)), str(limits.niceness), *command),
        ],
        cwd=folder,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    streams = _Streams(process, limits.output_bytes)
    status: Literal["exited", "timed_out", "cancelled", "flooded"] = "exited"
    try:
        while not _wait(process):
            if streams.flooded:
                status = "flooded"
            elif cancelled is not None and cancelled():
                status = "cancelled"
            elif time.monotonic() - start > limits.seconds:
                status = "timed_out"
            if status != "exited":
                break
            streams.read(_POLL_SECONDS)
    finally:
        # Before the process is reaped: until then its group's id cannot be reused.
        _kill_group(process)
        process.wait()
        streams.drain()
        streams.close()
    killed = signal.Signals(-process.returncode) if process.returncode < 0 else None
    return Outcome(
        status=_final_status(status, killed, streams.flooded),
        returncode=process.returncode if killed is None else None,
        signal=killed,
        output=bytes(streams.output),
        errors=bytes(streams.errors),
        seconds=time.monotonic() - start,
    )


async def run_async(command: Sequence[str], limits: SandboxLimits, *, folder: Path | None = None) -> Outcome:
    """Call `run` in a thread. Cancelling the task kills the child and waits for its end."""
    # Not at the top: children import this module too, and asyncio would double their start-up time.
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    stop = threading.Event()
    call = partial(run, command, limits, folder=folder, cancelled=stop.is_set)
    # A thread of its own: those that callers share are as few as the processors, and may all wait for long children.
    executor = ThreadPoolExecutor(1, "earmark-child")
    running = asyncio.get_running_loop().run_in_executor(executor, call)
    executor.shutdown(wait=False)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([running])
        raise


def _resources(limits: SandboxLimits) -> dict[str, tuple[int, int]]:
    return {
        "RLIMIT_AS": (limits.memory_bytes, limits.memory_bytes),
        # SIGKILL follows SIGXCPU after a second.
        "RLIMIT_CPU": (limits.cpu_seconds, limits.cpu_seconds + 1),
        "RLIMIT_FSIZE": (limits.file_bytes, limits.file_bytes),
        "RLIMIT_NOFILE": (limits.open_files, limits.open_files),
        "RLIMIT_CORE": (0, 0),
    }


def _environment(folder: Path) -> dict[str, str]:
    # One thread: numeric libraries reserve address space for every thread that they may start.
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PYTHONPATH": str(_ROOT), "LANG": "C.UTF-8", "HOME": str(folder), "TMPDIR": str(folder), **single}


def _wait(process: subprocess.Popen[bytes]) -> bool:
    # WNOWAIT: the process is not reaped, and its id not reused, before its group is killed.
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        # The process has just started and does not lead its own group yet.
        process.kill()


def _final_status(
    status: Literal["exited", "timed_out", "cancelled", "flooded"], killed: signal.Signals | None, flooded: bool
) -> Literal["exited", "crashed", "timed_out", "cancelled", "flooded"]:
    if status != "exited":
        return status
    if flooded:
        return "flooded"
    if killed == signal.SIGXCPU:
        return "timed_out"
    return "exited" if killed is None else "crashed"


class _Streams:
    """Output of a child, up to a limit; the rest is read and discarded."""

    def __init__(self, process: subprocess.Popen[bytes], max_bytes: int) -> None:
        self.output = bytearray()
        self.errors = bytearray()
        self.flooded = False
        self._max_bytes = max_bytes
        self._selector = selectors.DefaultSelector()
        self._files: list[IO[bytes]] = []
        for pipe, buffer in ((process.stdout, self.output), (process.stderr, self.errors)):
            file = cast(IO[bytes], pipe)
            os.set_blocking(file.fileno(), False)
            self._selector.register(file, selectors.EVENT_READ, buffer)
            self._files.append(file)

    def read(self, seconds: float) -> bool:
        """Read the available output, waiting up to `seconds` for it. Return False if there was none."""
        if not self._selector.get_map():
            # Both pipes are closed: nothing wakes the selector before the process ends.
            time.sleep(min(seconds, 0.005))
            return False
        has_read = False
        for key, _ in self._selector.select(seconds):
            chunk = os.read(key.fd, 65536)
            if not chunk:
                self._selector.unregister(key.fileobj)
                continue
            has_read = True
            room = self._max_bytes - len(self.output) - len(self.errors)
            self.flooded = self.flooded or len(chunk) > room
            key.data.extend(chunk[:room])
        return has_read

    def drain(self) -> None:
        """Read what an ended process has left in its pipes."""
        for _ in range(_MAX_DRAIN_READS):
            if not self._selector.get_map() or not self.read(0):
                return

    def close(self) -> None:
        self._selector.close()
        for file in self._files:
            file.close()
