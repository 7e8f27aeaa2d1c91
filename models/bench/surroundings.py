"""Load and limits on a measured program: busy processes beside it, and a quota of cores."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_PERIOD = 100_000  # µs
# Enters the group, then becomes the program.
_ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


class QuotaUnavailable(Exception):
    """This process may not make a cgroup with a quota here."""


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Run processes that each use a whole core."""
    with ExitStack() as stack:
        for _ in range(processes):
            command = [sys.executable, "-c", "while True: pass"]
            program = stack.enter_context(subprocess.Popen(command))  # noqa: S603  our own program
            stack.callback(program.kill)
        yield


@contextmanager
def quota(cores: float) -> Iterator[list[str]]:
    """Make a cgroup that may use so many cores; yield the words that start a command in it.

    Raises `QuotaUnavailable`.
    """
    is_v2 = (_CGROUPS / "cgroup.controllers").exists()
    group = (_CGROUPS if is_v2 else _CGROUPS / "cpu") / "earmark-bench"
    limits = {"cpu.max": f"{round(cores * _PERIOD)} {_PERIOD}"}
    if not is_v2:
        limits = {"cpu.cfs_period_us": str(_PERIOD), "cpu.cfs_quota_us": str(round(cores * _PERIOD))}
    try:
        group.mkdir(exist_ok=True)
        for name, value in limits.items():
            (group / name).write_text(value)
    except OSError as error:
        raise QuotaUnavailable(f"no quota can be set here: {error}") from error
    try:
        yield ["sh", "-c", _ENTER, str(group)]
    finally:
        with suppress(OSError):  # a process of it is still ending
            group.rmdir()
