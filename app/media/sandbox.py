"""Runs a program that may not be trusted in a process that may be killed.

Limits are set by the process on itself before the program begins (no `preexec_fn`, which is unsafe beside threads): a
small launcher sets them and becomes the program. Linux only.
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
from pathlib import Path
from typing import IO, Literal, cast

# Where our packages are: a child does not look for them in its working folder, which may hold a stranger's files.
_ROOT = Path(__file__).resolve().parents[2]
# How often the clock and the caller's `cancelled` are looked at.
_BEAT_SECONDS = 0.05
# A full pipe is read by then; one that still fills belongs to a process that left the child's session.
_PIPE_READS = 64
# prctl(PR_SET_PDEATHSIG, SIGKILL): the child does not outlive a parent that was killed.
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
os.execv(sys.argv[3], sys.argv[3:])
"""


@dataclass(frozen=True)
class SandboxLimits:
    """What a child may use: wall-clock seconds, CPU seconds, bytes of address space, of any one file that it writes,
    and of what it prints."""

    seconds: float
    cpu_seconds: int
    memory_bytes: int
    file_bytes: int
    output_bytes: int = 65536
    open_files: int = 64


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    `status`: `exited` by itself with `returncode`; `crashed` by `signal`; `timed_out` by the clock or its CPU limit;
    `cancelled` by the caller; `flooded`: it printed more than is allowed. All but the first two were killed.
    """

    status: Literal["exited", "crashed", "timed_out", "cancelled", "flooded"]
    returncode: int | None
    signal: signal.Signals | None
    output: bytes
    errors: bytes
    seconds: float

    @property
    def succeeded(self) -> bool:
        """Whether it came to its end and said that all is well."""
        return self.status == "exited" and self.returncode == 0


def python(module: str, *arguments: str) -> list[str]:
    """The program that is a module of ours, `python -m module arguments`: it writes no byte code, and looks for modules
    neither in its working folder nor in the user's own packages."""
    return [sys.executable, "-P", "-s", "-B", "-m", module, *arguments]


def run(
    program: Sequence[str],
    limits: SandboxLimits,
    *,
    folder: Path | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Outcome:
    """Runs `program` (its first word a path) under `limits` and waits for its end, which is also that of the processes
    in its group. Blocks; safe in any thread.

    It sees none of our environment, and works in `folder`, by default an empty one that is deleted afterwards.
    `cancelled` is asked 20 times a second. Raises OSError only if no process can be started.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="earmark-child-") as private:
            return run(program, limits, folder=Path(private), cancelled=cancelled)
    began = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - the caller's own words, no shell
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), json.dumps(_resources(limits)), *program],
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
            elif time.monotonic() - began > limits.seconds:
                status = "timed_out"
            if status != "exited":
                break
            streams.read(_BEAT_SECONDS)
    finally:
        # Before the process is reaped, so that its group's number is still its own.
        _kill_group(process)
        process.wait()
        streams.drain()
        streams.close()
    killed = signal.Signals(-process.returncode) if process.returncode < 0 else None
    return Outcome(
        status=_verdict(status, killed, streams.flooded),
        returncode=process.returncode if killed is None else None,
        signal=killed,
        output=bytes(streams.output),
        errors=bytes(streams.errors),
        seconds=time.monotonic() - began,
    )


async def run_async(program: Sequence[str], limits: SandboxLimits, *, folder: Path | None = None) -> Outcome:
    """`run` for an event loop. Cancelling the task kills the child, and returns when it is gone."""
    import asyncio  # a child of ours imports this file too, and asyncio would be half of what it waits for

    stop = threading.Event()
    running = asyncio.create_task(asyncio.to_thread(run, program, limits, folder=folder, cancelled=stop.is_set))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([running])
        raise


def _resources(limits: SandboxLimits) -> dict[str, tuple[int, int]]:
    return {
        "RLIMIT_AS": (limits.memory_bytes, limits.memory_bytes),
        # A second after SIGXCPU, SIGKILL.
        "RLIMIT_CPU": (limits.cpu_seconds, limits.cpu_seconds + 1),
        "RLIMIT_FSIZE": (limits.file_bytes, limits.file_bytes),
        "RLIMIT_NOFILE": (limits.open_files, limits.open_files),
        "RLIMIT_CORE": (0, 0),
    }


def _environment(folder: Path) -> dict[str, str]:
    # One thread each: numeric libraries reserve address space for every thread that they might start.
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PYTHONPATH": str(_ROOT), "LANG": "C.UTF-8", "HOME": str(folder), "TMPDIR": str(folder), **single}


def _wait(process: subprocess.Popen[bytes]) -> bool:
    # WNOWAIT leaves it to be reaped, and its number taken, until its group is killed.
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        # Not yet the leader of a group of its own: killed within moments of its birth.
        process.kill()


def _verdict(
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
    """What a child prints, up to a limit; the rest is read and forgotten."""

    def __init__(self, process: subprocess.Popen[bytes], most: int) -> None:
        self.output = bytearray()
        self.errors = bytearray()
        self.flooded = False
        self._most = most
        self._selector = selectors.DefaultSelector()
        self._files: list[IO[bytes]] = []
        for pipe, kept in ((process.stdout, self.output), (process.stderr, self.errors)):
            file = cast(IO[bytes], pipe)
            os.set_blocking(file.fileno(), False)
            self._selector.register(file, selectors.EVENT_READ, kept)
            self._files.append(file)

    def read(self, seconds: float) -> bool:
        """Reads what is there, waiting up to `seconds` for something; False when nothing came."""
        if not self._selector.get_map():
            # Both are closed: nothing will wake the selector before the process ends.
            time.sleep(min(seconds, 0.005))
            return False
        came = False
        for key, _ in self._selector.select(seconds):
            chunk = os.read(key.fd, 65536)
            if not chunk:
                self._selector.unregister(key.fileobj)
                continue
            came = True
            room = self._most - len(self.output) - len(self.errors)
            self.flooded = self.flooded or len(chunk) > room
            key.data.extend(chunk[:room])
        return came

    def drain(self) -> None:
        """Reads what a process that is gone has left in its pipes."""
        for _ in range(_PIPE_READS):
            if not self._selector.get_map() or not self.read(0):
                return

    def close(self) -> None:
        self._selector.close()
        for file in self._files:
            file.close()
