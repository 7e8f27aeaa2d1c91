"""Supervised programs are restarted when they die, stopped in order, and never outlive their parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from app.supervisor import Program, ProgramFailed, Supervisor

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
SIGTERM_IGNORER = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_dead_program_is_restarted_after_a_backoff():
    program = Program("sleeper", SLEEPER)
    supervisor = Supervisor()
    supervisor.add(program)
    try:
        assert program.process is not None
        first = program.process.pid
        program.process.kill()
        assert eventually(lambda: (supervisor.restart_dead(), program.deaths == 1)[1])
        assert program.process is None, "not immediately: a program that cannot start must not loop"
        assert eventually(lambda: (supervisor.restart_dead(), program.process is not None)[1])
        assert program.process.pid != first
    finally:
        supervisor.stop()


def test_a_program_that_keeps_dying_while_starting_is_an_error():
    supervisor = Supervisor()
    supervisor.add(Program("broken", [sys.executable, "-c", "raise SystemExit(2)"]))
    with pytest.raises(ProgramFailed, match="broken died 3 times"):
        supervisor.wait_until(lambda: False, lambda: False)
    supervisor.stop()


def test_a_program_that_ignores_sigterm_is_killed_after_its_timeout(tmp_path: Path):
    ignores = tmp_path / "ignores"
    program = Program("stubborn", [sys.executable, "-c", SIGTERM_IGNORER, str(ignores)], stop_timeout=0.3)
    program.start()
    process = program.process
    assert process is not None
    assert eventually(ignores.exists)
    program.terminate()
    program.wait()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_children_die_with_a_parent_that_is_killed():
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import sys, time
                from app.supervisor import Program
                program = Program("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"])
                program.start()
                print(program.process.pid, flush=True)
                time.sleep(600)
                """
            ),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        os.kill(parent.pid, signal.SIGKILL)
        assert eventually(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie")
