"""Runs of `python -m models` that are measured: each is a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

# Of another program, which asks for no huge pages.
OTHERS = {"THP_MEM_ALLOC_ENABLE": "0"}


def run(
    arguments: Sequence[str], measured: str, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> str:
    """Run the command and return what it prints. Raises ValueError with the reason, in one line, if it fails.

    measured: what is measured, for that line. prefix: a program that runs the command, with its arguments.
    environment: variables beside this process's.
    """
    command = [*prefix, sys.executable, "-m", "models", *arguments]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=variables)  # noqa: S603  our own program
    if done.returncode:
        raise ValueError(f"measuring {measured} failed: {_reason(done.returncode, done.stderr)}")
    return done.stdout


def _reason(status: int, said: str) -> str:
    if status == -signal.SIGKILL:
        return "its process was killed, as the kernel does when memory runs out"
    if status < 0:
        return f"its process ended by {signal.Signals(-status).name}"
    lines = said.strip().splitlines()
    return lines[-1] if lines else f"its process ended with status {status} and said nothing"
