"""Zygote of the sandbox: a process that has imported the decoders, and forks a child for each file.

`python -m app.media.zygote FD MODULE...` imports the modules, then serves requests on the socket FD until its other end
is closed. It has one thread and never opens a client's file, so that no child sees what another one has read. A fork
takes milliseconds; a new interpreter with its decoders takes a third of a second.

A request is a JSON object with three descriptors: the caller's link, and the child's stdout and stderr. Over the link
the zygote sends {"returncode": N} (negative: a signal) once the child has ended, or {"errno": N} if it cannot fork.
When the caller shuts its end of the link down, or dies, the child is killed. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from app.media.priority import NICENESS

MAX_MESSAGE_BYTES = 65536
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
CHILD_NAME = "sandbox-child"  # in lists of processes


class Zygote:
    """The zygote's side of the sandbox. control: the socket of requests."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pid = os.getpid()
        self._prctl = ctypes.CDLL(None).prctl
        self._links: dict[int, socket.socket] = {}  # of the children, by their pid
        self._killed: set[int] = set()  # children that end because their caller wants it
        self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Serve requests until the control socket's other end is closed; then kill all children."""
        while True:
            control = self._control.fileno()
            links = {link.fileno(): pid for pid, link in self._links.items() if pid not in self._killed}
            ready = _wait_until_readable([control, self._woken, *links])
            if self._woken in ready:
                os.read(self._woken, 512)
            for link, pid in links.items():
                if link in ready:
                    self._killed.add(pid)
                    _kill_group(pid)
            self._reap()
            if control in ready and not self._accept():
                break
        for pid in self._links:
            _kill_group(pid)

    def _accept(self) -> bool:
        """Fork a child for the next request; return False if there is none any more."""
        message, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 3)
        if not message:
            return False
        link = socket.socket(fileno=descriptors[0])
        try:
            pid = os.fork()
        except OSError as error:
            _send(link, {"errno": error.errno})
            link.close()
        else:
            if pid == 0:
                self._become_child(message, descriptors[1:])
            self._links[pid] = link
        for stream in descriptors[1:]:
            os.close(stream)
        return True

    def _reap(self) -> None:
        """Reap the children that have ended, and tell their callers how."""
        for pid in list(self._links):
            # WNOWAIT: the process is not reaped, and its id not reused, before its group is killed.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                _kill_group(pid)
                _, status = os.waitpid(pid, 0)
                self._killed.discard(pid)
                with self._links.pop(pid) as link:
                    _send(link, {"returncode": os.waitstatus_to_exitcode(status)})

    def _become_child(self, message: bytes, streams: Iterable[int]) -> NoReturn:
        """Run the module of a request under its limits. Only the standard streams stay open."""
        status = 1
        try:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != self._pid:  # it died before the call
                os._exit(status)
            self._prctl(_PR_SET_NAME, CHILD_NAME.encode(), 0, 0, 0)
            # A group to kill. Not a session: where Linux groups processes by session (autogroup), each gets an equal
            # part of the processors, as large as that of the server, and niceness counts within one session only.
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, stream in enumerate(streams, 1):
                os.dup2(stream, number)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            request = json.loads(message)
            os.chdir(request["folder"])
            os.environ.update(HOME=request["folder"], TMPDIR=request["folder"])
            os.nice(request["niceness"])
            _set_limits(request["limits"])
            raise SystemExit(import_module(request["module"]).main(request["arguments"]))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)


def _wait_until_readable(descriptors: Iterable[int]) -> set[int]:
    """Wait until there is something to read from some descriptors, and return these.

    Not `select()`: it takes no descriptor above 1023, and ours have the caller's numbers, a server with many clients.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll()}


def _lower_session(niceness: int) -> None:
    """Give this session, that of all decoders, a niceness. Raises OSError.

    Where Linux groups processes by session (autogroup), one is as much as another, such as the server's, whatever the
    niceness of its processes is.
    """
    Path("/proc/self/autogroup").write_text(str(niceness))


def _set_limits(limits: Mapping[str, tuple[int, int]]) -> None:
    for name, (soft, hard) in limits.items():
        kind = getattr(resource, name)
        most = resource.getrlimit(kind)[1]
        most = hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(kind, (min(soft, most), most))


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        # The child has just begun and does not lead its own group yet.
        os.kill(pid, signal.SIGKILL)


def _send(link: socket.socket, message: Mapping[str, Any]) -> None:
    with suppress(OSError):  # the caller has ended, and its child ends with it
        link.send(json.dumps(message).encode())


def main(arguments: list[str]) -> None:
    """Run the zygote; it ends when its caller's process does."""
    descriptor, *modules = arguments
    with suppress(OSError):  # not grouped by session, or not told of it
        _lower_session(NICENESS)
    for module in modules:
        with suppress(Exception):  # the child that needs it tells why
            import_module(module)
    gc.freeze()  # a collection in a child would copy the pages of all objects
    Zygote(socket.socket(fileno=int(descriptor))).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
